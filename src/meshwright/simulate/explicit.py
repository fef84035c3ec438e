"""One micro-batch on one stage as a list of explicit calls on named values, and how long each value lives.

    arrive     boundary values from earlier stages
    forward    the stage's program, and the gradient of the loss if it is here
    leave      boundary values to later stages
    return     their gradients
    backward   rerun lists and backwards of the segments, last first
    leave      gradients of boundary values to earlier stages

A call reads and makes values; a value dies after its last reader. Parameters and data are there all the time. What leaves
the step (gradients of parameters, the loss, gradients of data that a product reads) is gathered over the micro-batches right
after the call that makes it: added up if it is a parameter's, else put side by side. A value of which nothing new is made
(a view, an identity) is the value it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from ..cost import VIEWS, Collective
from ..graph.ir import ITEM_BYTES, Graph, Op
from ..lower.atoms import PRODUCTS
from ..lower.memo import memo
from ..lower.program import GRAD, INSIDE, Instr, Program, StageCode, Transfer
from ..plan.model import Layout
from ..plan.problem import Recipe

CallKind = Literal["forward", "backward", "collective", "move", "send", "add", "gather"]
"""move: re-arranges the own part. add: a sum of two values. gather: a result of the step joins those of earlier micro-batches."""


@dataclass(frozen=True, slots=True)
class Call:
    """Alike on all devices of a stage."""

    kind: CallKind
    on: str
    """forward, backward: the op. gather: what it is of. Otherwise the tensor."""
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    instr: Instr | None = None
    collective: Collective = "all_reduce"
    axes: tuple[str, ...] = ()
    nbytes: float = 0.0
    """collective: as `Instr.nbytes` of this micro-batch. add: of one operand. send: of the value."""
    joins: bool = False
    """gather: results are put side by side, not added."""
    peer: int = -1
    """send: the other stage."""


@dataclass(slots=True)
class StageCalls:
    """All calls of one micro-batch on one stage; values are numbers."""

    code: StageCode
    forward: list[Call] = field(default_factory=list)
    backward: list[Call] = field(default_factory=list)
    sends: list[Call] = field(default_factory=list)
    """After the forward, in order; the values that arrive at the peer are named by `on`."""
    returns: list[Call] = field(default_factory=list)
    """After the backward."""
    nbytes: list[float] = field(default_factory=list)
    """Per value, on one device."""
    arrivals: dict[str, int] = field(default_factory=dict)
    """Boundary tensor, or its gradient -> value."""
    data: dict[str, float] = field(default_factory=dict)
    """Graph input read here -> bytes of one micro-batch (of all, if it does not grow with the samples)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Parameter -> elements at rest."""


def stage_calls(program: Program, graph: Graph, recipe: Recipe, stage: int) -> StageCalls:
    """Of an unrolled program."""
    return _Writer(program, graph, recipe, stage).calls()


class _Writer:
    def __init__(self, program: Program, graph: Graph, recipe: Recipe, stage: int) -> None:
        self.program, self.graph, self.recipe, self.stage = program, graph, recipe, stage
        self.code = program.stages[stage]
        self.done = StageCalls(self.code)
        self.now: dict[str, int] = {}
        """Value name -> number."""
        self.read: dict[str, tuple[str, ...]] = {}
        """Op -> the values that it read; `made` those that it made; `extra` its statistics."""
        self.made: dict[str, tuple[str, ...]] = {}
        self.extra: dict[str, int] = {}
        self.param_of = {GRAD + p.name: p.name for p in self.code.params}
        self.waiting: list[Call] = []
        self.share = program.micro_batch / graph.samples
        self.grows = with_samples(graph)

    def calls(self) -> StageCalls:
        code, done = self.code, self.done
        for p in code.params:
            done.weights[p.name] = p.elements[0]
        for name, layout in code.inputs:
            done.data[name] = self._bytes(name, layout)
        own = {t.name for t in self.graph.tensors if t.role in ("param", "buffer", "input")}
        for t in self._transfers(into=True):
            self._arrive(t.value, t.layout)
        for segment in code.segments:
            for i in segment.forward:
                self._instr(i, done.forward, own)
        backward = [i for s in reversed(code.segments) for i in (*s.rerun, *s.backward)]
        loss = self.graph.producer.get(self.graph.loss, -1)
        name = self.graph.ops[loss].name if loss >= 0 else ""
        # The loss and its gradient go together.
        first = next((k + 1 for k, i in enumerate(backward) if i.kind == "compute" and i.on == name), 0)
        first = first if any(i.phase != "forward" for i in backward[:first]) else 0
        for i in backward[:first]:
            self._instr(i, done.forward, own)
        self._flush(done.forward)
        for t in self._transfers(into=False):
            done.sends.append(
                Call("send", t.value, (self.now[t.value],), nbytes=self._bytes(t.value, t.layout), peer=t.dst)
            )
        for t in self._transfers(into=False):
            if t.grad:
                self._arrive(GRAD + t.value, t.layout, done.backward)
        for i in (*backward[first:], *code.grads):
            self._instr(i, done.backward, own)
        self._flush(done.backward)
        for t in self._transfers(into=True):
            if t.grad and GRAD + t.value in self.now:
                number = self.now[GRAD + t.value]
                done.returns.append(Call("send", GRAD + t.value, (number,), nbytes=done.nbytes[number], peer=t.src))
        return done

    def _transfers(self, *, into: bool) -> Iterator[Transfer]:
        return (t for t in self.program.transfers if (t.dst if into else t.src) == self.stage)

    def _arrive(self, name: str, layout: Layout, calls: list[Call] | None = None) -> None:
        old = self.now.get(name)
        number = self.done.arrivals[name] = self._new(name, self._bytes(name.removeprefix(GRAD), layout))
        if old is not None and calls is not None:
            self._add(name, old, number, calls)

    # ---- instructions

    def _instr(self, i: Instr, calls: list[Call], own: set[str]) -> None:
        if i.kind == "compute":
            self._flush(calls)
            op = self.graph.ops[self.graph.position[i.on]]
            if i.phase == "forward":
                self._forward(i, op, calls)
            elif i.within:
                self._apart(i, op, calls)
            else:
                self._backward(i, op, calls)
        elif i.kind in INSIDE or i.kind == "halo":
            kind: Collective = i.collective or "all_reduce"
            calls.append(Call("collective", i.on, (), (), i, kind, i.axes, self._scaled(i)))
        elif i.kind != "update":
            self._convert(i, calls)
        self._note_results(i)

    def _forward(self, i: Instr, op: Op, calls: list[Call]) -> None:
        self.read[op.name], self.made[op.name] = i.inputs, i.outputs
        inputs = self._there(i.inputs)
        if op.kind in VIEWS and len(i.outputs) == 1 and inputs:
            self.now[i.outputs[0]] = inputs[0]
            calls.append(Call("forward", op.name, inputs, (), i))
            return
        found = [self._new(n, self._bytes(t, x)) for n, t, x in zip(i.outputs, op.outputs, i.results, strict=True)]
        if op.saved_extra and i.operands:
            whole = self.graph.tensor[op.inputs[0]].nbytes or 1.0
            self.extra[op.name] = self._new("", op.saved_extra / whole * self._bytes(op.inputs[0], i.operands[0]))
            found.append(self.extra[op.name])
        calls.append(Call("forward", op.name, inputs, tuple(found), i))

    def _backward(self, i: Instr, op: Op, calls: list[Call]) -> None:
        saved: list[int] = []
        for t in op.saved:
            at = op.inputs.index(t) if t in op.inputs else -1
            name = self.read[op.name][at] if at >= 0 else self.made[op.name][op.outputs.index(t)]
            saved += self._there([name])
        if op.name in self.extra:
            saved.append(self.extra[op.name])
        inputs = tuple(dict.fromkeys((*self._there(i.inputs), *saved)))
        if op.kind in VIEWS and len(i.outputs) == 1 and self._there(i.inputs):
            calls.append(Call("backward", op.name, inputs, (), i))
            self._give(i.outputs[0], self._there(i.inputs)[0], calls)
            return
        given: list[tuple[str, int]] = []
        for name in i.outputs:
            given.append((name, self._new("", self._grad_bytes(name, op, i))))
        forward = {t: k for k, t in enumerate(op.inputs)}
        for t, k in forward.items():
            tensor = self.graph.tensor[t]
            if (
                tensor.role == "input"
                and op.kind in PRODUCTS
                and tensor.dtype in ITEM_BYTES
                and "float" in tensor.dtype
            ):
                given.append((GRAD + t, self._new("", self._bytes(t, i.operands[k]))))
        calls.append(Call("backward", op.name, inputs, tuple(n for _, n in given), i))
        for name, number in given:
            self._give(name, number, calls)
            t = name.removeprefix(GRAD)
            if t in self.graph.tensor and self.graph.tensor[t].role == "input":
                self._data_gradient(t, number, op, i, calls)

    def _apart(self, i: Instr, op: Op, calls: list[Call]) -> None:
        """Gradients that are computed apart, which read what they need by name."""
        made = []
        for name, k in zip(i.outputs, i.targets, strict=True):
            made.append((name, self._new("", self._bytes(op.inputs[k], i.operands[k], grad=True))))
        calls.append(Call("backward", op.name, self._there(i.inputs), tuple(number for _, number in made), i))
        for name, number in made:
            self._give(name, number, calls)

    def _data_gradient(self, t: str, number: int, op: Op, i: Instr, calls: list[Call]) -> None:
        """Complete: summed over the axes that cut what the data has not."""
        own = {name for dim in op.rule.operands[op.inputs.index(t)] for name in dim}
        axes = tuple(
            c.axis for name, cuts in i.cuts if name not in own for c in cuts if self.code.mesh.size(c.axis) > 1
        )
        if axes:
            nbytes = self.done.nbytes[number]
            whole = self._new("", nbytes)
            calls.append(Call("collective", t, (number,), (whole,), None, "all_reduce", axes, nbytes))
            number = whole
        self.waiting.append(Call("gather", GRAD + t, (number,), joins=True))

    def _convert(self, i: Instr, calls: list[Call]) -> None:
        inputs = self._there(i.inputs)
        alone = all(self.code.mesh.size(a) == 1 for a in i.axes)
        if i.kind == "identity" or alone:
            if inputs:
                self._give(i.outputs[0], inputs[0], calls)
            return
        assert i.after is not None
        number = self._new("", self._bytes(i.on, i.after))
        if i.kind == "collective":
            kind = i.collective or "all_reduce"
            calls.append(Call("collective", i.on, inputs, (number,), i, kind, i.axes, self._scaled(i)))
        else:
            calls.append(Call("move", i.on, inputs, (number,), i, axes=i.axes))
        self._give(i.outputs[0], number, calls)

    def _give(self, name: str, number: int, calls: list[Call]) -> None:
        """A value is there; a second gradient of one value is added to the first."""
        old = self.now.get(name) if name.startswith(GRAD) else None
        if old is None or old == number:
            self.now[name] = number
        else:
            self._add(name, old, number, calls)

    def _add(self, name: str, old: int, number: int, calls: list[Call]) -> None:
        nbytes = self.done.nbytes[number]
        both = self._new(name, nbytes)
        calls.append(Call("add", name, (old, number), (both,), nbytes=nbytes))
        # A parameter's gradient that waits to be gathered is the sum.
        self.waiting = [c for c in self.waiting if c.on != name]

    def _note_results(self, i: Instr) -> None:
        for name in i.outputs:
            if name in self.param_of and name in self.now:
                self.waiting = [c for c in self.waiting if c.on != name]
                self.waiting.append(Call("gather", name, (self.now[name],)))
            elif name == self.graph.loss and i.phase == "forward":
                self.waiting.append(Call("gather", name, (self.now[name],), joins=True))

    def _flush(self, calls: list[Call]) -> None:
        # In the order of what an op gives: data first, parameters after it.
        calls += sorted(self.waiting, key=lambda c: not c.joins)
        self.waiting = []

    # ---- values

    def _there(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.now[n] for n in names if n in self.now)

    def _new(self, name: str, nbytes: float) -> int:
        self.done.nbytes.append(nbytes)
        number = len(self.done.nbytes) - 1
        if name:
            self.now[name] = number
        return number

    def _scaled(self, i: Instr) -> float:
        if i.samples is None:
            return i.nbytes
        return i.nbytes * self.program.local_samples(self.code.mesh, i.samples)

    def _grad_bytes(self, name: str, op: Op, i: Instr) -> float:
        """A gradient has the layout of its value: that of the operand that the op read by this name."""
        value = name.removeprefix(GRAD)
        k = self.read[op.name].index(value)
        return self._bytes(op.inputs[k], i.operands[k], grad=True)

    def _bytes(self, tensor: str, layout: Layout, *, grad: bool = False) -> float:
        t = self.graph.tensor[tensor]
        axes = {c.axis for dim in layout.dims for _, cuts in dim for c in cuts}
        nbytes = t.nbytes * (self.share if tensor in self.grows else 1.0) / prod(self.code.mesh.size(a) for a in axes)
        if t.role != "param":
            return nbytes
        dtype = self.recipe.grad_dtype if grad else self.recipe.compute_dtype
        return nbytes / ITEM_BYTES.get(t.dtype, 4) * ITEM_BYTES[dtype]


def with_samples(graph: Graph) -> frozenset[str]:
    """Tensors whose size is proportional to the samples."""
    found: frozenset[str] = memo(graph, "with samples", lambda: _with_samples(graph))
    return found


def _with_samples(graph: Graph) -> frozenset[str]:
    found = set()
    for op in graph.ops:
        samples = {f.name for f in op.rule.factors if f.samples}
        sides = ((op.inputs, op.rule.operands), (op.outputs, op.rule.results))
        for name, dims in (pair for names, many in sides for pair in zip(names, many, strict=False)):
            if any(f in samples for dim in dims for f in dim):
                found.add(name)
    return frozenset(found)
