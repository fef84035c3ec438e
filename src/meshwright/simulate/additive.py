"""The sum over a program: every instruction alone, nothing hidden behind anything, no host, no kernels that conversions split.

The price that planners of cost graphs minimise (methods of OptCNN's line say so of their own), and that a cost graph must
equal for every plan (`planners/_cost_graph.py`). `simulate` judges the answer with overlap and fusion.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ..cluster.model import Cluster, Mesh
from ..cost.base import Collective, CostModel, Group
from ..graph.ir import ITEM_BYTES, Floats, Graph, Ints, Op, Phase
from ..lower import lower
from ..lower.fusion import uncut
from ..lower.parameters import STAGES
from ..lower.parts import local_count
from ..lower.program import Instr, StageCode, tensor_of
from ..plan.model import Plan
from ..plan.problem import Problem, Recipe
from .phases import backward_phase

Part = tuple[Collective, tuple[str, ...], int]
"""Of a collective: its kind, its axes, copies among what is sent (`Group.copies`)."""


class Tariff:
    """Prices of single instructions on one mesh, at one size of micro-batch."""

    def __init__(
        self, graph: Graph, cluster: Cluster, cost: CostModel, recipe: Recipe, mesh: Mesh, micro_batch: int
    ) -> None:
        """`micro_batch`: samples over the whole mesh."""
        self.graph, self.cluster, self.cost, self.recipe, self.mesh = graph, cluster, cost, recipe, mesh
        self.micro_batch = micro_batch
        kinds = sorted({cluster.device[d] for d in mesh.devices}) if not cluster.homogeneous else [0]
        self.devices = [cluster.types[k] for k in kinds]
        self.light = uncut(graph, recipe).light
        self._once: dict[tuple[object, ...], float] = {}

    def local(self, over: Collection[str] | None) -> int:
        """Samples on the fullest device where they are cut over these axes."""
        return local_count(self.micro_batch, tuple(over or ()), self.mesh)

    def rows(self, op: Op, sizes: Sequence[Sequence[float]], over: Sequence[tuple[str, ...] | None]) -> Ints:
        """Local factor sizes [n, factors] from what `Instr.sizes` and `Instr.samples` say of n shards."""
        samples = np.array([f.samples for f in op.rule.factors], bool)
        each = np.array([self.local(x) for x in over], np.float64)
        table = np.array(sizes, np.float64).reshape(len(each), len(samples))
        found: Ints = np.ceil(np.where(samples, table * each[:, None], table) - 1e-9).astype(np.int64)
        return found

    def compute(self, op: Op, rows: Ints, phase: Phase, wanted: Collection[str] = ()) -> Floats:
        """Seconds [n] of shards of an op on the slowest device; `wanted`: operands whose gradients the backward makes.

        An op of a run is named by its representative.
        """
        if (traffic := self.light.get(op.name)) is not None:
            if not traffic.reads and not traffic.writes:
                return np.zeros(len(rows))
            nbytes = self._bytes(op, rows, traffic.reads, traffic.writes)
            if phase == "backward":
                nbytes = nbytes + self._bytes(op, rows, [k for k in traffic.reads if op.inputs[k] in wanted], ())
            moved: Floats = np.max([self.cost.traffic(nbytes, d) for d in self.devices], axis=0)
            return moved
        if phase == "backward":
            phase = backward_phase(self.graph, op, wanted)
        seconds = np.max([self.cost.compute(op, rows, d, phase) for d in self.devices], axis=0)
        share = self.recipe.attention_share
        found: Floats = seconds if share == 1.0 else seconds * self.cost.packed(op, rows, share)
        return found

    def _bytes(self, op: Op, rows: Ints, reads: Sequence[int], writes: Sequence[int]) -> Floats:
        column = {f.name: k for k, f in enumerate(op.rule.factors)}
        total = np.zeros(len(rows))
        for names, dims, which in (
            (op.inputs, op.rule.operands, reads),
            (op.outputs, op.rule.results, writes),
        ):
            for k in which:
                used = [column[f] for dim in dims[k] for f in dim]
                total += ITEM_BYTES.get(self.graph.tensor[names[k]].dtype, 4) * np.prod(rows[:, used], axis=1)
        return total

    def collective(self, part: Part, nbytes: Floats) -> Floats:
        """Seconds [n] of collectives of one kind over the same axes."""
        kind, axes, copies = part
        group = Group(self.cluster, self.mesh, axes, copies=copies)
        found: Floats = np.where(nbytes > 0, self.cost.collective(kind, nbytes, group), 0.0)
        return found

    def part(self, instr: Instr) -> Part:
        """What `collective` must know of an instruction that communicates."""
        kind = instr.collective or "all_reduce"
        return kind, instr.axes, self._copies(instr.on) if kind == "all_to_all" else 1

    def update(self, elements: float) -> float:
        """Seconds of the optimizer on one shard."""
        recipe = self.recipe
        use, grad, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
        apart = recipe.param_dtype != recipe.compute_dtype
        moved = elements * (grad + 2 * ((master if apart else use) + recipe.state_bytes) + (use if apart else 0))
        return max(float(self.cost.traffic(np.array([moved]), d)[0]) for d in self.devices) if moved else 0.0

    def instruction(self, instr: Instr, elements: float = 0.0) -> float:
        """Seconds of one instruction. `elements`: of the state shard, for an update."""
        key: tuple[object, ...]
        if instr.kind == "update":
            return self.update(elements)
        if instr.kind == "compute":
            if not instr.steps:
                return 0.0
            key = (
                instr.on,
                instr.sizes,
                instr.samples,
                instr.phase,
                instr.outputs if instr.phase == "backward" else (),
            )
            if key not in self._once:
                graph = self.graph
                op = graph.ops[graph.representative[graph.position[instr.on]]]
                own = graph.ops[graph.position[instr.on]].inputs
                made = {tensor_of(v) for v in instr.outputs}
                wanted = [first for first, name in zip(op.inputs, own, strict=True) if made & {name, first}]
                rows = self.rows(op, [instr.sizes], [instr.samples])
                self._once[key] = float(self.compute(op, rows, instr.phase, wanted)[0])
            return self._once[key]
        if not instr.communicates or STAGES in instr.axes:
            return 0.0
        part = self.part(instr)
        nbytes = instr.nbytes * (1 if instr.samples is None else self.local(instr.samples))
        key = (*part, nbytes)
        if key not in self._once:
            self._once[key] = float(self.collective(part, np.array([float(nbytes)]))[0])
        return self._once[key]

    def _copies(self, tensor: str) -> int:
        """Experts of a token whose rows an all-to-all brings to them or back."""
        graph = self.graph
        made = graph.producer.get(tensor, -1)
        ops = [graph.ops[n] for n in (made, *(n for n, _ in graph.consumers.get(tensor, ()))) if n >= 0]
        own = next((op for op in ops if op.kind in ("moe_dispatch", "moe_combine")), None)
        return graph.tensor[own.inputs[1]].shape[-1] if own else 1

    def stage(self, code: StageCode, micro_batches: int) -> float:
        """Seconds of one device of a stage in a step."""
        each = once = 0.0
        for s in code.segments:
            if s.name != "constants":
                each += s.count * sum(self.instruction(i) for i in (*s.forward, *s.rerun, *s.backward))
        params = {p.name: p for p in code.params}
        for i in code.grads:
            each += params[i.on].count * self.instruction(i)
        for i in code.update:
            p = params[i.on]
            once += p.count * self.instruction(i, p.elements[2])
        return micro_batches * each + once


def additive(problem: Problem, plan: Plan) -> tuple[float, ...]:
    """Seconds per stage of one step of `plan`, each the sum over its program; what stages send to each other apart.

    Routing counts as even (`Recipe.routing_skew`): which axes cut experts is no matter of one op.
    """
    graph = plan.rewritten or problem.graph
    program = lower(graph, plan, replace(problem.recipe, routing_skew=1.0))
    tariffs: dict[Mesh, Tariff] = {}
    for code in program.stages:
        if code.mesh not in tariffs:
            tariffs[code.mesh] = Tariff(
                graph, problem.cluster, problem.cost, problem.recipe, code.mesh, program.micro_batch
            )
    return tuple(tariffs[c.mesh].stage(c, plan.schedule.micro_batches) for c in program.stages)
