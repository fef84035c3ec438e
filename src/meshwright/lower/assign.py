"""From the entries of a plan to axes per atom: how each op computes, how each tensor rests."""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from ..errors import Unsupported
from ..graph.ir import Op
from ..plan.model import AS_VALUES, Cut, Layout, OpSharding, Storage
from . import halo, summa
from .apart import Apart, alone, check_apart
from .atoms import FIXED, Atoms, Node, strides
from .convert import Axes, axes_of
from .parts import MARK, axis_of, cut_of, largest_part, word


@dataclass(frozen=True, slots=True)
class Choices:
    """The part of a plan that decides how ops are lowered. Names are those of representatives (own names elsewhere)."""

    shardings: Mapping[str, OpSharding]
    layouts: Mapping[str, Layout]
    storage: Mapping[str, Storage]
    recompute: frozenset[str]
    gradients: Mapping[str, Layout] = field(default_factory=lambda: AS_VALUES)
    written_out: frozenset[str] = frozenset()
    """Runs that are not folded: each block has its own names here, and says nothing where it has no entry."""


@dataclass(slots=True)
class Assignment:
    """Per node: axes of each of its atoms. Per tensor: its layout at rest, and of its raw result."""

    cuts: list[Axes]
    need: list[list[Axes]]
    raw: dict[str, tuple[Axes, tuple[str, ...]]]
    rest: dict[str, Axes]
    use: dict[str, Axes]
    """Parameters: how their first op computes with them."""
    grids: dict[int, summa.Grid] = field(default_factory=dict)
    """Nodes that run as SUMMA."""
    apart: dict[tuple[int, int], Apart] = field(default_factory=dict)
    """(node, operand) whose gradient is cut otherwise than the node."""
    grads: dict[str, Axes] = field(default_factory=dict)
    """Activations whose gradient rests otherwise than they do: how."""


def place(axes: tuple[str, ...], sizes: list[int], mesh: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Axes of one factor or sub-dimension laid on its atoms (major first): on the first atom that divides, else the largest."""
    left = list(sizes)
    out: list[tuple[str, ...]] = [()] * len(sizes)
    for a in axes:
        n = mesh[axis_of(a)]
        if n == 1:
            continue
        k = _best(left, n)
        out[k] = (*out[k], a)
        left[k] = largest_part(left[k], a, mesh)
    return out


def _unweighted(axes: tuple[str, ...], op: Op, what: str) -> None:
    if any(MARK in a for a in axes):
        raise Unsupported(
            f'"{op.name}" {what}, which takes equal parts: leave the weights of its cuts out', reason="weighted"
        )


def layout_axes(atoms: Atoms, tensor: str, layout: Layout, mesh: Mapping[str, int]) -> Axes:
    """A plan's layout of `tensor` at atom grain."""
    shape = atoms.folded.graph.tensor[tensor].shape
    sizes, counts = atoms.size[tensor], atoms.dims[tensor]
    found: list[tuple[str, ...]] = []
    at = 0
    for d, (subs, count) in enumerate(zip(layout.dims, counts, strict=True)):
        mine = list(sizes[at : at + count])
        own: list[tuple[str, ...]] = [()] * count
        whole = [s if s else shape[d] for s, _ in subs] if len(subs) != 1 else [shape[d]]
        steps, borders = strides(mine), strides(whole)
        for (_, cuts), size, low in zip(subs, whole, borders):
            if not cuts:
                continue
            inside = [k for k, s in enumerate(steps) if low <= s < low * size and mine[k] > 1]
            if not inside or prod(mine[k] for k in inside) != size:
                raise Unsupported(
                    f'the layout of "{tensor}" cuts dim {d} at {whole}, but its ops see it as {mine}: cut at one of these',
                    reason="layout",
                )
            for k, axes in zip(inside, place(tuple(map(word, cuts)), [mine[k] for k in inside], mesh)):
                own[k] = axes
        found += own
        at += count
    return tuple(found)


def plan_layout(atoms: Atoms, tensor: str, axes: Axes, partial: tuple[str, ...] = ()) -> Layout:
    """The explicit `Layout` (every atom a sub-dimension) of axes per atom."""
    return _explicit(atoms.size[tensor], atoms.dims[tensor], axes, partial)


@lru_cache(maxsize=65536)
def _explicit(sizes: tuple[int, ...], dims: tuple[int, ...], axes: Axes, partial: tuple[str, ...]) -> Layout:
    subs = [(n, cuts_along(x)) for n, x in zip(sizes, axes)]
    ends = itertools.accumulate(dims, initial=0)
    return Layout(tuple(tuple(subs[a:b]) for a, b in itertools.pairwise(ends)), partial)


@lru_cache(maxsize=4096)
def cuts_along(axes: tuple[str, ...]) -> tuple[Cut, ...]:
    """Cuts along `axes`, major first."""
    return tuple(map(cut_of, axes))


def on(mapping: tuple[int, ...], cuts: Axes) -> Axes:
    return tuple([() if a == FIXED else cuts[a] for a in mapping])


def op_cuts(
    node: Node, atoms: Atoms, sharding: OpSharding | None, rest: Mapping[str, Axes], mesh: Mapping[str, int]
) -> Axes:
    """Axes of each atom of one op; constants are computed whole everywhere.

    An axis that already cuts an operand at rest stays on that atom; otherwise it goes to the samples, if its factor
    grows with them; otherwise to the first atom that divides.
    """
    cuts: list[tuple[str, ...]] = [()] * len(node.size)
    op = atoms.folded.graph.ops[node.index]
    if sharding is None or all(t in atoms.const for t in node.outputs):
        return tuple(cuts)
    for name, given in sharding.cuts.items():
        k = next(k for k, f in enumerate(op.rule.factors) if f.name == name)
        if op.rule.factors[k].kind == "halo":
            free = [a for a in (halo.major(node, k),) if a is not None]
        else:
            free = [a for a, f in enumerate(node.factor) if f == k and node.kind[a] in ("free", "stat")]
        axes = tuple(word(cut) for cut in given if mesh[cut.axis] > 1)
        if op.rule.factors[k].kind == "halo":
            _unweighted(axes, op, "slides windows over what is cut")
        if sharding.variant == summa.SUMMA:
            _unweighted(axes, op, "runs as summa")
        if not free and axes:
            raise Unsupported(
                f'factor "{name}" of "{op.name}" ({op.kind}) is {op.rule.factors[k].kind}: it cannot be cut here',
                reason="factor",
            )
        if len(free) == 1:
            cuts[free[0]] = (*cuts[free[0]], *axes)
            continue
        held = _held(node, rest)
        batch = [a for a in free if node.samples[a]]
        for x in axes:
            resting = [b for b in held.get(axis_of(x), ()) if b in free]
            if resting:
                a = resting[0]
            elif batch:
                a = batch[0]
            else:
                easy = [b for b in free if b not in node.awkward] or free
                left = [_left(node.size[b], cuts[b], mesh) for b in easy]
                a = easy[_best(left, mesh[axis_of(x)])]
            cuts[a] = (*cuts[a], x)
    if "halo" in node.kind:
        halo.check(op, node, tuple(cuts), mesh)
    return tuple(cuts)


def _apart(
    node: Node,
    atoms: Atoms,
    sharding: OpSharding,
    cuts: Axes,
    rest: Mapping[str, Axes],
    mesh: Mapping[str, int],
) -> Iterator[tuple[int, Apart]]:
    """Operands whose gradient is cut otherwise than the op, and how."""
    op = atoms.folded.graph.ops[node.index]
    said = {k: op_cuts(node, atoms, OpSharding(given), rest, mesh) for k, given in sharding.backward.items()}
    if all(own == cuts for own in said.values()):
        return
    at_once = [k for k, t in enumerate(node.inputs) if t in atoms.grad] if not alone(op) else []
    if any(said.get(k) != said.get(at_once[0]) for k in at_once):
        raise Unsupported(
            f'"{op.name}" ({op.kind}) makes all of its gradients at once: cut those of operands '
            f"{', '.join(map(str, at_once))} alike",
            reason="backward",
        )
    for k, own in said.items():
        if own != cuts and (not at_once or k in at_once):
            check_apart(op, node, own, sharding.variant, all(atoms.is_weight(t) for t in node.outputs))
            yield k, Apart(own, tuple(on(m, own) for m in node.operands), tuple(on(m, own) for m in node.results))


def _held(node: Node, rest: Mapping[str, Axes]) -> dict[str, list[int]]:
    """Axis -> the atoms on which it cuts operands at rest, in the order of the operands."""
    held: dict[str, list[int]] = {}
    for t, m in zip(node.inputs, node.operands):
        for a, axes in zip(m, rest.get(t, ())):
            if a != FIXED:
                for x in axes:
                    held.setdefault(axis_of(x), []).append(a)
    return held


def _left(size: int, axes: tuple[str, ...], mesh: Mapping[str, int]) -> int:
    for x in axes:
        size = largest_part(size, x, mesh)
    return size


def _best(left: list[int], n: int) -> int:
    """The first atom that n divides, else the largest."""
    fit = [k for k, s in enumerate(left) if s % n == 0 and s >= n]
    return fit[0] if fit else max(range(len(left)), key=lambda k: left[k])


def assign(atoms: Atoms, choices: Choices, mesh: Mapping[str, int]) -> Assignment:
    """Forward pass: how every op computes and every tensor rests."""
    graph = atoms.folded.graph
    done = Assignment([], [], {}, {}, {})
    for t, layout in choices.layouts.items():
        if t in atoms.size:
            done.rest[t] = layout_axes(atoms, t, layout, mesh)
    for a, b in atoms.folded.carries:  # blocks are equal only if what they read rests as what they write
        entry = atoms.folded.name(a)
        if b in done.rest and atoms.role.get(entry) == "activation":
            done.rest.setdefault(entry, done.rest[b])
    held = ChainMap(done.rest, done.use)
    for n, node in enumerate(atoms.nodes):
        op = graph.ops[node.index]
        sharding = choices.shardings.get(op.name)
        cuts = op_cuts(node, atoms, sharding, held, mesh)
        done.cuts.append(cuts)
        need = [on(m, cuts) for m in node.operands]
        if sharding is not None and sharding.variant == summa.SUMMA:
            grid = summa.grid_of(op, node, cuts, held.get(node.inputs[0], ()), mesh)
            if grid is not None:
                done.grids[n] = grid
                need = summa.blocks(node, grid, need)
        done.need.append(need)
        if sharding is not None and sharding.backward:
            done.apart.update(((n, k), own) for k, own in _apart(node, atoms, sharding, cuts, held, mesh))
        for t, axes in zip(node.inputs, need):
            if t in atoms.producer:
                continue
            if atoms.role[t] == "param":
                done.use.setdefault(t, axes)
            elif atoms.role[t] != "buffer":
                done.rest.setdefault(t, axes)  # data arrives as its first op reads it
        partial = tuple(axis_of(x) for a in sorted(node.summed) for x in cuts[a])
        for t, m in zip(node.outputs, node.results):
            here = on(m, cuts)
            done.raw[t] = here, partial
            done.rest.setdefault(t, here)
    for a, b in atoms.folded.carries:  # ... also where no layout was given
        entry = atoms.folded.name(a)
        if atoms.role.get(entry) == "activation" and done.rest[entry] != done.rest[b] and entry not in choices.layouts:
            done.rest[entry] = done.rest[b]
    _rest_gradients(atoms, choices.gradients, mesh, done)
    for t in atoms.size:
        if atoms.role[t] == "param":
            stored = choices.storage.get(t)
            use = done.use.get(t, ((),) * len(atoms.size[t]))
            done.rest[t] = layout_axes(atoms, t, stored.param, mesh) if stored and stored.param else use
        elif atoms.role[t] == "buffer" or t in atoms.const:
            done.rest[t] = ((),) * len(atoms.size[t])
    return done


def _rest_gradients(atoms: Atoms, said: Mapping[str, Layout], mesh: Mapping[str, int], done: Assignment) -> None:
    """Blocks are equal only if the gradient of what they read rests as that of what they write.

    Raises:
        Unsupported: of a value that nothing reads; of what is made of parameters alone, whose gradient may stay a sum to be
            completed.
    """
    own = {t: layout_axes(atoms, t, layout, mesh) for t, layout in said.items() if t in atoms.size}
    for a, b in atoms.folded.carries:
        entry = atoms.folded.name(a)
        if own.get(entry, own.get(b)) != own.get(b, own.get(entry)):
            raise Unsupported(
                f'the gradient of "{entry}" rests otherwise than that of "{b}", which the next block reads in its place: '
                "say both alike",
                reason="backward",
            )
        if b in own and atoms.role.get(entry) == "activation":
            own[entry] = own[b]
        elif entry in own:
            own[b] = own[entry]
    for t, axes in own.items():
        if axes == done.rest[t] or t not in atoms.grad:
            continue
        why = "is made of parameters alone" if t in atoms.from_params else ""
        if not why and t not in atoms.users:
            why = "is read by no op"
        if why:
            raise Unsupported(
                f'the gradient of "{t}" cannot rest apart, as the value {why}: leave its gradients out',
                reason="backward",
            )
        done.grads[t] = axes


@dataclass(slots=True)
class Sums:
    """Which axes the gradient of each use, and of each value, is still unsummed over."""

    use: dict[tuple[int, int], frozenset[str]]
    """(node, operand) -> G."""
    deferred: dict[str, frozenset[str]]


def defer(atoms: Atoms, done: Assignment, whole: frozenset[str] = frozenset()) -> Sums:
    """Backward sweep. Deferral: only for values derived from parameters alone; for a parameter, the end-of-step sums.

    `whole`: values whose gradient must be complete, as it goes to a mesh that has no such sums.
    """
    use: dict[tuple[int, int], frozenset[str]] = {}
    deferred: dict[str, frozenset[str]] = {}
    none: frozenset[str] = frozenset()

    def of(t: str, n: int) -> frozenset[str]:
        sums = [use[u] for u in atoms.users.get(t, ()) if u in use]
        if not sums or t not in atoms.from_params or t not in atoms.grad or t in whole:
            return none
        common = frozenset.intersection(*sums) - axes_of(done.rest[t])
        return common - axes_of(done.cuts[n]) if n >= 0 else common

    for n in range(len(atoms.nodes) - 1, -1, -1):
        node = atoms.nodes[n]
        outs = []
        for t in node.outputs:
            deferred[t] = of(t, n)
            outs.append(deferred[t])
        d = frozenset.intersection(*outs) if outs else none
        for k, t in enumerate(node.inputs):
            if t in atoms.grad and n in atoms.differentiable:
                own = done.apart.get((n, k))
                mine = axes_of(own.cuts if own else done.cuts[n])
                need = axes_of(own.needs[k] if own else done.need[n][k])
                g = (mine - need) | (d - mine)
                if t in atoms.from_params:
                    g |= need - axes_of(done.rest[t])
                use[n, k] = g
    for t, role in atoms.role.items():
        if role == "param":
            deferred[t] = of(t, -1)
    return Sums(use, deferred)
