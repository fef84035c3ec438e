"""Names of settings that accelerate and transformers know."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from .._spelling import nearest
from ..errors import InputError

OWNERS = (
    "DistributedConfig", "ParallelismConfig", "TrainingArguments", "GradientAccumulationPlugin", "FullyShardedDataParallelPlugin",
    "DeepSpeedPlugin",
)  # fmt: skip
"""Classes whose settings say something of a layout."""


@cache
def names(owner: str) -> tuple[str, ...]:
    """Fields of a class, or keys of a section of accelerate's YAML, in order."""
    return _read()[owner]


@cache
def _read() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    owner = ""
    for line in files(__package__).joinpath("_hf_options.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if line.startswith(" "):
            found[owner] = (*found.get(owner, ()), *line.split())
        else:
            owner = line.removesuffix(":")
    return found


def check(owner: str, given: Iterable[str], where: str) -> None:
    """Refuse a name that its owner does not have.

    Raises:
        InputError: with the nearest name.
    """
    known = names(owner)
    for name in given:
        if name not in known:
            near = nearest(name, known, limit=3)
            raise InputError(f'{owner} has no "{name}"' + (f": did you mean {near}?" if near else ""), where=where)
