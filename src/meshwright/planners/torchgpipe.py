"""torchgpipe (Kim et al. 2020, arXiv 2004.09910): GPipe whose balance comes from a measured profile of each layer.

Two profiles, each an integer a layer (`torchgpipe.balance`):

    time    microseconds of forward and backward of the whole batch (of the mini-batch of an imported profile)
    size    bytes: int(latent · batch / chunks + parameters · param_scale), latent being what the forward of ONE sample makes

and the block-partition rule for the cut (`solvers.block_partition`), a heuristic: no bound is claimed, and memory is no
constraint, which is found and said afterwards. Chunks are those of `Tensor.chunk`: more than the batch allows become fewer,
and the last may be smaller. Checkpointing recomputes a whole partition: always, never, or for all micro-batches but the
last. A value that a later partition reads goes there straight (portals): `portals` allows cuts where several go on.
"""

from __future__ import annotations

from typing import Literal

from ..cluster.model import Mesh
from ..errors import InputError, Unsupported
from ..graph.ir import Graph
from ..plan.lookup import stage_ops
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..solvers.block_partition import block_partition
from ._checked import above, whole
from ._profile import Profile, enough, kept_nodes, profile_of, with_the_rest
from .base import Planner
from .registry import register
from .types import Info, Json, Run

PARAM_SCALE = {"sgd": 2.0, "momentum": 3.0, "adam": 4.0, "adamw": 4.0, "adadelta": 4.0, "adagrad": 3.0, "rmsprop": 3.0}
"""Copies of the parameters in training, by torchgpipe's guide: weights, gradients and optimizer state."""


@register
class TorchGPipe(Planner):
    """Blocks of small spread in measured time or size.

    Args:
        balance: "time" or "size".
        chunks: micro-batches; None = four a partition, GPipe's advice.
        checkpoint: "except_last" (torchgpipe's default), "always" or "never".
        param_scale: of size; None = by the recipe's optimizer.
        portals: also cut where several values go on.
    """

    info = Info(
        name="torchgpipe",
        title="torchgpipe: On-the-fly Pipeline Parallelism for Training Giant Models",
        year=2020,
        reference="arXiv 2004.09910",
        decides=frozenset({"stages", "recompute"}),
        handles=frozenset({"dag"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )

    unit = "µs"

    def __init__(
        self,
        *,
        balance: Literal["time", "size"] = "time",
        chunks: int | None = None,
        checkpoint: Literal["always", "except_last", "never"] = "except_last",
        param_scale: float | None = None,
        portals: bool = False,
    ) -> None:
        if balance not in ("time", "size"):
            raise InputError(f'torchgpipe cannot balance by "{balance}": there are time and size')
        if checkpoint not in ("always", "except_last", "never"):
            raise InputError(f'torchgpipe has no checkpoint "{checkpoint}": there are always, except_last and never')
        whole("torchgpipe", "chunks", chunks)
        above("torchgpipe", "param_scale", param_scale, zero=True)
        self.balance = balance
        self.chunks = chunks
        self.checkpoint = checkpoint
        self.param_scale = param_scale
        self.portals = portals
        self.unit = "µs" if balance == "time" else "B"  # type: ignore[misc]

    def search(self, problem: Problem, run: Run) -> Json:
        """One partition, no proof."""
        parts = problem.limits.devices or problem.cluster.count
        profile = self._profile(problem)
        layers = kept_nodes(profile)
        enough(len(layers), parts, "torchgpipe")
        run.tick(0, "partition", 0, 1)
        costs = self.costs(problem, profile)
        ends = block_partition([costs[v] for v in layers], parts)
        cut = [layers[a:b] for a, b in zip((0, *ends), ends)]
        plan = self._plan(problem, profile, with_the_rest(profile, cut))
        run.offer(self.objective(problem, plan), lambda: plan)
        run.tick(1, "partition", 1, 1)
        return {"balance": [b - a for a, b in zip((0, *ends), ends)]}

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Largest less smallest block, in µs or bytes.

        Raises:
            Unsupported: not one stage of consecutive layers on one device for each partition.
        """
        parts = problem.limits.devices or problem.cluster.count
        if len(plan.stages) != parts or any(len(stage.mesh.devices) != 1 for stage in plan.stages):
            raise Unsupported(f"torchgpipe prices plans of {parts} stages with one device each")
        blocks = self.loads(problem, plan)
        return max(blocks) - min(blocks)

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """The cost of each block; the objective is their spread."""
        profile = self._profile(problem)
        costs = self.costs(problem, profile)
        layers = set(kept_nodes(profile))
        return tuple(float(sum(costs[v] for v in nodes & layers)) for nodes in profile.parts(plan))

    def costs(self, problem: Problem, profile: Profile) -> list[int]:
        """What the two profilers of torchgpipe find for each layer."""
        if self.balance == "time":
            return [round(1e6 * x) for x in profile.seconds]
        scale = PARAM_SCALE.get(problem.recipe.optimizer, 4.0) if self.param_scale is None else self.param_scale
        micro = problem.recipe.samples / self._chunks(problem)
        return [
            int(_latent(profile.graph, ops) * micro + params * scale)
            for ops, params in zip(profile.ops, profile.params.tolist())
        ]

    def _profile(self, problem: Problem) -> Profile:
        imported = all(not op.call for op in problem.graph.ops)
        samples = problem.graph.samples if imported else problem.recipe.samples
        return profile_of(problem, samples, borders=not self.portals)

    def _plan(self, problem: Problem, profile: Profile, parts: list[list[int]]) -> Plan:
        graph = problem.graph
        stages = []
        for device, nodes in enumerate(parts):
            stage = Stage(profile.entries(nodes), Mesh((device,)))
            if self.checkpoint != "never":
                again = frozenset(graph.ops[i].name for i in stage_ops(graph, stage))
                stage = Stage(
                    stage.ops, stage.mesh, recompute=again, recompute_at="stage",
                    keep_last=1 if self.checkpoint == "except_last" else 0,
                )  # fmt: skip
            stages.append(stage)
        return Plan(graph.digest, problem.recipe.samples, tuple(stages), Schedule("gpipe", self._chunks(problem)))

    def _chunks(self, problem: Problem) -> int:
        """`Tensor.chunk`: pieces of ceil(batch / chunks), as many as that takes."""
        samples = problem.recipe.samples
        wanted = self.chunks or min(samples, 4 * (problem.limits.devices or problem.cluster.count))
        size = -(-samples // wanted)
        return -(-samples // size)


def _latent(graph: Graph, ops: tuple[int, ...]) -> float:
    """Bytes that a layer's forward makes for one sample."""
    made = sum(graph.tensor[name].nbytes for op in ops for name in graph.ops[op].outputs)
    return (made + sum(graph.ops[op].saved_extra for op in ops)) / graph.samples
