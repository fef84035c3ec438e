"""Network descriptions of AccPar (HPCA 2020): text files of linghaosong/AccPar, networks/ (MIT).

    num_layers 8
    conv1 CONV          then in_ch, in_fmap_h, in_fmap_w, kernel, out_ch, out_fmap_h, out_fmap_w, pool, one a line
    fc1 FC              then in_ch, out_ch
    reads conv1 conv3   (of ours, optional) the layers whose sum a layer reads, instead of the one before it

The files know chains only: of 18, 34 and 50 layers the original program takes every second (of 50: third) layer, from the
fourth (fifth) on, to read the one two (three) before it, too. `skip` says the same of any file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from .._parsed import ENCODING
from ..cluster.model import Cluster, DeviceType, Level
from ..cost.accpar_elements import AccParElements
from ..errors import InputError
from ..graph.ir import Factor, Graph, Op, Role, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import overrides_checked

_HEAD = "num_layers"
_FIELDS = {
    "CONV": ("in_ch", "in_fmap_h", "in_fmap_w", "kernel", "out_ch", "out_fmap_h", "out_fmap_w", "pool"),
    "FC": ("in_ch", "out_ch"),
}
_SKIPS = {18: 2, 34: 2, 50: 3}
"""Layers of a network -> layers that each shortcut passes over, as the original program knows them."""
MOST = 2**20
"""Accelerators of an array: halved twenty times, every dim of every known network is below one element."""


def recognises(text: str) -> bool:
    """Is this text of this format?"""
    words = text.split(maxsplit=1)
    return bool(words) and words[0] == _HEAD


def read(
    path: Path | str,
    *,
    devices: Sequence[int] | int = 128,
    batch: int = 512,
    flops: Sequence[float] | float = (),
    bandwidth: Sequence[float] | float = (),
    element_bytes: float = 2.0,
    skip: int | None = None,
) -> Problem:
    """The problem of one file.

    Args:
        devices: accelerators of the array, of each kind if there are two: 128 or "128,128".
        batch: samples a step.
        flops: FLOP/s of one accelerator of each kind; none = elements are counted, not seconds.
        bandwidth: bytes/s of one accelerator of each kind to the others; with `flops` only.
        element_bytes: of one element (2 = bfloat16).
        skip: layers that a shortcut passes over; 0 = none; None = as the original program: 2 in networks of 18 and 34
            layers, 3 in those of 50, else none.

    Raises:
        InputError: names file, line and field.
    """
    try:
        text = Path(path).read_text(ENCODING)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error.reason} at byte {error.start}", where=str(path)) from error
    return parse(
        text, str(path), devices=devices, batch=batch, flops=flops, bandwidth=bandwidth, element_bytes=element_bytes,
        skip=skip,
    )  # fmt: skip


def parse(
    text: str,
    file: str,
    *,
    devices: Sequence[int] | int = 128,
    batch: int = 512,
    flops: Sequence[float] | float = (),
    bandwidth: Sequence[float] | float = (),
    element_bytes: float = 2.0,
    skip: int | None = None,
) -> Problem:
    """`read`, of a text."""
    if batch < 1:
        raise InputError(f"{file}: batch is {batch}, wanted 1 sample or more", where="batch")
    if not 0 < element_bytes < inf:
        raise InputError(
            f"{file}: element_bytes is {element_bytes:g}, wanted bytes above 0 and finite", where="element_bytes"
        )
    layers = _layers(text, file)
    cluster, cost = _array(file, devices, flops, bandwidth, element_bytes)
    reads = _reads(layers, file, skip)
    # Shapes are those of samples and channels alone: pools between layers, which the text does not say, change maps.
    ops, tensors = [], [_tensor("input", element_bytes * batch * _inputs(layers[0][2]), (batch,), "input")]
    for (name, kind, fields, _), before in zip(layers, reads):
        out, weight, k, n = f"{name}:out", f"{name}:weight", fields["in_ch"], fields["out_ch"]
        tensors.append(_tensor(weight, element_bytes * k * n * _kernel(fields), (k, n), "param"))
        tensors.append(_tensor(out, element_bytes * batch * _outputs(fields), (batch,), "activation"))
        inputs = (*(f"{layers[k][0]}:out" for k in before), weight) if before else ("input", weight)
        factors = (Factor("b", batch, samples=True), Factor("k", k), Factor("n", n))
        rule = Rule(factors, (*((("b",),),) * (len(inputs) - 1), (("k",), ("n",))), ((("b",),),))
        ops.append(Op(name, kind.lower(), inputs, (out,), rule, saved=(out,), kwargs=tuple(fields.items())))
    read_ones = {t for op in ops for t in op.inputs}
    ends = tuple(f"{name}:out" for name, _, _, _ in layers if f"{name}:out" not in read_ones)
    graph = Graph(tuple(ops), tuple(tensors), batch, inputs=("input",), outputs=ends, loss=ends[-1])
    return Problem(
        replace(graph, digest=digest_of(graph)),
        cluster,
        cost,
        Recipe(batch, "sgd", 0.0, "bfloat16", "bfloat16"),
        limits=Limits(keep_free=0.0),
    )


def write(problem: Problem) -> str:
    """The text that `read` makes this problem's graph from; shortcuts are written as `reads`.

    Raises:
        InputError: the graph was not read from such a text.
    """
    graph = problem.graph
    lines = [f"{_HEAD} {len(graph.ops)}"]
    for i, op in enumerate(graph.ops):
        kept = dict(op.kwargs)
        kind = op.kind.upper()
        if kind not in _FIELDS or any(name not in kept for name in _FIELDS[kind]):
            raise InputError(f"op {op.name} is no layer of AccPar's: only graphs of such layers can be written so")
        lines += [f"{op.name} {kind}", *(f"{name} {kept[name]}" for name in _FIELDS[kind])]
        before = [graph.ops[graph.producer[t]].name for t in op.inputs if t in graph.producer]
        if before != ([graph.ops[i - 1].name] if i else []):
            lines.append(" ".join(["reads", *before]))
    return "\n".join(lines) + "\n"


def resnet(depth: int) -> str:
    """The text of ResNet-18, 34 or 50 as the original program makes it: equal channels in and out of every block, no
    projections, 2,048 inputs of the last layer whatever the depth.

    Raises:
        InputError: another depth.
    """
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}.get(depth)
    if blocks is None:
        raise InputError(f"AccPar has ResNet-18, 34 and 50, not {depth}")
    rows: list[tuple[int, int, int, int, int]] = [(3, 224, 7, 64, 56)]
    for count, channels, size in zip(blocks, (64, 128, 256, 512), (56, 28, 14, 7)):
        wide = [(1, channels), (3, channels), (1, 4 * channels)] if depth == 50 else [(3, channels)] * 2
        rows += [(channels, size, kernel, out, size) for _ in range(count) for kernel, out in wide]
    lines = [f"{_HEAD} {depth}"]
    for k, (channels, size, kernel, out, new) in enumerate(rows, 1):
        values = (channels, size, size, kernel, out, new, new, size // new if size > new else 1)
        lines += [f"conv{k} CONV", *(f"{name} {x}" for name, x in zip(_FIELDS["CONV"], values))]
    return "\n".join([*lines, "fc FC", "in_ch 2048", "out_ch 1000"]) + "\n"


def _layers(text: str, file: str) -> list[tuple[str, str, dict[str, int], tuple[str, ...]]]:
    """(name, CONV or FC, fields, what it says it reads) of each layer."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or lines[0][1][0] != _HEAD or len(lines[0][1]) != 2:
        raise InputError(f'{file}: the first line is "{_HEAD} N"', where=file)
    count = _whole(lines[0][1][1], _HEAD, f"{file}:{lines[0][0]}")
    found: list[tuple[str, str, dict[str, int], tuple[str, ...]]] = []
    at = 1
    while at < len(lines):
        number, words = lines[at]
        where = f"{file}:{number}"
        if len(words) != 2 or words[1] not in _FIELDS:
            raise InputError(f"{where}: {' '.join(words)[:60]!r} is no layer: wanted NAME CONV or NAME FC", where=where)
        name, kind = words
        if any(name == other for other, _, _, _ in found):
            raise InputError(f"{where}: layer {name} stands twice", where=where)
        at += 1
        fields: dict[str, int] = {}
        for field in _FIELDS[kind]:
            where = f"{file}:{lines[at][0]}" if at < len(lines) else f"{file}: end of file"
            if at >= len(lines) or lines[at][1][0] != field or len(lines[at][1]) != 2:
                got = " ".join(lines[at][1])[:60] if at < len(lines) else "nothing"
                raise InputError(f'{where}: layer {name} wants "{field} NUMBER" here, found {got!r}', where=where)
            fields[field] = _whole(lines[at][1][1], field, where)
            at += 1
        listed: tuple[str, ...] = ()
        if (
            at < len(lines)
            and lines[at][1][0] == "reads"
            and (len(lines[at][1]) != 2 or lines[at][1][1] not in _FIELDS)
        ):
            listed = tuple(lines[at][1][1:])
            at += 1
        found.append((name, kind, fields, listed))
    if len(found) != count or not found:
        raise InputError(f"{file}: {_HEAD} is {count}, but {len(found)} layers follow", where=_HEAD)
    return found


def _whole(text: str, field: str, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**53 or value != value // 1:
        raise InputError(f"{where}: {field} is {text}, wanted a whole number of 1 or more", where=where)
    return int(value)


def _reads(
    layers: Sequence[tuple[str, str, dict[str, int], tuple[str, ...]]], file: str, skip: int | None
) -> list[tuple[int, ...]]:
    """Per layer the layers that it reads, the nearest first."""
    count = len(layers)
    over = _SKIPS.get(count, 0) if skip is None else skip
    if over < 0 or over == 1:
        raise InputError(f"{file}: skip is {over}, wanted 0 or the 2 or more layers that a shortcut passes over")
    place = {name: i for i, (name, _, _, _) in enumerate(layers)}
    found: list[tuple[int, ...]] = []
    for i, (name, _, _, listed) in enumerate(layers):
        if listed:
            for other in listed:
                if place.get(other, count) >= i:
                    raise InputError(f"{file}: layer {name} reads {other}, which is no layer before it", where=file)
            found.append(tuple(sorted({place[other] for other in listed}, reverse=True)))
            continue
        shortcut = over and i > over and i % over == 1
        found.append((i - 1, i - over) if shortcut else (i - 1,) if i else ())
    return found


def _array(
    file: str,
    devices: Sequence[int] | int,
    flops: Sequence[float] | float,
    bandwidth: Sequence[float] | float,
    element_bytes: float,
) -> tuple[Cluster, AccParElements]:
    counts = (devices,) if isinstance(devices, int) else tuple(devices)
    speed = (float(flops),) if isinstance(flops, int | float) else tuple(flops)
    wires = (float(bandwidth),) if isinstance(bandwidth, int | float) else tuple(bandwidth)
    for count in counts or (0,):
        overrides_checked(file, devices=count)
    if sum(counts) > MOST:
        raise InputError(f"{file}: devices is {sum(counts):,}, wanted at most {MOST:,}", where="devices")
    if not speed and not wires and len(counts) == 1:
        one = DeviceType("accelerator", "tpu", inf, {}, 0.0)
        return Cluster("array", (one,), counts[0], (), (Level("array", counts[0], inf),)), AccParElements(
            element_bytes=element_bytes
        )
    for name, values in (("flops", speed), ("bandwidth", wires)):
        if len(values) not in (1, len(counts)) or any(not 0 < x < inf for x in values):
            raise InputError(
                f"{file}: {name} is {values}, wanted a finite number above 0 for each of {len(counts)} kinds of accelerators: "
                "kinds differ in flops (FLOP/s) and bandwidth (bytes/s), give both",
                where=name,
            )
    kinds = [f"kind{k}" for k in range(len(counts))] if len(counts) > 1 else ["accelerator"]
    rates = {kind: (speed[k % len(speed)], wires[k % len(wires)]) for k, kind in enumerate(kinds)}
    types = tuple(DeviceType(kind, "tpu", inf, {"bfloat16": rates[kind][0]}, 0.0) for kind in kinds)
    of = [k for k, count in enumerate(counts) for _ in range(count)] if len(counts) > 1 else []
    total = sum(counts)
    level = Level("array", total, min(b for _, b in rates.values()))
    return Cluster("array", types, total, of, (level,)), AccParElements(rates, element_bytes=element_bytes)


def _tensor(name: str, nbytes: float, shape: tuple[int, ...], role: Role) -> Tensor:
    """With bytes of all its elements; its dtype is not one of torch's, whose bytes would follow from the shape."""
    return Tensor(name, nbytes, shape, "element", role)


def _kernel(fields: dict[str, int]) -> int:
    return fields.get("kernel", 1) ** 2


def _inputs(fields: dict[str, int]) -> int:
    return fields["in_ch"] * fields.get("in_fmap_h", 1) * fields.get("in_fmap_w", 1)


def _outputs(fields: dict[str, int]) -> int:
    return fields["out_ch"] * fields.get("out_fmap_h", 1) * fields.get("out_fmap_w", 1)
