"""Annotation sets for whole models: the recipes of GSPMD, §5, on any captured model.

    activations B S M, hidden H; X: axes of the data, Y: the last axis of the mesh; "_": whole, and so it stays

    recipe        input    W_in [M H]    W_out [H M]    results of W_out [B S M]
    dp            X        _  _          _  _           free
    fsdp          X        X  _          _  X           free
    megatron      X        _  Y          Y  _           free
    2d-attempt    X        X  Y          Y  X           X _ _
    2d            X        X  Y          Y  X           X _ Y
    moe           X        experts over X, all else whole
    spatial       _ _ X _  _  _          _  _           free        (rows of images)

Which weights widen and which narrow is found as the expert layouts find it (`layouts.expert`): a product whose operand
arrives cut on what it sums over is a W_out, any other a W_in; an embedding table is cut on its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal, get_args

from ..cluster.model import Mesh
from ..errors import InputError
from ..layouts.expert import Expert, expert_of
from ..layouts.style import EP, TP, Style
from ..lower.assign import cuts_along, plan_layout
from ..lower.atoms import FIXED, Atoms, Node
from ..lower.convert import Axes
from ..plan.lookup import representative_tensor
from ..plan.model import Layout
from ..plan.problem import Annotation, Problem

Recipe = Literal["dp", "fsdp", "megatron", "2d-attempt", "2d", "moe", "spatial"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
_TWO = frozenset({"megatron", "2d-attempt", "2d"})
"""Recipes with a Y."""


def mesh_of(problem: Problem, recipe: Recipe | None) -> Mesh:
    """The problem's mesh; else all devices over "x", with the devices of one node over "y" where the recipe has a Y."""
    if problem.mesh is not None:
        return problem.mesh
    n = min(problem.limits.devices or problem.cluster.count, problem.cluster.count)
    if recipe not in _TWO:
        return Mesh(range(n), ("x",), (n,))
    degrees = expert_of(problem.graph).tensor_degrees(min(problem.cluster.node_size, n))
    y = max(d for d in degrees if n % d == 0)
    return Mesh(range(n), ("x", "y"), (n // y, y))


def annotations_of(problem: Problem, mesh: Mesh, recipe: Recipe) -> tuple[Annotation, ...]:
    """The recipe on a model.

    Args:
        mesh: its axes are X and Y: the last is Y where the recipe has one, all others are X.

    Raises:
        InputError: a model that the recipe has nothing to cut in.
    """
    graph = problem.graph
    expert = expert_of(graph)
    rows = mesh.axes[:-1] if recipe in _TWO else mesh.axes
    column = mesh.axes[-1:] if recipe in _TWO else ()
    where = f"recipe {recipe}"
    found = [*_inputs(expert.atoms, rows, 2 if recipe == "spatial" else 0, where)]
    if not found:
        raise InputError(f"{where} cuts rows of images, and this model takes none: use another recipe")
    if recipe == "moe":
        uses = _over_experts(expert, rows, mesh)
    else:
        uses = _wide(expert, ways := prod(mesh.size(a) for a in column), column)
        if ways > 1 and not any(cut for axes in uses.values() for cut in axes):
            able = ", ".join(map(str, expert.tensor_degrees(ways)))
            raise InputError(
                f"{where} cannot cut the weights of this model in {ways}: it can in {able}", where="recipe"
            )
    laid = {t: plan_layout(expert.atoms, t, axes) for t, axes in uses.items()}
    late: dict[str, tuple[int, ...]] = {}
    if recipe in ("fsdp", "2d-attempt", "2d"):
        wide = _wide(expert, _some_degree(expert), ("wide",))
        both = {t: _also(expert, t, axes, wide[t], rows, mesh) for t, axes in uses.items()}
        laid = {t: plan_layout(expert.atoms, t, axes) for t, axes in both.items()}
        late = {t: _with_rows(layout, rows) for t, layout in laid.items()}
    if recipe in ("2d-attempt", "2d"):
        laid |= dict(_results(expert, uses, rows, column if recipe == "2d" else ()))
    for t in graph.tensor:  # a block speaks for all of its run
        own = t if t in laid else representative_tensor(graph, t)
        if own in laid:
            found.append(Annotation(t, laid[own], priority=late.get(own, ()), where=where))
    return tuple(found)


def _with_rows(layout: Layout, rows: tuple[str, ...]) -> tuple[int, ...]:
    """Priorities: dims of weights that X cuts come after the samples, for which X is first of all."""
    return tuple(int(any(c.axis in rows for _, cuts in dim for c in cuts)) for dim in layout.dims)


def _inputs(atoms: Atoms, rows: tuple[str, ...], dim: int, where: str) -> Iterator[Annotation]:
    graph = atoms.folded.graph
    for name in graph.inputs:
        shape = graph.tensor[name].shape
        if len(shape) > dim and (dim == 0 or len(shape) >= 4):
            cuts = tuple(((0, cuts_along(rows) if d == dim else ()),) for d in range(len(shape)))
            yield Annotation(name, Layout(cuts), where=where)


def _wide(expert: Expert, ways: int, column: tuple[str, ...]) -> dict[str, Axes]:
    """Parameter -> axes per atom: `column` on what is wide, if `ways` > 1 parts fit there."""
    uses = expert.uses(Style(max(ways, 1), False, 0, "none"))
    named = {TP: column if ways > 1 else ()}
    return {t: _renamed(axes, named) for t, axes in uses.items()}


def _over_experts(expert: Expert, rows: tuple[str, ...], mesh: Mesh) -> dict[str, Axes]:
    ways = prod(mesh.size(a) for a in rows)
    able = expert.expert_degrees(max((expert.atoms.nodes[n].size[a] for n, a in expert.experts.items()), default=1))
    if ways not in able:
        raise InputError(
            f"recipe moe cannot cut this model's experts in {ways}: it can in {', '.join(map(str, able))}",
            where="recipe",
        )
    uses = expert.uses(Style(1, False, 0, "none", ep=ways))
    return {t: _renamed(axes, {EP: rows}) for t, axes in uses.items()}


def _renamed(axes: Axes, names: Mapping[str, tuple[str, ...]]) -> Axes:
    return tuple(tuple(a for x in cut for a in names.get(x, ())) for cut in axes)


def _some_degree(expert: Expert) -> int:
    """A degree at which wide and narrow weights show; 1 if there is none."""
    return next((d for d in expert.tensor_degrees(64) if d > 1), 1)


def _also(expert: Expert, t: str, axes: Axes, wide: Axes, rows: tuple[str, ...], mesh: Mesh) -> Axes:
    """X besides: on the longest dim that is not wide, M; where all are, and not cut, on any. Not where it is too short."""
    sizes, counts = expert.atoms.size[t], expert.atoms.dims[t]
    parts = prod(mesh.size(a) for a in rows)
    owner = [d for d, count in enumerate(counts) for _ in range(count)]
    taken = {owner[k] for k, cut in enumerate(wide) if cut}
    free = [k for k in range(len(sizes)) if owner[k] not in taken] or [k for k, cut in enumerate(axes) if not any(axes)]
    if not free or max(sizes[k] for k in free) < parts:
        return axes
    k = max(free, key=lambda j: (sizes[j] % parts == 0, sizes[j]))
    return tuple((*cut, *rows) if j == k else cut for j, cut in enumerate(axes))


def _results(
    expert: Expert, uses: Mapping[str, Axes], rows: tuple[str, ...], column: tuple[str, ...]
) -> Iterator[tuple[str, Layout]]:
    """The residual stream: what narrow products and the embedding leave."""
    atoms = expert.atoms
    for node in atoms.nodes:
        if not _narrows(atoms, node, uses):
            continue
        t = node.outputs[0]
        own: list[tuple[str, ...]] = []
        for k, a in enumerate(node.results[0]):
            last = k >= len(node.results[0]) - atoms.dims[t][-1]
            samples = a != FIXED and node.samples[a]
            own.append(rows if samples and rows not in own else column if last and column not in own else ())
        yield t, plan_layout(atoms, t, tuple(own))


def _narrows(atoms: Atoms, node: Node, uses: Mapping[str, Axes]) -> bool:
    """Whether some weight of the op is cut on what the op sums over."""
    for t, mapping in zip(node.inputs, node.operands):
        if any(cut and a in node.summed for a, cut in zip(mapping, uses.get(t, ()))):
            return True
    return False
