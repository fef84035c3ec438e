"""Double recursion, D-Rec (Wang et al., Euro-Par 2021, doi:10.1007/978-3-030-85665-6_13; MindSpore, recursive_programming).

One recursion is over the devices, which are halved until one is left; the other over the operators, of which the most important
decides first. In each round every operator halves the dim of least communication volume, with what it costs to re-arrange
tensors to neighbours that were decided in the same round; no search goes back. Elementwise operators, reshapes and norms are
contracted before and follow their producer (else their reader) afterwards. Linear in operators, logarithmic in devices.

Volumes, slots and ties are in `_recursion`. What operators are, is in `_main_ops`: an operator that reads several results is one
that costs nothing itself, so that residual streams stay sparse graphs; so are pools and batch norms.

The objective, the sum over rounds of volumes and of re-arranged elements as their reader has them, is not minimised: `exact` finds
its least value by elimination, as a bound. Compute, latency and memory are no part of the method: a plan that does not fit is
refused in the end. The 2020 code's reduction of products to one cut dim is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..cluster.model import Mesh
from ..cost.recorded import Recorded
from ..cost.untimed import Untimed
from ..errors import Infeasible, Unsupported
from ..graph.ir import Ints
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.fits import fits
from ._checked import above, word
from ._main_ops import NONE, MainOps, entries, main_ops
from ._recursion import (
    COLUMNS,
    CONV,
    HEIGHT,
    NOTHING,
    OTHER,
    PRODUCT,
    ROWS,
    SUMMED,
    WIDTH,
    Importance,
    Operators,
    State,
    costs,
    search,
)
from ._recursion_exact import least
from .base import Planner
from .registry import register
from .types import Info, Json, Run

DECIDE = frozenset(
    {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d_with_indices", "batch_norm", "native_batch_norm"}
)
"""Kinds of one operand that decide for themselves."""
WORDS = {"batch": ROWS, "out": COLUMNS, "in": SUMMED, "height": HEIGHT, "width": WIDTH}
Order = Literal["weight", "topological"]
Source = Literal["first", "last"]


@register
class DoubleRecursive(Planner):
    """One dim of every operator for each halving of the devices.

    Args:
        order: of operators in a round: by "weight" (paper, patent, code of 2020), or "topological" (MindSpore 2.10). None =
            topological for cases of MindSpore's, weight for all else.
        coefficient: of a gradient's sum, less than 1 because it overlaps (2.10: 0.1; 2020 and 2021: 0.25).
        no_cut: a product may also stay uncut in a round (2.10).
        exclusive: a product is never cut both on columns and on what it sums over (2.10).
        conv: dims on which convolutions may be cut: batch, out, in, height, width.
        data_source: "first": tensors of data are decided before all operators; "last": after them, as 2.10 numbers nodes of
            some networks with residual connections.
        exact: also find the least volume of all plans, as a bound.
    """

    info = Info(
        name="double_recursive",
        title="Efficient and Systematic Partitioning of Large and Deep Neural Networks for Parallelization",
        year=2021,
        reference="doi:10.1007/978-3-030-85665-6_13",
        decides=frozenset({"shards"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="tensor",
    )
    unit = "element"

    def __init__(
        self,
        *,
        order: Order | None = None,
        coefficient: float = 0.1,
        no_cut: bool = True,
        exclusive: bool = True,
        conv: Sequence[str] = ("batch",),
        data_source: Source = "first",
        exact: bool = False,
    ) -> None:
        name = "double_recursive"
        word(name, "order", order, get_args(Order))
        word(name, "data_source", data_source, get_args(Source))
        above(name, "coefficient", coefficient, zero=True)
        for dim in (conv := (conv,) if isinstance(conv, str) else tuple(conv)):
            word(name, "dim of conv", dim, WORDS)
        self.order = order
        self.coefficient, self.no_cut, self.exclusive = coefficient, no_cut, exclusive
        self.conv = conv
        self.data_source = data_source
        self.exact = exact

    def search(self, problem: Problem, run: Run) -> Json:
        """One pass; no bound unless `exact`."""
        model = self._model(problem)
        importance = self._importance(problem)
        run.tick(0, "rounds", 0, model.rounds)
        slots, states = search(model.ops, model.rounds, importance)
        plan = model.plan(problem, slots)
        if not isinstance(problem.cost, Recorded | Untimed):
            over = fits(problem, plan)
            if over:
                raise Infeasible(f"{over}; double_recursive takes no account of memory")
        objective = self.objective(problem, plan)
        carry: dict[str, Json] = {
            "order": importance,
            "operators": len(model.ops),
            "rounds": [_said(model, taken) for taken in slots],
        }
        if importance == "topological" and len(model.ops) <= SHOWN:
            carry["costs"] = [_costs(model, state, taken) for state, taken in zip(states, slots)]
        carry["by_order"] = {
            order: objective if order == importance else _volume(model, order) for order in get_args(Order)
        }
        carry["strategies"] = _strategies(model, slots)
        carry["followers"] = _followers(problem, model, plan)
        run.offer(objective, lambda: plan)
        if self.exact:
            _, found = least(model.ops, model.rounds)
            run.bound(found.bound)
            carry["least"] = found.value
            carry["gap"] = (objective - found.value) / found.value if found.value else 0.0
        run.tick(1, "rounds", model.rounds, model.rounds)
        return carry

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Elements, summed over rounds.

        Raises:
            Unsupported: not one stage on all devices, or axes that do not halve.
        """
        model = self._model(problem)
        state, total = State.first(model.ops), 0.0
        for slots in model.decided(problem, plan):
            if not np.isfinite(state.volumes()[np.arange(len(model.ops)), slots]).all():
                raise Unsupported(
                    "double_recursive prices plans that cut every operator as it would: into equal halves"
                )
            total += state.price(slots)
            state = state.halved(slots)
        return total

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """Plans of one stage that `objective` prices."""
        return len(plan.stages) == 1

    def _importance(self, problem: Problem) -> Importance:
        if self.order is not None:
            return self.order
        return "topological" if isinstance(problem.cost, Recorded | Untimed) else "weight"

    def _model(self, problem: Problem) -> _Model:
        count = problem.limits.devices or problem.cluster.count
        if count & (count - 1):
            raise Unsupported(
                f"double_recursive halves the devices down to one, which {count} do not allow: give it "
                f"{1 << (count.bit_length() - 1)}"
            )
        main = main_ops(problem.graph, "double_recursive", DECIDE)
        ops = self._operators(main, problem.recipe.samples)
        return _Model(main, ops, count.bit_length() - 1)

    def _operators(self, main: MainOps, samples: int) -> Operators:
        n = len(main.ops)
        kind, size = np.zeros(n, np.int64), np.ones((n, 5), np.int64)
        read_rest, made_rest, weights = np.ones(n), np.ones(n), np.zeros(n)
        feeds = {v for _, v in main.edges}
        for v, op in enumerate(main.ops):
            kind[v] = OTHER if op.join else CONV if op.conv else PRODUCT
            local = main.sizes(v, samples)
            for dim, atoms in _roles(op.join, op.batch, op.inner, op.outer, op.space).items():
                size[v, dim] = int(np.prod([local[a] for a in atoms], dtype=np.int64))
            read, made, weight = main.elements(v, samples)
            s = size[v].astype(np.float64)
            image = s[HEIGHT] * s[WIDTH]
            made_rest[v] = made / (s[ROWS] * s[SUMMED if op.join else COLUMNS] * image)
            read_rest[v] = made_rest[v] if op.join else read / (s[ROWS] * s[SUMMED] * image)
            weights[v] = weight / (s[SUMMED] * s[COLUMNS])
        return Operators(
            kind, size, read_rest, made_rest, weights, main.edges, np.array([v not in feeds for v in range(n)], bool),
            self.coefficient, self.no_cut, self.exclusive, tuple(WORDS[dim] for dim in self.conv),
            self.data_source == "first",
        )  # fmt: skip


SHOWN = 64
"""Operators up to which the costs of all slots are told."""


def _roles(
    join: bool, batch: tuple[int, ...], inner: tuple[int, ...], outer: tuple[int, ...], space: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    """Dim -> atoms, those to be cut first in front."""
    found = {ROWS: batch, SUMMED: outer if join else inner, COLUMNS: () if join else outer}
    return found | {HEIGHT: space[:1], WIDTH: space[1:2]}


@dataclass(frozen=True)
class _Model:
    """A problem as operators and rounds, and plans as slots."""

    main: MainOps
    ops: Operators
    rounds: int

    def plan(self, problem: Problem, slots: Sequence[Ints]) -> Plan:
        """One stage; rounds in a row that cut every operator alike are one axis."""
        atoms = self._atoms(problem, slots)
        axes: list[int] = []
        columns: list[tuple[int, ...]] = []
        for own in atoms:
            if columns and own == columns[-1]:
                axes[-1] *= 2
            else:
                columns.append(own)
                axes.append(2)
        names = tuple(f"r{k}" for k in range(len(axes)))
        count = problem.limits.devices or problem.cluster.count
        decided = [[column[v] for column in columns] for v in range(len(self.main.ops))]
        shardings = self.main.follow(decided, names)
        stage = Stage(entries(problem.graph), Mesh(range(count), names, tuple(axes)), shardings)
        return Plan(problem.graph.digest, problem.recipe.samples, (stage,), Schedule())

    def _atoms(self, problem: Problem, slots: Sequence[Ints]) -> list[tuple[int, ...]]:
        """Per round and operator: the atom that is halved, or NONE."""
        left = [self.main.sizes(v, problem.recipe.samples) for v in range(len(self.main.ops))]
        found = []
        for taken in slots:
            own = []
            for v, op in enumerate(self.main.ops):
                role = _roles(op.join, op.batch, op.inner, op.outer, op.space).get(int(self.ops.dims[v, taken[v]]), ())
                atom = next((a for a in role if left[v][a] % 2 == 0), NONE)
                if atom != NONE:
                    left[v][atom] //= 2
                own.append(atom)
            found.append(tuple(own))
        return found

    def decided(self, problem: Problem, plan: Plan) -> list[Ints]:
        """The slots of any plan of one stage, round by round."""
        if len(plan.stages) != 1:
            raise Unsupported(
                "double_recursive prices plans of one stage, whose operators are cut over all its devices"
            )
        stage, graph = plan.stages[0], problem.graph
        count = problem.limits.devices or problem.cluster.count
        if len(stage.mesh.devices) != count or any(n & (n - 1) for n in stage.mesh.shape):
            raise Unsupported(f"double_recursive prices plans whose mesh axes halve all {count} devices")
        axes = [axis for axis, n in zip(stage.mesh.axes, stage.mesh.shape) for _ in range(n.bit_length() - 1)]
        found = np.full((len(axes), len(self.main.ops)), NOTHING, np.int64)
        for v, op in enumerate(self.main.ops):
            name = self.main.name(v)
            sharding = stage.shardings.get(name) or stage.shardings.get(
                graph.ops[graph.representative[graph.position[name]]].name
            )
            if sharding is None:
                continue
            node = self.main.atoms.nodes[op.node]
            names = [graph.ops[node.index].rule.factors[f].name for f in node.factor]
            roles = _roles(op.join, op.batch, op.inner, op.outer, op.space)
            slot_of = {int(d): s for s, d in reversed(list(enumerate(self.ops.dims[v])))}
            on: dict[str, int] = {}
            for factor, cuts in sharding.cuts.items():
                dim = next((d for d, atoms in roles.items() if factor in {names[a] for a in atoms}), NOTHING)
                if dim == NOTHING and cuts:
                    raise Unsupported(f"op {name} is cut on {factor}, which double_recursive never cuts")
                on |= {cut.axis: slot_of[dim] for cut in cuts}
            found[:, v] = [on.get(axis, NOTHING) for axis in axes]
        return list(found)


def _volume(model: _Model, order: Importance) -> float:
    """The objective of what the other order finds: an early decision may be a bad one, whichever goes first."""
    slots, states = search(model.ops, model.rounds, order)
    return sum(state.price(taken) for state, taken in zip(states, slots))


_LETTERS = {ROWS: "I", COLUMNS: "J", SUMMED: "K", HEIGHT: "H", WIDTH: "W", NOTHING: "R"}


def _said(model: _Model, slots: Ints) -> str:
    """A letter for each operator."""
    return "".join(_LETTERS[int(model.ops.dims[v, s])] for v, s in enumerate(slots))


def _costs(model: _Model, state: State, slots: Ints) -> Json:
    found: list[Json] = []
    table = costs(state, slots)
    for v in range(len(model.ops)):
        row: dict[str, Json] = {}
        for s in range(NOTHING + 1):
            if np.isfinite(table[v, s]):
                row.setdefault(_LETTERS[int(model.ops.dims[v, s])], float(table[v, s]))
        found.append(row)
    return found


def _strategies(model: _Model, slots: Sequence[Ints]) -> Json:
    """Per product MindSpore's [[rows, summed], [summed, columns]], per other operator the parts of each of its dims."""
    parts = np.ones((len(model.ops), NOTHING + 1), np.int64)
    at = np.arange(len(model.ops))
    for taken in slots:
        parts[at, model.ops.dims[at, taken]] *= 2
    found: dict[str, Json] = {}
    for v in range(len(model.ops)):
        i, k, j = (int(parts[v, d]) for d in (ROWS, SUMMED, COLUMNS))
        kind = int(model.ops.kind[v])
        found[model.main.name(v)] = (
            [[i, k], [k, j]] if kind == PRODUCT else [[i, k, *map(int, parts[v, HEIGHT:NOTHING])]]
        )
    return found


def _followers(problem: Problem, model: _Model, plan: Plan) -> Json:
    """Per contracted operator the parts of each dim of its result; of small models."""
    if len(problem.graph.ops) > SHOWN:
        return {}
    stage = plan.stages[0]
    decided = {op.node for op in model.main.ops}
    found: dict[str, Json] = {}
    for n, node in enumerate(model.main.atoms.nodes):
        op = problem.graph.ops[node.index]
        if n in decided or op.name not in stage.shardings:
            continue
        cuts = stage.shardings[op.name].cuts
        found[op.name] = [
            [
                int(np.prod([stage.mesh.size(c.axis) for f in dim for c in cuts.get(f, ())], dtype=np.int64))
                for dim in dims
            ]
            for dims in op.rule.results
        ]
    return found
