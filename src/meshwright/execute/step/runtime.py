"""One rank of a program: its stages, in the order of its schedule rows, with transfers, gradients and the update.

    F(stage, k)  receive ─▶ forward ─▶ send          B(stage, k)  receive ∂ ─▶ backward ─▶ send ∂
                                                                     └▶ gradients into buckets, sums launched (sums.py)
    after the last action: sums of tied weights, what is left of the sums, optimizer, gathers of updated parameters

Without a flush (pipedream, 2bw) there is no last action: see `endless`.

A table of actions that is free of deadlock with rendezvous sends is free of deadlock here: sends do not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import ExecutionError, Unsupported
from ...graph.ir import Graph
from ...lower.program import GRAD, Param, Program, StageCode
from ...plan.copies import copies_of
from ...plan.model import Plan
from ...plan.schedules import rows, workers
from ..ops.params import Values
from ..ops.site import Moment
from ..ranks.clock import BACKWARD, FORWARD, UPDATE, Clock
from ..ranks.device import Hardware
from ..ranks.mesh_groups import Groups, MeshView, needed_groups, ranks_of
from ..stage.flight import Flight, Part
from ..stage.op_tape import OpTape
from ..stage.stage import StageRunner
from .actions import actions_of, parted
from .buckets import CAPACITY, buckets_of, joint_axes
from .copies import CopySums, shared_of
from .endless import Endless, check_clip
from .exchange import Exchange, exchanged
from .masters import Masters
from .optimizer import MakeOptimizer, made
from .shares import Rows, own_input
from .statistics import Each, Statistics
from .sums import Sums
from .ties import Ties, keepers, untied
from .totals import Losses, StepResult, Totals, clipped
from .transfers import Transfers

MicroBatch = Mapping[str, Tensor]
"""Graph input -> the whole tensor of one micro-batch."""
Given = Mapping[str, Tensor | Rows]
"""The same, or only the rows that this rank was given."""
PARTS: Mapping[str, Part] = {"B": "all", "I": "input", "W": "weight"}


@dataclass(slots=True)
class Local:
    """One stage that this rank holds."""

    code: StageCode
    view: MeshView
    runner: StageRunner | OpTape
    keeping: StageRunner | OpTape | None
    """Runs micro-batches from number `first_kept` on, of which nothing recomputed runs again; None: there are none."""
    first_kept: int
    weights: Masters
    sums: Sums
    last: int
    """Index in the rank's actions of the one that completes the stage's gradients."""
    quiet: dict[bool, StageRunner | OpTape] = field(default_factory=dict)
    """The same stage without dropout, by whether it is in evaluation mode."""

    @property
    def params(self) -> dict[str, Tensor]:
        """Parts at rest."""
        return self.weights.params

    def runner_of(self, k: int) -> StageRunner | OpTape:
        """Of the forward and the backward of micro-batch k."""
        return self.keeping if self.keeping is not None and k >= self.first_kept else self.runner


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
        bucket_bytes: int = CAPACITY,
        compile: str | None = None,
        batch_norm: Each = "mini-batch",
    ) -> None:
        """`program`: unrolled, of `graph`, whose samples are one micro-batch. `constants`: buffers, whole.

        `batch_norm`: what running statistics are renewed after. `compile`: a backend of torch.compile for what a stage does between its collectives; not with split backwards.
        """
        if graph.samples != program.micro_batch:
            raise ExecutionError(
                f"the graph was captured for {graph.samples} samples, a micro-batch has {program.micro_batch}: capture it again"
            )
        self.program, self.graph, self.rank = program, graph, rank
        self.hardware, self.step, self.seed = hardware, 0, seed
        self.ranks = ranks_of(program)
        self.actions = actions_of(plan, program, rank)
        self.micro_batches = max(1, plan.schedule.micro_batches)
        self._parted, self._stash = parted(plan), plan.schedule.weights.stash
        if self._parted and compile:
            raise Unsupported("a backward in two parts runs op by op: compile a plan of another schedule, such as 1f1b")
        endless = workers(plan.schedule, len(plan.stages)) if not plan.schedule.weights.flush else ()
        copies = copies_of(plan)
        summed = untied(program, copies) if endless else program  # what each stage sums by itself
        joint = {code.stage: joint_axes(code, parted=self._parted) for code in summed.stages}
        self.statistics = Statistics(program, graph, plan, constants, groups, hardware.device, batch_norm)
        groups.prepare(needed_groups(summed, joint) | self.statistics.needed(self.ranks))
        if len(self.ranks) > 1 and (program.transfers or exchanged(program)):
            groups.open_channels()
        self.groups = groups
        self.constants = {name: t.to(hardware.device) for name, t in constants.items()}
        self._dropout, self._bucket_bytes, self._compile = dropout, bucket_bytes, compile
        self.locals: dict[int, Local] = {}
        self.masters: dict[tuple[int, str], nn.Parameter] = {}
        """(stage, parameter) -> its float32 part, in the layout of its state: what the optimizer updates."""
        tied = keepers(program, copies) if endless else {}
        for code in summed.stages:
            if rank in {self.ranks[d] for d in code.mesh.devices}:
                local = self.locals[code.stage] = self._local(code, values, tied)
                self.masters |= {(code.stage, name): p for name, p in local.weights.masters.items()}
        self.optimizer = made(optimizer, list(self.masters.values()) or [nn.Parameter(torch.empty(0))])
        views = {stage: local.view for stage, local in self.locals.items()}
        in_flight = max(self.micro_batches, 2 * len(endless))
        order = None if endless else partial(actions_of, plan, program)
        self.transfers = Transfers(program, graph, views, in_flight, hardware.device, order)
        self.totals = Totals(program, graph, views, hardware.device)
        self._exchange = Exchange(summed, graph, views, hardware.device)
        own_sums = {stage: local.sums for stage, local in self.locals.items()}
        table = rows(plan)
        self._copies = CopySums(own_sums, shared_of(summed, graph, views, table), groups)
        self.seen: Callable[[int, str, Tensor], None] = lambda stage, name, grad: None
        """Called with each gradient as its optimizer sees it, before clipping: (stage, parameter, part in the layout of
        its state). The memory is used again in the next step."""
        self.updated: Callable[[], None] = lambda: None
        """Called when the weights of this rank have had the last update of a step: learning rates are by step."""
        self.endless: Endless | None = None
        if endless:
            ((stage, own),) = self.locals.items()
            ties = Ties(program, graph, copies, own.view, stage, own.weights.masters, in_flight)
            self.endless = Endless(self, own, ties, endless, plan.schedule.weights)

    def _local(self, code: StageCode, values: Values, tied: Mapping[str, object]) -> Local:
        """`tied`: weights that change apart from the stage's others, with who keeps them."""
        view = MeshView(code.mesh, self.rank, self.ranks, self.groups)
        buckets = buckets_of(code, self.graph, self._bucket_bytes, parted=self._parted, apart=tied)
        weights = Masters(code, buckets, self.graph, view, values, self.hardware.device)
        sums = Sums(buckets, self.graph, view, self.hardware.device)
        self.statistics.hold(code, view)
        runner = self._runner(code, view, self._dropout)
        keeping = self._runner(code.last, view, self._dropout) if code.last else None
        last = max((k for k, a in enumerate(self.actions) if a.on == code.stage and a.kind in "BW"), default=-1)
        return Local(code, view, runner, keeping, self.micro_batches - code.keep_last, weights, sums, last)

    def _runner(
        self, code: StageCode, view: MeshView, dropout: bool, *, evaluating: bool = False
    ) -> StageRunner | OpTape:
        outputs = {t.value for t in self.program.transfers if t.src == code.stage} | {self.graph.loss}
        if self._parted:
            return OpTape(
                code, self.graph, view, self.constants, outputs=outputs, seed=self.seed, dropout=dropout,
                device=self.hardware.device, running=self.statistics.of[code.stage], evaluating=evaluating,
            )  # fmt: skip
        return StageRunner(
            code, self.graph, view, self.constants, outputs=outputs, seed=self.seed, dropout=dropout, stash=self._stash,
            device=self.hardware.device, running=self.statistics.of[code.stage], evaluating=evaluating,
            compile=self._compile, bucket_bytes=self._bucket_bytes,
        )  # fmt: skip

    @property
    def clock(self) -> Clock:
        """Where this rank's time goes."""
        return self.groups.clock

    def param(self, stage: int, name: str) -> Param:
        return next(p for p in self.locals[stage].code.params if p.name == name)

    # -------------------------------------------------------------- one step

    def train_step(self, batch: Sequence[Given], clip: float | None = None) -> StepResult:
        """Gradients of the mean loss over the micro-batches, and one update, unless a loss or the norm is no number: then
        weights and step stay as they are, so that the cause can be looked for.

        Args:
            batch: the micro-batches.
            clip: largest L2 norm of the gradients of all parameters together; None: they stay as they are.

        Returns:
            Losses and norm, equal on every rank. They may be infinite or NaN: see `StepResult.finite`.
        """
        if self.endless is not None:
            return self._fed(self.endless, batch, clip)
        own = self.gradients(batch)
        with self.clock.span(UPDATE), torch.no_grad():
            grads = {key: p.grad for key, p in self.masters.items() if p.grad is not None}
            losses, norm = self.totals.of(own, self.micro_batches, self.totals.square(grads))
            if clip is not None:
                clipped(grads.values(), norm, clip)
        result = StepResult(losses, norm, tuple(own.values()))
        if result.finite:
            self.update()
        return result

    def _fed(self, endless: Endless, batch: Sequence[Given], clip: float | None) -> StepResult:
        """The same without a flush. The norm is that of each stage's last update; weights change whatever the loss is."""
        check_clip(endless.rule, clip)
        own = endless.step(batch)
        with self.clock.span(UPDATE):
            losses, norm = self.totals.of(own, self.micro_batches, endless.square)
        self.step += 1
        return StepResult(losses, norm, tuple(own.values()))

    def settle(self) -> None:
        """What is in flight between two steps goes back and changes the weights: nothing with a flush. Collective."""
        if self.endless is not None:
            self.endless.drain()

    def gradients(self, batch: Sequence[Given]) -> Losses:
        """Forward, backward and every sum of gradients, which are then those of the masters. Of a schedule with a flush.

        Returns the losses that this rank computed.
        """
        losses: dict[tuple[int, int], Tensor] = {}
        flights: dict[tuple[int, int], Flight] = {}
        for local in self.locals.values():
            local.sums.begin_step()
        for number, action in enumerate(self.actions):
            assert isinstance(action.on, int)
            key = action.on, action.micro_batch
            local = self.locals[action.on]
            if action.kind == "F":
                flights[key] = Flight(Moment(self.step, action.micro_batch), local.params)
                k = action.micro_batch
                self.forward(local, local.runner_of(k), flights[key], k, batch[k])
                if self.graph.loss in flights[key].values:
                    losses[key] = flights[key].values[self.graph.loss].detach().clone()
                continue
            if action.kind == "REDUCE":
                self._copies.ready(local.code.stage)
                continue
            last = number == local.last
            scale = 1.0 / self.micro_batches
            self.backward(local, flights[key], action.micro_batch, PARTS[action.kind], last=last, scale=scale)
            if action.kind != "I":
                del flights[key]
        with self.clock.span(BACKWARD):
            self.transfers.finish()
            self.summed()
        return {key: float(x) for key, x in losses.items()}

    def summed(self) -> None:
        """Gradients that backwards left become those of the masters. Collective over those who hold copies."""
        for local in self.locals.values():
            local.sums.settle()
        self._copies.finish()
        grads: dict[tuple[int, str], Tensor] = {}
        for stage, local in self.locals.items():
            grads |= {(stage, name): grad for name, grad in local.sums.gradients().items()}
        self._exchange.add(grads)
        for (stage, name), grad in grads.items():
            self.seen(stage, name, grad)
            self.masters[stage, name].grad = grad

    def update(self) -> None:
        """Optimizer, running statistics, and gathers of updated parameters. The gradients are complete."""
        with self.clock.span(UPDATE):
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.statistics.renew([(self.step, k) for k in range(self.micro_batches)])
            self.spread()
        self.step += 1
        self.updated()

    def spread(self) -> None:
        """Parameters at rest from the masters. Nothing is in flight. Collective."""
        if self.endless is not None:
            self.endless.restart()
            return
        for local in self.locals.values():
            local.weights.publish()

    def evaluate(self, batch: Sequence[Given], *, training: bool = False) -> tuple[float, ...]:
        """Losses of the micro-batches, equal on every rank: forward alone, without dropout, as the weights are. Without a
        flush the pipeline is drained first. `training`: norms take the statistics of each micro-batch, not running ones."""
        self.settle()
        losses: dict[tuple[int, int], Tensor] = {}
        for action in self.actions:
            if action.kind != "F":
                continue
            assert isinstance(action.on, int)
            local = self.locals[action.on]
            if training not in local.quiet:
                local.quiet[training] = self._runner(local.code, local.view, False, evaluating=not training)
            flight = Flight(Moment(self.step, action.micro_batch), local.params)
            self.forward(
                local, local.quiet[training], flight, action.micro_batch, batch[action.micro_batch], record=False
            )
            if self.graph.loss in flight.values:
                losses[local.code.stage, action.micro_batch] = flight.values[self.graph.loss].detach().clone()
        self.transfers.finish()
        return self.totals.of({key: float(x) for key, x in losses.items()}, self.micro_batches)[0]

    # -------------------------------------------------------------- actions

    def forward(
        self, local: Local, runner: StageRunner | OpTape, flight: Flight, k: int, batch: Given, *, record: bool = True
    ) -> None:
        """Of micro-batch k, whose inputs are in `batch`."""
        stage = local.code.stage
        with self.clock.span(FORWARD):
            for name, layout in local.code.inputs:
                flight.values[name] = own_input(batch[name], layout, local.view).to(self.hardware.device)
            for t in self.transfers.arriving(stage, k):
                flight.values[t.value] = self.transfers.receive(t, k, "forward")
            runner.forward(flight, record=record)
            for t in self.transfers.leaving(stage, k):
                self.transfers.send(t, k, "forward", flight.values[t.value])

    def backward(self, local: Local, flight: Flight, k: int, part: Part, *, last: bool, scale: float) -> None:
        """Of micro-batch k. `last`: no other comes before the gradients are summed; `scale`: of its loss in their mean."""
        with self.clock.span(BACKWARD):
            if part != "weight":
                self._enter(local, k, flight, scale)
            if part != "input":
                local.sums.begin(last=last)
            local.runner_of(k).backward(flight, part, finished=local.sums.add)
            if part != "weight":
                for t in self.transfers.arriving(local.code.stage, k):
                    if t.grad:
                        grad = flight.grads.pop(GRAD + t.value, None)
                        grad = self.transfers.empty(t).zero_() if grad is None else grad
                        self.transfers.send(t, k, "backward", local.sums.lent(grad))
            if part != "input":
                local.sums.end()

    def _enter(self, local: Local, k: int, flight: Flight, scale: float) -> None:
        """Gradients that a micro-batch's backward begins with."""
        if self.graph.loss in flight.values:
            loss = flight.values[self.graph.loss]
            flight.grads[GRAD + self.graph.loss] = torch.full_like(loss, scale)
        for t in self.transfers.leaving(local.code.stage, k):
            if t.grad:
                grad = self.transfers.receive(t, k, "backward")
                old = flight.grads.get(GRAD + t.value)
                flight.grads[GRAD + t.value] = grad if old is None else old + grad
