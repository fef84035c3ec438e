"""`meshwright.plan` is a folder of types and also the first thing that people call: such packages answer to a call."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar


class _Callable(ModuleType):
    target: ClassVar[str] = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)(*args, **kwargs)


def make_callable(module: str, target: str) -> None:
    """Calling the package `module` calls `target` ("package.module:function") from now on."""
    found = sys.modules[module]
    found.__class__ = type("CallableModule", (_Callable,), {"target": target})
