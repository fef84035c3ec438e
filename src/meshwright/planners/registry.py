"""Planners by name, by entry point or by file.

A planner of ours registers itself with `@register` in its own file; a package elsewhere names its class under the entry
point group "meshwright.planners"; a single file is given by its path. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .._spelling import nearest
from ..errors import InputError
from .base import Planner
from .types import Info

GROUP = "meshwright.planners"
P = TypeVar("P", bound=type[Planner])
_registered: dict[str, type[Planner]] = {}
_MACHINERY = frozenset({"base", "registry", "types"})


def register(kind: P) -> P:
    """Class decorator: makes a planner known under `info.name`."""
    name = kind.info.name
    known = _registered.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise InputError(f'planner name "{name}" is taken by {known.__module__}: give {kind.__module__} another')
    _registered[name] = kind
    return kind


def names() -> list[str]:
    """Names of all planners, without importing those of other packages."""
    return sorted({*_builtin(), *_entries()})


def finished_names() -> list[str]:
    """Names of planners that have every part of their method: what "all" means."""
    return [name for name, kind in planners().items() if not kind.info.missing]


def planners() -> Mapping[str, type[Planner]]:
    """All planners by name. A broken plug-in is skipped with a warning that names its distribution."""
    found = dict(_builtin())
    for name, entry in _entries().items():
        if name not in found:
            kind = _plug_in(entry)
            if kind is not None:
                found[name] = kind
    return dict(sorted(found.items()))


def load(spec: str) -> Planner:
    """The planner named `spec`, or that of the file `./file.py` (of several: `./file.py:Name`), with its defaults.

    Raises:
        InputError: no such planner or file, or a file that does not define one.
    """
    path, colon, wanted = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, wanted = spec, ""
    if path.endswith(".py") or "/" in path:
        return _made(_from_file(Path(path), wanted), path)
    builtin = _builtin()
    if spec in builtin:
        return builtin[spec]()
    entry = _entries().get(spec)
    if entry is not None:
        kind = _plug_in(entry)
        if kind is not None:
            return kind()
        raise InputError(f'planner "{spec}" of {_owner(entry)} is broken: mend or remove that package')
    known = names()
    near = nearest(spec, known)
    hint = f": did you mean {near}?" if near else ""
    raise InputError(f'no planner "{spec}"{hint} ("meshwright planners" lists {len(known)})')


@cache
def _builtin() -> Mapping[str, type[Planner]]:
    folder = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(folder.__path__):
        if not module.name.startswith("_") and module.name not in _MACHINERY:
            importlib.import_module(f"{__package__}.{module.name}")
    return {name: kind for name, kind in _registered.items() if kind.__module__.startswith(f"{__package__}.")}


def _entries() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, entry)
    return found


def _plug_in(entry: EntryPoint) -> type[Planner] | None:
    try:
        kind = entry.load()
        if not (inspect.isclass(kind) and issubclass(kind, Planner) and not inspect.isabstract(kind)):
            raise TypeError(f"{entry.value} is no Planner class with search and objective")
    except Exception as error:  # a plug-in may raise anything on import
        warnings.warn(
            f'planner plug-in "{entry.name}" of {_owner(entry)} is broken and skipped: {type(error).__name__}: {error}',
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return kind


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"


def _from_file(path: Path, wanted: str) -> type[Planner]:
    found = list(_defined(_import_file(path)))
    names = ", ".join(kind.__name__ for kind in found)
    if not found:
        raise InputError(
            f"{path} defines no planner: it needs a class of meshwright.planners.Planner with search and objective"
        )
    if wanted:
        for kind in found:
            if kind.__name__ == wanted:
                return kind
        raise InputError(f'{path} has no planner "{wanted}": it defines {names}')
    if len(found) > 1:
        raise InputError(f"{path} defines {len(found)} planners, {names}: name one, such as {path}:{found[0].__name__}")
    return found[0]


def _made(kind: type[Planner], path: str) -> Planner:
    if not isinstance(getattr(kind, "info", None), Info):
        raise InputError(f"{path}: {kind.__name__} has no info: set info = Info(name=…, …), which says what it takes")
    try:
        return kind()
    except TypeError as error:
        raise InputError(f"{path}: {kind.__name__} cannot be made without arguments: {error}") from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no file {path}: give the path of a Python file that defines a planner, or a planner's name")
    # One module per path and content: an edited file is loaded anew, and classes of two files never mix.
    key = sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:16]
    name = f"meshwright_planner_{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # sys.exit() in a script would end the command without a word
        del sys.modules[name]
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _defined(module: ModuleType) -> Iterator[type[Planner]]:
    for value in vars(module).values():
        own = inspect.isclass(value) and value.__module__ == module.__name__
        if own and issubclass(value, Planner) and not inspect.isabstract(value):
            yield value
