"""Gradients of one stage on one rank: from the backward of micro-batches to what the optimizer sees.

    backward ─ finished ─▶ into the bucket's buffer ─ bucket full, last micro-batch ─▶ its collective begins
        │                                                                                   │
        └────────────── the rest of the backward runs meanwhile ─────▶ end of step: wait, further steps ─▶ gradients

Buckets begin in one order on all ranks, whatever the order in which gradients arrive. Where gradients rest cut (ZeRO-2),
each micro-batch's buckets are reduce-scattered as they fill; one is under way while the next fills.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.profiler import record_function

from ...graph.ir import Graph
from ...plan.layout import local_shape
from ..ops.params import master_dtype
from ..ranks.mesh_groups import MeshView
from .buckets import Bucket, legs
from .rows import Leg, Sent, through

LAUNCH = "gradient bucket"
"""Name in a trace of torch.profiler of the beginning of a bucket's collective."""


class _Filling:
    """One bucket, micro-batch after micro-batch.

    Its gradients accumulate in the buffer of the step's first collective; in tensors of their own (`held`) where each
    micro-batch has a collective of its own, where there is none, and where tied weights are summed over stages before.
    """

    def __init__(self, bucket: Bucket, graph: Graph, view: MeshView, device: torch.device, taken: set[int]) -> None:
        """`taken`: addresses of memory that some bucket of the stage holds, or that is lent."""
        self.bucket, self._device, self._taken = bucket, device, taken
        self._dtype = master_dtype(graph.tensor[bucket.names[0]])
        self._every = legs(bucket.every, bucket, graph, view)
        self._sums = legs(bucket.sums, bucket, graph, view)
        way = self._every or ([] if bucket.tied else self._sums)
        lead = next((k for k, leg in enumerate(way) if leg.rows is not None), len(way))
        self._local = way[:lead]
        """Done on each gradient as it arrives."""
        self._first: Leg | None = way[lead] if lead < len(way) else None
        self._rest = way[lead + 1 :]
        self._buffer: Tensor | None = None
        self._sent: Sent | None = None
        self._arrived: set[int] = set()
        self._rounds = 0
        self.held: list[Tensor] = []
        arriving = [bucket.every[0][k].before if bucket.every else p.rest for k, p in enumerate(bucket.params)]
        self._shapes = [
            local_shape(layout or p.rest, graph.tensor[p.name].shape, view.mesh, view.coords)
            for layout, p in zip(arriving, bucket.params, strict=True)
        ]

    def begin_step(self) -> None:
        self.held, self._sent, self._rounds = [], None, 0

    def begin(self) -> None:
        """A micro-batch's backward."""
        self._arrived = set()
        self._rounds += 1

    @property
    def full(self) -> bool:
        return len(self._arrived) == len(self.bucket.params)

    def add(self, k: int, grad: Tensor) -> None:
        """This micro-batch's gradient of parameter k, in its layout at rest, or as it was gathered for use."""
        self._arrived.add(k)
        for leg in self._local:
            grad = leg.local(k, grad)
        if self._first is None:
            self._hold(k, grad)
            return
        assert self._first.rows is not None
        if self._buffer is None:
            self._buffer = self._first.rows.buffer(self._dtype, self._device)
        self._first.rows.put(k, grad, self._buffer, add=self._rounds > 1 and not self._every)

    def _hold(self, k: int, grad: Tensor) -> None:
        if not self.held:
            self.held = [grad] * len(self.bucket.params)
        self.held[k] = self._alone(grad) if self._rounds == 1 else self.held[k].add_(grad)

    def _alone(self, grad: Tensor) -> Tensor:
        """As wide as a master, in memory that nothing else reads: it may be written to."""
        memory = grad.untyped_storage()
        shared = memory.data_ptr() in self._taken or memory.nbytes() != grad.numel() * grad.element_size()
        grad = grad.to(self._dtype, copy=shared)
        self._taken.add(grad.untyped_storage().data_ptr())
        return grad

    def add_missing(self) -> None:
        """Zeros where no gradient flowed."""
        for k, shape in enumerate(self._shapes):
            if k not in self._arrived:
                self.add(k, torch.zeros(shape, dtype=self._dtype, device=self._device))

    def launch(self, last: bool) -> None:
        """All gradients of this micro-batch are there."""
        if self._first is None or self._buffer is None:
            return
        if self._every:
            self.settle()
            self._sent, self._buffer = self._first.send(self._buffer), None
        elif last:
            self._sent = self._first.send(self._buffer)

    def settle(self) -> None:
        """What was launched for a micro-batch is added to what is held."""
        if not self._every or self._sent is None:
            return
        parts, self._sent = through(self._rest, self._sent.received(), self._dtype), None
        self.held = [old.add_(x) for old, x in zip(self.held, parts, strict=True)] if self.held else parts

    def gradients(self) -> list[Tensor]:
        """As the optimizer sees them; every micro-batch is over, tied weights are summed over stages."""
        self.settle()
        if self._sent is not None:
            sent, self._sent = self._sent, None
            return through(self._rest, sent.received(), self._dtype)
        return through(self._sums, self.held, self._dtype) if self._every or self.bucket.tied else self.held


class Sums:
    """All buckets of one stage."""

    def __init__(self, buckets: tuple[Bucket, ...], graph: Graph, view: MeshView, device: torch.device) -> None:
        self._taken: set[int] = set()
        self._fillings = [_Filling(b, graph, view, device, self._taken) for b in buckets]
        self._at = {name: (f, k) for f in self._fillings for k, name in enumerate(f.bucket.names)}
        self._next, self._last = 0, False

        self.tied = sorted(name for f in self._fillings if f.bucket.tied for name in f.bucket.names)
        """Weights whose gradients are summed over stages before `gradients`."""

    def lent(self, x: Tensor) -> Tensor:
        """`x` for somebody who reads it later: no gradient is accumulated in its memory. A sum hands one gradient to all."""
        if x.untyped_storage().data_ptr() in self._taken:
            x = x.clone()
        self._taken.add(x.untyped_storage().data_ptr())
        return x

    def begin_step(self) -> None:
        self._taken.clear()
        for filling in self._fillings:
            filling.begin_step()

    def begin(self, *, last: bool) -> None:
        """The backward of a micro-batch; `last`: no other comes in this step."""
        self._next, self._last = 0, last
        for filling in self._fillings:
            filling.begin()

    def add(self, grads: Mapping[str, Tensor]) -> None:
        """Gradients of parameters that are complete for this micro-batch. Launches buckets that are full."""
        with torch.no_grad():
            for name, grad in grads.items():
                filling, k = self._at[name]
                filling.add(k, grad)
            self._launch()

    def _launch(self) -> None:
        while self._next < len(self._fillings) and self._fillings[self._next].full:
            if self._next:
                self._fillings[self._next - 1].settle()
            with record_function(LAUNCH):
                self._fillings[self._next].launch(self._last)
            self._next += 1

    def end(self) -> None:
        """The backward of a micro-batch is over."""
        with torch.no_grad():
            for filling in self._fillings:
                filling.add_missing()
            self._launch()

    def settle(self) -> None:
        """Nothing of single micro-batches is under way any more."""
        for filling in self._fillings:
            filling.settle()

    def held(self, name: str) -> Tensor:
        """The accumulated gradient of a tied weight; a sum over stages is written into it."""
        filling, k = self._at[name]
        return filling.held[k]

    def gradients(self) -> dict[str, Tensor]:
        """By parameter, in the layout of its state, as the optimizer sees them."""
        with torch.no_grad():
            return {
                name: grad
                for filling in self._fillings
                for name, grad in zip(filling.bucket.names, filling.gradients(), strict=True)
            }
