"""Planners that choose one option per op, on captured models: one stage on one mesh of all devices, equal blocks alike.

Prices are seconds of a step, the sum over the program that a plan lowers to (`simulate.additive`); bytes are parameters,
gradients, optimizer state and what a micro-batch keeps. Whether a plan fits is for the simulator to say, which also knows what
is alive for a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..cluster.model import Mesh
from ..cost.choices import Profile
from ..cost.recorded import Recorded
from ..errors import InputError, Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate import simulate
from ..simulate.additive import additive
from ..simulate.fits import excess
from ..solvers.cost_graph import CostGraph
from ._cost_graph import build
from ._cost_options import Style
from ._options import Options, is_recorded

STYLES: tuple[Style, ...] = ("used", "state", "param")
SAME = 1e-8
"""Share by which sums of the same prices in another order differ."""


def micro_batches_to_try(problem: Problem, wanted: int | None) -> list[int]:
    """One after the other, until something fits: what is asked for, else 1, 2, 4, … as far as they divide the batch."""
    if wanted is not None or is_recorded(problem):
        return [wanted or 1]
    samples = problem.recipe.samples
    return [2**k for k in range(samples.bit_length()) if samples % 2**k == 0]


class CapturedOptions(Options):
    """Variables are those of the builder: one for all equal blocks."""

    def __init__(self, problem: Problem, mesh: Mesh, micro_batches: int = 1, *, tradeoff: bool = True) -> None:
        """`tradeoff`: every way to store parameters, for memory against time; else the fastest one of each option.

        Raises:
            Unsupported: a profile, whose ops cannot be cut, or backward ops that are written out.
        """
        super().__init__(problem)
        if isinstance(problem.cost, Profile | Recorded):
            raise Unsupported(
                f"cost model {problem.cost.name} says what whole layers cost, not their shards: plan a captured model, a "
                "recorded cost graph, or a graph of PaSE's format"
            )
        self.intra = build(problem, mesh, micro_batches, styles=STYLES, tradeoff=tradeoff)

    @property
    def graph(self) -> CostGraph:
        return self.intra.uniform

    def plan(self, choice: Sequence[int]) -> Plan:
        return self.intra.uniform_plan(choice)

    def choice(self, plan: Plan) -> tuple[int, ...]:
        raise Unsupported("plans of captured models are priced by their programs, not read back as options")

    def words(self, variable: int, option: int) -> str:
        raise Unsupported("options of captured models are shown by their plan")


def meshes_of(problem: Problem, devices: int, axes: Sequence[int] = ()) -> list[Mesh]:
    """The problem's own mesh; else one of the first `devices` with these axes; else those of all their logical shapes.

    Raises:
        InputError: axes that do not multiply to the devices.
    """
    if problem.mesh is not None and devices == len(problem.mesh.devices):
        return [problem.mesh]
    if axes and prod(axes) != devices:
        raise InputError(f"axes {'×'.join(map(str, axes))} make {prod(axes)} devices, the mesh has {devices}")
    node = problem.cluster.node_size
    hosts = devices // node if devices % node == 0 else 1
    shapes = [tuple(axes)] if axes else [s or (1,) for s in shapes_of((hosts, devices // hosts), hosts == 1)]
    return [Mesh(range(devices), tuple(f"x{i}" for i in range(len(shape))), shape) for shape in shapes]


def shapes_of(submesh: tuple[int, int], single_host: bool) -> tuple[tuple[int, ...], ...]:
    """All logical shapes (a, b) of a submesh; on one host both axes are alike, so that a ≤ b is enough."""
    n = submesh[0] * submesh[1]
    found = [(a, n // a) for a in range(1, n + 1) if n % a == 0 and (not single_host or a * a <= n)]
    return tuple(dict.fromkeys(tuple(x for x in shape if x > 1) for shape in found))


def price_of(problem: Problem, plan: Plan) -> float:
    """Seconds of a step of any plan, as the sum over its program."""
    return float(sum(additive(problem, plan)))


def excess_of(problem: Problem, plan: Plan) -> tuple[float, str]:
    """(bytes by which the fullest device is over its limit, a sentence), (0, "") if the plan fits."""
    simulation = simulate(problem, plan, detail=False)
    usable = [problem.limits.usable(problem.cluster.type_of(lane.first_device).memory) for lane in simulation.lanes]
    over = max(float(peak) - room for peak, room in zip(simulation.peak, usable, strict=True))
    return (over, excess(problem, simulation) or "") if over > 0 else (0.0, "")


def peak_of(problem: Problem, plan: Plan) -> float:
    """Bytes on the fullest device."""
    return float(max(simulate(problem, plan, detail=False).peak))
