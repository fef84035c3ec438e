"""One rank of a pipeline without a flush: it goes on where it stopped whenever micro-batches are fed to it.

    fed 0 … 3      stage 0   F0 F1 F2 B0 u F3 B1 u │             waits for F4
                   stage 2   F0 B0 u F1 B1 u F2 B2 u F3 B3 u │
    fed 4 … 7      stage 0                          F4 B2 u F5 …

Every stage runs the forward of all that was fed, so the losses are there at once; what of it the earlier stages have not
yet gone back through stays in flight until more is fed, or until the pipeline is drained. After a drain it begins anew: the
weights as they are become version 0 (`versions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import Unsupported
from ...plan.model import Action, Weights
from ...plan.schedules.asynchronous import Worker
from ..ops.site import Moment
from ..ranks.clock import UPDATE
from ..stage.flight import Flight
from .ties import Ties
from .totals import Losses
from .versions import Versions

if TYPE_CHECKING:
    from .runtime import Given, Local, Runtime


def check_clip(weights: Weights, clip: float | None) -> None:
    """Raises Unsupported where gradients would be clipped without a flush."""
    if clip is not None and not weights.flush:
        raise Unsupported(
            "clipping needs the norm of all gradients at once, which stages that change their weights at different times "
            "never have: leave clip out, or take a schedule with a flush, such as 1f1b"
        )


class Endless:
    def __init__(self, runtime: Runtime, local: Local, ties: Ties, crew: Sequence[Worker], rule: Weights) -> None:
        """`crew`: what the ranks of each stage do, those of the input stage first; `rule`: of the plan."""
        self._runtime, self._local, self._ties, self.rule = runtime, local, ties, rule
        self._worker, entry = crew[local.code.stage], crew[0]
        own = local.params.keys() - ties.late
        self.versions = Versions(local.weights, rule, self._worker, entry, own)
        self._late: list[tuple[Worker, int, Versions]] = []
        """Of what other stages keep: who does so, its number, the versions."""
        for keeper in sorted({ties.keeper[name] for name in ties.late}):
            names = [name for name in ties.late if ties.keeper[name] == keeper]
            self._late.append((crew[keeper], keeper, Versions(local.weights, rule, crew[keeper], entry, names)))
        self.square = torch.zeros((), dtype=torch.float64)
        """Of the last update's gradient: sum of the squares that this rank counts."""
        self.changed: Callable[[Mapping[tuple[int, str], Tensor]], None] = lambda grads: None
        """Called with the gradients of each update, (stage, parameter) -> part in the layout of its state."""
        self._begin()

    def _begin(self) -> None:
        self._actions = self._worker.actions()
        self._next = next(self._actions)
        self._flights: dict[int, Flight] = {}
        self._moments: dict[int, Moment] = {}
        """Of the micro-batches that no update of this stage has taken."""
        self._fed = self._forwards = self._backwards = 0
        self._losses: dict[int, Tensor] = {}
        self._local.sums.begin_step()

    def step(self, batch: Sequence[Given]) -> Losses:
        """As far as these next micro-batches lead. Returns the losses that this rank computed, by number in `batch`."""
        first, self._fed = self._fed, self._fed + len(batch)
        for k in range(first, self._fed):
            self._moments[k] = Moment(self._runtime.step, k % self._runtime.micro_batches)
        self._losses = {}
        while self._ready(self._next):
            given = batch[self._next.micro_batch - first] if self._next.kind == "F" else {}
            self._carry_out(self._next, given)
            self._next = next(self._actions)
        stage = self._local.code.stage
        return {(stage, k - first): float(x) for k, x in sorted(self._losses.items())}

    def drain(self) -> None:
        """Everything that is in flight goes back and counts. Collective."""
        if not self._fed:
            return
        rest = self._worker.drain(self._forwards)
        for action in (self._next, *rest) if self._next.kind == "UPDATE" else rest:
            self._carry_out(action, {})
        if self.versions.number * self._round < self._fed:  # others had micro-batches of it, or it is not full
            self._local.sums.begin(last=True)
            self._local.sums.end()
            self._update()
        for _, keeper, versions in self._late:
            self._take(keeper, versions, self.versions.number)
        self._ties.finish()
        self._runtime.transfers.finish()
        self.restart()

    def restart(self) -> None:
        """The masters as they are become version 0; nothing is in flight."""
        self.versions.begin()
        for _, _, versions in self._late:
            versions.begin()
        for name in self._ties.late:  # its optimizer is the keeper's
            self._runtime.optimizer.state.pop(self._local.weights.masters[name], None)
        self._begin()

    @property
    def _round(self) -> int:
        """Micro-batches of one update, of all replicas."""
        return self._worker.update_every * self._worker.replicas

    def _ready(self, action: Action) -> bool:
        """Whether all that the action waits for has been fed. An update waits for the backwards of all replicas, and the last
        of these for the forward before it."""
        if action.kind == "UPDATE":
            return (self._backwards + self._worker.warm_up) * self._worker.replicas <= self._fed
        return action.kind == "B" or action.micro_batch < self._fed

    # -------------------------------------------------------------- actions

    def _carry_out(self, action: Action, given: Given) -> None:
        if action.kind == "F":
            self._forward(action.micro_batch, given)
        elif action.kind == "B":
            self._backward(action.micro_batch)
        else:
            self._update()

    def _forward(self, k: int, given: Given) -> None:
        runtime, local = self._runtime, self._local
        weights = dict(self.versions.take(self._forwards))
        for worker, keeper, versions in self._late:
            self._take(keeper, versions, worker.done(self._forwards))
            weights |= versions.take(self._forwards)
        flight = Flight(self._moments[k], weights)
        runtime.forward(local, local.runner, flight, k, given)
        if runtime.graph.loss in flight.values:
            self._losses[k] = flight.values[runtime.graph.loss].detach().clone()
        if not self.rule.stash:
            flight.weights = {}
        self._flights[k] = flight
        self._forwards += 1

    def _backward(self, k: int) -> None:
        worker, flight = self._worker, self._flights.pop(k)
        if not self.rule.stash:
            flight.weights = {**self.versions.newest}
            for _, _, versions in self._late:
                flight.weights |= versions.newest
        last = (self._backwards + 1) % worker.update_every == 0
        self._runtime.backward(self._local, flight, k, "all", last=last, scale=1.0)
        for versions in (self.versions, *(versions for _, _, versions in self._late)):
            versions.give_back(self._backwards)
        self._backwards += 1

    def _take(self, keeper: int, versions: Versions, number: int) -> None:
        """Versions of what this stage keeps, up to `number`, as they come from it."""
        while versions.number < number:
            self._ties.take(keeper, versions.number + 1)
            versions.update()

    def _update(self) -> None:
        """One step of the optimizer on the mean gradient of the micro-batches since the last one."""
        runtime, local = self._runtime, self._local
        first = self.versions.number * self._round
        count = min(self._round, self._fed - first)
        with runtime.clock.span(UPDATE), torch.no_grad():
            runtime.summed()
            self._ties.collect(self.versions.number + 1)
            for p in runtime.masters.values():
                if p.grad is not None:
                    p.grad.div_(count)  # not the loss: stages count their micro-batches differently
            grads = {key: p.grad for key, p in runtime.masters.items() if p.grad is not None}
            self.changed(grads)
            self.square = runtime.totals.square(grads)
            runtime.optimizer.step()
            runtime.optimizer.zero_grad()
            taken = [self._moments.pop(k) for k in range(first, first + count)]
            runtime.statistics.renew([(int(m.step), int(m.micro_batch)) for m in taken])
            self._ties.publish(self.versions.number + 1)
            self.versions.update()
            local.sums.begin_step()
        before, now = (
            min((self.versions.number - n) * self._round, self._fed) // runtime.micro_batches for n in (1, 0)
        )
        for _ in range(before, now):
            runtime.updated()
