"""The options of one op on one mesh: which atom each axis cuts, where its results rest, how its parameters are stored.

An axis cuts one atom of the op, or none: then its members compute copies. A result that is a partial sum over an axis is
summed whole, or scattered over one of its own atoms. Parts are equal unless `uneven`; windows (halo factors) stay whole.
Axes that cut one atom stand in the order of the mesh, in every tensor, so that equal cuts are equal layouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from ..graph.ir import Op
from ..lower.assign import on
from ..lower.atoms import FIXED, Atoms, Node
from ..lower.convert import Axes, axes_of, local_size
from ..lower.many_steps import Mask, where_of

Style = Literal["used", "state", "param"]
"""How the parameters of an op rest where members compute copies with them: as they are used, or with optimizer state and
gradient sums cut over these members (ZeRO-1), or cut themselves (ZeRO-3)."""
NOWHERE: frozenset[str] = frozenset()
FEW_AXES = 2
"""Axes up to which every way to leave some of them unused is offered."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compute one op."""

    cuts: Axes
    """Per atom of the op."""
    rest: tuple[Axes, ...]
    """Per result."""
    deferred: frozenset[str] = NOWHERE
    """Axes over which the gradient of its results stays unsummed: of values made of parameters alone."""
    style: Style = "used"
    """Of the parameters that it alone reads."""


@dataclass(frozen=True, slots=True)
class Use:
    """How an option reads one operand."""

    need: Axes
    unsummed: frozenset[str]
    """Axes on which its gradient is a partial sum, those that cut `need` apart (G of `lower`)."""


class OpSpace:
    """All options of one node, but for the style of its parameters."""

    def __init__(
        self, atoms: Atoms, node: Node, mesh: Mapping[str, int], micro_batch: int, *, uneven: bool = False
    ) -> None:
        self.atoms, self.node, self.mesh = atoms, node, mesh
        self.op: Op = atoms.folded.graph.ops[node.index]
        self._scale = micro_batch / atoms.folded.graph.samples
        self._uneven = uneven
        self.free = self._free()
        self.weight = any(atoms.is_weight(t) for t in node.outputs)
        """Made of parameters alone: gradient sums may wait until the end of the step."""

    def options(self) -> list[Option]:
        found = []
        for cuts in self._likely(list(self.cuts())):
            later = self._subsets(axes_of(cuts)) if self.weight else [NOWHERE]
            for rest in self._rests(cuts):
                found += [Option(cuts, rest, d) for d in later]
        return found

    def _likely(self, cuts: list[Axes]) -> list[Axes]:
        """On a mesh of many axes, those that leave one more of them unused than must be, at most."""
        if len(self.mesh) <= FEW_AXES:
            return cuts
        used = [len(axes_of(c)) for c in cuts]
        return [c for c, n in zip(cuts, used, strict=True) if n >= max(used) - 1]

    def cuts(self) -> Iterator[Axes]:
        """Each axis on one atom or on none."""
        axes = [a for a, n in self.mesh.items() if n > 1]
        candidates = sorted({a for atoms in self.free.values() for a in self._easy(atoms)})
        if all(t in self.atoms.const for t in self.node.outputs):
            candidates = []
        for where in product((-1, *candidates), repeat=len(axes)):
            cuts: list[tuple[str, ...]] = [()] * len(self.node.size)
            for axis, a in zip(axes, where, strict=True):
                if a >= 0:
                    cuts[a] = (*cuts[a], axis)
            even = all(self.divides(self.node.size[a], self.node.samples[a], c) for a, c in enumerate(cuts) if c)
            if even and self._sayable(tuple(cuts)):
                yield tuple(cuts)

    def _sayable(self, cuts: Axes) -> bool:
        """Whether a plan can say it: a factor that no activation brings is cut where lowering likes best."""
        for atoms in self.free.values():
            if len(atoms) > 1 and self._first(atoms) < 0:
                own = self._preferred(cuts, atoms)
                if any(own[x] != a for a in atoms for x in cuts[a]):
                    return False
        return True

    def divides(self, size: int, samples: bool, axes: tuple[str, ...]) -> bool:
        """Whether `size` elements (samples: of the captured batch) are cut into equal parts, or where told no empty ones."""
        left = size * self._scale if samples else size
        for x in axes:
            n = self.mesh[x]
            if left < n or (left % n and not self._uneven):
                return False
            left = -(-left // n)
        return True

    def use(self, option: Option, k: int) -> Use:
        """Of operand k."""
        need, mine = on(self.node.operands[k], option.cuts), axes_of(option.cuts)
        return Use(need, ((mine - axes_of(need)) | (option.deferred - mine)) - axes_of(need))

    def raw(self, cuts: Axes, k: int) -> tuple[Axes, tuple[str, ...]]:
        """Result k as the op makes it: (layout, axes over which it is a partial sum)."""
        partial = tuple(x for a in sorted(self.node.summed) for x in cuts[a])
        return on(self.node.results[k], cuts), partial

    def lands(self, cuts: Sequence[Axes], k: int, rests: Sequence[Axes]) -> Mask:
        """[rests, cuts] whether lowering puts cuts on these atoms when operand k rests so.

        A plan names factors. Of a factor with several atoms lowering takes for each axis the one that an operand already
        is cut on, else its own choice (`lower.assign.op_cuts`): so an operand may not be cut on another one; and where the
        option is not lowering's own choice, the first operand with that factor must be.
        """
        axes = tuple(self.mesh)
        fine = np.ones((len(rests), len(cuts)), bool)
        taken, resting = where_of(cuts, axes), where_of(rests, axes)
        at = {a: i for i, a in enumerate(self.node.operands[k]) if a != FIXED}
        of = {i: a for a, i in at.items()}
        for atoms in self.free.values():
            if len(atoms) < 2:
                continue
            # Per axis the atom of this factor that the operand is cut on, that the option cuts, that lowering would take.
            held = np.array([of[i] if of.get(i) in atoms else -1 for i in range(len(self.node.operands[k]))] + [-1])
            there = held[resting][:, None]
            cut = np.where(np.isin(taken, atoms), taken, -1)
            own = np.array([[p.get(x, -1) for x in axes] for p in (self._preferred(c, atoms) for c in cuts)])
            elsewhere = (there >= 0) & (there != cut)
            unsaid = (there < 0) & (own != cut) if k == self._first(atoms) else np.zeros(1, bool)
            fine &= ~((cut >= 0) & (elsewhere | unsaid)).any(axis=-1)
        return fine

    def constrained(self, k: int) -> bool:
        """Whether `lands` can say no for operand k."""
        return any(len(atoms) > 1 and set(atoms) & set(self.node.operands[k]) for atoms in self.free.values())

    def _first(self, atoms: Sequence[int]) -> int:
        """The first activation among the operands that has one of these atoms."""
        node = self.node
        ks = (k for k, m in enumerate(node.operands) if node.inputs[k] in self.atoms.producer and set(m) & set(atoms))
        return next(ks, -1)

    def _preferred(self, cuts: Axes, atoms: list[int]) -> dict[str, int]:
        """Axis -> the atom of one factor that lowering takes if no operand says otherwise."""
        node = self.node
        batch = [a for a in atoms if node.samples[a]]
        easy = self._easy(atoms)
        done: dict[int, tuple[str, ...]] = dict.fromkeys(atoms, ())
        found: dict[str, int] = {}
        place = {x: a for a in atoms for x in cuts[a]}
        for x in (x for x in self.mesh if x in place):
            if batch:
                found[x] = batch[0]
            else:
                left = [local_size(node.size[a], done[a], self.mesh) for a in easy]
                fit = [i for i, s in enumerate(left) if s % self.mesh[x] == 0 and s >= self.mesh[x]]
                found[x] = easy[fit[0] if fit else max(range(len(left)), key=lambda i: left[i])]
            done[place[x]] = (*done[place[x]], x)
        return found

    def _free(self) -> dict[int, list[int]]:
        """Factor -> its atoms that can be cut."""
        node, found = self.node, dict[int, list[int]]()
        for a, f in enumerate(node.factor):
            if node.kind[a] in ("free", "stat") and self.op.rule.factors[f].kind != "halo" and node.size[a] > 1:
                found.setdefault(f, []).append(a)
        return found

    def _easy(self, atoms: list[int]) -> list[int]:
        """Without those that readers cannot see cut, as far as there are others."""
        return [a for a in atoms if a not in self.node.awkward] or atoms

    def _rests(self, cuts: Axes) -> list[tuple[Axes, ...]]:
        """Where the results may rest: sums completed, or scattered where there is one result."""
        raws = [self.raw(cuts, k) for k in range(len(self.node.outputs))]
        whole = tuple(here for here, _ in raws)
        partial = raws[0][1] if raws else ()
        t = self.node.outputs[0] if raws else ""
        if not partial or len(raws) > 1:
            return [whole]
        found: dict[tuple[Axes, ...], None] = {}
        sizes, samples = self.atoms.size[t], self.atoms.samples[t]
        seen = [k for k, a in enumerate(self.node.results[0]) if sizes[k] > 1 and a not in self.node.awkward]
        ways: Iterable[tuple[int, ...]] = product((-1, *seen), repeat=len(partial))
        if len(self.mesh) > FEW_AXES:  # all of them alike
            ways = [(a,) * len(partial) for a in (-1, *seen)]
        for where in ways:
            rest = list(whole[0])
            for axis, a in zip(partial, where, strict=True):
                if a >= 0:
                    rest[a] = (*rest[a], axis)
            in_order = all(list(x) == [m for m in self.mesh if m in x] for x in rest)
            if in_order and all(self.divides(s, b, x) for s, b, x in zip(sizes, samples, rest, strict=True) if x):
                found[(tuple(rest),)] = None
        return list(found)

    def _subsets(self, used: frozenset[str]) -> list[frozenset[str]]:
        axes = [a for a, n in self.mesh.items() if n > 1 and a not in used]
        return [frozenset(c) for r in range(len(axes) + 1) for c in combinations(axes, r)]


def further(sizes: Sequence[int], layout: Axes, axes: frozenset[str], mesh: Mapping[str, int]) -> Axes:
    """`layout` of a parameter cut further over `axes`, each on the first atom that it divides; as far as that goes."""
    found = list(layout)
    for x in (x for x in mesh if x in axes):
        for a, size in enumerate(sizes):
            later = list(mesh).index(x)
            if local_size(size, found[a], mesh) % mesh[x] == 0 and all(list(mesh).index(y) < later for y in found[a]):
                found[a] = (*found[a], x)
                break
    return tuple(found)
