"""What a row says of a plan that chooses an option per op: the shares of the parameters that are cut alike, and rest cut.

Its mesh axes are called x0, x1, …, which says nothing, so that the words are read from how each parameter is computed with:

    dp8         samples are cut, every device has all of the weight        ep8   experts are cut
    tp8         the weight is cut: col8 by what comes out of the product, row8 by what is summed in it
    cp8         positions are cut, every device has all of the weight      whole every device computes all of it
    z1, z3      the optimizer state, or the weight too, rests cut over devices that compute with copies; z0: neither

These are the words of other rows, where a mesh axis says them of all parameters at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..graph.ir import Graph, Op
from ..lower.memo import memo
from ..plan.lookup import sharding_of, storage_of
from ..plan.model import Layout, OpSharding, Plan, Stage, Storage

KINDS = ("dp", "cp", "ep", "col", "row")
WEIGHT = ("col", "row")
"""Kinds that cut the weight of a product: "tp"."""
SMALL = 0.01
"""Share of the parameters below which a way of cutting, or of resting, is not said of a whole row."""
PATTERNS = 2
"""Ways of cutting that are said of a row, the commonest."""

Ways = Mapping[str, tuple[str, ...]]
"""Kind -> mesh axes."""


@dataclass(frozen=True, slots=True)
class Held:
    """How a parameter is computed with and rests; `elements` of all blocks that do so alike."""

    param: str
    elements: int
    ways: Ways
    level: int


def op_words(plan: Plan, graph: Graph) -> str:
    """ "dp8 62% tp8 38% z1 31%", "2×4 dp2·tp4 z3": shares of the elements of all parameters; none where it is all of them.

    "" for meshes whose axes are called after what they cut, and for several stages.
    """
    if not chosen_by_op(plan):
        return ""
    stage = plan.stages[0]
    cuts: dict[str, int] = {}
    levels: dict[str, int] = {}
    for held in params_held(plan, graph):
        way = pattern(held.ways, stage)
        cuts[way] = cuts.get(way, 0) + held.elements
        if held.level:
            level = f"z{held.level}"
            levels[level] = levels.get(level, 0) + held.elements
    total = sum(cuts.values())
    sizes = [n for n in stage.mesh.shape if n > 1]
    words = ["×".join(map(str, sizes))] if len(sizes) > 1 else []
    words += _shares(cuts, total)[:PATTERNS] if total else [pattern({}, stage)]
    return " ".join([*words, *_shares(levels, total)])


def chosen_by_op(plan: Plan) -> bool:
    """Whether it has one stage on several devices, whose axes are called x0, x1, …: what they cut is said op by op."""
    if len(plan.stages) != 1 or plan.rewritten is not None:
        return False
    mesh = plan.stages[0].mesh
    return prod(mesh.shape) > 1 and all(re.fullmatch(r"x\d*", axis) for axis in mesh.axes)


def params_held(plan: Plan, graph: Graph) -> list[Held]:
    """Of a plan with one stage. Parameters of equal blocks that are treated alike are said once, by that of the first."""
    stage = plan.stages[0]
    found: dict[tuple[object, ...], Held] = {}
    for param, elements, op, operand in _reads(graph):
        sharding, storage = sharding_of(graph, stage, op), storage_of(graph, stage, param)
        first = graph.representative_param.get(param, param)
        key = first, id(sharding), id(storage)
        if key in found:
            elements += found[key].elements
            found[key] = Held(first, elements, found[key].ways, found[key].level)
        else:
            ways = cut_ways(graph.ops[op], sharding, operand)
            found[key] = Held(first, elements, ways, rest_level(storage, ways))
    return list(found.values())


def _reads(graph: Graph) -> Sequence[tuple[str, int, int, int]]:
    """(parameter, elements, op that does most with it, which operand of that it is)."""

    def made() -> list[tuple[str, int, int, int]]:
        found = []
        for t in graph.params():
            uses = graph.consumers.get(t.name, ())
            if uses:
                op, operand = max(uses, key=lambda use: graph.ops[use[0]].flops)
                found.append((t.name, prod(t.shape), op, operand))
        return found

    reads: Sequence[tuple[str, int, int, int]] = memo(graph, "reads of parameters", made)
    return reads


def cut_ways(op: Op, sharding: OpSharding | None, operand: int) -> Ways:
    """Which axes cut what of an op that reads a parameter."""
    if sharding is None:
        return {}
    own = {name for dim in op.rule.operands[operand] for name in dim}
    others = {name for k, dims in enumerate(op.rule.operands) if k != operand for dim in dims for name in dim}
    summed = op.rule.summed()
    found: dict[str, tuple[str, ...]] = {}
    for f in op.rule.factors:
        if cuts := sharding.cuts.get(f.name):
            if f.name in own:
                kind = "row" if f.name in summed else "ep" if op.flops and f.name in others else "col"
            else:
                kind = "dp" if f.samples else "cp"
            found[kind] = (*found.get(kind, ()), *(c.axis for c in cuts))
    return {kind: tuple(sorted(found[kind])) for kind in KINDS if kind in found}


def pattern(ways: Ways, stage: Stage) -> str:
    """ "dp2·tp4"; "whole" where nothing is cut."""
    sizes: dict[str, int] = {}
    for kind, axes in ways.items():
        name = "tp" if kind in WEIGHT else kind
        sizes[name] = sizes.get(name, 1) * prod(map(stage.mesh.size, axes))
    return "·".join(f"{name}{n}" for name, n in sizes.items()) or "whole"


def way_words(ways: Ways, stage: Stage) -> str:
    """ "dp2·col4"; where axes have one size, which: "dp2/x0·col2/x1"."""
    alike = len(set(stage.mesh.shape)) < len(stage.mesh.shape)
    words = [
        f"{kind}{prod(map(stage.mesh.size, axes))}" + (f"/{'+'.join(axes)}" if alike else "")
        for kind, axes in ways.items()
    ]
    return "·".join(words) or "whole"


def rest_level(storage: Storage | None, ways: Ways) -> int:
    """What of a parameter rests cut over devices that compute with copies of it: 0 nothing, 1 the optimizer state, 2 its
    gradient too, 3 the weight itself."""
    if storage is None:
        return 0
    used = {axis for kind in ("ep", *WEIGHT) for axis in ways.get(kind, ())}
    for level, layout in ((3, storage.param), (2, storage.grad), (1, storage.state)):
        if layout is not None and axes_of(layout) - used:
            return level
    return 0


def axes_of(layout: Layout) -> set[str]:
    return {cut.axis for dim in layout.dims for _, cuts in dim for cut in cuts}


def _shares(sizes: Mapping[str, int], total: int) -> list[str]:
    """Largest first: "dp8" alone where it is all, else "dp8 62%"; nothing of what is small, unless all of it is."""
    shares = sorted(((n / total, name) for name, n in sizes.items()), key=lambda s: (-s[0], s[1])) if total else []
    large = [s for s in shares if s[0] >= SMALL] or shares[:1]
    most = large[0][0] if large else 0.0
    if len(large) == 1 and most > 1 - SMALL and sum(sizes.values()) == total:
        return [large[0][1]]
    return [f"{name} {max(1, min(99, round(100 * share)))}%" for share, name in large]


def legend(layouts: Sequence[str]) -> str:
    """What the words of such rows mean, by figures of the first that has them; "" where all are words of any plan."""
    own = [layout for layout in layouts if OWN.search(layout)]
    if not own:
        return ""
    said = [text.format(match[0]) for regex, text in MEANING if (match := _first(regex, own)) is not None]
    return "; ".join(said)


COLON = r"(?<!stage)(?<!stages): \S"
"""Not that of "2 stages: 8 + 8"."""
OWN = re.compile(rf"\d%|{COLON}")
"""What only rows of plans that choose per op have."""
MEANING = (
    (
        r"\b(?:dp|cp|ep|tp)\d+\S* \d+%",
        "{}: that share of the parameters is computed with so: dp cuts samples, tp the weight",
    ),
    (r"\bcp\d+", "{}: positions are cut"),
    (r"\bz1 \d+%", "{}: of that share of the parameters the optimizer state rests cut"),
    (r"\bz2 \d+%", "{}: of that share the optimizer state and the gradient rest cut"),
    (r"\bz3 \d+%", "{}: of that share the weight rests cut, too"),
    (r"\bcol\d+", "{}: cut by the columns of the weight"),
    (r"\brow\d+", "{}: cut by the rows of the weight, what is summed"),
    (r"\bwhole\b", "{}: computed on every device"),
    (r"\bz0\b", "{}: nothing of it rests cut"),
    (COLON, "behind the colon: what differs from the row above"),
)


def _first(regex: str, layouts: Sequence[str]) -> re.Match[str] | None:
    return next(_matches(regex, layouts), None)


def _matches(regex: str, layouts: Sequence[str]) -> Iterator[re.Match[str]]:
    return (match for layout in layouts if (match := re.search(regex, layout)))
