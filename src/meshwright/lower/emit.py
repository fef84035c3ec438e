"""Write one piece of the graph out as instructions: conversions, local ops, sums; then the same backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..graph.ir import ITEM_BYTES, Phase
from ..plan.model import Cut, Layout
from .apart import gradients
from .assign import Assignment, Sums, cuts_along, plan_layout
from .atoms import FIXED, Atoms, Node, item_bytes
from .convert import Axes, Do, Step, axes_of, local_size, steps
from .experts import expert_axes
from .halo import DATA, widened
from .parts import axis_of
from .program import APART, GRAD, RAW, Instr
from .summa import Grid, fetches, in_steps

_NONE: frozenset[str] = frozenset()
COMMUNICATES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
_PAIR_OF_MAXIMUM_AND_SUM = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax", "cross_entropy_loss"})
_MEAN_OVER_LABELS = frozenset({"cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d"})
_MEAN = 1
"""Of the labels that count: a reduction, in torch's enumeration."""


@dataclass(slots=True)
class Written:
    """Instructions of one piece, and what later passes want to know of its values."""

    forward: list[Instr] = field(default_factory=list)
    backward: list[Instr] = field(default_factory=list)
    """In the order of the forward pass; reversed at the end."""
    maker: dict[str, int] = field(default_factory=dict)
    """Value -> index in `forward`."""
    used: dict[int, list[str]] = field(default_factory=dict)
    """Node -> value read for each operand."""
    level: dict[str, int] = field(default_factory=dict)
    """Value -> depth over heavy ops and communication: light ops of one depth run as one kernel."""
    depth: dict[int, int] = field(default_factory=dict)
    """Node -> depth at which it runs."""
    constants: list[Instr] = field(default_factory=list)
    base: dict[str, tuple[str, Axes]] = field(default_factory=dict)
    """Value -> (tensor, layout)."""
    reads: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Node whose gradients are computed apart -> values that its backward reads."""
    wider: dict[str, float] = field(default_factory=dict)
    """Value with rows of neighbours -> its size over that of the own part."""


class Emitter:
    """One lowering of the folded graph; `piece(nodes)` writes one piece of it."""

    def __init__(
        self,
        atoms: Atoms,
        done: Assignment,
        sums: Sums,
        mesh: Mapping[str, int],
        grad_bytes: float,
        routing_skew: float = 1.0,
    ) -> None:
        """`routing_skew`: tokens of the busiest member along an axis that cuts experts, over the mean of all."""
        self.atoms, self.done, self.sums, self.mesh = atoms, done, sums, mesh
        self.grad_bytes = grad_bytes
        self._skew: Mapping[str, float] = expert_axes(atoms, done, mesh, routing_skew) if routing_skew > 1 else {}
        self.graph = atoms.folded.graph
        self._count: dict[str, int] = {}

    # ---- sizes

    def layout(self, t: str, axes: Axes, partial: tuple[str, ...] = ()) -> Layout:
        return plan_layout(self.atoms, t, axes, partial)

    def amount(self, t: str, axes: Axes, item: float = 0.0) -> tuple[float, tuple[str, ...] | None]:
        """(bytes of the largest local part, None) or (bytes per local sample, axes that cut the samples)."""
        total = item or item_bytes(self.atoms, t)
        over: tuple[str, ...] | None = None
        batch = self.graph.samples
        for size, cut, samples in zip(self.atoms.size[t], axes, self.atoms.samples[t]):
            if samples:
                total *= size / batch if over is None else size
                over = (over or ()) + cut
            else:
                total *= local_size(size, cut, self.mesh)
        return total * self.busy(t, axes) if self._skew else total, over

    def busy(self, t: str, axes: Axes) -> float:
        """Tokens of the busiest member over the mean, if `t` holds tokens by expert under `axes`."""
        samples = self.atoms.samples[t]
        return self._busiest(samples, axes) if self._skew and any(samples) else 1.0

    def _busiest(self, samples: Sequence[bool], axes: Axes) -> float:
        found = (self._skew.get(axis_of(x), 1.0) for cut, own in zip(axes, samples) if not own for x in cut)
        return max(found, default=1.0)

    def sizes(self, node: Node, cuts: Axes) -> tuple[tuple[float, ...], tuple[str, ...] | None]:
        """Largest local size of each factor; factors that grow with the samples per local sample."""
        factors = self.graph.ops[node.index].rule.factors
        out = [1.0] * len(factors)
        over: tuple[str, ...] | None = None
        for size, cut, samples, f in zip(node.size, cuts, node.samples, node.factor):
            if samples:
                out[f] *= size / self.graph.samples if over is None else size
                over = (over or ()) + cut
            else:
                out[f] *= local_size(size, cut, self.mesh)
        if self._skew and any(node.samples):
            out[node.factor[node.samples.index(True)]] *= self._busiest(node.samples, cuts)
        return tuple(out), over

    # ---- conversions

    def fresh(self, t: str) -> str:
        self._count[t] = self._count.get(t, 0) + 1
        return f"{t}@{self._count[t]}"

    def move(
        self, w: Written, t: str, value: str, path: tuple[Step, ...], last: str, grad: bool, phase: str = "forward"
    ) -> str:
        """Emit the steps that turn `value` (of tensor `t`) into a value named `last` ("" = a fresh name)."""
        for k, s in enumerate(path):
            name = last if last and k == len(path) - 1 else self.fresh(t)
            w.maker[name] = len(w.forward)
            w.base[name] = (t, s.after)
            w.level[name] = w.level.get(value, 0) + (s.forward in COMMUNICATES)
            w.forward.append(self.step(t, s, value, name))
            if grad:
                w.backward.append(self.dual(t, s, GRAD + name, GRAD + value))
            value = name
        return value

    def step(self, t: str, s: Step, source: str, target: str) -> Instr:
        """One step of a conversion of tensor `t`."""
        before, after = self.layout(t, s.before, s.before_partial), self.layout(t, s.after, s.partial)
        held = self.held(s.forward, t, s.before, s.after)
        return _instr(s.forward, t, source, target, s, before, after, held, flip=False)

    def dual(self, t: str, s: Step, source: str, target: str) -> Instr:
        """What brings the gradient back over it."""
        before, after = self.layout(t, s.before, s.before_partial), self.layout(t, s.after, s.partial)
        item = self.grad_bytes if self.atoms.role[t] == "param" else 0.0
        held = self.held(s.backward, t, s.after, s.before, item)
        return _instr(s.backward, t, source, target, s, after, before, held, flip=True)

    def held(
        self, do: Do, t: str, before: Axes, after: Axes, item: float = 0.0
    ) -> tuple[float, tuple[str, ...] | None]:
        """`amount` that counts for a collective: of what it starts with; of what a gather, or a busy expert, ends with."""
        if do not in COMMUNICATES:
            return 0.0, None
        later = do == "all_gather" or (do == "all_to_all" and self.busy(t, after) > self.busy(t, before))
        return self.amount(t, after if later else before, item)

    def convert(self, w: Written, cache: dict[object, str], t: str, need: Axes, g: frozenset[str] | None) -> str:
        """The value of `t` as an op needs it. `g` (G): axes over which this use's gradient is unsummed; None: it has none."""
        src = self.done.rest[t]
        grad = t in self.atoms.grad and g is not None
        summed, may_pad = self._left(t, need, g if grad else None)
        apart = grad and t in self.done.grads
        if src == need and not summed and not apart:
            return t
        key = (t, need, summed, may_pad, grad)
        if key not in cache:
            path = steps(src, (), need, _NONE if apart else summed, may_pad)
            cache[key] = self.move(w, t, t, path, "", grad and not apart) if path else self._renamed(w, t)
            if apart:
                w.backward += reversed(self.homeward(w, t, cache[key], need, summed))
        return cache[key]

    def _renamed(self, w: Written, t: str) -> str:
        """`t` at rest under another name, so that what this use says of its gradient has one of its own."""
        name = self.fresh(t)
        w.maker[name], w.base[name], w.level[name] = len(w.forward), (t, self.done.rest[t]), w.level.get(t, 0)
        layout = self.layout(t, self.done.rest[t])
        w.forward.append(Instr("identity", t, "forward", (t,), (name,), before=layout, after=layout))
        return name

    # ---- gradients that rest otherwise than their activations

    def home(self, t: str) -> str:
        """The value whose gradient is that of `t` at rest."""
        return t + APART if t in self.done.grads else t

    def rest_of_gradient(self, t: str) -> Axes:
        return self.done.grads.get(t, self.done.rest[t])

    def homeward(self, w: Written, t: str, value: str, here: Axes, partial: frozenset[str]) -> list[Instr]:
        """In the order in which they run: what brings the gradient of `value`, laid out as `here` and unsummed over
        `partial`, to where that of `t` rests."""
        return self._brought(w, t, value, self.home(t), here, tuple(sorted(partial)), self.rest_of_gradient(t))

    def outward(self, w: Written, t: str, value: str, here: Axes) -> list[Instr]:
        """And from there to how the op that made `t` reads it, as the gradient of `value`."""
        return self._brought(w, t, self.home(t), value, self.rest_of_gradient(t), (), here)

    def _brought(
        self, w: Written, t: str, source: str, target: str, before: Axes, partial: tuple[str, ...], after: Axes
    ) -> list[Instr]:
        path = steps(before, partial, after, _NONE, _NONE)
        names = [source, *(self.fresh(t) for _ in path[1:]), target]
        w.base[source], w.base[target] = (t, before), (t, after)
        for name, s in zip(names[1:-1], path):
            w.base[name] = (t, s.after)
        if not path:
            layout = self.layout(t, after)
            return [Instr("identity", t, "backward", (GRAD + source,), (GRAD + target,), before=layout, after=layout)]
        return [
            replace(self.step(t, s, GRAD + a, GRAD + b), phase="backward") for s, a, b in zip(path, names, names[1:])
        ]

    def _left(self, t: str, need: Axes, g: frozenset[str] | None) -> tuple[frozenset[str], frozenset[str]]:
        """(axes to sum the gradient of `t` read as `need` over on its way back, axes on which it may stay a partial sum)."""
        if g is None:
            return _NONE, _NONE
        deferred = self.sums.deferred.get(t, _NONE)
        return g - deferred - axes_of(need), (axes_of(need) - axes_of(self.done.rest[t])) & deferred

    def from_use(self, w: Written, t: str, need: Axes, g: frozenset[str]) -> tuple[str, list[Instr]]:
        """(value whose gradient a use as `need` makes, unsummed over `g`; what brings it to where that of `t` rests)."""
        summed, may_pad = self._left(t, need, g)
        if t in self.done.grads:
            if need == self.done.grads[t] and not summed:
                return self.home(t), []
            name = self.fresh(t)
            return name, self.homeward(w, t, name, need, summed)
        path = steps(self.done.rest[t], (), need, summed, may_pad)
        names = [t, *(self.fresh(t) for _ in path)]
        w.base.update((name, (t, s.after)) for name, s in zip(names[1:], path))
        ends = zip(reversed(path), reversed(names[1:]), reversed(names[:-1]))
        return names[-1], [self.dual(t, s, GRAD + source, GRAD + target) for s, source, target in ends]

    # ---- ops

    def piece(self, nodes: range, in_run: bool) -> Written:
        """Constants outside of repeated blocks are set apart: every stage that reads them computes them itself."""
        w = Written()
        cache: dict[object, str] = {}
        for n in nodes:
            node = self.atoms.nodes[n]
            if all(t in self.atoms.const for t in node.outputs) and not in_run:
                w.constants.append(self._compute(n, node, self.done.cuts[n], node.inputs, node.outputs))
                continue
            self._op(w, cache, n, node, nodes)
        return w

    def _unsummed(self, n: int, k: int, t: str, nodes: range) -> frozenset[str] | None:
        """G of a use; one without a gradient takes the conversion of one that has it, if there is such a use in this piece."""
        apart = self.done.apart
        found = self.sums.use.get((n, k)) if (n, k) not in apart else None
        if found is not None or t not in self.atoms.grad:
            return found
        like = (u for u in self.atoms.users[t] if u[0] in nodes and u in self.sums.use and u not in apart)
        return next((self.sums.use[u] for u in like if self.done.need[u[0]][u[1]] == self.done.need[n][k]), None)

    def _op(self, w: Written, cache: dict[object, str], n: int, node: Node, nodes: range) -> None:
        cuts = self.done.cuts[n]
        values = [
            self.convert(w, cache, t, need, self._unsummed(n, k, t, nodes))
            for k, (t, need) in enumerate(zip(node.inputs, self.done.need[n]))
        ]
        if "halo" in node.kind and any(cuts):
            values[DATA] = widened(self, w, cache, n, values[DATA])
        w.used[n] = values
        w.depth[n] = at = max((w.level.get(v, 0) for v in values), default=0)
        apart = n in self.atoms.differentiable and any((n, k) in self.done.apart for k in range(len(values)))
        heavy = apart or n not in self.atoms.light
        paths = []
        for t in node.outputs:
            here, partial = self.done.raw[t]
            rest = self.done.rest[t]
            paths.append(steps(here, partial, rest, _NONE, _NONE) if partial or here != rest else ())
        raw = [t + RAW if p else t for t, p in zip(node.outputs, paths)]
        own = gradients(self, w, n, values) if apart else None
        entering = (*values, *(own.enters if own else ()))
        forward = self._compute(n, node, cuts, entering, tuple(raw))
        for name, t in zip(raw, node.outputs):
            w.maker[name] = len(w.forward)
            w.base[name] = (t, self.done.raw[t][0])
            w.level[name] = at + heavy
        w.forward.append(forward)
        stats = self.stats(node, cuts)
        w.forward += [s for s in stats if s.phase == "forward"]
        come, go = fetches(self, node, self.done.grids[n], self.done.need[n]) if n in self.done.grids else ([], [])
        w.forward += come
        if own is not None:
            w.reads[n] = own.reads
            w.backward += reversed(own.instrs)
        elif n in self.atoms.differentiable:
            grads = [v for v, t in zip(values, node.inputs) if t in self.atoms.grad]
            outs = [r for r, t in zip(raw, node.outputs) if t in self.atoms.grad]
            # reversed at the end: the sums of a backward follow its op here so that they precede nothing they need
            w.backward += [s for s in stats if s.phase == "backward"]
            w.backward += reversed(go)
            w.backward.append(
                Instr(
                    "compute", forward.on, "backward",
                    tuple(GRAD + r for r in outs), tuple(dict.fromkeys(GRAD + v for v in grads)),
                    cuts=forward.cuts, operands=forward.operands, results=forward.results,
                    sizes=forward.sizes, samples=forward.samples, steps=forward.steps,
                )
            )  # fmt: skip
        first = len(w.forward)
        for t, name, path in zip(node.outputs, raw, paths):
            elsewhere = t in self.done.grads
            self.move(w, t, name, path, t, t in self.atoms.grad and own is None and not elsewhere)
            if elsewhere and own is None and n in self.atoms.differentiable:
                w.backward += reversed(self.outward(w, t, name, self.done.raw[t][0]))
        if own is not None:
            w.forward[first:] = [replace(i, within=forward.on) for i in w.forward[first:]]

    def _compute(self, n: int, node: Node, cuts: Axes, values: tuple[str, ...], results: tuple[str, ...]) -> Instr:
        op = self.graph.ops[node.index]
        grid: Grid | None = self.done.grids.get(n)
        sizes, over = self.sizes(node, in_steps(grid, cuts) if grid else cuts)
        operands = tuple(self.layout(t, need) for t, need in zip(node.inputs, self.done.need[n]))
        outs = tuple(self.layout(t, *self.done.raw[t]) for t in node.outputs)
        return Instr(
            "compute", op.name, "forward", values, results, cuts=self.by_factor(node, cuts), operands=operands,
            results=outs, sizes=sizes, samples=over, steps=grid.steps if grid else 1,
        )  # fmt: skip

    def by_factor(self, node: Node, cuts: Axes) -> tuple[tuple[str, tuple[Cut, ...]], ...]:
        """Factor -> cuts, as an instruction says them."""
        found: dict[str, tuple[Cut, ...]] = {}
        for f, axes in zip(node.factor, cuts):
            if axes:
                name = self.graph.ops[node.index].rule.factors[f].name
                found[name] = found.get(name, ()) + cuts_along(axes)
        return tuple(found.items())

    def stats(self, node: Node, cuts: Axes) -> list[Instr]:
        """All-reduces inside an op whose stat factor is cut, and the count of labels of a cut loss."""
        op = self.graph.ops[node.index]
        found: list[Instr] = []
        statistic = [a for a, k in enumerate(node.kind) if k == "stat" and cuts[a]] if "stat" in node.kind else []
        if statistic:
            keep = tuple(() if a == FIXED or a in statistic else cuts[a] for a in node.operands[0])
            ones = [a != FIXED and node.kind[a] == "stat" for a in node.operands[0]]
            nbytes, over = self._rows(node.inputs[0], keep, ones)
            forward, backward = op.rule.factors[node.factor[statistic[0]]].sums
            for axis in sorted({axis_of(x) for a in statistic for x in cuts[a]}):
                for k in range(forward):
                    what = "max" if k == 0 and op.kind in _PAIR_OF_MAXIMUM_AND_SUM else "sum"
                    found.append(_stat(op.name, "forward", axis, what, nbytes, over))
                for _ in range(backward):
                    found.append(_stat(op.name, "backward", axis, "sum", nbytes, over))
        if op.kind in _MEAN_OVER_LABELS and op.arg(3, "reduction", _MEAN) == _MEAN:
            for axis in sorted({axis_of(x) for a in node.summed for x in cuts[a]}):
                found.append(_stat(op.name, "forward", axis, "count", 8.0, None))
        return found

    def _rows(self, t: str, axes: Axes, ones: list[bool]) -> tuple[float, tuple[str, ...] | None]:
        """Bytes of float32 statistics: one per element of `t` without its stat dims."""
        total, over = float(ITEM_BYTES["float32"]), None
        for size, cut, samples, one in zip(self.atoms.size[t], axes, self.atoms.samples[t], ones):
            if one:
                continue
            if samples:
                total *= size / self.graph.samples
                over = (over or ()) + cut
            else:
                total *= local_size(size, cut, self.mesh)
        return total, over


def _stat(op: str, phase: str, axis: str, what: str, nbytes: float, over: tuple[str, ...] | None) -> Instr:
    return Instr(
        "stat", op, "forward" if phase == "forward" else "backward", collective="all_reduce", axes=(axis,),
        nbytes=nbytes, samples=over, op=what,
    )  # fmt: skip


def _instr(
    do: Do,
    t: str,
    source: str,
    target: str,
    s: Step,
    before: Layout,
    after: Layout,
    held: tuple[float, tuple[str, ...] | None],
    *,
    flip: bool,
) -> Instr:
    """One conversion instruction; `flip`: the dual, whose all-to-all gathers what the forward cut."""
    phase: Phase = "backward" if flip else "forward"
    dim, dim2 = (s.atom2, s.atom) if flip and do == "all_to_all" else (s.atom, s.atom2)
    if do == "identity" or do == "slice" or do == "pad":
        return Instr(do, t, phase, (source,), (target,), axes=(s.axis,), dim=dim, before=before, after=after)
    return Instr(
        "collective", t, phase, (source,), (target,), do, (s.axis,), dim, dim2, before, after,
        nbytes=held[0], samples=held[1],
    )  # fmt: skip
