"""Values that stages send to each other, and their gradients on the way back.

Between equal meshes a value goes whole, position by position; between others in the pieces that both ends have in common
(lower/crossing.py), and its gradient in those of the way back. Sends never block: a value is kept until its gradient comes
back, all else until the end of the step. Receives wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.crossing import Crossing, Message, Ranges
from ...lower.program import Program, Transfer
from ...plan.layout import local_shape
from ...plan.model import Action, Layout
from ..ops.params import dtype_of
from ..ranks.clock import TRANSFER
from ..ranks.mesh_groups import Direction, MeshView


def taken(x: Tensor, message: Message) -> Tensor:
    """What a sender takes of its part."""
    for dim, ranges in enumerate(message.ranges):
        pieces = [x.narrow(dim, start, n) for start, n in ranges]
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return x


def put(into: Tensor, message: Message, x: Tensor) -> None:
    """A piece to its place in the receiver's part."""
    for pick in product(*(_placed(ranges) for ranges in message.ranges)):
        here, there = into, x
        for dim, (start, at, n) in enumerate(pick):
            here, there = here.narrow(dim, start, n), there.narrow(dim, at, n)
        here.copy_(there)


def _placed(ranges: Ranges) -> list[tuple[int, int, int]]:
    """(start in the part, start in the piece, length) of each range."""
    found, at = [], 0
    for start, n in ranges:
        found.append((start, at, n))
        at += n
    return found


@dataclass(frozen=True)
class End:
    """One way of one value as a rank sees it, which sends it or receives it or both."""

    layouts: tuple[Layout, Layout]
    """Where it leaves, where it arrives."""
    views: tuple[MeshView | None, MeshView | None]
    """This rank in the mesh of the senders, of the receivers; None: it is not in it."""
    devices: tuple[tuple[int, ...], tuple[int, ...]]
    """Ranks of both meshes by position."""
    meshes: Crossing | None
    """None: position by position."""

    @cached_property
    def sent(self) -> list[tuple[int, Message | None]]:
        """(rank, what it gets; None: all of the part)."""
        view = self.views[0]
        assert view is not None
        if self.meshes is None:
            return [(self.devices[1][view.position], None)]
        return [(self.devices[1][m.peer], m) for m in self.meshes.sent(view.position)]

    @cached_property
    def received(self) -> list[tuple[int, Message | None]]:
        """(rank, where what it sends goes; None: it is all of the part)."""
        view = self.views[1]
        assert view is not None
        if self.meshes is None:
            return [(self.devices[0][view.position], None)]
        return [(self.devices[0][m.peer], m) for m in self.meshes.received(view.position)]


class Transfers:
    def __init__(
        self,
        program: Program,
        graph: Graph,
        views: Mapping[int, MeshView],
        micro_batches: int,
        device: torch.device,
        order: Callable[[int], Sequence[Action]] | None = None,
    ) -> None:
        """`views`: of the stages that this rank holds. `micro_batches`: at most so many are under way at once.

        `order`: what a rank does in a step. With it messages are taken in the order in which they were sent, whatever is
        wanted first; without it (endless pipelines) both ends ask in one order.
        """
        self._program, self._graph, self._views, self._device = program, graph, views, device
        self._micro_batches = micro_batches
        self._number = {id(t): k for k, t in enumerate(program.transfers)}
        self._ends: dict[tuple[int, Direction], End] = {}
        self._sent: dict[int, list[tuple[dist.Work, Tensor]]] = {}
        """By tag."""
        self._mail: dict[int, Tensor] = {}
        self._order = order
        self._coming: dict[tuple[int, Direction], deque[tuple[Transfer, int]]] = {}
        """(sender, what is sent) -> messages of this step that have not been taken, in the order of the sender."""
        self._early: dict[tuple[int, int], Tensor] = {}
        """(sender, tag) -> what came before it was wanted."""

    def arriving(self, stage: int, k: int) -> list[Transfer]:
        """Of micro-batch k."""
        return [t for t in self._program.transfers if t.dst == stage and self._runs(t.src, k)]

    def leaving(self, stage: int, k: int) -> list[Transfer]:
        return [t for t in self._program.transfers if t.src == stage and self._runs(t.dst, k)]

    def _runs(self, stage: int, k: int) -> bool:
        own, turns = self._program.stages[stage].turn
        return k % turns == own

    def _tag(self, t: Transfer, k: int, direction: Direction) -> int:
        number = self._number[id(t)] * self._micro_batches + k % self._micro_batches
        return number * 2 + (direction == "backward") + 1

    def _end(self, t: Transfer, direction: Direction) -> End:
        key = id(t), direction
        if key not in self._ends:
            stages, layouts = (t.src, t.dst), (t.layout, t.arrives)
            if direction == "backward":
                stages, layouts = (t.dst, t.src), (t.arrives, t.layout)
            meshes = self._program.stages[stages[0]].mesh, self._program.stages[stages[1]].mesh
            views = self._views.get(stages[0]), self._views.get(stages[1])
            ranks = self._any(t).ranks
            devices = tuple(ranks[d] for d in meshes[0].devices), tuple(ranks[d] for d in meshes[1].devices)
            crossing = None if t.straight else Crossing(layouts, meshes)
            self._ends[key] = End(layouts, views, devices, crossing)
        return self._ends[key]

    def send(self, t: Transfer, k: int, direction: Direction, x: Tensor) -> None:
        """The value of micro-batch k ("forward") or its gradient ("backward")."""
        end, tag, groups = self._end(t, direction), self._tag(t, k, direction), self._any(t).groups
        own = self._any(t).rank
        for earlier, _ in self._sent.pop(tag, []):
            earlier.wait()  # of so many micro-batches ago
        for peer, message in end.sent:
            part = x.detach() if message is None else taken(x.detach(), message)
            if peer == own:
                self._mail[tag] = part
                continue
            part = part.contiguous()
            with groups.clock.span(TRANSFER):
                work = dist.isend(part, peer, group=groups.channel(own, peer, direction), tag=tag)
            if work is not None:
                self._sent.setdefault(tag, []).append((work, part))

    def receive(self, t: Transfer, k: int, direction: Direction) -> Tensor:
        end, tag = self._end(t, direction), self._tag(t, k, direction)
        if end.meshes is None:
            x = self._from(t, end.received[0][0], tag, direction, None)
        else:
            x = self._empty(t, end)
            for peer, message in end.received:
                assert message is not None
                put(x, message, self._from(t, peer, tag, direction, message))
        if direction == "backward":
            for work, _ in self._sent.pop(self._tag(t, k, "forward"), []):
                work.wait()  # whoever has its gradient has the value
        return x

    def _from(self, t: Transfer, peer: int, tag: int, direction: Direction, message: Message | None) -> Tensor:
        """A piece, or the whole part, from one rank."""
        view = self._any(t)
        if peer == view.rank:
            return self._mail.pop(tag)
        if self._order is None:
            return self._taken(t, peer, tag, direction, message)
        if (peer, direction) not in self._coming:
            self._coming[peer, direction] = deque(self._from_peer(peer, direction, self._order(peer)))
        coming = self._coming[peer, direction]
        while (peer, tag) not in self._early:
            first, k = coming.popleft()
            piece = dict(self._end(first, direction).received)[peer]
            number = self._tag(first, k, direction)
            self._early[peer, number] = self._taken(first, peer, number, direction, piece)
        return self._early.pop((peer, tag))

    def _from_peer(self, peer: int, direction: Direction, actions: Sequence[Action]) -> Iterator[tuple[Transfer, int]]:
        """(value, micro-batch) of everything that a rank sends to this one in a step, in its order."""
        for a in actions:
            assert isinstance(a.on, int)
            if direction == "forward" and a.kind == "F":
                sent = [t for t in self.leaving(a.on, a.micro_batch) if t.dst in self._views]
            elif direction == "backward" and a.kind in ("B", "I"):
                sent = [t for t in self.arriving(a.on, a.micro_batch) if t.grad and t.src in self._views]
            else:
                continue
            yield from ((t, a.micro_batch) for t in sent if peer in dict(self._end(t, direction).received))

    def _taken(self, t: Transfer, peer: int, tag: int, direction: Direction, message: Message | None) -> Tensor:
        view, end = self._any(t), self._end(t, direction)
        x = self._empty(t, end) if message is None else self._room(t, message.shape)
        with view.groups.clock.span(TRANSFER):
            dist.recv(x, peer, group=view.groups.channel(peer, view.rank, direction), tag=tag)
        return x

    def finish(self) -> None:
        """Waits until all that was sent has arrived."""
        for messages in self._sent.values():
            for work, _ in messages:
                work.wait()
        self._sent, self._coming = {}, {}

    def empty(self, t: Transfer) -> Tensor:
        """Room for a value that arrives at this rank, or for the gradient that it sends back."""
        return self._empty(t, self._end(t, "forward"))

    def _empty(self, t: Transfer, end: End) -> Tensor:
        view = end.views[1]
        assert view is not None
        shape = self._graph.tensor[t.value].shape
        return self._room(t, local_shape(end.layouts[1], shape, view.mesh, view.coords))

    def _room(self, t: Transfer, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=dtype_of(self._graph.tensor[t.value]), device=self._device)

    def _any(self, t: Transfer) -> MeshView:
        return self._views[t.src if t.src in self._views else t.dst]
