"""Compiled kernels: compiled at their first call, cached on disk where that is possible, called with one array flavour only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Kind: TypeAlias = "type[np.generic] | type[int] | type[float]"


def kernel(*kinds: Kind) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function at its first call; each argument is an array of the given numpy scalar type, or an int or float.

    numba compiles again, silently and for half a second, for every other dtype, order or read-only flag: here arguments
    become writable C arrays of one dtype (copied only if they are not). Explicit signatures would compile at import.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @cache
        def compiled() -> Callable[..., Any]:
            import numba

            folder = _cache_folder(Path(function.__code__.co_filename))
            before = numba.config.CACHE_DIR
            try:
                # Read by numba while it decorates; set back, because other packages have kernels of their own.
                numba.config.CACHE_DIR = str(folder or before)
                return _njit(cache=folder is not None)(function)
            finally:
                numba.config.CACHE_DIR = before

        def call(*args: Any) -> Any:
            if len(args) != len(kinds):
                raise TypeError(f"{function.__name__} takes {len(kinds)} arguments, got {len(args)}")
            return compiled()(*(_fixed(a, k) for a, k in zip(args, kinds, strict=True)))

        call.__doc__ = function.__doc__
        call.__name__ = function.__name__
        call.python = function  # type: ignore[attr-defined]
        return call

    return wrap


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A helper that kernels of the same file call: numba compiles it together with its first caller."""
    return _njit(cache=False)(function)


def _njit(cache: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    import numba

    made: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
        cache=cache, nogil=True, boundscheck=False, error_model="numpy"
    )
    return made


def _fixed(value: Any, kind: Kind) -> Any:
    if kind is int or kind is float:
        return kind(value)
    return np.require(value, kind, ("C", "W"))


@cache
def _cache_folder(source: Path) -> Path | None:
    """The first writable place: the user's setting, beside the source, the user's cache, a temporary folder of the user's own.

    The folder's name has a digest of the source: numba does not notice that a CALLED kernel has changed.
    """
    digest = sha256(source.read_bytes()).hexdigest()[:12] if source.exists() else "frozen"
    setting = os.environ.get("NUMBA_CACHE_DIR")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    places = [Path(setting)] if setting else []
    places += [source.parent / "__pycache__", user / "meshwright", Path(tempfile.gettempdir()) / f"meshwright-{owner}"]
    for place in places:
        folder = place if setting and place == places[0] else place / f"kernels-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None
