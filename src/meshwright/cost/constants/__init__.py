"""Constants of the analytic model by device family and software generation, from the TOML files beside this one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar

from ...errors import InputError
from ..losses import Holding

Attention = Literal["unfused", "first", "flash", "modern", "modern-8"]


@dataclass(frozen=True, slots=True)
class Family:
    """Shares of nominal rates that a device family reaches; meaning and evidence in families.toml."""

    gemm_16: float
    gemm_8: float
    gemm_4: float
    gemm_32: float
    attention_first: float
    attention_flash: float
    attention_modern: float
    small_head: float
    memory: float
    norm: float
    inner: float
    outer: float
    fill: float
    exchange: float
    start: float
    sms: int
    depth: float
    launch: float
    score_rate: float
    score_bytes: float
    misaligned: float
    workspace: float = 0.0
    workspace_engine: float = 0.0


@dataclass(frozen=True, slots=True)
class Software:
    """What a software generation does; meaning and evidence in software.toml. Times in seconds."""

    attention: Attention
    floor_forward: float
    floor_backward: float
    overlap_data: float
    overlap_sharded: float
    overlap_tensor: float
    overlap_gradient: float
    fused: float
    quantise: float
    transfer: float
    straggle: float
    fixed: float
    rate: float
    odd: float
    loss: Holding
    dispatch: float
    expert: float
    engine: Literal["torch", "transformer-engine"] = "torch"
    deterministic: bool = False
    grouped: bool = True
    dropout: bool = True


_Row = TypeVar("_Row", Family, Software)
Predicted = Literal["step", "memory"]
_OF_MEMORY = frozenset(
    {
        *("workspace", "workspace_engine"),
        *("attention", "loss", "engine", "deterministic", "grouped", "dropout"),
    }
)
"""Constants that bytes are counted by; times are computed from all of them."""


@cache
def families() -> Mapping[str, Family]:
    """All device families by name."""
    return _load("families.toml", Family)


@cache
def software() -> Mapping[str, Software]:
    """All software generations by name."""
    return _load("software.toml", Software)


def family(name: str) -> Family:
    """The constants of one device family.

    Raises:
        InputError: no such family.
    """
    if name not in families():
        raise InputError(f'no device family "{name}": known are {", ".join(families())}', where="family")
    return families()[name]


def chip(name: str) -> str:
    """A device family without the power that a board limits it to: "h100-500w" is "h100"."""
    return re.sub(r"-\d+w$", "", name)


def generation(name: str) -> Software:
    """The constants of one software generation.

    Raises:
        InputError: no such generation.
    """
    if name not in software():
        raise InputError(f'no software generation "{name}": known are {", ".join(software())}', where="software")
    return software()[name]


def among(row: Family | Software, known: Iterable[Family | Software], what: Predicted) -> bool:
    """Is what is predicted by a row predicted so by one of the known rows, too?"""
    names = [f.name for f in fields(row) if what == "step" or f.name in _OF_MEMORY]
    return any(all(getattr(row, n) == getattr(k, n) for n in names) for k in known)


def _load(file: str, kind: type[_Row]) -> dict[str, _Row]:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    found: dict[str, _Row] = {}
    names = {f.name for f in fields(kind)}
    for name, row in tomllib.loads(text).items():
        values: dict[str, Any] = {k: v for k, v in row.items() if k != "base"}
        if unknown := set(values) - names:
            raise InputError(f"{file}: no field {sorted(unknown)} in [{name}]")
        found[name] = replace(found[row["base"]], **values) if "base" in row else kind(**values)
    return found
