"""A profile: constants that replace the shipped ones for one machine, or for one stack of software, with their evidence.

    schema = 1
    name = "local"
    generation = "eager"              # of software, where nothing else is said
    [machine]                         # what was measured, without a date
    device = "NVIDIA H100 80GB HBM3"
    [device]                          # what `--cluster local` is made of; only in a profile that measured its machine
    kind = "gpu"
    [family.h100]                     # constants of cost/constants/families.toml
    gemm_16 = 0.71
    [software.eager]                  # constants of cost/constants/software.toml
    floor_forward = 0.0004
    [measured."product bfloat16 8192x8192x8192"]
    seconds = 0.0014                  # low, high: quartiles; predicted: by the constants above

Written whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from sys import float_info
from typing import Any, TypeVar

from .._toml import read_toml
from ..cluster._build import NodeGroup, Wire, build
from ..cluster.model import Cluster, DeviceType
from ..cluster.presets import LOCAL_WIRE, local
from ..cost import Analytic
from ..cost.constants import Family, Software, families, generation, software
from ..errors import InputError

SCHEMA = 1
_LARGEST = float_info.max
_KINDS = ("gpu", "cpu", "tpu", "xpu")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a profile was measured; nothing in it changes from day to day."""

    device: str
    torch: str
    ranks: int
    threads: int
    """Of one rank."""
    cores: int


@dataclass(frozen=True, slots=True)
class Local:
    """What `--cluster local` is made of."""

    device: DeviceType
    """One rank that has a core, or a GPU, to itself."""
    count: int
    """Ranks of "local" without a number."""
    cores: int
    """Ranks that can work at full speed at once; 0: all of them."""
    bandwidth: float = 0.0
    """Bytes/s one way between two ranks; 0: not measured."""
    latency: float = 0.0

    def cluster(self, ranks: int = 0) -> Cluster:
        """This machine as so many ranks (0: `count`).

        Raises:
            InputError: more ranks than GPUs.
        """
        if self.device.kind == "cpu":
            wire = Wire(LOCAL_WIRE.name, self.bandwidth, self.latency) if self.bandwidth else LOCAL_WIRE
            return local(ranks, self.device, wire)
        if ranks > self.count:
            raise InputError(f"localx{ranks}: this machine has {self.count} of {self.device.name}", where="--cluster")
        n = ranks or self.count
        group = NodeGroup(
            self.device, n, 1, Wire("between GPUs", self.bandwidth or self.device.host_bandwidth, self.latency)
        )
        return build(f"localx{ranks}" if ranks else "local", [group])


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: seconds of one run, their quartiles, and what the profile's constants say."""

    seconds: float
    low: float
    high: float
    repeats: int
    predicted: float = 0.0
    """0: nothing is predicted from it."""


@dataclass(frozen=True)
class Profile:
    name: str
    software: str = "modern"
    """Generation of software that the profile speaks of."""
    machine: Machine | None = None
    local: Local | None = None
    families: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Device family -> constants that replace its own."""
    generations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Software generation -> the same."""
    measured: Mapping[str, Measured] = field(default_factory=dict)
    source: str = ""
    """One sentence: what the figures were found from."""

    def family_table(self) -> dict[str, Family]:
        """Families with the constants of this profile, by name."""
        return {name: with_constants(families()[name], values) for name, values in self.families.items()}

    def generation(self, name: str = "") -> Software:
        """Software of one generation (default: the profile's own) with the constants of this profile.

        Raises:
            InputError: no such generation.
        """
        chosen = name or self.software
        return with_constants(generation(chosen), self.generations.get(chosen, {}))

    def cost(self, precision: str, software: str = "") -> Analytic:
        """The analytic model with the constants of this profile."""
        return Analytic(precision=precision, software=self.generation(software), families=self.family_table())


_Row = TypeVar("_Row", Family, Software)


def with_constants(row: _Row, values: Mapping[str, float]) -> _Row:
    """A family or a generation with some of its constants replaced; itself where there are none."""
    if not values:
        return row
    changes: dict[str, Any] = {k: int(v) if isinstance(getattr(row, k), int) else v for k, v in values.items()}
    return replace(row, **changes)


def to_toml(profile: Profile) -> str:
    """The file of a profile."""
    lines = [f"schema = {SCHEMA}", f"name = {_value(profile.name)}", f"generation = {_value(profile.software)}"]
    if profile.source:
        lines.append(f"source = {_value(profile.source)}")
    if (machine := profile.machine) is not None:
        lines += _table("machine", {f.name: getattr(machine, f.name) for f in fields(machine)})
    if (local := profile.local) is not None:
        device = local.device
        figures: dict[str, object] = {
            "name": device.name, "kind": device.kind, "family": device.family, "memory": device.memory,
            "bandwidth": device.bandwidth, "host_bandwidth": device.host_bandwidth, "count": local.count, "cores": local.cores,
        }  # fmt: skip
        lines += _table("device", figures)
        lines += _table("device.peak", device.peak)
        if local.bandwidth:
            lines += _table("link", {"bandwidth": local.bandwidth, "latency": local.latency})
    for kind, table in (("family", profile.families), ("software", profile.generations)):
        for name, values in table.items():
            lines += _table(f"{kind}.{_key(name)}", values)
    for name, m in profile.measured.items():
        lines += _table(f"measured.{_key(name)}", {f.name: getattr(m, f.name) for f in fields(m) if getattr(m, f.name)})
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, object]) -> list[str]:
    return ["", f"[{name}]", *(f"{_key(k)} = {_value(v)}" for k, v in values.items())]


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else _value(name)


def _value(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if any(c in text for c in ".en") else text + ".0"
    return str(value)


def save(profile: Profile, path: Path) -> None:
    """Written aside and renamed: whoever reads sees the old file or the new one.

    Raises:
        InputError: the file cannot be written.
    """
    aside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_toml(profile))
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        if aside and os.path.exists(aside):
            os.unlink(aside)


def load(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        InputError: no such file, not TOML, or no profile; says which line or field.
    """
    _, table = read_toml(path, f'no profile {path}: "meshwright calibrate" writes one')
    try:
        return _profile(table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path.name} is no profile ({type(error).__name__}: {error}): write it again with "meshwright calibrate"',
            where=str(path),
        ) from None


def _profile(table: Mapping[str, Any]) -> Profile:
    if table.get("schema") != SCHEMA:
        raise ValueError(f"schema is {table.get('schema')}, not {SCHEMA}")
    machine = Machine(**table["machine"]) if "machine" in table else None
    families_, generations = table.get("family", {}), table.get("software", {})
    _check(families_, families(), Family)
    _check(generations, software(), Software)
    return Profile(
        name=_text(table, "name"),
        software=_text(table, "generation"),
        machine=machine,
        local=_local(table) if "device" in table else None,
        families=families_,
        generations=generations,
        measured={k: _measured(k, v) for k, v in table.get("measured", {}).items()},
        source=_text(table, "source", ""),
    )


def _local(table: Mapping[str, Any]) -> Local:
    row, link = table["device"], table.get("link", {})
    kind: Any = _text(row, "kind")
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind}, which is none of {', '.join(_KINDS)}")
    device = DeviceType(
        name=_text(row, "name"), kind=kind, memory=_number(row, "memory"), peak={k: _number(row["peak"], k) for k in row["peak"]},
        bandwidth=_number(row, "bandwidth"), host_bandwidth=_number(row, "host_bandwidth", 0.0), family=_text(row, "family"),
        sources={"peak": "measured by meshwright calibrate"},
    )  # fmt: skip
    count, cores = int(_number(row, "count")), int(_number(row, "cores", 0.0))
    return Local(device, count, cores, _number(link, "bandwidth", 0.0), _number(link, "latency", 0.0))


def _measured(name: str, row: Mapping[str, Any]) -> Measured:
    if unknown := set(row) - {f.name for f in fields(Measured)}:
        raise ValueError(f'no "{min(unknown)}" in measured "{name}"')
    low, high, repeats, predicted = (_number(row, key, 0.0) for key in ("low", "high", "repeats", "predicted"))
    return Measured(_number(row, "seconds"), low, high, int(repeats), predicted)


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row[key] if default is None else row.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value}, which is no text")
    return value


def _number(row: Mapping[str, Any], key: str, least: float | None = None) -> float:
    """Above 0, and there; or, with `least`, that or more, and that where it is not there."""
    value = row[key] if least is None else row.get(key, least)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not (0 < value <= _LARGEST if least is None else least <= value <= _LARGEST):
        raise ValueError(f"{key} is {value}, which is no {'positive ' if least is None else ''}number")
    return float(value)


def _check(given: Mapping[str, Mapping[str, Any]], known: Iterable[str], kind: type) -> None:
    names = {f.name for f in fields(kind)}
    for name, values in given.items():
        if name not in known:
            raise ValueError(f'"{name}" is none of {", ".join(known)}')
        for key, value in values.items():
            if key not in names:
                raise ValueError(f'no constant "{key}" in {name}')
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
                raise ValueError(f"{name}.{key} is {value}, which is no positive number")
