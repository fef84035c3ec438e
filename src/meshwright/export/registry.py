"""Which targets there are. A target's file is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .._spelling import nearest
from ..errors import InputError

if TYPE_CHECKING:  # a shell waits for completed names
    from .base import Exporter

TARGETS = {
    "torchtitan": "Torchtitan",
    "megatron": "Megatron",
    "megatron_bridge": "MegatronBridge",
    "accelerate": "Accelerate",
    "transformers": "Transformers",
    "deepspeed": "DeepSpeed",
    "maxtext": "MaxText",
}
"""Module in this folder (its name in `--to`, with - for _) -> class."""


def names() -> tuple[str, ...]:
    return tuple(name.replace("_", "-") for name in TARGETS if find_spec(f"{__package__}.{name}"))


def kind(name: str) -> type[Exporter]:
    """The exporter of a target.

    Raises:
        InputError: no such target.
    """
    key = name.replace("-", "_")
    if key not in TARGETS:
        near = nearest(name, names())
        known = f"did you mean {near}?" if near else f"there are {', '.join(names())}"
        raise InputError(
            f'no exporter "{name}": {known} ("meshwright exporters" tells what each can say)', where="--to"
        )
    found: type[Exporter] = getattr(import_module(f"{__package__}.{key}"), TARGETS[key])
    return found


def load(target: str) -> Exporter:
    """The exporter of NAME or NAME@VERSION."""
    name, _, version = target.partition("@")
    return kind(name)(version)


def installed(exporter: type[Exporter]) -> str:
    """The version of the target that is installed beside us; "" if none is."""
    if not exporter.package:
        return ""
    try:
        return metadata.version(exporter.package)
    except metadata.PackageNotFoundError:
        return ""
