"""A segment as ranks run it.

an op whose gradients are computed apart    one instruction forward, with its result at rest, and one backward, with all
                                            gradients that leave it
a gradient that rests apart, ∂t^            a value t^ for it to be the gradient of: nothing is in it, it has its layout.
                                            Made where t is; read besides t by what converts t, and by ops that make ∂t^
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .program import APART, GRAD, RAW, Instr, Segment


@dataclass(frozen=True, slots=True)
class Joint:
    """One op whose gradients are computed apart, with all that its local form carries out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    entering: tuple[str, ...]
    """Gradients that its backward reads, each of one of `outputs`."""
    leaving: tuple[str, ...]
    """Gradients that it makes, each of one of `inputs`."""


def joint(compute: Instr, completes: Iterable[Instr], backward: Sequence[Instr]) -> Joint:
    """`completes`: what brings its results to rest. `backward`: all its instructions there, in order."""
    outputs = list(compute.outputs)
    for i in completes:
        outputs[outputs.index(i.inputs[0])] = i.outputs[0]
    made: set[str] = set()
    entering: dict[str, None] = {}
    for i in backward:
        entering.update(dict.fromkeys(v for v in i.inputs if v.startswith(GRAD) and v not in made))
        made.update(i.outputs)
    read = {v for i in backward for v in i.inputs}
    values = {GRAD + v for v in compute.inputs}
    leaving = dict.fromkeys(
        v for i in backward for v in i.outputs if v in values or (v.endswith(APART) and v not in read)
    )
    inputs = dict.fromkeys(v.removeprefix(GRAD) for v in leaving if v.endswith(APART))
    named = dict.fromkeys(v.removeprefix(GRAD) for v in entering if v.endswith(APART))
    return Joint((*compute.inputs, *inputs), (*outputs, *named), tuple(entering), tuple(leaving))


def joined(segment: Segment) -> Segment:
    """See the module."""
    backward = segment.backward
    if not any(i.within or any(v.endswith(APART) for v in (*i.inputs, *i.outputs)) for i in backward):
        return segment
    joints = _joints(segment)
    return replace(
        segment,
        forward=_forward(segment.forward, backward, joints),
        rerun=_forward(segment.rerun, backward, joints),
        backward=_backward(backward, joints),
    )


def _joints(segment: Segment) -> dict[str, Joint]:
    own: dict[str, list[Instr]] = {}
    completes: dict[str, list[Instr]] = {}
    for i in segment.backward:
        if i.within:
            own.setdefault(i.within, []).append(i)
    for i in segment.forward:
        if i.within:
            completes.setdefault(i.within, []).append(i)
    return {
        i.on: joint(i, completes.get(i.on, ()), own[i.on])
        for i in segment.forward
        if i.kind == "compute" and i.on in own
    }


def _forward(instrs: Sequence[Instr], backward: Sequence[Instr], joints: Mapping[str, Joint]) -> tuple[Instr, ...]:
    homes = _homes(backward)
    made = {i.inputs[0]: i for i in backward if not i.within and i.inputs and i.inputs[0].endswith(APART)}
    found: list[Instr] = []
    for i in instrs:
        if i.within:
            continue
        if i.kind == "compute" and i.on in joints:
            found.append(replace(i, inputs=joints[i.on].inputs, outputs=joints[i.on].outputs))
            continue
        home = homes.get(i.outputs[0]) if i.outputs else None
        found.append(replace(i, inputs=(*i.inputs, home)) if home and i.kind != "compute" else i)
        if i.kind == "compute":
            for raw in i.outputs:
                first = made.get(GRAD + raw.removesuffix(RAW) + APART)
                if first is not None:
                    t = raw.removesuffix(RAW)
                    found.append(Instr("home", first.on, "forward", (raw,), (t + APART,), after=first.before))
    return tuple(found)


def _homes(backward: Sequence[Instr]) -> dict[str, str]:
    """Converted value -> t^, where what is said of its gradient ends."""
    source = {
        i.outputs[0]: i.inputs[0] for i in backward if not i.within and i.kind not in ("compute", "stat", "panel")
    }
    found: dict[str, str] = {}
    for i in backward:
        if i.within or i.kind == "compute" or not i.outputs or not i.outputs[0].endswith(APART):
            continue
        at = i.inputs[0]
        while at in source:
            at = source[at]
        found[at.removeprefix(GRAD)] = i.outputs[0].removeprefix(GRAD)
    return found


def _backward(instrs: Sequence[Instr], joints: Mapping[str, Joint]) -> tuple[Instr, ...]:
    """One instruction for all of an op, at the place of its last."""
    last = {i.within: k for k, i in enumerate(instrs) if i.within}
    found: list[Instr] = []
    for k, i in enumerate(instrs):
        if not i.within:
            found.append(i)
        elif last[i.within] == k:
            own = joints[i.within]
            found.append(Instr("compute", i.within, "backward", own.entering, own.leaving))
    return tuple(found)
