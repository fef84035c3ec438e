"""Small captured graphs, once for all tests of lowering."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from meshwright.graph.ir import Graph


@lru_cache(maxsize=8)
def captured(name: str, blocks: int = 4) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=blocks, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=32, dropout=0.0)
    return resolve(name).graph(batch=2, seq=32, dtype="float32", shrink=shrink, cache=False)


@pytest.fixture(scope="session")
def small() -> Callable[[str], Graph]:
    return captured
