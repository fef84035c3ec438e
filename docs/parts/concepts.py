"""Part of `make docs`: the pictures of docs/concepts.md, each drawn from what the program computes.

    stage       a plan of a small model, its stages, and the transfer that lowering makes between them
    layout      which elements each device of a 2 × 2 mesh holds, by `plan.layout.boxes`
    conversion  what `lower.convert.steps` does from one layout to another, and for the gradient
    rest        one weight under ZeRO-3 through a step, by the instructions of the lowered program
The fifth, a schedule, is that of docs/schedules.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshwright._words import plural
from meshwright.cluster.model import Mesh
from meshwright.lower import lower
from meshwright.lower.convert import steps
from meshwright.lower.program import Instr
from meshwright.plan.layout import Box, boxes
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Cut, Layout
from meshwright.planners.grid import Grid
from meshwright.testing.tiny import mlp, problem_of

from .pages import DOCS, write
from .svg import DEVICES, WIDTH, Drawing

FOLDER = DOCS / "concepts"
ALIKE = {"recompute": "none", "micro_batch": 2, "tp": 1}
WORDS = {
    "all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "all_to_all": "all-to-all",
    "slice": "slice", "pad": "zero-pad", "identity": "nothing",
}  # fmt: skip


def stage() -> str:
    """Two stages of a perceptron on four devices."""
    problem = problem_of(mlp(4), "a100x4")
    plan = Grid(fix={"pp": 2, "dp": 2, "zero": 0, "schedule": "1f1b", **ALIKE}).plan(problem).plan
    assert plan is not None
    program = lower(problem.graph, plan, problem.recipe)
    d = Drawing("A model cut into two stages, each on a mesh of two devices")
    y = 8.0
    for s, own in enumerate(plan.stages):
        names = [problem.graph.ops[i].name.partition("/")[0] for i in stage_ops(problem.graph, own)]
        units = list(dict.fromkeys(n if not n.startswith("layers") else ".".join(n.split(".")[:2]) for n in names))
        axes = " × ".join(f"{a} {n}" for a, n in zip(own.mesh.axes, own.mesh.shape, strict=True) if n > 1)
        d.rect(4, y, WIDTH - 8, 84, kind="o", round_=6)
        d.text(14, y + 18, f"stage {s}", "b")
        d.text(WIDTH - 14, y + 18, f"mesh: {axes}", "e q")
        room = (WIDTH - 28 - 6 * (len(units) - 1)) / len(units)
        for k, unit in enumerate(units):
            d.rect(14 + k * (room + 6), y + 26, room, 24, kind="t", round_=3)
            d.text(14 + k * (room + 6) + room / 2, y + 42, unit, "c q")
        for k, device in enumerate(own.mesh.devices):
            d.rect(14 + 92 * k, y + 57, 86, 20, fill=DEVICES[device], round_=3)
            d.text(14 + 92 * k + 43, y + 71, f"device {device}", "c q d")
        y += 84
        if s < len(program.transfers):
            sent = program.transfers[s]
            each = sent.nbytes * program.local_samples(own.mesh, sent.samples or ())
            d.arrow(100, y + 2, 100, y + 36)
            d.arrow(124, y + 36, 124, y + 2)
            d.text(138, y + 17, f"{each:,.0f} bytes a device and micro-batch,", "q")
            d.text(138, y + 31, "its gradient comes back" if sent.grad else "no gradient comes back", "q")
            y += 40
    return d.svg(y + 8)


def layout() -> str:
    """A tensor of 8 × 8 on a mesh of dp 2 × tp 2."""
    mesh = Mesh(range(4), ("dp", "tp"), (2, 2))
    dp, tp = Cut("dp"), Cut("tp")
    shown = (
        ("whole", "on every device", Layout((((8, ()),), ((8, ()),)))),
        ("rows over dp", "tp: two copies", Layout((((8, (dp,)),), ((8, ()),)))),
        ("rows dp, columns tp", "a quarter each", Layout((((8, (dp,)),), ((8, (tp,)),)))),
        ("rows over dp, then tp", "cuts nest", Layout((((8, (dp, tp)),), ((8, ()),)))),
        ("columns = 2 × 4, tp", "in each half", Layout((((8, ()),), ((2, ()), (4, (tp,)))))),
    )
    d = Drawing("Which elements of a tensor each of four devices holds, in five layouts")
    for k in range(4):
        at = mesh.coordinates(k)
        d.text(176 + 58 * k, 14, f"device {k}", "c q")
        d.text(176 + 58 * k, 28, f"dp {at['dp']} tp {at['tp']}", "c q")
    y = 36.0
    for words, more, own in shown:
        d.text(4, y + 20, words, "q b")
        d.text(4, y + 35, more, "q")
        for k in range(4):
            held = boxes(own, (8, 8), mesh, mesh.coordinates(k))
            _grid(d, 176 + 58 * k - 24, y, 8, 6, held, DEVICES[k])
        y += 58
    return d.svg(y)


def _grid(d: Drawing, x: float, y: float, n: int, size: float, held: Sequence[Box], fill: str) -> None:
    """An n × n tensor with boxes of it filled."""
    d.rect(x, y, n * size, n * size, kind="t")
    for low, high in held:
        d.rect(x + low[1] * size, y + low[0] * size, (high[1] - low[1]) * size, (high[0] - low[0]) * size, fill=fill)
    d.rect(x, y, n * size, n * size, kind="o")


def conversion() -> str:
    """Every step between layouts on one axis of four."""
    axis = "tp"
    cut, whole = (axis,), ()
    asked = (
        ((whole, whole), (axis,), (whole, whole), frozenset()),
        ((whole, whole), (axis,), (cut, whole), frozenset()),
        ((cut, whole), (), (whole, whole), frozenset({axis})),
        ((cut, whole), (), (whole, whole), frozenset()),
        ((whole, whole), (), (cut, whole), frozenset()),
        ((cut, whole), (), (whole, cut), frozenset()),
    )
    d = Drawing(
        "Six conversions of a value over four devices: how it is held before and after, and what its gradient needs"
    )
    y = 0.0
    for before, partial, after, summed in asked:
        (step,) = steps(before, partial, after, summed, frozenset())
        forward, backward = WORDS[step.forward], WORDS[step.backward]
        d.text(4, y + 16, forward, "b")
        more = " (it is a sum of parts)" if summed else ""
        d.text(WIDTH - 4, y + 16, f"gradient: {backward}{more}", "e q")
        _held(d, 4, y + 24, step.before, step.before_partial)
        d.arrow(176, y + 41, 212, y + 41)
        _held(d, 222, y + 24, step.after, step.partial)
        y += 74
    d.rect(4, y + 4, 14, 10, fill=d.hatched(DEVICES[0]))
    d.text(24, y + 13, "striped: a summand; the value is the sum over the devices", "q")
    return d.svg(y + 22)


def _held(d: Drawing, x: float, y: float, axes: Sequence[Sequence[str]], partial: Sequence[str]) -> None:
    """Four devices of one axis, each with its part of a 4 × 4 value."""
    mesh = Mesh(range(4), ("tp",), (4,))
    own = Layout(tuple(((4, tuple(map(Cut, names))),) for names in axes))
    for k in range(4):
        fill = d.hatched(DEVICES[k]) if partial else DEVICES[k]
        _grid(d, x + 42 * k, y, 4, 8.5, boxes(own, (4, 4), mesh, mesh.coordinates(k)), fill)
        d.text(x + 42 * k + 17, y + 45, str(k), "c q")


def rest() -> str:
    """A weight of one block under ZeRO-3 on four devices: at rest, gathered, its gradient scattered, its state updated."""
    problem = problem_of(mlp(4), "a100x4")
    plan = Grid(fix={"dp": 4, "pp": 1, "zero": 3, **ALIKE}).plan(problem).plan
    assert plan is not None
    (code,) = lower(problem.graph, plan, problem.recipe).stages
    weight = "layers.0.fc.weight"
    segment = next(s for s in code.segments if s.name == "layers")
    own = next(p for p in code.params if p.name == weight)

    def moved(instrs: Sequence[Instr]) -> Instr:
        return next(i for i in instrs if i.kind == "collective" and i.on == weight)

    gather, again, scatter = moved(segment.forward), moved(segment.rerun), moved(segment.backward)
    rows = [
        ("at rest", "between uses", own.rest, False, ""),
        ("to compute forward", "one block ahead", gather.after, False, _move(gather)),
        ("at rest", "the rest is let go", own.rest, False, "free"),
        ("to compute backward", "gathered again", again.after, False, _move(again)),
        ("its gradient", "of the own samples", scatter.before, True, "compute"),
        ("gradient at rest", "summed, a part each", scatter.after, False, _move(scatter)),
        ("optimizer state", "updates the own part", own.state, False, "update"),
    ]
    count = own.count
    d = Drawing(
        f"One weight of {plural(count, 'block')} through a step under ZeRO-3: where it rests and where it is computed with"
    )
    y = 4.0
    mesh = code.mesh
    for words, more, held, summand, how in rows:
        if how:
            d.arrow(180, y, 180, y + 20)
            d.text(192, y + 14, how, "q")
            y += 24
        d.text(4, y + 16, words, "b")
        d.text(4, y + 32, more, "q")
        assert held is not None
        for k in range(4):
            fill = d.hatched(DEVICES[k]) if summand else DEVICES[k]
            _grid(d, 176 + 54 * k, y, 64, 44 / 64, boxes(held, (64, 64), mesh, mesh.coordinates(k)), fill)
        y += 48
    for k in range(4):
        d.text(176 + 54 * k + 22, y + 10, f"device {k}", "c q")
    return d.svg(y + 18)


def _move(instr: Instr) -> str:
    return f"{WORDS[str(instr.collective)]} over {' and '.join(instr.axes)}"


PICTURES = {"stage": stage, "layout": layout, "conversion": conversion, "rest": rest}


def main() -> None:
    for name, drawn in PICTURES.items():
        write(FOLDER / f"{name}.svg", drawn())
