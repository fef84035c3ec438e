"""A training step written out: backward and update ops beside the forward ones, for methods that decide on each of them.

    y = x · W, next to last        grad:x = grad:y · W        (input_grad, of the op)
                                   grad:W = grad:y · x        (weight_grad)
                                   W ← update(W, grad:W)      (update, no result)

By duality: a gradient op has the factors of its forward op; it reads the gradients of the results and what was saved, and
makes gradients of operands, so that a factor which the operand lacks is summed over. Products have an op for each operand,
of as many FLOPs as the product; every other op has one backward op of twice its FLOPs. A value that several ops read gets
one sum of what they say about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..errors import InputError
from .ir import Dims, Factor, Graph, Op, Phase, Rule, Tensor
from .saved import FLOATS, needs_grad
from .serial import digest_of

GRAD = "grad:"
"""Before the name of a tensor: its gradient, complete. "grad:x#0" is what the last of several readers says about it."""
SUM, UPDATE = "add", "update"


def expand_training(graph: Graph) -> Graph:
    """The explicit graph of one training step. The gradient of the loss is 1 and read by nobody.

    Raises:
        InputError: the backward is written out already, or there is no loss to begin it at.
    """
    if graph.training != "derived":
        raise InputError(f"the backward of a graph can be written out once: this graph's training is {graph.training}")
    if not graph.loss:
        raise InputError("a backward begins at a loss, and this graph has none")
    return _Expansion(graph).whole()


class _Expansion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.wanted = _reaching(graph)
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = list(graph.tensors)
        self.said: dict[str, list[str]] = {}
        """Tensor -> what its readers, so far, say about its gradient."""
        self.left = Counter(t for op in graph.ops if self._flows(op) for t in op.inputs if t in self.wanted)
        """Tensor -> how often ops with a backward read it."""
        self.dims: dict[str, tuple[Dims, Rule]] = {}

    def whole(self) -> Graph:
        """Forward ops, then gradients from the loss back, then updates."""
        graph = self.graph
        for op in graph.ops:
            for t, dims in (*zip(op.inputs, op.rule.operands), *zip(op.outputs, op.rule.results)):
                self.dims.setdefault(t, (dims, op.rule))
        for op in reversed(graph.ops):
            if self._flows(op):
                self._backward(op)
        for tensor in graph.params():
            if tensor.name in self.said and not tensor.frozen:
                self._update(tensor.name)
        forward = tuple(replace(op, saved=(), saved_extra=0.0) for op in graph.ops)
        made = replace(
            graph, ops=(*forward, *self.ops), tensors=tuple(self.tensors), training="explicit", runs=(), digest=""
        )
        return replace(made, digest=digest_of(made))

    def _flows(self, op: Op) -> bool:
        return any(t in self.wanted or t == self.graph.loss for t in op.outputs) and any(
            t in self.wanted for t in op.inputs
        )

    def _backward(self, op: Op) -> None:
        arriving = [k for k, t in enumerate(op.outputs) if t in self.said]
        if not arriving and self.graph.loss not in op.outputs:
            return
        arrive = [(self._gradient(op.outputs[k]), op.rule.results[k]) for k in arriving]
        targets = [k for k, t in enumerate(op.inputs) if t in self.wanted]
        if is_product(op, self.graph):
            for k in targets:
                phase: Phase = "weight_grad" if k else "input_grad"
                other = (op.inputs[1 - k], op.rule.operands[1 - k])
                # The operand that windows slide over comes first.
                self._emit(op, phase, [other, *arrive] if k else [*arrive, other], [k], op.flops, dual=not k)
            return
        kept = [(t, _dims_of(op, t)) for t in dict.fromkeys(op.saved)]
        self._emit(op, "backward", [*arrive, *kept], targets, 2.0 * op.flops, dual=True)

    def _emit(
        self,
        op: Op,
        phase: Phase,
        reads: Sequence[tuple[str, Dims]],
        targets: Sequence[int],
        flops: float,
        *,
        dual: bool,
    ) -> None:
        """`dual`: windows slide over the gradient of the result, the other way round."""
        results = tuple(op.rule.operands[k] for k in targets)
        operands = tuple(dims for _, dims in reads)
        used = {name for dims in (*operands, *results) for names in dims for name in names}
        factors = tuple(_turned(f, op, dual) for f in op.rule.factors if f.name in used)
        outputs = tuple(self._say(op.inputs[k]) for k in targets)
        self.ops.append(
            Op(
                f"{op.name}:{phase}", op.kind, tuple(t for t, _ in reads), outputs, Rule(factors, operands, results),
                flops, phase=phase, of=op.name, module=op.module, source=op.source,
            )
        )  # fmt: skip

    def _say(self, tensor: str) -> str:
        """The name of one more part of a gradient."""
        own = self.said.setdefault(tensor, [])
        name = f"{GRAD}{tensor}" + (f"#{len(own)}" if self.left[tensor] > 1 else "")
        own.append(name)
        self._add(name, tensor)
        return name

    def _add(self, name: str, tensor: str) -> None:
        self.tensors.append(replace(self.graph.tensor[tensor], name=name, role="grad", frozen=False))

    def _gradient(self, tensor: str) -> str:
        """The complete gradient of a tensor, summed where several ops have read it."""
        name, parts = f"{GRAD}{tensor}", self.said[tensor]
        if parts[0] != name and name not in self.dims:
            dims = self.dims[tensor][0]
            self._add(name, tensor)
            self._simple(SUM, f"{name}/{SUM}", tuple(parts), (name,), dims, tensor)
            self.dims[name] = self.dims[tensor]
        return name

    def _update(self, param: str) -> None:
        gradient = self._gradient(param)
        self._simple(UPDATE, f"{param}/{UPDATE}", (param, gradient), (), self.dims[param][0], param)

    def _simple(
        self, kind: str, name: str, reads: tuple[str, ...], makes: tuple[str, ...], dims: Dims, of: str
    ) -> None:
        """An element-wise op over the dims of one tensor."""
        used = {n for names in dims for n in names}
        factors = tuple(Factor(f.name, f.size, samples=f.samples) for f in self.dims[of][1].factors if f.name in used)
        rule = Rule(factors, tuple(dims for _ in reads), tuple(dims for _ in makes))
        maker = self.graph.producer.get(of)
        self.ops.append(
            Op(
                name, kind, reads, makes, rule, phase="update" if kind == UPDATE else "backward",
                of="" if maker is None else self.graph.ops[maker].name,
            )
        )  # fmt: skip


def is_product(op: Op, graph: Graph) -> bool:
    """A product of two floating operands, summed over something: its backward is one product for each."""
    return (
        len(op.inputs) == 2
        and len(op.outputs) == 1
        and bool(op.rule.summed())
        and all(graph.tensor[t].dtype in FLOATS for t in op.inputs)
        and op.flops > 0
    )


def _reaching(graph: Graph) -> frozenset[str]:
    """Tensors that have a gradient: they depend on what learns, and the loss on them."""
    trained = {t for t in needs_grad(graph) if not graph.tensor[t].frozen}
    learned = {t.name for t in graph.params() if not t.frozen}
    for op in graph.ops:  # a frozen parameter alone gives nothing a gradient
        if any(t in learned for t in op.inputs):
            learned.update(t for t in op.outputs if t in trained)
    reaches = {graph.loss}
    for op in reversed(graph.ops):
        if any(t in reaches and t in learned for t in op.outputs):
            reaches.update(t for t in op.inputs if t in learned)
    return frozenset(reaches & learned) - {graph.loss}


def _turned(factor: Factor, op: Op, dual: bool) -> Factor:
    """A factor in the backward: sums of statistics are those of the backward, windows read the other way round."""
    sums = (factor.sums[1], 0)
    if factor.kind != "halo" or not dual:
        return replace(factor, sums=sums)
    size = {f.name: f.size for f in op.rule.factors}
    names = next(names for names in op.rule.operands[0] if factor.name in names)
    step = 1
    for name in names[names.index(factor.name) + 1 :]:
        step *= size[name]
    lower, upper = factor.halo
    return replace(factor, sums=sums, halo=(-(-upper // step), -(-lower // step)))


def _dims_of(op: Op, tensor: str) -> Dims:
    if tensor in op.inputs:
        return op.rule.operands[op.inputs.index(tensor)]
    return op.rule.results[op.outputs.index(tensor)]
