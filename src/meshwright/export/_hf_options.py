"""Names of settings that accelerate and transformers know."""

from __future__ import annotations

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


UNKNOWN = "no setting of accelerate or transformers: taken as the script's own"


def known(owner: str, name: str, where: str, ignored: dict[str, str]) -> bool:
    """Whether an owner has a setting; what is far from all that it has is put into `ignored`.

    Raises:
        InputError: a name that is near one that it has.
    """
    if name in names(owner):
        return True
    near = nearest(name, names(owner))
    if near:
        raise InputError(f'{owner} has no "{name}": did you mean {near}?', where=where)
    ignored[name] = UNKNOWN
    return False
