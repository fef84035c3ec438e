"""Cluster files: TOML in, `Cluster` out, every fault in one sentence with file and line.

schema = 1
name = "two-kinds"
[device.h100]                      # a preset's name fills what is not said
memory = "80 GiB"
bandwidth = "3350 GB/s"
peak = { bfloat16 = "989 TFLOP/s" }
[link.nvlink]
bandwidth = "450 GB/s"             # one way, one device
latency = "3.4 us"
[link.ib]
bandwidth = "400 Gb/s"
[[node]]                           # nodes are numbered in this order
device = "h100"
devices = 8
count = 4
link = "nvlink"
uplink = "ib"                      # leaves the node …
uplinks = 8                        # … so many times, shared by its devices (default: one a device)
[[level]]                          # optional: racks, pods; without it all nodes meet over the uplinks
name = "rack"
nodes = 2
link = "ib"
uplink = "800 Gb/s"                # bytes/s of a whole rack to the next level
[[connection]]                     # optional: one pair with a link of its own
src = 0
dst = 9
link = "ib"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .._parsed import ENCODING, parsed_toml
from .._spelling import nearest
from ..errors import InputError
from ._build import NodeGroup, Outer, Wire, build
from ._positions import Path as Keys
from ._positions import line_of, positions
from ._units import quantity
from .model import Cluster, DeviceType, Link
from .presets import PEAK_SUFFIX, presets

MOST_FAULTS = 10
SCHEMA = 1
_DTYPES = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64", "tf32": "tfloat32", "fp8": "float8",
    "fp4": "float4",
}  # fmt: skip
_KNOWN_DTYPES = (*_DTYPES.values(), "int8", "float8_e4m3fn", "float8_e5m2")


def _unit(kind: str, example: str, *, zero: bool = False) -> BeforeValidator:
    def read(value: object) -> float:
        return quantity(value, kind, zero=zero)

    return BeforeValidator(read, json_schema_input_type=Annotated[str, Field(examples=[example])])


Bandwidth = Annotated[float, _unit("bandwidth", "450 GB/s")]
Memory = Annotated[float, _unit("memory", "80 GiB")]
Latency = Annotated[float, _unit("latency", "5 us", zero=True)]
Peak = Annotated[float, _unit("peak", "989 TFLOP/s")]
Count = Annotated[int, Field(strict=True, ge=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Device(_Row):
    kind: Literal["gpu", "cpu", "tpu", "xpu"] | None = None
    memory: Memory | None = None
    bandwidth: Bandwidth | None = None
    peak: dict[str, Peak] | None = None
    host_bandwidth: Bandwidth | None = None
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    family: str | None = None


class _Link(_Row):
    bandwidth: Bandwidth
    latency: Latency = 0.0
    pair: Bandwidth | None = None


class _Node(_Row):
    device: str
    devices: Count
    link: str
    count: Count = 1
    uplink: str | None = None
    uplinks: Count | None = None


class _Level(_Row):
    name: str
    link: str
    nodes: Annotated[int, Field(strict=True, ge=0)] = 0
    uplink: Bandwidth | None = None


class _Connection(_Row):
    src: Annotated[int, Field(strict=True, ge=0)]
    dst: Annotated[int, Field(strict=True, ge=0)]
    link: str


class _File(_Row):
    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str | None = None
    device: dict[str, _Device]
    link: dict[str, _Link] = {}
    node: Annotated[list[_Node], Field(min_length=1)]
    level: list[_Level] = []
    connection: list[_Connection] = []


_FIELDS: Mapping[str, type[_Row]] = {
    "device": _Device,
    "link": _Link,
    "node": _Node,
    "level": _Level,
    "connection": _Connection,
}


def read(path: Path) -> Cluster:
    """The cluster that a file describes.

    Raises:
        InputError: the file is missing, is no TOML, or has faults; all are named, ten at most.
    """
    try:
        text = path.read_text(encoding=ENCODING)
    except FileNotFoundError:
        raise InputError(f'no cluster file "{path}"', where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}", where=str(path)) from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Cluster:
    """As `read`, from text; `file` is the name used in sentences."""
    try:
        raw = parsed_toml(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+)", str(error))
        line = place[1] if place else str(text.count("\n") + 1)
        fault = re.sub(r"\s*\(at .*\)$", "", str(error))
        raise InputError(f"{file}:{line}: no TOML: {fault[:1].lower()}{fault[1:]}", where=f"{file}:{line}") from None
    lines = positions(text)
    try:
        parsed = _File.model_validate(raw)
    except ValidationError as errors:
        _refuse(file, [(line_of(lines, _keys(e["loc"])), _sentence(e, raw)) for e in errors.errors()])
    faults: list[tuple[Keys, str]] = []
    cluster = _assemble(parsed, Path(file).stem, faults)
    if faults or cluster is None:
        _refuse(file, [(line_of(lines, keys), fault) for keys, fault in faults])
    return cluster


def _refuse(file: str, faults: list[tuple[int, str]]) -> NoReturn:
    faults.sort()
    sentences = [f"{file}:{line}: {fault}" for line, fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        sentences.append(f"and {len(faults) - MOST_FAULTS} more")
    raise InputError("\n".join(sentences), where=f"{file}:{faults[0][0]}")


# -------------------------------------------------------------------- faults as sentences


def _keys(loc: tuple[int | str, ...]) -> Keys:
    return tuple(k for k in loc if k != "[key]")


def _dotted(keys: Keys) -> str:
    return ".".join(str(k) for k in keys)


def _table(keys: Keys) -> str:
    """[device.h100], or "the 2nd [[node]]", or "the file"."""
    if not keys:
        return "the file"
    if len(keys) > 1 and isinstance(keys[1], int):
        return f"[[{keys[0]}]] number {keys[1] + 1}"
    return f"[{_dotted(keys)}]"


def _value(raw: Any, keys: Keys) -> Any:
    for key in keys:
        raw = raw[key]
    return raw


def _sentence(error: Any, raw: dict[str, Any]) -> str:
    keys = _keys(error["loc"])
    if error["type"] == "extra_forbidden":
        row = _FIELDS.get(str(keys[0])) if len(keys) > 1 else _File
        names = [f.alias or n for n, f in row.model_fields.items()] if row else []
        near = nearest(str(keys[-1]), names)
        hint = f'did you mean "{near}"?' if near else f"fields are {', '.join(names)}"
        return f'no field "{keys[-1]}" in {_table(keys[:-1])}: {hint}'
    if error["type"] == "missing":
        return f'{_table(keys[:-1])} has no "{keys[-1]}"'
    if error["type"] == "value_error":
        return f"{_dotted(keys)} {error['ctx']['error']}"
    value = _value(raw, keys)
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    wanted: Mapping[str, Callable[[Any], str]] = {
        "greater_than_equal": lambda c: f"must be at least {c['ge']}",
        "int_type": lambda _: "must be a whole number",
        "finite_number": lambda _: "must be finite",
        "string_type": lambda _: "must be text",
        "literal_error": lambda c: f"must be {c['expected']}",
        "too_short": lambda _: "must have at least one entry",
    }
    text = wanted.get(error["type"], lambda _: f"is wrong: {error['msg'].lower()}")(error.get("ctx", {}))
    return f"{_dotted(keys)} = {shown} {text}"


# -------------------------------------------------------------------- rows to a cluster


def _assemble(file: _File, stem: str, faults: list[tuple[Keys, str]]) -> Cluster | None:
    devices = {name: _device(name, row, faults) for name, row in file.device.items()}
    wires = {name: Wire(name, row.bandwidth, row.latency, row.pair or 0.0) for name, row in file.link.items()}
    groups = [g for i, row in enumerate(file.node) if (g := _group(i, row, devices, wires, faults)) is not None]
    outer = []
    nodes = sum(row.count for row in file.node)
    for i, level in enumerate(file.level):
        wire = _named(level.link, wires, "link", ("level", i, "link"), faults)
        if level.nodes and (level.nodes > nodes or nodes % level.nodes):
            faults.append((("level", i, "nodes"), f"level.{i}.nodes = {level.nodes} does not divide the {nodes} nodes"))
        if wire is not None:
            outer.append(Outer(level.name, level.nodes, wire, level.uplink or 0.0))
    if outer and file.level[-1].nodes not in (0, nodes):
        faults.append(
            (
                ("level", len(outer) - 1),
                f'the last [[level]] "{outer[-1].name}" must join all {nodes} nodes: leave its nodes out',
            )
        )
    if not outer and nodes > 1 and any(row.uplink is None for row in file.node):
        i = next(i for i, row in enumerate(file.node) if row.uplink is None)
        faults.append((("node", i), f'{_table(("node", i))} has no "uplink", so its devices reach no other node'))
    links = _connections(file, sum(r.devices * r.count for r in file.node), wires, faults)
    if faults:
        return None
    return build(file.name or stem, groups, outer, links)


def _named(name: str, known: Mapping[str, Any], what: str, keys: Keys, faults: list[tuple[Keys, str]]) -> Any:
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f'did you mean "{near}"?' if near else f"there is {', '.join(known) or 'none'}"
    faults.append((keys, f'{_dotted(keys)} = "{name}" names no [{what}.…] of this file: {hint}'))
    return None


def _group(
    i: int,
    row: _Node,
    devices: Mapping[str, DeviceType | None],
    wires: Mapping[str, Wire],
    faults: list[tuple[Keys, str]],
) -> NodeGroup | None:
    device = _named(row.device, devices, "device", ("node", i, "device"), faults)
    inside = _named(row.link, wires, "link", ("node", i, "link"), faults)
    nic = _named(row.uplink, wires, "link", ("node", i, "uplink"), faults) if row.uplink is not None else None
    if device is None or inside is None:
        return None
    return NodeGroup(device, row.devices, row.count, inside, nic, float(row.uplinks or row.devices))


def _connections(
    file: _File, count: int, wires: Mapping[str, Wire], faults: list[tuple[Keys, str]]
) -> tuple[Link, ...]:
    links = []
    for i, row in enumerate(file.connection):
        wire = _named(row.link, wires, "link", ("connection", i, "link"), faults)
        for end in ("src", "dst"):
            if getattr(row, end) >= count:
                keys = ("connection", i, end)
                faults.append((keys, f"{_dotted(keys)} = {getattr(row, end)} is no device: there are 0 to {count - 1}"))
        if wire is not None:
            links.append(Link(row.src, row.dst, wire.bandwidth, wire.latency))
    return tuple(links)


def _device(name: str, row: _Device, faults: list[tuple[Keys, str]]) -> DeviceType | None:
    base = presets()[name].device if name in presets() else None
    keys: Keys = ("device", name)
    for field in ("memory", "bandwidth", "peak"):
        if base is None and getattr(row, field) is None:
            faults.append((keys, f'[device.{name}] has no "{field}", and {name} is no preset'))
    for dtype in row.peak or {}:
        if _DTYPES.get(dtype, dtype) not in _KNOWN_DTYPES:
            faults.append(
                (
                    (*keys, "peak"),
                    f'[device.{name}] peak has no dtype "{dtype}": use bfloat16, float16, float32, float8',
                )
            )
    given = row.model_dump(exclude_none=True)
    sources = dict(base.sources if base else {}) | dict.fromkeys(given, "cluster file")
    family = row.family or (base.family if base else "")
    if not family:
        family = row.kind if row.kind in ("cpu", "tpu") else "a100"
        sources["family"] = f"not given: efficiencies of {family}"
    if faults and base is None:
        return None
    return DeviceType(
        name=name if base is None or given else base.name,
        kind=row.kind or (base.kind if base else "gpu"),
        memory=row.memory or (base.memory if base else 0.0),
        peak=_peak(row.peak) if row.peak else dict(base.peak if base else {}),
        bandwidth=row.bandwidth or (base.bandwidth if base else 0.0),
        host_bandwidth=row.host_bandwidth or (base.host_bandwidth if base else 0.0),
        price_per_hour=row.price_per_hour or (base.price_per_hour if base else 0.0),
        family=family,
        sources=sources,
    )


def _peak(given: Mapping[str, float]) -> dict[str, float]:
    found = {_DTYPES.get(dtype, dtype): flops for dtype, flops in given.items()}
    for format_, dtypes in PEAK_SUFFIX.items():
        if format_ in found:
            found.update(dict.fromkeys(dtypes, found[format_]))
    return found
