"""The small captured graphs of the tests of lowering."""

from lower.conftest import small

__all__ = ["small"]
