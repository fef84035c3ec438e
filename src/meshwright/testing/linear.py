"""One linear layer under each layout scheme, lowered: what cost/volumes.py says is counted in its program.

x ─ + shift ─ X ─ linear W ─ Y ─ · gain ─ mean ─ loss      d shift is dX; d gain is Y, d loss / dY is gain, over M N
"""

from __future__ import annotations

from ..cluster.model import Mesh
from ..cost.volumes import Scheme, grid_side
from ..graph.ir import Factor, Graph, Rule
from ..layouts.expert import Expert
from ..layouts.style import DP, TP
from ..lower import lower
from ..lower.assign import Choices
from ..lower.program import Program
from ..lower.volumes import received
from ..plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from ..plan.problem import Recipe
from ..planners import _products
from .tiny import Builder

LINEAR, X, W, Y = "fc/linear", "shift.out", "fc.weight", "fc.out"
"""Names of the layer's op and tensors."""


def linear_graph(m: int, k: int, n: int, dtype: str = "float32") -> Graph:
    """X [m, k], W [n, k], Y [m, n]."""
    build = Builder(m, dtype)
    x, shift = build.tensor("x", (m, k), "input"), build.tensor("shift.shift", (m, k), "param")
    moved = build.tensor(X, (m, k), "activation")
    build.op("shift/add", "add", (x, shift), moved, _each(m, k), "shift", 0.0, overload="Tensor")
    y, gain = build.linear("fc", moved, k, n), build.tensor("gain.gain", (m, n), "param")
    out = build.tensor("gain.out", (m, n), "activation")
    build.op("gain/mul", "mul", (y, gain), out, _each(m, n), "gain", 0.0, saved=(y, gain), overload="Tensor")
    return build.graph(build.mean("loss", out, n))


def _each(rows: int, columns: int) -> Rule:
    dims = (("b",), ("d",))
    return Rule((Factor("b", rows, samples=True), Factor("d", columns)), (dims, dims), (dims,))


def linear_plan(graph: Graph, scheme: Scheme, devices: int, depth: int = 1) -> Plan:
    """The layer of `linear_graph` cut by `scheme`.

    Raises:
        InputError: devices that do not form the scheme's grid.
    """
    q = grid_side(scheme, devices, depth)
    if scheme.startswith("1d"):
        choices, mesh = _in_one_dimension(graph, scheme), Mesh(range(q), (DP, TP), (1, q))
    else:
        grid = _products.Scheme(scheme, q, depth if scheme == "2.5d" else 1)  # type: ignore[arg-type]
        choices, mesh = _products.choices_on(graph, Expert(graph), grid, "none"), grid.mesh(1)
    ops = tuple(op.name for op in graph.ops)
    stage = Stage(ops, mesh, choices.shardings, choices.layouts, choices.storage)
    return Plan(graph.digest, graph.samples, (stage,), Schedule("1f1b", 1))


def _in_one_dimension(graph: Graph, scheme: Scheme) -> Choices:
    tp = (Cut(TP),)
    if scheme == "1d-column":
        shardings = {
            LINEAR: OpSharding({"n": tp}),
            "gain/mul": OpSharding({"d": tp}),
            "loss/mean": OpSharding({"d": tp}),
        }
        return Choices(shardings, {}, {}, frozenset())
    m, n = graph.tensor[Y].shape
    shardings = {"shift/add": OpSharding({"d": tp}), LINEAR: OpSharding({"k": tp})}
    layouts = {}
    if scheme == "1d-row-sequence":
        layouts[Y] = Layout((((m, tp),), ((n, ()),)))
        shardings |= {"gain/mul": OpSharding({"b": tp}), "loss/mean": OpSharding({"b": tp})}
    storage: dict[str, Storage] = {}
    return Choices(shardings, layouts, storage, frozenset())


def linear_program(scheme: Scheme, m: int, k: int, n: int, devices: int, depth: int = 1) -> tuple[Graph, Program]:
    graph = linear_graph(m, k, n)
    return graph, lower(graph, linear_plan(graph, scheme, devices, depth), Recipe(m, compute_dtype="float32"))


def linear_received(scheme: Scheme, m: int, k: int, n: int, devices: int, depth: int = 1) -> float:
    """Elements that a rank receives for the layer, forward and backward, counted in the program.

    Raises:
        InputError: devices that do not form the scheme's grid.
    """
    graph, program = linear_program(scheme, m, k, n, devices, depth)
    return received(program, graph, 1, {LINEAR, X, W, Y})
