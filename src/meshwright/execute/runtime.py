"""One rank of a program: its stages, in the order of its schedule rows, with transfers, gradients and the update.

    F(stage, k)  receive ─▶ forward ─▶ send          B(stage, k)  receive ∂ ─▶ backward ─▶ send ∂, accumulate
    after the last action: sums of tied weights, then the update list of every stage

Sends never block: they are kept until the end of the step. Receives wait. So a table that is free of deadlock with
rendezvous sends is free of deadlock here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ExecutionError, Unsupported
from ..graph.ir import Graph
from ..lower.parameters import STAGES
from ..lower.program import GRAD, Instr, Param, Program, StageCode, Transfer
from ..plan.layout import local_shape
from ..plan.model import Action, Plan, Row
from ..plan.schedules import rows
from .collectives import apply
from .device import Hardware
from .flight import Flight, Part
from .mesh_groups import Groups, MeshView, needed_groups, ranks_of, sharing
from .op_tape import OpTape
from .optimizer import MakeOptimizer
from .params import Values, dtype_of
from .shares import Rows, own_input
from .site import Moment
from .stage import StageRunner

MicroBatch = Mapping[str, Tensor]
"""Graph input -> the whole tensor of one micro-batch."""
Given = Mapping[str, Tensor | Rows]
"""The same, or only the rows that this rank was given."""
PARTS: Mapping[str, Part] = {"B": "all", "I": "input", "W": "weight"}


@dataclass(slots=True)
class _Local:
    """One stage that this rank holds."""

    code: StageCode
    view: MeshView
    runner: StageRunner | OpTape
    params: dict[str, Tensor]
    """Parts at rest."""
    before: tuple[Instr, ...]
    """Of the update list: from the accumulated gradient to the one that the optimizer sees."""
    after: tuple[Instr, ...]
    """Of the update list: from the master to the parameter at rest."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Value name (that its update list begins with) -> accumulated gradient, in the layout of `Param.grad`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    losses: tuple[float, ...]
    """Of the micro-batches whose loss this rank computed, in order."""


def actions_of(plan: Plan, program: Program, rank: int) -> tuple[Action, ...]:
    """What one rank does, in order: its schedule row, or micro-batch after micro-batch where the plan has no rows."""
    ranks = ranks_of(program)
    mine = {s.stage for s in program.stages if rank in {ranks[d] for d in s.mesh.devices}}
    found: tuple[Row, ...] = rows(plan) if plan.schedule.name != "dataflow" else ()
    if not found:
        if len(program.stages) > 1:
            raise Unsupported(
                "a plan of several stages without a schedule is priced, not run: name one, such as 1f1b",
                reason="schedule",
            )
        each = range(max(1, plan.schedule.micro_batches))
        return tuple(a for k in each for a in (Action("F", 0, k), Action("B", 0, k)))
    flat = [
        a
        for row in found
        for pair in row.actions
        for a in (pair if isinstance(pair, tuple) else (pair,))
        if a.on in mine
    ]
    odd = next((a for a in flat if a.kind not in ("F", "B", "I", "W") or a.span != 1), None)
    if odd is not None:
        raise Unsupported(
            f"schedule {plan.schedule.name} has actions {odd.kind} that are priced, not run", reason="schedule"
        )
    return tuple(flat)


def _around_the_optimizer(code: StageCode) -> tuple[tuple[Instr, ...], tuple[Instr, ...]]:
    """(to the gradients, from the masters); the update of each parameter ends the first and begins the second."""
    before: list[Instr] = []
    after: list[Instr] = []
    updated: set[str] = set()
    for instr in code.update:
        if instr.kind == "update":
            updated.add(instr.on)
            before.append(instr)
        (after if instr.on in updated else before).append(instr)
    return tuple(before), tuple(after)


class Runtime:
    """Holds this rank's parts and runs steps."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        plan: Plan,
        values: Values,
        constants: Mapping[str, Tensor],
        optimizer: MakeOptimizer,
        hardware: Hardware,
        groups: Groups,
        *,
        rank: int = 0,
        seed: int = 0,
        dropout: bool = True,
    ) -> None:
        """`program`: unrolled, of `graph`, whose samples are one micro-batch. `constants`: buffers, whole."""
        if graph.samples != program.micro_batch:
            raise ExecutionError(
                f"the graph was captured for {graph.samples} samples, a micro-batch has {program.micro_batch}: capture it again"
            )
        self.program, self.graph, self.rank = program, graph, rank
        self.hardware, self.step, self.seed = hardware, 0, seed
        self.ranks = ranks_of(program)
        self.actions = actions_of(plan, program, rank)
        self.micro_batches = max(1, plan.schedule.micro_batches)
        groups.prepare(needed_groups(program))
        self.groups = groups
        self.constants = {name: t.to(hardware.device) for name, t in constants.items()}
        self.locals: dict[int, _Local] = {}
        self.masters: dict[tuple[int, str], nn.Parameter] = {}
        """(stage, parameter) -> its float32 part, in the layout of its state: what the optimizer updates."""
        for code in program.stages:
            if rank in {self.ranks[d] for d in code.mesh.devices}:
                self.locals[code.stage] = self._local(code, values, seed, dropout)
        self.optimizer = optimizer(list(self.masters.values()) or [nn.Parameter(torch.empty(0))])
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._mail: dict[int, Tensor] = {}
        self.seen: Callable[[int, str, Tensor], None] = lambda stage, name, grad: None
        """Called with each gradient as its optimizer sees it: (stage, parameter, part in the layout of its state)."""

    def _local(self, code: StageCode, values: Values, seed: int, dropout: bool) -> _Local:
        view = MeshView(code.mesh, self.rank, self.ranks, self.groups)
        params = {}
        for p in code.params:
            described = self.graph.tensor[p.name]
            master = nn.Parameter(values.part(described, p.state, view).to(self.hardware.device))
            self.masters[code.stage, p.name] = master
            if p.rest == p.state and dtype_of(described) == master.dtype:
                params[p.name] = master.detach()  # the same memory
            else:
                params[p.name] = values.part(described, p.rest, view).to(self.hardware.device, dtype_of(described))
        outputs = {t.value for t in self.program.transfers if t.src == code.stage} | {self.graph.loss}
        make = OpTape if any(a.kind in "IW" for a in self.actions) else StageRunner
        runner = make(
            code, self.graph, view, self.constants, params, outputs=outputs, seed=seed, dropout=dropout,
            device=self.hardware.device,
        )  # fmt: skip
        before, after = _around_the_optimizer(code)
        return _Local(code, view, runner, params, before, after)

    # -------------------------------------------------------------- one step

    def gradients(self, batch: Sequence[Given]) -> list[float]:
        """Forward, backward and every sum of gradients, which are then those of the masters.

        Returns the losses of the micro-batches whose loss this rank computed.
        """
        losses: dict[int, Tensor] = {}
        flights: dict[tuple[int, int], Flight] = {}
        for local in self.locals.values():
            local.gradients = {}
        for action in self.actions:
            if not isinstance(action.on, int):
                raise Unsupported(f"action {action.kind} of single ops is priced, not run", reason="schedule")
            key = action.on, action.micro_batch
            local = self.locals[action.on]
            if action.kind == "F":
                flights[key] = self._forward(local, action.micro_batch, batch[action.micro_batch])
                if self.graph.loss in flights[key].values:
                    losses[action.micro_batch] = flights[key].values[self.graph.loss].detach().clone()
                continue
            self._backward(local, action.micro_batch, flights[key], PARTS[action.kind])
            if action.kind != "I":
                del flights[key]
        for work, _ in self._sent:
            work.wait()
        self._sent = []
        self._sum_over_stages()
        for local in self.locals.values():
            for instr in local.before:
                self._sum(local, instr)
        return [float(losses[k]) for k in sorted(losses)]

    def update(self) -> None:
        """Optimizer, and gathers of updated parameters. The gradients are complete."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.spread()
        self.step += 1

    def spread(self) -> None:
        """Parameters at rest from the masters. Collective."""
        for local in self.locals.values():
            for instr in local.after:
                self._updated(local, instr)
            local.gradients = {}

    def train_step(self, batch: Sequence[Given]) -> StepResult:
        losses = self.gradients(batch)
        self.update()
        return StepResult(tuple(losses))

    # -------------------------------------------------------------- actions

    def _forward(self, local: _Local, k: int, batch: Given) -> Flight:
        flight = Flight(Moment(self.step, k))
        stage = local.code.stage
        for name, layout in local.code.inputs:
            flight.values[name] = own_input(batch[name], layout, local.view).to(self.hardware.device)
        for t in self.program.transfers:
            if t.dst == stage:
                flight.values[t.value] = self._receive(t, k, "forward")
        local.runner.forward(flight)
        for t in self.program.transfers:
            if t.src == stage:
                self._send(t, k, "forward", flight.values[t.value])
        return flight

    def _backward(self, local: _Local, k: int, flight: Flight, part: Part) -> None:
        stage = local.code.stage
        if part != "weight":
            if self.graph.loss in flight.values:
                loss = flight.values[self.graph.loss]
                flight.grads[GRAD + self.graph.loss] = torch.full_like(loss, 1.0 / self.micro_batches)
            for t in self.program.transfers:
                if t.src == stage and t.grad:
                    grad = self._receive(t, k, "backward")
                    old = flight.grads.get(GRAD + t.value)
                    flight.grads[GRAD + t.value] = grad if old is None else old + grad
        local.runner.backward(flight, part)
        if part != "weight":
            for t in self.program.transfers:
                if t.dst == stage and t.grad:
                    none = GRAD + t.value not in flight.grads
                    grad = self._empty(t).zero_() if none else flight.grads.pop(GRAD + t.value)
                    self._send(t, k, "backward", grad)
        if part != "input":
            self._accumulate(local, flight)

    def _accumulate(self, local: _Local, flight: Flight) -> None:
        steps: dict[str, list[Instr]] = {}
        for instr in local.code.grads:
            steps.setdefault(instr.on, []).append(instr)
        for p in local.code.params:
            name = GRAD + p.name
            grad = flight.grads.pop(name, None)
            if grad is None:
                grad = torch.zeros_like(local.params[p.name])
            for instr in steps.get(p.name, ()):
                grad, name = apply(instr, grad, self.graph.tensor[p.name].shape, local.view), instr.outputs[0]
            old = local.gradients.get(name)
            local.gradients[name] = grad.to(torch.float32) if old is None else old + grad

    # ------------------------------------------------------------- transfers

    def _tag(self, t: Transfer, k: int, direction: str) -> int:
        number = self.program.transfers.index(t)
        return (number * self.micro_batches + k) * 2 + (direction == "backward") + 1

    def _other_end(self, t: Transfer, sender: bool, direction: str) -> int:
        """World rank that sits at this rank's position of the other stage's mesh."""
        source, target = (t.src, t.dst) if direction == "forward" else (t.dst, t.src)
        here, there = (source, target) if sender else (target, source)
        return self.ranks[self.program.stages[there].mesh.devices[self.locals[here].view.position]]

    def _send(self, t: Transfer, k: int, direction: str, x: Tensor) -> None:
        peer = self._other_end(t, True, direction)
        tag = self._tag(t, k, direction)
        x = x.detach().contiguous()
        if peer == self.rank:
            self._mail[tag] = x
            return
        work = dist.isend(x, peer, tag=tag)
        if work is not None:
            self._sent.append((work, x))

    def _receive(self, t: Transfer, k: int, direction: str) -> Tensor:
        peer = self._other_end(t, False, direction)
        tag = self._tag(t, k, direction)
        if peer == self.rank:
            return self._mail.pop(tag)
        x = self._empty(t)
        dist.recv(x, peer, tag=tag)
        return x

    def _empty(self, t: Transfer) -> Tensor:
        """Room for the value or its gradient at this rank's position."""
        stage = self.program.stages[t.src]
        here = self.locals[t.src if t.src in self.locals else t.dst].view
        described = self.graph.tensor[t.value]
        shape = local_shape(t.layout, described.shape, stage.mesh, here.coords)
        return torch.empty(shape, dtype=dtype_of(described), device=self.hardware.device)

    # ---------------------------------------------------------------- update

    def _sum_over_stages(self) -> None:
        """Tied weights: each stage that holds a copy adds the gradients of all. First, and in the order of names,
        so that ranks of different stages meet in one order."""
        sums = sorted(
            ((i, local) for local in self.locals.values() for i in local.code.update if i.axes == (STAGES,)),
            key=lambda pair: pair[0].on,
        )
        by_param: dict[str, list[tuple[Instr, _Local]]] = {}
        for instr, local in sums:
            by_param.setdefault(instr.on, []).append((instr, local))
        for name, holders in by_param.items():
            total = torch.stack([local.gradients[i.inputs[0]] for i, local in holders]).sum(0)
            instr, first = holders[0]
            param = next(p for p in first.code.params if p.name == name)
            members = sharing(self.program, self.ranks, (first.code.stage, *param.shared), first.view.position)
            if len(members) > 1:
                dist.all_reduce(total, group=self.groups.of(members))
            for i, local in holders:
                local.gradients[i.outputs[0]] = total.clone()

    def _sum(self, local: _Local, instr: Instr) -> None:
        """One instruction on the way from the accumulated gradient to the one that the optimizer sees."""
        if instr.kind == "update":
            grad = local.gradients.pop(instr.inputs[0])
            self.seen(local.code.stage, instr.on, grad)
            self.masters[local.code.stage, instr.on].grad = grad
        elif instr.axes != (STAGES,):
            shape = self.graph.tensor[instr.on].shape
            local.gradients[instr.outputs[0]] = apply(instr, local.gradients.pop(instr.inputs[0]), shape, local.view)

    def _updated(self, local: _Local, instr: Instr) -> None:
        """One instruction on the way from the updated master to the parameter at rest."""
        described = self.graph.tensor[instr.on]
        if instr.kind == "update":
            value = self.masters[local.code.stage, instr.on].detach().to(dtype_of(described))
        else:
            value = apply(instr, local.gradients.pop(instr.inputs[0]), described.shape, local.view)
        if instr.outputs[0] != instr.on:
            local.gradients[instr.outputs[0]] = value
        elif value.untyped_storage().data_ptr() != local.params[instr.on].untyped_storage().data_ptr():
            local.params[instr.on].copy_(value)

    def param(self, stage: int, name: str) -> Param:
        return next(p for p in self.locals[stage].code.params if p.name == name)
