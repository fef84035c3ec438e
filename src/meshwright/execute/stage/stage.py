"""One stage of a program on one rank: local FX graphs and conversions, differentiated by torch segment by segment.

Nothing here decides a collective: a segment's forward list becomes units, each an island of local ops or one conversion
whose backward is its dual of the backward list.

    forward     entry ─▶ island ─▶ move ─▶ island ─▶ … ─▶ exits         one autograd graph a segment
                  │ values (parameters too) enter without their history
    backward    rerun list, if any; then torch.autograd.grad from exits to the entry, last segment first

Every dual must have run when a segment is done. What one micro-batch leaves behind is its `Flight`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ...errors import ExecutionError
from ...graph.ir import Graph
from ...lower.joined import joined
from ...lower.program import GRAD, INSIDE, Instr, Segment, StageCode
from ..ops.calls import Place, calls_of
from ..ops.running import RunningPart
from ..ranks.collectives import apply
from ..ranks.mesh_groups import MeshView
from ..step.buckets import CAPACITY
from .again import Again
from .entry import Entered, Entry
from .flight import Finished, Flight, Part, add_gradient, completed, hand_over
from .gathers import Gathered, Gathering
from .islands import Builder, Island, flows_of
from .moves import LOCAL, Move, moves_of

Unit: TypeAlias = "Island | Move"


@dataclass(slots=True)
class _Taped:
    """The autograd graph of one segment of one micro-batch."""

    entered: list[tuple[str, Entered]] = field(default_factory=list)
    """Under the name that its gradient has."""
    loose: list[GradientEdge] = field(default_factory=list)
    """Of moves whose gradient the program carries although nothing needs it."""
    exits: dict[str, GradientEdge] = field(default_factory=dict)
    again: Again | None = None
    done: set[str] = field(default_factory=set)
    """Values whose duals have run."""


@dataclass(frozen=True, slots=True)
class _Code:
    """A segment, prepared."""

    segment: Segment
    units: tuple[Unit, ...]
    rerun: tuple[int | Instr, ...]
    """In order: numbers of islands that run again, and conversions."""
    gathers: Mapping[int, tuple[int, ...]]
    """Unit -> groups of gathered parameters that it is the first to read."""
    regathers: tuple[int, ...]
    """Groups that the rerun list gathers again."""
    entry: tuple[str, ...]
    """Values that come from outside and whose gradient the segment makes."""
    exits: tuple[str, ...]
    """Values made here whose gradient may come from outside."""
    lasting: tuple[str, ...]
    """Values made here that outlive the segment's forward."""
    remade: frozenset[str]
    completes: tuple[str, ...]
    """Parameters of which no earlier segment adds to the gradient."""


class _Readers:
    """Who reads a value, and who adds to its gradient."""

    def __init__(self, code: StageCode, outputs: frozenset[str]) -> None:
        self.outputs = outputs
        self.kept = set(outputs)
        """Until the backward."""
        self._read: dict[str, set[int]] = {}
        self._graded: dict[str, set[int]] = {}
        for k, segment in enumerate(code.segments):
            remade = {n for i in segment.rerun for n in i.outputs}
            self.kept.update(n for i in segment.rerun for n in i.inputs if n not in remade)
            for i in (*segment.forward, *segment.rerun):
                for n in i.inputs:
                    self._read.setdefault(n, set()).add(k)
            for i in segment.backward:
                for n in i.outputs:
                    self._graded.setdefault(n, set()).add(k)

    def outlives(self, name: str, segment: int) -> bool:
        return name in self.kept or bool(self._read.get(name, set()) - {segment})

    def exits(self, name: str, segment: int) -> bool:
        return name in self.outputs or bool(self._graded.get(GRAD + name, set()) - {segment})


def _prepare(
    k: int,
    segment: Segment,
    completes: tuple[str, ...],
    readers: _Readers,
    place: Place,
    builder: Builder,
    gathered: Gathered,
) -> _Code:
    calls, apart = calls_of(segment, place), {i.within for i in segment.backward if i.within}
    segment = joined(segment)
    flows = flows_of(segment.forward, segment.backward)
    moves = moves_of(segment, {i.on: place.graph.tensor[i.on].shape for i in segment.forward if i.kind not in LOCAL})
    groups = _grouped(segment, moves, {*place.running, *apart})
    made = {n for i in segment.forward for n in i.outputs}
    units: list[Unit] = []
    where: dict[str, int] = {}
    reading: dict[str, set[int]] = {}
    for u, group in enumerate(groups):
        for n in group.reads:
            reading.setdefault(n, set()).add(u)
    for u, group in enumerate(groups):
        if isinstance(group, Move):
            units.append(group)
            continue
        where.update((i.on, u) for i in group.instrs)
        made_here = (n for i in group.instrs for n in i.outputs)
        outs = [n for n in made_here if reading.get(n, set()) - {u} or readers.outlives(n, k)]
        units.append(builder.island(group.instrs, calls, flows, outs, again=group.again, alone=group.alone))
    entry = dict.fromkeys(
        n
        for unit in units
        for n in (unit.carrying if isinstance(unit, Island) else (unit.carrying,) if unit.duals else ())
        if n not in made and n not in gathered.group_of
    )
    listed = (i for i in segment.rerun if i.kind not in INSIDE and not gathered.stands_for.intersection(i.outputs))
    rerun = dict.fromkeys(where[i.on] if i.kind == "compute" else i for i in listed)
    return _Code(
        segment=segment,
        units=tuple(units),
        rerun=tuple(rerun),
        gathers=gathered.first_read([unit.inputs for unit in units]),
        regathers=gathered.again_in(k),
        entry=tuple(entry),
        exits=tuple(n for n in sorted(made) if readers.exits(n, k)),
        lasting=tuple(n for n in sorted(made) if readers.outlives(n, k)),
        remade=frozenset(n for i in segment.rerun for n in i.outputs),
        completes=completes,
    )


@dataclass(slots=True)
class _Group:
    """Consecutive ops that become one island."""

    instrs: list[Instr]
    again: bool
    alone: bool
    """One op with collectives inside, or that leaves running statistics behind."""

    @property
    def reads(self) -> set[str]:
        return {n for i in self.instrs for n in i.inputs}


def _grouped(segment: Segment, moves: Mapping[str, Move], single: Collection[str]) -> list[_Group | Move]:
    """`single`: ops that are an island each: they leave running statistics behind, or compute their gradients apart."""
    again = {i.on for i in segment.rerun if i.kind == "compute"}
    communicating = {i.on for i in (*segment.forward, *segment.backward) if i.kind in INSIDE}
    groups: list[_Group | Move] = []
    for i in segment.forward:
        if i.kind == "compute":
            last = groups[-1] if groups else None
            alone = i.on in communicating or i.on in single
            if isinstance(last, _Group) and not alone and not last.alone and last.again == (i.on in again):
                last.instrs.append(i)
            else:
                groups.append(_Group([i], i.on in again, alone))
        elif i.kind not in INSIDE and i.outputs[0] in moves:
            groups.append(moves[i.outputs[0]])
    return groups


class StageRunner:
    """Runs the forward and backward of micro-batches of one stage."""

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
        compile: str | None = None,
        bucket_bytes: int = CAPACITY,
    ) -> None:
        """`code`: of an unrolled program. `outputs`: values kept for others.

        `stash`: the backward reads the weights of the forward; else those that the flight has when the backward begins,
        with all else as the forward kept it. `running`: statistics that ops renew, or read if `evaluating`. `compile`: a backend of torch.compile for the islands. `bucket_bytes`: of
        parameters that are gathered together.
        """
        self.code, self.graph, self.view = code, graph, view
        self.constants, self.stash = constants, stash
        device = device or torch.device("cpu")
        self._token = torch.empty(0, requires_grad=True, device=device)
        place = Place(graph, view, device, seed, dropout, running or {}, evaluating)
        builder = Builder(place, compile)
        gathered = Gathered(code, graph, bucket_bytes)
        self._gathering = Gathering(gathered.groups, graph, view)
        self._regathering = Gathering(gathered.again, graph, view)
        completes, code = completed(code), gathered.left
        readers = _Readers(replace(code, segments=tuple(map(joined, code.segments))), frozenset(outputs))
        self._kept = frozenset(readers.kept)
        self._segments = [
            _prepare(k, code.segments[k], names, readers, place, builder, gathered) for k, names in enumerate(completes)
        ]
        self._release = self._last_uses(readers)

    def _last_uses(self, readers: _Readers) -> list[list[list[str]]]:
        """Per segment and unit: values that nothing reads after it."""
        last: dict[str, tuple[int, int]] = {}
        for s, code in enumerate(self._segments):
            for u, unit in enumerate(code.units):
                last.update(dict.fromkeys((*unit.inputs, *unit.outputs), (s, u)))
        found: list[list[list[str]]] = [[[] for _ in code.units] for code in self._segments]
        for name, (s, u) in last.items():
            if name not in readers.kept:
                found[s][u].append(name)
        return found

    # ---------------------------------------------------------------- forward

    def forward(self, flight: Flight, *, record: bool = True) -> None:
        """Fills `flight.values` (kept ones only) and `flight.tape`. Inputs and arrivals are in `flight.values`.

        `record`: for a backward.
        """
        flight.tape = [
            self._forward(code, release, flight, record)
            for code, release in zip(self._segments, self._release, strict=True)
        ]

    def _forward(self, code: _Code, release: Sequence[Sequence[str]], flight: Flight, record: bool) -> _Taped:
        other = bool(code.rerun or code.regathers) or not self.stash
        taped = _Taped(again=Again() if other and record else None)
        if taped.again and not self.stash:
            for name, x in flight.weights.items():
                taped.again.remade(name, x)
        values = self._enter(code.entry, [self._value(n, {}, flight) for n in code.entry], taped) if record else {}
        for u, unit in enumerate(code.units):
            for group in code.gathers.get(u, ()):
                self._gather(code, group, values, flight, taped, record)
            grad = record and unit.carries
            if isinstance(unit, Move):
                self._move(unit, values, flight, taped, grad)
            else:
                again = taped.again
                with again.forward(u, unit.again) if again and grad else nullcontext():
                    self._island(unit, values, flight, grad)
            if taped.again:
                for name in unit.outputs:
                    if name in code.remade:
                        taped.again.remade(name, values[name])
            for name in release[u]:
                values.pop(name, None)
                flight.values.pop(name, None)
        for name in code.exits:
            if values[name].requires_grad:
                taped.exits[name] = get_gradient_edge(values[name])
        flight.values.update((name, values[name].detach()) for name in code.lasting)
        return taped

    def _enter(self, names: Sequence[str], entering: Sequence[Tensor], taped: _Taped) -> dict[str, Tensor]:
        """Values whose gradients the segment makes under these names, with what carries a gradient."""
        if not names:
            return {}
        with torch.enable_grad():
            entered = Entry.apply(self._token, *entering)  # type: ignore[no-untyped-call]
        for name, x in zip(names, entered, strict=True):
            taped.entered.append((name, Entered.of(x)))
        return dict(zip(names, entered, strict=True))

    def _gather(
        self, code: _Code, k: int, values: dict[str, Tensor], flight: Flight, taped: _Taped, record: bool
    ) -> None:
        """A group of parameters. The gradient of each is that of the gathered value, not yet summed."""
        found = self._gathering.take(k, flight.weights)
        if record:
            params = [g.param for g in self._gathering.groups[k].members]
            entered = self._enter(params, list(found.values()), taped)
            found = dict(zip(found, entered.values(), strict=True))
        values.update(found)
        for name, x in found.items():
            if taped.again and name in code.remade:
                taped.again.remade(name, x)
            elif name in self._kept:
                flight.values[name] = x.detach()

    def _island(self, unit: Island, values: dict[str, Tensor], flight: Flight, grad: bool) -> None:
        operands = [self._value(name, values, flight) for name in unit.inputs]
        with torch.set_grad_enabled(grad):
            operands = [
                x.detach() if x.requires_grad and name not in unit.carrying else x
                for name, x in zip(unit.inputs, operands, strict=True)
            ]
            results = unit.run(flight.moment.step, flight.moment.micro_batch, *operands)
            values.update(zip(unit.outputs, results, strict=True))

    def _move(self, move: Move, values: dict[str, Tensor], flight: Flight, taped: _Taped, grad: bool) -> None:
        x = self._value(move.source, values, flight)
        if not grad:
            with torch.no_grad():
                values[move.target] = move.forward(x, self.view)
            return
        carries = self._value(move.home, values, flight) if move.home else x
        with torch.enable_grad():
            if not carries.requires_grad:
                (carries,) = Entry.apply(self._token, carries)  # type: ignore[no-untyped-call]
                taped.loose.append(get_gradient_edge(carries))
            values[move.target] = move.run(x if move.home else carries, carries, self.view, taped.done)

    def _value(self, name: str, values: Mapping[str, Tensor], flight: Flight) -> Tensor:
        for source in (values, flight.values, flight.weights, self.constants):
            if name in source:
                return source[name]
        raise ExecutionError(f'stage {self.code.stage} reads "{name}", which nothing made: the program is damaged')

    # --------------------------------------------------------------- backward

    def backward(self, flight: Flight, part: Part = "all", finished: Finished | None = None) -> None:
        """From the gradients in `flight.grads` ("∂loss", "∂v" of sent values) to those of arrivals and parameters.

        `finished`: gets each parameter's gradient out of `flight.grads` as soon as it is complete, segment after segment
        from the last to the first, in an order that is the same on all ranks of the stage. Parameters to which nothing
        flows are left out.

        What is left in `flight.grads` is what no instruction of this stage reads.
        """
        if part != "all":
            raise ExecutionError("a backward in two parts needs the tape of single ops")
        for code in reversed(self._segments):
            self._backward(code, flight.tape.pop(), flight)
            hand_over(code.completes, flight, finished)
        flight.values = {}

    def _backward(self, code: _Code, taped: _Taped, flight: Flight) -> None:
        if taped.again:
            self._rerun(code, taped.again, flight)
        arrived = {n: flight.grads.pop(GRAD + n) for n in taped.exits if GRAD + n in flight.grads}
        if not taped.entered:
            return
        if not arrived:
            raise ExecutionError(f'no gradient arrived for segment "{code.segment.name}" of stage {self.code.stage}')
        grads = torch.autograd.grad(
            [taped.exits[n] for n in arrived],
            [*(e.edge for _, e in taped.entered), *taped.loose],
            list(arrived.values()),
            allow_unused=True,
        )
        for (name, entered), grad in zip(taped.entered, grads, strict=False):
            add_gradient(flight, GRAD + name, entered.zeros() if grad is None else grad)
        for unit in code.units:
            if isinstance(unit, Move) and unit.duals and unit.target not in taped.done:
                raise ExecutionError(
                    f'no gradient "{GRAD}{unit.target}" arrived for {unit.duals[0].kind} on {unit.duals[0].on}'
                )
        if taped.again:
            taped.again.clear()

    def _rerun(self, code: _Code, again: Again, flight: Flight) -> None:
        """The rerun list, recording what its ops save."""
        if not self.stash:
            again.values.update(flight.weights)
        for k in code.regathers:
            again.values.update(self._regathering.take(k, flight.weights))
        for step in code.rerun:
            if isinstance(step, Instr):
                x = self._value(step.inputs[0], again.values, flight)
                again.values[step.outputs[0]] = apply(step, x, self.graph.tensor[step.on].shape, self.view)
                continue
            unit = code.units[step]
            assert isinstance(unit, Island)
            operands = {
                n: x.requires_grad_() if n in unit.carrying else x
                for n in unit.inputs
                for x in (self._value(n, again.values, flight).detach(),)
            }
            with again.rerun(step):
                self._island(unit, operands, flight, unit.carries)
            again.values.update((n, operands[n].detach()) for n in unit.outputs)
        again.settle()
