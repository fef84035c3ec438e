"""Parts that are unequal on purpose, on devices of two kinds: each kind computes its own part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.cluster.model import Cluster, DeviceType, Level, Mesh
from meshwright.graph.ir import Floats, Ints, Op, Phase
from meshwright.lower import lower
from meshwright.lower.parts import cut_of, local_count, shrinks, word
from meshwright.plan.model import Cut, OpSharding, Plan
from meshwright.plan.problem import Problem
from meshwright.simulate.price import Pricer
from meshwright.simulate.simulator import simulate

from .small import Rates, chain, pipeline, problem


class Kinds(Rates):
    """Products at the rate that the device states, and of nothing else."""

    name = "kinds"

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        once = 2.0 * np.prod(sizes, axis=1) / device.peak["float32"]
        return once * (2.0 if phase == "backward" else 1.0)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        return np.zeros(np.shape(nbytes))


def _mixed(plan: Plan, samples: int) -> Problem:
    slow, fast = (DeviceType(n, "gpu", 1e9, {"float32": x}, 1e6) for n, x in (("slow", 3e5), ("fast", 7e5)))
    asked = problem(chain(2), 2, Kinds(link=1e30), samples=samples)
    cluster = Cluster("mixed", (slow, fast), 2, (0, 1), levels=(Level("node", 2, 1e30),))
    return replace(asked, cluster=cluster)


def _cut(factor: str, cut: Cut, samples: int) -> Plan:
    base = pipeline(chain(2), 1, 1, samples=samples)
    graph, (stage,) = chain(2), base.stages
    spoken = [
        op for op in graph.ops if any(f.name == factor for f in op.rule.factors) and not op.name.startswith("layers.1")
    ]
    mesh = Mesh((0, 1), ("h",), (2,))
    own = {op.name: OpSharding({factor: (cut,)}) for op in spoken}
    return replace(base, stages=(replace(stage, mesh=mesh, shardings=own),))


@pytest.mark.parametrize("factor", ["m", "n"])
def test_each_kind_computes_its_part(factor: str) -> None:
    """Speeds of 3 to 7, parts of 3 to 7: both end together; halves wait for the slow one.
    Samples: 80 of them; columns: 16 in parts of 5 and 11."""
    graph = chain(2)
    flops = (
        (3 + 2 + 2 + 1) * 2.0 * 80 * 16 * 16
    )  # three products forward; backward twice that, but no gradient of the data
    for cut, share in ((Cut("h", (3, 7)), (0.3 if factor == "m" else 5 / 16)), (Cut("h"), 0.5)):
        plan = _cut(factor, cut, 80)
        asked = _mixed(plan, 80)
        (code,) = lower(graph, plan, asked.recipe).stages
        price = Pricer(graph, asked.cluster, asked.cost, asked.recipe).stage(code, [80])
        busy = price.forward[0, 0] + price.backward[0, 0]
        assert busy == pytest.approx(max(share * flops / 3e5, (1 - share) * flops / 7e5), rel=1e-6)
        assert simulate(asked, plan).step_seconds >= busy


def test_words_say_what_cuts_say() -> None:
    mesh = Mesh(range(6), ("a", "b"), (2, 3))
    for cut in (Cut("a"), Cut("b", (1, 0, 3)), Cut("a", (5, 2))):
        assert cut_of(word(cut)) == cut
    assert local_count(12, (word(Cut("b", (1, 0, 3))),), mesh) == 9
    assert local_count(12, (word(Cut("b", (1, 0, 3))),), mesh, {"b": (0, 1)}) == 3
    assert local_count(12, ("a", word(Cut("b", (1, 0, 3)))), mesh) == 5
    assert shrinks(("a", word(Cut("b", (1, 0, 3)))), mesh) == pytest.approx(8 / 3)
