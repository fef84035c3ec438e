"""Megatron-LM (Shoeybi et al., arXiv 1909.08053; sequence parallelism: Korthikanti et al., arXiv 2205.05198): 1D, × data.

In each block the first matrix is cut in columns over t devices, the second in rows, so that a pair needs one all-reduce of the
activations forward and one backward; heads are dealt over the devices; the vocabulary of embedding and classifier is cut,
and the loss sums three numbers a token. With sequence parallelism what lies between is cut over the positions, and each
all-reduce becomes a reduce-scatter and a gather of the same bytes.

Faithful: t divides the heads (of grouped heads: the groups, or those that share one) and the features of the blocks'
matrices; a vocabulary that t does not divide is cut into unequal parts, where the paper pads it; the rest of the devices is
data parallelism, whose gradients are summed once a step. t, sequence parallelism, micro-batch and recomputation are chosen
by the simulator: the papers fix them by hand.
"""

from __future__ import annotations

from functools import partial
from math import prod

from ..errors import Infeasible, InputError
from ..graph.ir import Graph
from ..layouts.expert import Expert
from ..layouts.point import Point
from ..layouts.style import Style
from ..lower.atoms import FIXED, PRODUCTS, Node
from ..lower.memo import memo
from ..plan.problem import Problem
from ._checked import whole
from ._products import ROOMY
from ._schemes import Candidate, Judge, SchemePlanner, divisors
from .registry import register
from .types import Info, Json, Run


@register
class Megatron(SchemePlanner):
    """Tensor parallelism of degree t, and copies of it.

    Args:
        tensor: t; None = the best.
        data: copies; None = devices over t.
        sequence: sequence parallelism; None = the better.
        micro_batch: samples of a micro-batch on one copy; None = the best power of two.
        recompute: "none", "light" or "full"; None = the best.
        judge: "step" (simulated seconds of a step) or "volume" (elements that a rank receives in it).
    """

    info = Info(
        name="megatron",
        title="Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
        year=2019,
        reference="arXiv 1909.08053, 2205.05198",
        decides=frozenset({"shards", "replicas", "recompute"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        tensor: int | None = None,
        data: int | None = None,
        sequence: bool | None = None,
        micro_batch: int | None = None,
        recompute: str | None = None,
        judge: Judge = "step",
    ) -> None:
        whole("megatron", "micro_batch", micro_batch)
        super().__init__(judge=judge, micro_batch=micro_batch, recompute=recompute)
        for name, value in (("tensor", tensor), ("data", data)):
            if value is not None and value < 1:
                raise InputError(f"megatron: {name} = {value} must be 1 or more")
        self.tensor, self.data, self.sequence = tensor, data, sequence

    def search(self, problem: Problem, run: Run) -> Json:
        """Every degree that divides the devices, heads and features; with and without sequence parallelism."""
        expert, devices, samples = _expert_of(problem.graph), self.devices(problem), problem.recipe.samples
        found: list[Candidate] = []
        reasons: list[str] = []
        for t in self._degrees(devices):
            reason = self._reason(expert, t, devices, samples)
            if reason:
                reasons.append(reason)
                continue
            dp = devices // t
            for sequence in (False, True) if t > 1 and self.sequence is None else (bool(self.sequence and t > 1),):
                for b in self.sizes(samples // dp):
                    for recompute in self.recomputed():
                        point = Point(dp, t, 1, sequence, 1, b, 0, recompute, "1f1b")
                        choices = partial(expert.choices, Style(t, sequence, 0, recompute))
                        found.append(Candidate(point.words(), point.mesh(0), choices, dp, b, recompute))
        if not found:
            raise Infeasible(f"megatron: {reasons[0]}")
        self.priced(problem, run, found)
        return None

    def _degrees(self, devices: int) -> list[int]:
        found = [t for t in divisors(devices) if self.tensor in (None, t) and self.data in (None, devices // t)]
        if not found:
            wish = ", ".join(f"{k} = {v}" for k, v in (("tensor", self.tensor), ("data", self.data)) if v is not None)
            raise Infeasible(f"megatron uses tensor × data devices: {devices} devices are none with {wish}")
        return found

    def _reason(self, expert: MegatronExpert, t: int, devices: int, samples: int) -> str:
        """Why degree t cannot be; "" if it can."""
        if samples % (devices // t):
            return (
                f"the {devices // t} copies of tensor = {t} on {devices} devices do not divide the batch of {samples:,}"
            )
        if heads := expert.uncut_heads(t):
            return f"tensor = {t} does not divide {heads}"
        if odd := expert.uncut_features(t):
            return f"tensor = {t} does not divide {odd}"
        if t > 1 and t not in expert.tensor_degrees(t):
            return f"tensor = {t}: matrix products and attention are not most of the work"
        return ""


class MegatronExpert(Expert):
    """The expert layout, whose classifier may have unequal parts."""

    def column(self, node: Node, tp: int) -> int | None:
        found = super().column(node, tp)
        if found is not None or not self.weighted(node) or self._in_a_block(node):
            return found
        rows = set(node.operands[0])
        free = [a for a in node.results[0] if a != FIXED and a not in rows and node.kind[a] == "free"]
        large = [a for a in free if node.size[a] >= ROOMY * tp and a not in node.awkward]
        return next((a for a in large if not self.whole_feature(node, a)), None)

    def _in_a_block(self, node: Node) -> bool:
        return any(r.first <= node.index < r.first + r.length * r.count for r in self.graph.runs)

    def uncut_features(self, t: int) -> str:
        """The first product of a block that makes features which `t` does not divide; "" if there is none.

        One that makes fewer than it reads, as grouped keys and values, may stay whole.
        """
        for n, node in enumerate(self.atoms.nodes):
            op = self.graph.ops[node.index]
            if op.kind not in PRODUCTS or not self.weighted(node) or not self._in_a_block(node) or n in self.experts:
                continue
            rows = set(node.operands[0])
            out = [a for a in node.results[0] if a != FIXED and a not in rows and node.kind[a] == "free"]
            narrowing = prod(node.size[a] for a in out) < prod(node.size[a] for a in node.summed)
            if narrowing or any(self.whole_feature(node, a) for a in out):
                continue
            if not any(node.size[a] % t == 0 for a in out):
                sizes = [f.size for k, f in enumerate(op.rule.factors) if k in {node.factor[a] for a in out}]
                return f"the {' × '.join(map(str, sizes))} features that {op.name} makes"
        return ""


def _expert_of(graph: Graph) -> MegatronExpert:
    found: MegatronExpert = memo(graph, "megatron", lambda: MegatronExpert(graph))
    return found
