"""What is alive while a piece runs op by op, as eager torch runs it: the most bytes of its forward and of its backward.

    forward    a value dies after its last reader, unless the backward reads it or another piece does
    backward   first the rerun list; then, op by op, the gradients that enter and leave, and what is still saved:
               saved values go with the last op that reads them, gradients of parameters with the piece

Views share the storage of what they view. Figures are (fixed bytes, bytes per local sample) at the instant that is worst
for the samples of one captured micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .kernels import fetched
from .parts import shrinks
from .program import GRAD, Instr
from .values import Values, add

Bytes = tuple[float, float]
NONE: Bytes = (0.0, 0.0)
PASSED = frozenset({"add", "add_"})
"""Kinds whose backward hands on the gradient itself, where the operand is as big as the result."""
WORKING: Mapping[str, tuple[float, float]] = {"cross_entropy_loss": (0.0, 1.0), "pow": (0.0, 2.0)}
"""Kind -> bytes besides operands and results while its forward and its backward run, in sizes of its first operand."""
WORKING_CUT: Mapping[str, tuple[float, float]] = {"cross_entropy_loss": (2.0, 1.0)}
"""The same where a statistic of it is summed over devices."""


class _Account:
    """Bytes that come and go, and their maximum."""

    def __init__(self, samples: float) -> None:
        self._samples = samples
        self.now: Bytes = NONE
        self.peak: Bytes = NONE

    def weight(self, amount: Bytes) -> float:
        return amount[0] + amount[1] * self._samples

    def take(self, amount: Bytes) -> None:
        self.now = add(self.now, amount)
        self.touch(NONE)

    def give(self, amount: Bytes) -> None:
        self.now = (self.now[0] - amount[0], self.now[1] - amount[1])

    def touch(self, more: Bytes) -> None:
        """`more` is there for a moment."""
        here = add(self.now, more)
        if self.weight(here) > self.weight(self.peak):
            self.peak = here


class Live:
    """Of one written piece."""

    def __init__(
        self,
        v: Values,
        backward: Sequence[Instr],
        rerun: Sequence[Instr],
        leaves: Iterable[str],
        extra: Callable[[int], Bytes],
        recomputed: Iterable[int],
        elsewhere: frozenset[str] = frozenset(),
    ) -> None:
        """`backward`: in the order in which it runs. `leaves`: storages kept for it. `extra`: statistics saved by a node.
        `elsewhere`: storages that are there all the time and that another piece counts."""
        self.v, self.backward_list, self.rerun_list = v, backward, rerun
        self.elsewhere = elsewhere
        self.leaves = {r for r in leaves if self._size(r) != NONE}
        self.extra, self.recomputed = extra, set(recomputed)
        self.statistic = {i.on for i in (*v.w.forward, *backward) if i.kind == "stat" and i.op != "count"}
        mesh = v.emit.mesh
        self.samples = v.graph.samples / shrinks(v.samples, mesh)

    def _size(self, root: str) -> Bytes:
        """A parameter at rest and what is computed once for all micro-batches are counted elsewhere."""
        rests = self.v.constant(root) and self.v.maker(root) is None
        return NONE if rests or root in self.elsewhere else self.v.size(root)

    def _working(self, instr: Instr, backward: bool) -> Bytes:
        if instr.kind == "collective" and instr.collective in ("all_gather", "reduce_scatter") and instr.dim > 0:
            # the parts of the members lie one behind the other before they are put in place, or after
            name = (instr.outputs if instr.collective == "all_gather" else instr.inputs)[0]
            return self.v.size(name.removeprefix(GRAD))
        if instr.kind != "compute":
            return NONE
        v = self.v
        if instr.steps > 1:
            return fetched(v, v.node_of[instr.on])
        n = v.node_of[instr.on]
        table = WORKING_CUT if instr.on in self.statistic else WORKING
        share = table.get(v.graph.ops[v.atoms.nodes[n].index].kind, (0.0, 0.0))[backward]
        if not share:
            return NONE
        fixed, each = v.size(v.w.used[n][0])
        return share * fixed, share * each

    def forward(self) -> Bytes:
        """With everything of this piece that is kept for the backward; what enters counts as its own."""
        v, w = self.v, self.v.w
        made = {v.root(name) for i in w.forward for name in i.outputs}
        last: dict[str, int] = {}
        for k, i in enumerate(w.forward):
            for name in (*i.inputs, *i.outputs):
                last[v.root(name)] = k
        stays = self.leaves | self._leaving()
        account = _Account(self.samples)
        for root in last:
            if root not in made:
                account.take(self._size(root))
        there = set(last) - made
        for k, i in enumerate(w.forward):
            for name in i.outputs:
                root = v.root(name)
                if root not in there:
                    there.add(root)
                    account.take(self._size(root))
            if i.kind == "compute" and v.node_of[i.on] not in self.recomputed:
                account.take(self.extra(v.node_of[i.on]))
            account.touch(self._working(i, False))
            for root in {v.root(name) for name in (*i.inputs, *i.outputs)}:
                if last[root] == k and root not in stays:
                    account.give(self._size(root))
        return account.peak

    def _leaving(self) -> set[str]:
        """Storages that another piece reads, or nobody here."""
        v = self.v
        inside = set(v.nodes)
        found = set()
        for n in v.nodes:
            for t in v.atoms.nodes[n].outputs:
                users = v.atoms.users.get(t, [])
                if t in v.carried or not users or any(u not in inside for u, _ in users):
                    found.add(v.root(t))
        return found

    def backward(self) -> Bytes:
        """With everything that was kept for it, and the gradients that enter."""
        v = self.v
        account = _Account(self.samples)
        readers = self._readers()
        for root in self.leaves:
            account.take(v.size(root))
        for n in v.nodes:
            if n not in self.recomputed:
                account.take(self.extra(n))
        self._run_again(account, readers)
        alias = self._gradient_roots()
        last: dict[str, int] = {}
        done: dict[str, int] = {}
        for k, i in enumerate(self.backward_list):
            if i.kind == "compute":
                done[i.on] = k
            for name in i.inputs:
                last[alias[name]] = k
        alive: set[str] = set()
        made = {alias[name] for i in self.backward_list for name in i.outputs}
        for root in last:
            if root not in made and root.startswith(GRAD):  # what else is read was saved
                alive.add(root)
                account.take(self._gradient(root))
        for k, i in enumerate(self.backward_list):
            for name in i.outputs:
                root = alias[name]
                if root in alive and root != alias.get(i.inputs[0]):
                    account.touch(self._gradient(name))  # a second contribution, before it is added
                elif root not in alive:
                    alive.add(root)
                    account.take(self._gradient(root))
            account.touch(self._working(i, True))
            for root in {alias[name] for name in i.inputs}:
                if last[root] == k and root in alive and not self._of_param(i):
                    alive.discard(root)
                    account.give(self._gradient(root))
            if done.get(i.on) == k:
                self._release(v.node_of[i.on], readers, account)
        return account.peak

    def _gradient(self, name: str) -> Bytes:
        return self.v.size(name.removeprefix(GRAD))

    def _of_param(self, i: Instr) -> bool:
        """A gathered weight's gradient: scattered together with others when the piece is done."""
        return i.kind == "collective" and not i.within and self.v.atoms.role[i.on] == "param"

    def _gradient_roots(self) -> dict[str, str]:
        """Gradient -> the gradient whose storage it shares."""
        v = self.v
        root: dict[str, str] = {}
        for i in self.backward_list:
            for name in i.inputs:
                root.setdefault(name, name)
            shared = i.kind == "identity"
            if i.kind == "compute":
                n = v.node_of[i.on]
                kind = v.graph.ops[v.atoms.nodes[n].index].kind
                shared = n in v.atoms.alias or kind in PASSED
            for name in i.outputs:
                entering = root[i.inputs[0]] if i.inputs else name
                same = shared and bool(i.inputs) and self._gradient(name) == self._gradient(entering)
                root.setdefault(name, entering if same else name)
        return root

    def _readers(self) -> dict[str, set[int]]:
        """Saved storage -> nodes whose backward reads it."""
        found: dict[str, set[int]] = {}
        for n in self.v.nodes:
            for value in self.v.saved(n):
                found.setdefault(self.v.root(value), set()).add(n)
        return found

    def _run_again(self, account: _Account, readers: Mapping[str, set[int]]) -> None:
        """Everything that the rerun list makes is there until it has run; then only what is saved."""
        roots = {self.v.root(name) for i in self.rerun_list for name in i.outputs} - self.leaves
        for i in self.rerun_list:
            for name in i.outputs:
                if (root := self.v.root(name)) in roots:
                    account.take(self._size(root))
                    roots.discard(root)
            account.touch(self._working(i, False))
        for root in {self.v.root(name) for i in self.rerun_list for name in i.outputs} - self.leaves:
            if root not in readers:
                account.give(self._size(root))
        for n in self.recomputed:
            account.take(self.extra(n))

    def _release(self, n: int, readers: dict[str, set[int]], account: _Account) -> None:
        account.give(self.extra(n))
        again = {self.v.root(name) for i in self.rerun_list for name in i.outputs}
        for value in self.v.saved(n):
            root = self.v.root(value)
            readers[root].discard(n)
            # what an op that does not run again reads of the rerun list is there until the piece is done
            if not readers[root] and (root in self.leaves or (root in again and n in self.recomputed)):
                account.give(self._size(root))
                readers[root].add(-1)  # given once
