"""A stage run op by op on a tape of our own: the backward of each op alone, in the order of the program's backward list.

Slower than `StageRunner`, with the same results. It can part the backward of an op: first what flows to other ops and
stages, later what flows to parameters (zero-bubble schedules). Autograd is used inside single ops only.

    forward list ──▶ values ──(last use)──▶ freed, unless a rerun instruction reads them
         └─────────▶ tape: per op the edges of its small autograd graph, with what that op saved
    rerun list  ───▶ values again, when the backward of their segment begins
    backward list ─▶ gradients, along the edges of the tape; an op's entry is freed once used

A tensor that a rerun instruction makes again is never saved: its saved form is a handle (name, strides), taken from the
values made again. The edges hold no operand: an op that saves nothing keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from ...errors import ExecutionError
from ...graph.ir import Graph
from ...lower.joined import joined
from ...lower.program import GRAD, INSIDE, Instr, Segment, StageCode
from ..ops.calls import Place, calls_of
from ..ops.running import RunningPart
from ..ops.site import Local
from ..ranks.collectives import apply
from ..ranks.mesh_groups import MeshView
from .again import Handle
from .entry import Entered, Entry
from .flight import Finished, Flight, Part, add_gradient, completed, hand_over
from .islands import flows_of


@dataclass(frozen=True, slots=True)
class _Taped:
    """The autograd graph of one op: where gradients of its results enter and gradients of its operands leave."""

    results: list[GradientEdge | None]
    operands: dict[int, Entered]


@dataclass(slots=True)
class _Tape:
    """One micro-batch between its forward and its backward."""

    ops: dict[str, _Taped] = field(default_factory=dict)
    again: dict[str, Tensor] = field(default_factory=dict)
    """Values made by the rerun list of the segment whose backward runs."""
    later: list[tuple[_Code, Instr, dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=list)
    """Split backward: what the weight part still has to do, with the gradients that enter and the values made again.
    Of an op that communicates inside: the gradients that it has made already."""


@dataclass(frozen=True, slots=True)
class _Code:
    """A segment, prepared: local calls, last uses, which ops are taped when."""

    segment: Segment
    calls: Mapping[str, Local]
    made: Mapping[str, Instr]
    """Op -> its forward instruction."""
    flows: Mapping[str, tuple[int, ...]]
    """Op -> operands whose gradient its backward instruction makes."""
    remade: frozenset[str]
    """Values that the rerun list makes."""
    taped_later: frozenset[str]
    """Ops whose autograd graph is built by the rerun list."""
    last_grad: Mapping[str, int]
    weight_side: frozenset[str]
    """Gradients of values that derive from parameters alone."""
    inside: frozenset[str]
    """Ops whose backward communicates inside: it runs once, whole, in the input part."""
    completes: tuple[str, ...]
    """Parameters of which no earlier segment adds to the gradient."""


class OpTape:
    """Runs the forward and backward of micro-batches of one stage, whose backward may come in two parts."""

    def __init__(
        self,
        code: StageCode,
        graph: Graph,
        view: MeshView,
        constants: Mapping[str, Tensor],
        *,
        outputs: Iterable[str] = (),
        device: torch.device | None = None,
        seed: int = 0,
        dropout: bool = True,
        stash: bool = True,
        running: Mapping[str, RunningPart] | None = None,
        evaluating: bool = False,
    ) -> None:
        """`code`: of an unrolled program. `outputs`: values kept for others. The rest: see `StageRunner`."""
        self.code, self.graph, self.view = code, graph, view
        self.constants = constants
        self._loose = frozenset() if stash else frozenset(p.name for p in code.params)
        """Weights that the backward reads as they are then."""
        device = device or torch.device("cpu")
        self._token = torch.empty(0, requires_grad=True, device=device)
        place = Place(graph, view, device, seed, dropout, running or {}, evaluating)
        completes = completed(code)
        self._segments = [self._prepare(s, c, place) for s, c in zip(code.segments, completes, strict=True)]
        self._last_use = self._last_uses(frozenset(outputs))

    def _prepare(self, segment: Segment, completes: tuple[str, ...], place: Place) -> _Code:
        calls, apart = calls_of(segment, place), {i.within for i in segment.backward if i.within}
        segment = joined(segment)
        last_grad = {name: k for k, i in enumerate(segment.backward) for name in i.inputs}
        made = {i.on: i for i in segment.forward if i.kind == "compute"}
        return _Code(
            segment=segment,
            calls=calls,
            made=made,
            flows=flows_of(segment.forward, segment.backward),
            remade=frozenset(name for i in segment.rerun for name in i.outputs),
            taped_later=frozenset(i.on for i in segment.rerun if i.kind == "compute"),
            last_grad=last_grad,
            weight_side=self._weight_side(segment),
            inside=frozenset(i.on for i in segment.backward if i.kind in INSIDE) | apart,
            completes=completes,
        )

    def _weight_side(self, segment: Segment) -> frozenset[str]:
        derived = {p.name for p in self.code.params}
        for instr in segment.forward:
            known = [name for name in instr.inputs if name not in self.constants]
            if known and all(name in derived for name in known):
                derived.update(instr.outputs)
        return frozenset(GRAD + name for name in derived)

    def _last_uses(self, outputs: frozenset[str]) -> list[dict[int, list[str]]]:
        """Per segment: instruction -> values that nothing reads after it."""
        last: dict[str, tuple[int, int]] = {}
        kept = set(outputs)
        for s, code in enumerate(self._segments):
            kept |= {n for i in code.segment.rerun for n in i.inputs} - code.remade
            for k, instr in enumerate(code.segment.forward):
                for name in (*instr.inputs, *instr.outputs):
                    last[name] = (s, k)
        found: list[dict[int, list[str]]] = [{} for _ in self._segments]
        for name, (s, k) in last.items():
            if name not in kept:
                found[s].setdefault(k, []).append(name)
        return found

    # ---------------------------------------------------------------- forward

    def forward(self, flight: Flight, *, record: bool = True) -> None:
        """Fills `flight.values` (kept ones only) and `flight.tape`. Inputs and arrivals are in `flight.values`.

        `record`: for a backward.
        """
        flight.tape = _Tape()
        for code, last in zip(self._segments, self._last_use, strict=True):
            for k, instr in enumerate(code.segment.forward):
                later = instr.kind == "compute" and instr.on in code.taped_later
                self._execute(code, instr, flight, flight.values, record=record and not later)
                for name in last.get(k, ()):
                    flight.values.pop(name, None)

    def _execute(self, code: _Code, instr: Instr, flight: Flight, values: dict[str, Tensor], *, record: bool) -> None:
        if instr.kind in INSIDE:
            return  # carried out by its op
        operands = [self._value(name, values, flight) for name in instr.inputs]
        if instr.kind == "compute":
            results = self._compute(code, instr, operands, flight, record=record)
            values.update(zip(instr.outputs, results, strict=True))
        else:
            with torch.no_grad():
                values[instr.outputs[0]] = apply(instr, operands[0], self._shape(instr.on), self.view)

    def _value(self, name: str, values: Mapping[str, Tensor], flight: Flight) -> Tensor:
        for source in (values, flight.values, flight.weights, self.constants):
            if name in source:
                return source[name]
        raise ExecutionError(f'stage {self.code.stage} reads "{name}", which nothing made: the program is damaged')

    def _shape(self, tensor: str) -> tuple[int, ...]:
        return self.graph.tensor[tensor].shape

    def _compute(
        self, code: _Code, instr: Instr, operands: list[Tensor], flight: Flight, *, record: bool
    ) -> Sequence[Tensor]:
        call = code.calls[instr.on]
        floats = code.flows.get(instr.on, ())
        if not record or not floats:
            with torch.no_grad():
                return call(operands, flight.moment)
        remade = frozenset() if instr.on in code.taped_later else code.remade
        with torch.enable_grad(), _saving(operands, instr.inputs, remade | self._loose, flight):
            entered = Entry.apply(self._token, *(operands[k] for k in floats))  # type: ignore[no-untyped-call]
            for k, x in zip(floats, entered, strict=True):
                operands[k] = x
            results = call(operands, flight.moment)
        edges = [get_gradient_edge(r) if r.requires_grad else None for r in results]
        if any(edges):
            flight.tape.ops[instr.on] = _Taped(edges, {k: Entered.of(x) for k, x in zip(floats, entered, strict=True)})
        return [r.detach() for r in results]

    # --------------------------------------------------------------- backward

    def backward(self, flight: Flight, part: Part = "all", finished: Finished | None = None) -> None:
        """From the gradients in `flight.grads` ("∂loss", "∂v" of sent values) to those of arrivals and parameters.

        `part`: "all"; or first "input" (what flows to other ops and stages), later "weight" (what remains: parameters).
        `finished`: gets each parameter's gradient out of `flight.grads` as soon as it is complete, segment after segment
        from the last to the first, in an order that is the same on all ranks of the stage. Parameters to which nothing
        flows are left out.

        What is left in `flight.grads` is what no instruction of this stage reads.
        """
        if part == "weight":
            for k, (code, instr, entering, again) in enumerate(flight.tape.later):
                flight.tape.again = again
                if instr.kind == "compute" and instr.on not in flight.tape.ops:  # its backward ran whole
                    for name, grad in entering.items():
                        add_gradient(flight, name, grad)
                else:
                    flight.grads.update(entering)
                    self._execute_backward(code, instr, flight, part)
                if k + 1 == len(flight.tape.later) or flight.tape.later[k + 1][0] is not code:
                    hand_over(code.completes, flight, finished)
            flight.tape.later, flight.tape.again, flight.values = [], {}, {}
            return
        for code in reversed(self._segments):
            flight.tape.again = {name: flight.weights[name] for name in self._loose}
            for instr in code.segment.rerun:
                self._execute(code, instr, flight, flight.tape.again, record=True)
            for k, instr in enumerate(code.segment.backward):
                self._execute_backward(code, instr, flight, part)
                for name in instr.inputs:
                    if code.last_grad[name] == k:
                        flight.grads.pop(name, None)
            if part == "all":
                hand_over(code.completes, flight, finished)
        flight.tape.again = {}
        if part == "all":
            flight.values = {}

    def _execute_backward(self, code: _Code, instr: Instr, flight: Flight, part: Part) -> None:
        if instr.kind in INSIDE:
            return  # carried out by its op
        outputs = instr.outputs
        if part != "all":
            late = [name for name in outputs if name in code.weight_side]
            outputs = tuple(n for n in outputs if (n in code.weight_side) == (part == "weight"))
            if late and outputs and part == "input" and instr.kind == "compute" and instr.on in code.inside:
                self._compute_backward(code, instr, instr.outputs, flight, keep=False)
                made = {name: flight.grads.pop(name) for name in late}
                flight.tape.later.append((code, instr, made, flight.tape.again))
                return
            if late and part == "input":
                entering = {name: flight.grads[name] for name in instr.inputs if name in flight.grads}
                flight.tape.later.append((code, instr, entering, flight.tape.again))
            if not outputs:
                return
        if instr.kind == "compute":
            self._compute_backward(code, instr, outputs, flight, keep=part == "input")
            return
        grad = flight.grads.get(instr.inputs[0])
        if grad is None:
            raise ExecutionError(f'no gradient "{instr.inputs[0]}" arrived for {instr.kind} on {instr.on}')
        with torch.no_grad():
            add_gradient(flight, outputs[0], apply(instr, grad, self._shape(instr.on), self.view))

    def _compute_backward(
        self, code: _Code, instr: Instr, outputs: Sequence[str], flight: Flight, *, keep: bool
    ) -> None:
        taped = flight.tape.ops.get(instr.on) if keep else flight.tape.ops.pop(instr.on, None)
        if taped is None:
            raise ExecutionError(f"the backward of {instr.on} runs without its forward: the program is damaged")
        made = code.made[instr.on]
        entering = []
        for name in instr.inputs:
            edge = taped.results[made.outputs.index(name.removeprefix(GRAD))]
            if edge is not None and name in flight.grads:
                entering.append((edge, flight.grads[name]))
        if not entering:
            raise ExecutionError(f"no gradient of any result of {instr.on} arrived: the program is damaged")
        # a value read twice by one op gets the sum of both gradients
        wanted = [
            (name, k)
            for name in outputs
            for k, value in enumerate(made.inputs)
            if value == name.removeprefix(GRAD) and k in taped.operands
        ]
        found = torch.autograd.grad(
            [edge for edge, _ in entering],
            [taped.operands[k].edge for _, k in wanted],
            [grad for _, grad in entering],
            allow_unused=True,
            retain_graph=keep,
        )
        for (name, k), grad in zip(wanted, found, strict=True):
            add_gradient(flight, name, taped.operands[k].zeros() if grad is None else grad)


def _saving(operands: Sequence[Tensor], names: Sequence[str], remade: frozenset[str], flight: Flight) -> Any:
    """Hooks that save handles instead of tensors which are made again."""
    again = {x.untyped_storage().data_ptr(): n for n, x in zip(names, operands, strict=True) if n in remade}
    if not again:
        return nullcontext()

    def pack(x: Tensor) -> Tensor | Handle:
        name = again.get(x.untyped_storage().data_ptr())
        if name is None or x.numel() == 0:
            return x
        return Handle.of(name, x)

    def unpack(saved: Tensor | Handle) -> Tensor:
        return saved.view(flight.tape.again) if isinstance(saved, Handle) else saved

    return saved_tensors_hooks(pack, unpack)
