"""What a piece keeps for its backward, and what it runs again.

What the backward of a fused kernel needs from inside is made again from what it read. A gathered operand is not kept but
gathered again, unless `OpSharding.kept` says otherwise. What products alone read is kept in the width of their operands
(`Recipe.kept_dtype`). An op in `recompute` keeps nothing: its values are made again when
the backward of the piece begins, as far as something needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from ..cost.losses import CROSS_ENTROPIES
from ..plan.model import OpSharding
from .atoms import PRODUCTS, item_bytes
from .kernels import Kernels
from .live import Live
from .program import INSIDE, Instr, Kept
from .values import Values, add


class Keeper:
    def __init__(
        self,
        v: Values,
        kernels: Kernels,
        shardings: Mapping[str, OpSharding],
        recompute: frozenset[str],
        operand: float = 0.0,
    ) -> None:
        """`operand`: bytes of an element of what products alone read; 0 = as wide as it is."""
        self.v, self.kernels, self.shardings, self.operand = v, kernels, shardings, operand
        self.recomputed = {n for name, n in v.node_of.items() if name in recompute}

    def again(self, value: str) -> bool:
        """Whether `value` is there only if it is made again: recomputed, or gathered and not kept."""
        made = self.v.maker(value)
        if made is None:
            return False
        if made.kind == "compute":
            n = self.v.node_of[made.on]
            return n in self.recomputed or (n in self.v.atoms.alias and self.again(made.inputs[0]))
        if made.collective == "all_gather" and self.v.node(value) is None and not self._stays(value):
            return True
        return self.again(made.inputs[0])

    def _stays(self, value: str) -> bool:
        """A gathered operand that every reader keeps."""
        v = self.v
        readers = [n for n, used in v.w.used.items() if value in used]
        for n in readers:
            op = v.graph.ops[v.atoms.nodes[n].index]
            sharding = self.shardings.get(op.name)
            if sharding is None or op.inputs[v.w.used[n].index(value)] not in sharding.kept:
                return False
        return bool(readers)

    def rerun(self) -> tuple[tuple[Instr, ...], set[str]]:
        """Forward instructions run again, in order, and the values they make."""
        v = self.v
        again: set[int] = set()
        todo = [value for n in v.nodes for value in v.saved(n)]
        seen: set[str] = set()
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            seen.add(value)
            if self.again(value):
                k = v.w.maker[value]
                again.add(k)
                todo += v.w.forward[k].inputs
        names = {v.w.forward[k].on for k in again if v.w.forward[k].kind == "compute"}
        again |= {k for k, i in enumerate(v.w.forward) if i.within in names}  # it brings all of its results to rest
        made = {value for k in again for value in v.w.forward[k].outputs}
        out = []
        for k, i in enumerate(v.w.forward):
            if k in again or (i.kind in INSIDE and i.on in names):
                light = i.kind == "compute" and i.on in self.kernels.of_op
                out.append(i.grouped(self.kernels.of_op[i.on]) if light else i)
        return tuple(out), made

    def op_by_op(
        self,
        made_again: set[str],
        rerun: tuple[Instr, ...],
        backward: tuple[Instr, ...],
        elsewhere: frozenset[str] = frozenset(),
    ) -> Kept:
        """The same where every op runs alone, with the most that is alive at once."""
        live = Live(self.v, backward, rerun, self.leaves, self._extra, self.recomputed, elsewhere)
        return replace(self.kept(made_again, elsewhere), op_by_op=(live.forward(), live.backward()))

    @cached_property
    def leaves(self) -> dict[str, None]:
        """Values that the backward finds, each with a storage of its own."""
        v = self.v
        leaves: dict[str, None] = {}
        for n in v.nodes:
            for value in v.saved(n):
                leaves |= dict.fromkeys(sorted(self._leaves(value)))
        return leaves

    @cached_property
    def shares(self) -> dict[str, float]:
        """Kept value -> its bytes over those that it has as it is; what rests all the time is not among them."""
        v, found = self.v, dict[str, float]()
        operands = self._operands() if self.operand else set()
        for value in self.leaves:
            if not v.constant(value) or (v.maker(value) is not None and v.atoms.role[v.tensor(value)] == "param"):
                narrow = value in operands
                found[value] = self.operand / item_bytes(v.atoms, v.tensor(value)) if narrow else 1.0
        return found

    @cached_property
    def _stays_again(self) -> Mapping[str, float]:
        """`shares` of the piece without recompute: what else it makes again is gone when the backward begins, as in a forward."""
        if not self.recomputed:
            return self.shares
        return Keeper(self.v, self.kernels, self.shardings, frozenset(), self.operand).shares

    def kept(self, made_again: set[str], elsewhere: frozenset[str] = frozenset()) -> Kept:
        """`elsewhere`: values that another segment counts."""
        v = self.v
        activations = loss = (0.0, 0.0)
        for n in v.nodes:
            if n in self.recomputed:
                continue
            if v.graph.ops[v.atoms.nodes[n].index].kind in CROSS_ENTROPIES:
                loss = add(loss, self._extra(n))
            else:
                activations = add(activations, self._extra(n))
        for value, share in self.shares.items():
            if value not in elsewhere:
                fixed, each = v.size(value)
                activations = add(activations, (fixed * share, each * share))
        rerun = (0.0, 0.0)
        for value in sorted(made_again):
            share = self._stays_again.get(value, 0.0) if v.node(value) is not None else 1.0
            if v.root(value) == value and share:
                fixed, each = v.size(value)
                rerun = add(rerun, (fixed * share, each * share))
        return Kept(activations, rerun, self.kernels.working, loss, self.kernels.loss)

    def _operands(self) -> set[str]:
        """Values that are kept for products alone, as these read them."""
        v = self.v
        own, others = set[str](), set[str]()
        for n in v.nodes:
            product = v.graph.ops[v.atoms.nodes[n].index].kind in PRODUCTS
            for value in v.saved(n):
                leaves = self._leaves(value)
                (own if product and leaves == {v.root(value)} else others).update(leaves)
        return own - others

    def _leaves(self, value: str) -> set[str]:
        """What must be kept so that `value` is there in the backward."""
        v = self.v
        found: set[str] = set()
        todo, seen = [value], set()
        while todo:
            r = v.root(todo.pop())
            if r in seen:
                continue
            seen.add(r)
            made = v.maker(r)
            inside = (
                made is not None
                and made.kind == "compute"
                and v.node_of[made.on] in self.kernels.of_node
                and r not in self.kernels.written
            )
            if made is not None and (inside or self.again(r)):
                todo += made.inputs
            else:
                found.add(r)
        return found

    def _extra(self, n: int) -> tuple[float, float]:
        """Bytes kept besides tensors (statistics, log-probabilities), of the local part."""
        v = self.v
        node = v.atoms.nodes[n]
        op = v.graph.ops[node.index]
        if n in v.w.reads or not op.saved_extra or not any(t in v.atoms.grad for t in node.outputs):
            return 0.0, 0.0
        whole = v.graph.tensor[op.inputs[0]].nbytes
        fixed, each = v.size(v.w.used[n][0])
        share = op.saved_extra / whole if whole else 0.0
        return fixed * share, each * share
