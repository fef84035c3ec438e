"""Seconds of one plan by several cost models that differ in their constants: what none of these changes is done once.

    segments     priced with a column a model, where others have a column a micro-batch size; an op is priced once for all
                 models that price it alike (`CostModel.depends`)
    once a step  gradient sums, gathers, optimizer: once for stages that hold the same parameters
    tasks        put in order once, played with the durations of each model

Equal to `simulate` by test.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from ..cluster.model import Cluster, DeviceType, Mesh
from ..cost.base import Collective, CostModel, Dependent, Group
from ..cost.choices import Profile
from ..graph.ir import Floats, Graph, Ints, Op, Phase
from ..lower.program import Instr, Program, Segment, StageCode
from ..plan.model import Plan
from ..plan.problem import Problem, Recipe
from ..plan.schedules.rows import workers
from .engine import replay, topological
from .estimate import collect, rank_of
from .pipeline import Orders
from .play import devices_of, durations, ending, is_free, ordered, priced
from .price import Pricer
from .segment import SegmentPricer
from .sends import sends_of
from .tasks import PipelineTasks, Sends, pipeline_tasks


def seconds_by(problem: Problem, plan: Plan, costs: Sequence[CostModel], program: Program | None = None) -> Floats:
    """Seconds [model] of one optimizer step of `plan` by each cost model, all of one kind; the problem's own counts only if
    it is among them.

    Raises:
        InputError, Unsupported: like `simulate`.
    """
    if not _shared(problem, plan, costs):
        from .simulator import simulate

        each = (simulate(replace(problem, cost=c), plan, detail=False, program=program) for c in costs)
        return np.array([found.step_seconds for found in each])
    graph = plan.rewritten or problem.graph
    if program is None:
        from ..lower import lower

        program = lower(graph, plan, problem.recipe)
    order = ordered(plan, program)
    rank, devices = rank_of(order), len(devices_of(program))
    pricer = _Columns(graph, problem.cluster, costs, problem.recipe)
    prices, last = priced(order, program, pricer, len(costs))
    meshes = [code.mesh for code in program.stages]
    once = [pricer.several(code) for code in program.stages]
    first, group = pricer.alike.of("transfer", problem.cluster.types)
    sent = [sends_of(program, pricer.each[k]) for k in first]
    works = [
        replace(
            collect(prices, k, meshes, sent[group[k]], own, last),
            sums=np.array([price[k][0] for price in once]),
            gathers=np.array([price[k][1] for price in once]),
            optimizer=np.array([price[k][2] for price in once]),
        )
        for k, own in enumerate(pricer.each)
    ]
    any_tasks = pipeline_tasks(order, durations(works[0], sent[0], rank), sent[0])
    turn = topological(any_tasks.fixed)
    found = np.zeros(len(costs))
    for k, (cost, work) in enumerate(zip(costs, works, strict=True)):
        sends = sent[group[k]]
        tasks = _lasting(any_tasks, order, durations(work, sends, rank), sends)
        found[k] = ending(order, tasks, replay(turn, tasks.fixed.duration), work, rank, cost, devices).seconds
    return found


def _shared(problem: Problem, plan: Plan, costs: Sequence[CostModel]) -> bool:
    """Whether `simulate` would price the stages and play a step that ends, everybody at full speed."""
    devices = {d for stage in plan.stages for d in stage.mesh.devices}
    alone = is_free(plan) and all(len(s.mesh.devices) == 1 for s in plan.stages)
    return not (
        alone
        or (is_free(plan) and (plan.rewritten or problem.graph).training != "derived")
        or any(isinstance(c, Profile) or c.holds_all for c in costs)
        or any(s.offload or any(x.variant for x in s.shardings.values()) for s in plan.stages)
        or not plan.schedule.weights.flush
        or workers(plan.schedule, len(plan.stages))
        or problem.cluster.turns(len(devices)) > 1.0
    )


def _lasting(tasks: PipelineTasks, order: Orders, seconds: Floats, sends: Sends) -> PipelineTasks:
    """The same tasks with the durations that `pipeline_tasks` would give them."""
    actions = np.bincount(order.task, seconds[order.kind, order.row], minlength=tasks.actions)
    sent = np.where(tasks.send_back, sends.backward[tasks.send_pair], sends.forward[tasks.send_pair])
    return replace(tasks, fixed=replace(tasks.fixed, duration=np.concatenate([actions, sent])))


class _Alike:
    """Which models price a thing alike."""

    def __init__(self, costs: Sequence[CostModel]) -> None:
        self._costs = costs
        self._known: dict[Hashable, tuple[list[int], Ints]] = {}

    def of(
        self, what: Op | Dependent, devices: Sequence[DeviceType], phase: Phase = "forward"
    ) -> tuple[list[int], Ints]:
        """(the first model of each group, group [model])."""
        key = (what if isinstance(what, str) else what.name, tuple(d.name for d in devices), phase)
        if key not in self._known:
            groups: dict[Hashable, int] = {}
            each = [tuple(c.depends(what, d, phase) for d in devices) for c in self._costs]
            column = [groups.setdefault(one, len(groups)) for one in each]
            self._known[key] = [column.index(g) for g in range(len(groups))], np.array(column)
        return self._known[key]


class _Segments(SegmentPricer):
    """Of n columns each is another cost model; the micro-batch is the same."""

    def __init__(self, each: Sequence[SegmentPricer], own: SegmentPricer, alike: _Alike) -> None:
        super().__init__(own.graph, own.cluster, own.cost, own.attention_share)
        self.item, self._each, self._alike = own.item, each, alike
        self.share = {cls: np.array([p.share[cls] for p in each]) for cls in own.share}

    def _spent(self, instr: Instr, device: DeviceType, phase: Phase, local: Ints) -> Floats:
        first, group = self._alike.of(self.graph.ops[self.graph.position[instr.on]], [device], phase)
        spent = np.array([self._each[k]._spent(instr, device, phase, local[:1])[0] for k in first])
        found: Floats = spent[group]
        return found

    def _traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        first, group = self._alike.of("traffic", [device])
        found: Floats = np.stack([self._each[k]._traffic(nbytes[..., 0], device) for k in first], axis=-1)[..., group]
        return found

    def _collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        first, of = self._alike.of("collective", self.cluster.types)
        found: Floats = np.stack([self._each[k]._collective(kind, nbytes[:, 0], group) for k in first], axis=-1)[:, of]
        return found

    def _floors(self, segment: Segment, mesh: Mesh) -> tuple[Floats | float, Floats | float]:
        first, group = self._alike.of("host", self.cluster.types)
        floors = np.array([self._each[k]._floors(segment, mesh) for k in first])[group]
        return floors[:, 0], floors[:, 1]


class _Columns(Pricer):
    """Prices with a column a cost model; what is done once a step apart (`several`)."""

    def __init__(self, graph: Graph, cluster: Cluster, costs: Sequence[CostModel], recipe: Recipe) -> None:
        super().__init__(graph, cluster, costs[0], recipe)
        self.each = [Pricer(graph, cluster, cost, recipe) for cost in costs]
        self.alike = _Alike(costs)
        self._blocks = _Segments([p._blocks for p in self.each], self._blocks, self.alike)
        self._once: dict[tuple[object, ...], tuple[StageCode, list[tuple[Floats, Floats, float]]]] = {}

    def several(self, code: StageCode) -> list[tuple[Floats, Floats, float]]:
        """`once` by each model."""
        key = (id(code.params), id(code.update), self.place(code.mesh))
        if key not in self._once:
            # The code is kept so that none of the ids can come again.
            self._once[key] = code, [p.once(code) for p in self.each]
        return self._once[key][1]
