"""OptCNN's layers and their configurations: how many ways each output dim of an op is cut, and which device has which tile.

    conv2d   output [n, c, h, w]   degrees (2, 1, 2, 1)   device 0: n first half, h first half
                                                          device 1: n first half, h second half
                                                          device 2: n second half, h first half, …

Tiles are dealt to devices 0 … degree − 1 row by row (the first dim major); the other devices are idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import ITEM_BYTES, Dims, Factor, Graph, Ints, Op
from ..lower.atoms import PROFILED
from ..lower.halo import DATA
from ..plan.layout import part_ranges
from ..plan.model import Cut, SubDim

CUTTABLE = frozenset({"free", "stat", "halo"})


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One op that depends on data or parameters."""

    index: int
    """In `Graph.ops`."""
    op: Op
    sizes: Ints
    """[factors], at the batch of the plan."""
    dims: tuple[int, ...]
    """Per output dim that can be cut: the factor that is cut."""
    degrees: Ints
    """[configurations, dims]; the first is (1, 1, …)."""

    @property
    def devices(self) -> Ints:
        """[configurations]: tiles, hence devices."""
        found: Ints = self.degrees.prod(axis=1)
        return found

    def local(self) -> Ints:
        """[configurations, factors]: sizes of a tile's iteration space."""
        found = np.repeat(self.sizes[None], len(self.degrees), axis=0)
        for k, f in enumerate(self.dims):
            found[:, f] //= self.degrees[:, k]
        return found

    def mesh(self, configuration: int) -> Mesh:
        """The devices of a configuration, an axis for each dim, named by its factor."""
        names = tuple(self.op.rule.factors[f].name for f in self.dims)
        shape = tuple(int(n) for n in self.degrees[configuration])
        return Mesh(range(prod(shape)), names, shape)

    def cut_factors(self, configuration: int) -> dict[str, int]:
        """Factor -> degree, of those that are cut."""
        mesh = self.mesh(configuration)
        return {name: n for name, n in zip(mesh.axes, mesh.shape, strict=True) if n > 1}


def check_shapes(graph: Graph, planner: str) -> None:
    """Raises Unsupported for a graph whose tensors are known by their bytes alone, as those of recorded profiles are."""
    flat = [t.name for t in graph.tensors if t.nbytes > prod(t.shape) * ITEM_BYTES.get(t.dtype, 8)]
    profiled = [op.name for op in graph.ops if op.kind == PROFILED]
    if flat or profiled:
        raise Unsupported(
            f'planner {planner} cuts tensors along their dims, and a recorded profile says no shapes (of "{(flat + profiled)[0]}" '
            "for one): plan a captured model"
        )


def constant_tensors(graph: Graph) -> frozenset[str]:
    """Made of buffers and of nothing: computed wherever they are read."""
    found = {t.name for t in graph.tensors if t.role == "buffer"}
    for op in graph.ops:
        if op.phase == "forward" and all(name in found for name in op.inputs):
            found.update(op.outputs)
    return frozenset(found)


def sizes_at(graph: Graph, op: Op, samples: int) -> Ints:
    """Sizes of the factors of an op at a batch of `samples`."""
    return np.array(
        [f.size * samples // graph.samples if f.samples else f.size for f in op.rule.factors], np.int64
    ).reshape(len(op.rule.factors))


def layers_of(graph: Graph, samples: int, devices: int, *, every: bool = False) -> list[Layer]:
    """The layers of a graph with all their configurations.

    Args:
        every: any number of devices up to `devices`; False = numbers that divide it.
    """
    constant = constant_tensors(graph)
    found = []
    for i, op in enumerate(graph.ops):
        if op.outputs and all(name in constant for name in op.outputs):
            continue
        sizes = sizes_at(graph, op, samples)
        dims = parallel_dims(op)
        ways = [_degrees(op, f, int(sizes[f]), sizes, devices) for f in dims]
        tuples = [t for t in product(*ways) if prod(t) <= devices and (every or devices % prod(t) == 0)]
        found.append(Layer(i, op, sizes, dims, np.array(tuples, np.int64).reshape(len(tuples), len(dims))))
    return found


def parallel_dims(op: Op) -> tuple[int, ...]:
    """Per dim of the first result the factor that a cut of the dim cuts: the major one, so that tiles are whole ranges.

    A loss adds up one number a sample: the samples count as its output.
    """
    factors = op.rule.factors
    at = {f.name: k for k, f in enumerate(factors)}
    found = [
        at[names[0]]
        for names in (op.rule.results[0] if op.rule.results else ())
        if names and factors[at[names[0]]].kind in CUTTABLE
    ]
    if not found and op.inputs:
        found = [k for k, f in enumerate(factors) if f.samples and f.kind in CUTTABLE and _is_major(op, f)][:1]
    return tuple(found)


def _is_major(op: Op, factor: Factor) -> bool:
    return any(names and names[0] == factor.name for names in op.rule.operands[0])


def _degrees(op: Op, factor: int, size: int, sizes: Ints, devices: int) -> list[int]:
    """Numbers of equal parts; of a window so that every part has what its neighbours read."""
    found = [g for g in range(1, min(size, devices) + 1) if size % g == 0]
    own = op.rule.factors[factor]
    if own.kind != "halo":
        return found
    at = {f.name: k for k, f in enumerate(op.rule.factors)}
    rows = next(prod(int(sizes[at[n]]) for n in names) for names in op.rule.operands[DATA] if own.name in names)
    return [g for g in found if g == 1 or rows // g >= max(own.halo)]


Ranges = tuple[tuple[int, int], ...]
"""(lo, hi) of one dim, ascending."""


def ranges(op: Op, sizes: Ints, names: tuple[str, ...], cut: dict[str, tuple[int, int]], halo: bool) -> Ranges:
    """Indices of one tensor dim that a tile touches.

    Args:
        names: the dim's factors, major first.
        cut: factor -> (degree, which part).
        halo: with the rows of neighbours that a window reads.
    """
    at = {f.name: k for k, f in enumerate(op.rule.factors)}
    subs: list[SubDim] = [(int(sizes[at[n]]), (Cut(n),) if n in cut else ()) for n in names]
    axes = tuple(n for n in names if n in cut)
    shape = tuple(cut[n][0] for n in axes)
    mesh = Mesh(range(prod(shape)), axes, shape)
    found = part_ranges(subs, mesh, {n: cut[n][1] for n in axes})
    whole = prod(size for size, _ in subs)
    if halo:
        for n in axes:
            factor = op.rule.factors[at[n]]
            if factor.kind == "halo" and cut[n][0] > 1:
                lower, upper = factor.halo
                found = [(max(0, lo - lower), min(whole, hi + upper)) for lo, hi in found]
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Which part of one tensor each device has, or needs, under each configuration of a layer."""

    parts: tuple[tuple[Ranges, ...], ...]
    """Per dim of the tensor: the different parts."""
    part: Ints
    """[configurations, devices, dims]: which of them; −1 on devices without a tile."""
    first: Ints
    """[configurations, devices]: the first device with the same tile, the device itself mostly; −1 without a tile."""


def tiles(layer: Layer, dims: Dims, devices: int, *, halo: bool) -> Tiles:
    """Tiles of the tensor whose dims have these factors.

    Args:
        halo: what is read, not what is held.
    """
    known: list[dict[Ranges, int]] = [{} for _ in dims]
    part = np.full((len(layer.degrees), devices, len(dims)), -1, np.int64)
    first = np.full((len(layer.degrees), devices), -1, np.int64)
    cache: dict[tuple[int, tuple[tuple[str, int, int], ...]], int] = {}
    for c in range(len(layer.degrees)):
        mesh = layer.mesh(c)
        here = [tuple(n for n in names if n in mesh.axes and mesh.size(n) > 1) for names in dims]
        seen: dict[tuple[int, ...], int] = {}
        for d in range(len(mesh.devices)):
            coords = mesh.coordinates(d)
            for k, names in enumerate(dims):
                key = (k, tuple((n, mesh.size(n), coords[n]) for n in here[k]))
                if key not in cache:
                    cut = {n: (mesh.size(n), coords[n]) for n in here[k]}
                    own = ranges(layer.op, layer.sizes, names, cut, halo)
                    cache[key] = known[k].setdefault(own, len(known[k]))
                part[c, d, k] = cache[key]
            first[c, d] = seen.setdefault(tuple(part[c, d].tolist()), d)
    return Tiles(tuple(tuple(parts) for parts in known), part, first)


def overlaps(a: tuple[Ranges, ...], b: tuple[Ranges, ...]) -> Ints:
    """[parts of a, parts of b]: elements in both."""
    found = np.zeros((len(a), len(b)), np.int64)
    for i, left in enumerate(a):
        for k, right in enumerate(b):
            found[i, k] = sum(max(0, min(x[1], y[1]) - max(x[0], y[0])) for x in left for y in right)
    return found
