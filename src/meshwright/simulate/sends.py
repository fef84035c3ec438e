"""What flows between the stages of a program, priced: all values between two stages are one message a pair of devices.

Equal meshes talk position by position, all at once, so the ends of a mesh speak for all. Between others a device may have
several messages (lower/crossing.py): it sends them one after the other, and takes them one after the other; the stage has
its input when the busiest device is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..graph.ir import Floats, Ints
from ..lower.crossing import Crossing
from ..lower.program import Program, Transfer
from ..plan.model import Layout
from .price import Pricer
from .tasks import Sends


def sends_of(program: Program, pricer: Pricer) -> Sends:
    """Seconds and bytes of every pair of stages, per micro-batch, each way."""
    between: dict[tuple[int, int], list[Transfer]] = {}
    for t in program.transfers:
        between.setdefault((t.src, t.dst), []).append(t)
    pairs = sorted(between)
    nbytes, seconds = np.zeros((len(pairs), 2)), np.zeros((len(pairs), 2))
    straight = [k for k, pair in enumerate(pairs) if all(t.straight for t in between[pair])]
    for k in straight:
        for t in between[pairs[k]]:
            local = program.local_samples(program.stages[t.src].mesh, t.samples) if t.samples is not None else 1
            nbytes[k] += t.nbytes * local * np.array([1.0, float(t.grad)])
    for end in (0, -1):
        src, dst = ([program.stages[pairs[k][side]].mesh.devices[end] for k in straight] for side in (0, 1))
        for way, (x, y) in enumerate(((src, dst), (dst, src))):
            seconds[straight, way] = np.maximum(seconds[straight, way], pricer.transfers(nbytes[straight, way], x, y))
    for k in set(range(len(pairs))).difference(straight):
        for way in (0, 1):
            nbytes[k, way], seconds[k, way] = _crossed(program, pricer, between[pairs[k]], back=way == 1)
    return Sends(
        np.array([s for s, _ in pairs], np.int32),
        np.array([d for _, d in pairs], np.int32),
        seconds[:, 0],
        seconds[:, 1],
        np.array([any(t.grad for t in between[pair]) for pair in pairs], bool),
        nbytes[:, 0],
        nbytes[:, 1],
    )


def _crossed(program: Program, pricer: Pricer, values: Sequence[Transfer], *, back: bool) -> tuple[float, float]:
    """(bytes, seconds) of the busiest device when these values, or their gradients, go between unequal meshes."""
    ends: list[tuple[Ints, Ints]] = []
    amounts: list[Floats] = []
    graph = pricer.graph
    for t in values:
        if back and not t.grad:
            continue
        layouts = [_sized(x, t.batch, program.micro_batch, graph.samples) for x in (t.layout, t.arrives)]
        meshes = [program.stages[s].mesh for s in (t.src, t.dst)]
        if back:
            layouts, meshes = layouts[::-1], meshes[::-1]
        crossing = Crossing((layouts[0], layouts[1]), (meshes[0], meshes[1]))
        tensor = graph.tensor[t.value]
        ends.append((np.asarray(meshes[0].devices)[crossing.source], np.asarray(meshes[1].devices)[crossing.target]))
        amounts.append(np.asarray(crossing.elements * (tensor.nbytes / max(prod(tensor.shape), 1)), np.float64))
    if not ends:
        return 0.0, 0.0
    messages, which = np.unique(
        np.stack([np.concatenate([e[side] for e in ends]) for side in (0, 1)], axis=1), axis=0, return_inverse=True
    )
    nbytes = np.zeros(len(messages))
    np.add.at(nbytes, which.ravel(), np.concatenate(amounts))
    seconds = pricer.transfers(nbytes, messages[:, 0].tolist(), messages[:, 1].tolist())
    busiest = [float(np.bincount(messages[:, side], each).max()) for each in (nbytes, seconds) for side in (0, 1)]
    return max(busiest[:2]), max(busiest[2:])


def _sized(layout: Layout, batch: int, micro_batch: int, samples: int) -> Layout:
    """A layout of a graph of `samples` for a micro-batch: the sub-dimension `batch` grows with it."""
    if batch < 0 or micro_batch == samples:
        return layout
    at, dims = 0, []
    for dim in layout.dims:
        subs = [(-(-n * micro_batch // samples) if at + k == batch else n, cuts) for k, (n, cuts) in enumerate(dim)]
        dims.append(tuple(subs))
        at += len(dim)
    return Layout(tuple(dims), layout.partial)
