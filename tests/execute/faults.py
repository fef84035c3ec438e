"""One communicating instruction of a program, left out or changed, such that the program still runs.

Not every change is a fault. A random plan may gather a value for an op, such as a reshape, of whose result each reader
slices its own part out again: without the gather the rest is zeros that nobody reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from meshwright.lower.parameters import STAGES
from meshwright.lower.program import Instr, Program
from meshwright.plan.model import Layout


@dataclass(frozen=True)
class Place:
    """Where an instruction stands: (stage, segment or -1, list, index)."""

    stage: int
    segment: int
    part: str
    index: int


def communicating(program: Program) -> list[Place]:
    found = []
    for s, code in enumerate(program.stages):
        for g, segment in enumerate(code.segments):
            for part in ("forward", "rerun", "backward"):
                found += [Place(s, g, part, k) for k, i in enumerate(getattr(segment, part)) if i.communicates]
        for part in ("grads", "update"):
            found += [Place(s, -1, part, k) for k, i in enumerate(getattr(code, part)) if i.communicates]
    return found


def instruction(program: Program, place: Place) -> Instr:
    code = program.stages[place.stage]
    holder = code if place.segment < 0 else code.segments[place.segment]
    return getattr(holder, place.part)[place.index]


def with_instructions(program: Program, place: Place, new: tuple[Instr, ...]) -> Program:
    code = program.stages[place.stage]
    holder = code if place.segment < 0 else code.segments[place.segment]
    old = getattr(holder, place.part)
    changed = replace(holder, **{place.part: (*old[: place.index], *new, *old[place.index + 1 :])})
    if place.segment >= 0:
        segments = (*code.segments[: place.segment], changed, *code.segments[place.segment + 1 :])
        changed = replace(code, segments=segments)
    return replace(program, stages=(*program.stages[: place.stage], changed, *program.stages[place.stage + 1 :]))


def left_out(i: Instr) -> tuple[Instr, ...]:
    """The same shapes without any traffic."""
    if i.kind == "stat":
        return (replace(i, axes=()),)
    if i.collective == "all_reduce":
        return (replace(i, kind="identity", collective=None),)
    if i.collective == "all_gather":
        return (replace(i, kind="pad", collective=None),)
    if i.collective == "reduce_scatter":
        return (replace(i, kind="slice", collective=None),)
    assert i.before is not None
    between = _without(i.before, i.dim, i.axes[0])
    name = i.inputs[0] + "@between"
    return (
        replace(i, kind="pad", collective=None, outputs=(name,), after=between, dim2=-1),
        replace(i, kind="slice", collective=None, inputs=(name,), before=between, dim=i.dim2, dim2=-1),
    )


def _without(layout: Layout, atom: int, axis: str) -> Layout:
    dims, at = [], 0
    for dim in layout.dims:
        subs = []
        for size, cuts in dim:
            subs.append((size, tuple(c for c in cuts if at != atom or c.axis != axis)))
            at += 1
        dims.append(tuple(subs))
    return Layout(tuple(dims), layout.partial)


def over_another_axis(i: Instr, axes: tuple[str, ...]) -> tuple[Instr, ...] | None:
    """A sum over the wrong axis; None where it would not be one."""
    other = [a for a in axes if a not in i.axes]
    if not other or i.axes == (STAGES,) or (i.kind != "stat" and i.collective != "all_reduce"):
        return None
    return (replace(i, axes=(other[0],)),)


def twice(i: Instr) -> tuple[Instr, ...] | None:
    """A sum carried out a second time."""
    if i.collective != "all_reduce" or i.kind == "stat" or i.axes == (STAGES,):
        return None
    name = i.outputs[0] + "@again"
    return (replace(i, outputs=(name,)), replace(i, inputs=(name,)))


def without_one_axis(i: Instr) -> tuple[Instr, ...] | None:
    """A joint sum that forgets one of its axes."""
    if len(i.axes) < 2 or (i.kind != "stat" and i.collective != "all_reduce"):
        return None
    return (replace(i, axes=i.axes[1:]),)


def scaled(i: Instr, axes: tuple[str, ...]) -> tuple[Instr, ...] | None:
    """A complete gradient that is summed over an axis on which it was the same: times its length."""
    free = [a for a in axes if a not in i.axes and a not in _cut_over(i)]
    if i.kind != "collective" or i.axes == (STAGES,) or not free:
        return None
    name = i.outputs[0] + "@scaled"
    more = Instr(
        "collective", i.on, i.phase, (name,), i.outputs, "all_reduce", (free[0],), before=i.after, after=i.after, nbytes=i.nbytes,
        samples=i.samples,
    )  # fmt: skip
    return (replace(i, outputs=(name,)), more)


def _cut_over(i: Instr) -> set[str]:
    layouts = [x for x in (i.before, i.after) if x is not None]
    return {c.axis for x in layouts for dim in x.dims for _, cuts in dim for c in cuts} | {
        a for x in layouts for a in x.partial
    }


def fault(program: Program, seed: int) -> tuple[str, Program] | None:
    """(what was done, the faulty program), drawn by `seed`; None if nothing in the program communicates."""
    rng = random.Random(seed)
    places = communicating(program)
    if not places:
        return None
    place = rng.choice(places)
    i = instruction(program, place)
    mesh = program.stages[place.stage].mesh
    axes = tuple(a for a in mesh.axes if mesh.size(a) > 1)
    ways: list[tuple[str, Callable[[], tuple[Instr, ...] | None]]] = [
        ("left out", lambda: left_out(i)),
        ("over another axis", lambda: over_another_axis(i, axes)),
        ("twice", lambda: twice(i)),
        ("without one axis", lambda: without_one_axis(i)),
        ("scaled", lambda: scaled(i, axes)),
    ]
    possible = [(what, new) for what, make in ways if (new := make()) is not None]
    what, new = rng.choice(possible)
    return f"{i.collective} of {i.on} ({place.part} of stage {place.stage}) {what}", with_instructions(
        program, place, new
    )
