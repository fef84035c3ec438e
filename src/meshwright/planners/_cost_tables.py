"""Seconds of conversions, sums and updates of a cost graph: asked for one by one, priced all at once.

What is to be converted how comes from `lower` (`convert.steps`, `Emitter.held`, `ParameterPlan`): nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..graph.ir import ITEM_BYTES, Floats, Ints
from ..lower.assign import Assignment, Sums, plan_layout
from ..lower.atoms import Atoms, item_bytes
from ..lower.convert import Axes, Step, axes_of, local_size, steps
from ..lower.emit import COMMUNICATES, Emitter
from ..lower.many_steps import Mask, Where, many_steps
from ..lower.parameters import ParameterPlan
from ..lower.program import Instr
from ..plan.model import Storage
from ..simulate.additive import Part, Tariff
from ._cost_options import NOWHERE, Style, Use, further

Over = tuple[str, ...] | None


class Ledger:
    """Sums of collectives, entry by entry; `seconds` prices what was asked for."""

    def __init__(self, tariff: Tariff) -> None:
        self._tariff = tariff
        self._slots: dict[Part, dict[float, int]] = {}
        self._entries: list[list[tuple[Part, int]]] = []
        self._fixed: list[float] = []
        self._prices: dict[Part, Floats] = {}
        self._totals: Floats = np.zeros(0)

    def entry(self, collectives: Sequence[tuple[Part, float, Over]], seconds: float = 0.0) -> int:
        """A new sum: (part, bytes, axes that cut the samples where the bytes are per local sample), and fixed seconds."""
        mine = []
        for part, nbytes, over in collectives:
            total = nbytes if over is None else nbytes * self._tariff.local(over)
            slots = self._slots.setdefault(part, {})
            mine.append((part, slots.setdefault(float(total), len(slots))))
        self._entries.append(mine)
        self._fixed.append(seconds)
        return len(self._entries) - 1

    def seconds(self, entries: Ints) -> Floats:
        """Of these entries, any shape; collectives that were asked for since the last call are priced together."""
        self._settle()
        return self._totals[entries]

    def _settle(self) -> None:
        done = len(self._totals)
        if done == len(self._entries):
            return
        for part, slots in self._slots.items():
            known = self._prices.setdefault(part, np.zeros(0))
            if len(known) < len(slots):
                new = np.array(list(slots)[len(known) :], np.float64)
                self._prices[part] = np.concatenate([known, self._tariff.collective(part, new)])
        more = np.array(self._fixed[done:], np.float64)
        for e, mine in enumerate(self._entries[done:]):
            for part, slot in mine:
                more[e] += self._prices[part][slot]
        self._totals = np.concatenate([self._totals, more])


class Conversions:
    """Between layouts of the tensors of one folded graph."""

    def __init__(self, atoms: Atoms, tariff: Tariff, ledger: Ledger, mesh: Mapping[str, int]) -> None:
        self.atoms, self.tariff, self.ledger, self.mesh = atoms, tariff, ledger, mesh
        self._grad_bytes = float(ITEM_BYTES[tariff.recipe.grad_dtype])
        self._emit = self._emitter({}, {})
        self._known: dict[object, int] = {}
        self._stored: dict[object, tuple[int, float, Storage | None]] = {}
        self._free = ledger.entry(())

    def _emitter(self, rest: dict[str, Axes], deferred: dict[str, frozenset[str]]) -> Emitter:
        done = Assignment([], [], {}, rest, {})
        return Emitter(self.atoms, done, Sums({}, deferred), self.mesh, self._grad_bytes)

    def held(self, t: str, rest: Axes) -> float:
        """Bytes of `t` on one device, of one micro-batch."""
        nbytes, over = self._emit.amount(t, rest)
        return nbytes * (1 if over is None else self.tariff.local(over))

    def sizes(self, n: int, cuts: Axes) -> tuple[tuple[float, ...], Over]:
        """Local factor sizes of node n, see `Instr.sizes`."""
        return self._emit.sizes(self.atoms.nodes[n], cuts)

    def stats(self, n: int, cuts: Axes, learns: bool) -> list[tuple[Part, float, Over]]:
        """Sums inside node n; `learns`: it has a backward."""
        found = self._emit.stats(self.atoms.nodes[n], cuts)
        return [(self.tariff.part(i), i.nbytes, i.samples) for i in found if learns or i.phase == "forward"]

    def completion(self, t: str, here: Axes, partial: tuple[str, ...], rest: Axes) -> int:
        """Entry of a raw result that comes to rest, and of its gradient's way back."""
        if not partial and here == rest:
            return self._free
        key = (self._alike(t), here, partial, rest)
        if key not in self._known:
            path = steps(here, partial, rest, NOWHERE, NOWHERE)
            self._known[key] = self.ledger.entry(self._priced(t, path, t in self.atoms.grad, False))
        return self._known[key]

    def conversion(self, t: str, rest: Axes, deferred: frozenset[str], use: Use, grad: bool, again: bool) -> int:
        """Entry of one reader's way to `t`. `again`: its backward reads what it read, so what is gathered is gathered again."""
        summed = use.unsummed - deferred if grad else NOWHERE
        if rest == use.need and not summed:
            return self._free
        later = deferred if grad else NOWHERE
        key = (self._alike(t), rest, later, use.need, summed, grad, again)
        if key not in self._known:
            may_pad = (axes_of(use.need) - axes_of(rest)) & later
            path = steps(rest, (), use.need, summed, may_pad)
            self._known[key] = self.ledger.entry(self._priced(t, path, grad, again))
        return self._known[key]

    def seconds(self, t: str, src: Where, dst: Where, summed: Mask, may_pad: Mask, grad: Mask, again: Mask) -> Floats:
        """Of many conversions of `t` at once, [conversions, axes] and [conversions] as `many_steps` takes them: what
        `conversion` says of each."""
        axes = tuple(self.mesh)
        amounts = _Amounts(self.atoms, self.tariff, t, self.mesh)
        item = self._grad_bytes if self.atoms.role[t] == "param" else 0.0
        total = np.zeros(len(src))
        gathered = np.zeros(len(src), bool)
        for r in many_steps(src, dst, summed, may_pad, axes):
            if r.forward == "all_gather":
                gathered[r.rows] = True
            if r.forward in COMMUNICATES:
                seconds = self._rounds(t, r.forward, axes[r.axis], amounts.of(_held(r.forward, r.before, r.after)))
                total[r.rows] += seconds
                twice = again[r.rows] & gathered[r.rows]
                total[r.rows[twice]] += seconds[twice]
            if r.backward in COMMUNICATES:
                back = grad[r.rows]
                held = amounts.of(_held(r.backward, r.after[back], r.before[back]), item)
                total[r.rows[back]] += self._rounds(t, r.backward, axes[r.axis], held)
        return total

    def _rounds(self, t: str, do: str, axis: str, nbytes: Floats) -> Floats:
        """Seconds of one collective of each size."""
        copies = self._copies(t) if do == "all_to_all" else 1
        sizes, where = np.unique(nbytes, return_inverse=True)
        part: Part = (do, (axis,), copies)  # type: ignore[assignment]
        found: Floats = self.tariff.collective(part, sizes)[where.ravel()]
        return found

    def _copies(self, t: str) -> int:
        """Among what an all-to-all of `t` sends."""
        return self.tariff.part(Instr("collective", t, collective="all_to_all"))[2]

    def storage(self, t: str, rest: Axes, deferred: frozenset[str], style: Style) -> tuple[int, float, Storage | None]:
        """What a parameter costs once a step.

        Args:
            rest: as it rests between uses; with style "state" its gradient sums and its state rest cut further.
            deferred: axes over which its gradient is summed at the end of the step.

        Returns: (entry, bytes on one device, what a plan says of gradient and state).
        """
        key = (t, rest, deferred, style)
        if key not in self._stored:
            self._stored[key] = self._storage(t, rest, deferred, style)
        return self._stored[key]

    def _storage(self, t: str, rest: Axes, deferred: frozenset[str], style: Style) -> tuple[int, float, Storage | None]:
        state = further(self.atoms.size[t], rest, deferred, self.mesh) if style == "state" else rest
        stored = None if state == rest else Storage(state=plan_layout(self.atoms, t, state))
        emit = self._emitter({t: rest}, {t: deferred})
        param = ParameterPlan(emit, t, stored)
        _, update = param.instructions("", self.mesh)
        elements = param.param(1, (), self.mesh).elements
        listed: list[tuple[Part, float, Over]] = [
            (self.tariff.part(i), i.nbytes, i.samples) for i in update if i.communicates
        ]
        seconds = sum(self.tariff.update(elements[2]) for i in update if i.kind == "update")
        return self.ledger.entry(listed, seconds), self._resting(elements), stored

    def _resting(self, elements: tuple[float, float, float]) -> float:
        recipe = self.tariff.recipe
        use, grad, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
        rest, grads, state = elements
        copied = state if recipe.param_dtype != recipe.compute_dtype or rest != state else 0.0
        return rest * use + grads * grad + copied * master + state * recipe.state_bytes

    def _alike(self, t: str) -> object:
        """Tensors that convert alike."""
        atoms, tensor = self.atoms, self.atoms.folded.graph.tensor[t]
        return atoms.size[t], atoms.samples[t], tensor.dtype, atoms.role[t] == "param", t in atoms.grad, self._copies(t)

    def _priced(self, t: str, path: Sequence[Step], grad: bool, again: bool) -> list[tuple[Part, float, Over]]:
        """Collectives of a chain of steps: forward, again from its first gather on, and backward."""
        item = self._grad_bytes if self.atoms.role[t] == "param" else 0.0
        copies = self._copies(t)
        found: list[tuple[Part, float, Over]] = []
        gathered = False
        for s in path:
            gathered |= s.forward == "all_gather"
            if s.forward in COMMUNICATES:
                part: Part = (s.forward, (s.axis,), copies if s.forward == "all_to_all" else 1)  # type: ignore[assignment]
                found += [(part, *self._emit.held(s.forward, t, s.before, s.after))] * (2 if again and gathered else 1)
            if grad and s.backward in COMMUNICATES:
                part = (s.backward, (s.axis,), copies if s.backward == "all_to_all" else 1)  # type: ignore[assignment]
                found.append((part, *self._emit.held(s.backward, t, s.after, s.before, item)))
        return found


def _held(do: str, before: Where, after: Where) -> Where:
    """The layouts whose bytes count (`Emitter.held`): what a gather ends with, else what there is before."""
    return after if do == "all_gather" else before


class _Amounts:
    """Bytes of one tensor under many layouts, as `Emitter.amount` has them times the local samples."""

    def __init__(self, atoms: Atoms, tariff: Tariff, t: str, mesh: Mapping[str, int]) -> None:
        names = tuple(mesh)
        subsets = [tuple(x for k, x in enumerate(names) if code >> k & 1) for code in range(1 << len(names))]
        self.item = item_bytes(atoms, t)
        self.samples = atoms.samples[t]
        self.local = np.array([tariff.local(x) for x in subsets], np.float64)
        self.sizes: list[Floats] = []
        batch = atoms.folded.graph.samples
        seen = False
        for size, samples in zip(atoms.size[t], self.samples, strict=True):
            if samples:
                self.sizes.append(np.full(len(subsets), float(size) if seen else size / batch))
                seen = True
            else:
                self.sizes.append(np.array([local_size(size, x, mesh) for x in subsets], np.float64))
        self.bit = 1 << np.arange(len(names))

    def of(self, where: Where, item: float = 0.0) -> Floats:
        """[layouts]"""
        total = np.full(len(where), item or self.item)
        over = np.zeros(len(where), np.int64)
        for atom, (table, samples) in enumerate(zip(self.sizes, self.samples, strict=True)):
            cut = (where == atom) @ self.bit
            total *= table[cut]
            if samples:
                over |= cut
        return total * self.local[over] if any(self.samples) else total
