"""Runs of local ops as plain FX graphs: what autograd differentiates and torch.compile compiles."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import ExecutionError
from ...lower.program import GRAD, Instr
from ...plan.layout import local_shape
from ..ops.calls import Place
from ..ops.params import dtype_of
from ..ops.site import Local, Moment, Recorded, filled
from ..torch_compat import Shape, traced

Run = Callable[..., tuple[Tensor, ...]]
DROPPING = frozenset(("dropout", "scaled_dot_product_attention"))
DRAWING = DROPPING | {"rand", "randn", "rand_like", "randn_like", "uniform", "normal_functional", "exponential"}
"""Kinds whose numbers depend on the moment and on the name of the op, unless they run as captured."""


@dataclass(frozen=True, slots=True)
class Island:
    """Consecutive ops without a collective between them. `run(step, micro_batch, *inputs)` gives the outputs."""

    ops: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    again: bool
    """All of its ops are in the rerun list; else none is."""
    run: Run
    carrying: frozenset[str]
    """Inputs to which gradients flow."""

    @property
    def carries(self) -> bool:
        return bool(self.carrying)


class Builder:
    """Makes islands of one stage; equal ones (blocks of a run) share one graph module."""

    def __init__(self, place: Place, compile: str | None = None) -> None:
        """`compile`: a backend of torch.compile."""
        self._place, self._compile = place, compile
        self._made: dict[object, Run] = {}

    def island(
        self,
        instrs: Sequence[Instr],
        calls: Mapping[str, Local],
        flows: Mapping[str, tuple[int, ...]],
        outputs: Iterable[str],
        *,
        again: bool,
        alone: bool = False,
    ) -> Island:
        """`flows`: op -> operands to which its backward sends gradients. `alone`: holds collectives, never compiled."""
        made = [n for i in instrs for n in i.outputs]
        inputs = tuple(dict.fromkeys(n for i in instrs for n in i.inputs if n not in made))
        wanted = set(outputs)
        outs = tuple(n for n in made if n in wanted)
        key = self._key(instrs, calls, flows, inputs, outs) if not alone else None
        run = self._made.get(key) if key else None
        if run is None:
            run = self._built(instrs, calls, flows, inputs, outs, alone)
            if key:
                self._made[key] = run
        carrying = frozenset(i.inputs[k] for i in instrs for k in flows.get(i.on, ())) & set(inputs)
        return Island(tuple(i.on for i in instrs), inputs, outs, again, run, carrying)

    def _key(
        self,
        instrs: Sequence[Instr],
        calls: Mapping[str, Local],
        flows: Mapping[str, tuple[int, ...]],
        inputs: Sequence[str],
        outs: Sequence[str],
    ) -> object:
        """Islands with equal keys do the same with their inputs."""
        graph, number = self._place.graph, {n: k for k, n in enumerate(inputs)}
        parts: list[object] = []
        for i in instrs:
            op = graph.ops[graph.position[i.on]]
            tensors = tuple((graph.tensor[t].shape, graph.tensor[t].dtype) for t in (*op.inputs, *op.outputs))
            parts.append((op.call, op.args, op.kwargs, tensors, i.cuts, i.operands, i.results, flows.get(i.on)))
            own = op.kind in (DRAWING if self._place.dropout else DRAWING - DROPPING)
            parts.append(i.on if own and not isinstance(calls[i.on], Recorded) else None)
            parts.append(tuple(number[n] for n in i.inputs))
            number |= {n: len(number) + k for k, n in enumerate(i.outputs)}
        return (*parts, tuple(number[n] for n in outs))

    def _built(
        self,
        instrs: Sequence[Instr],
        calls: Mapping[str, Local],
        flows: Mapping[str, tuple[int, ...]],
        inputs: Sequence[str],
        outs: Sequence[str],
        alone: bool,
    ) -> Run:
        compiled = self._compile if not alone else None
        graph, root = fx.Graph(), torch.nn.Module()
        moment = [graph.placeholder(name) for name in ("step", "micro_batch")]
        node = {n: graph.placeholder(f"x{k}") for k, n in enumerate(inputs)}
        carries = {i.inputs[k] for i in instrs for k in flows.get(i.on, ())} & set(inputs)
        for i in instrs:
            op = self._place.graph.ops[self._place.graph.position[i.on]]
            own = flows.get(i.on, ())
            operands = [
                graph.call_function(torch.ops.aten.detach.default, (node[n],))
                if n in carries and k not in own
                else node[n]
                for k, n in enumerate(i.inputs)
            ]
            call = calls[i.on]
            if own and self._reads_nothing(i):
                call = _connected(call, own)
            if isinstance(call, Recorded):
                args = tuple(filled(a, operands) for a in call.args)
                made = graph.call_function(call.target, args, {k: filled(a, operands) for k, a in call.kwargs.items()})
                results = [made] if _gives_a_tensor(call.target) else _taken(graph, made, len(i.outputs))
            elif compiled:
                results = _inlined(graph, root, self._traced(call, i), [*moment, *operands])
            else:
                made = graph.call_function(_named(call, op.kind), (*moment, operands))
                results = _taken(graph, made, len(i.outputs))
            node.update(zip(i.outputs, results, strict=True))
            if own:
                carries.update(i.outputs)
        graph.output(tuple(node[n] for n in outs))
        module = fx.GraphModule(root, graph, "Island")
        if not compiled:
            return module.forward
        run = torch.compile(module, backend=compiled, fullgraph=True, dynamic=False)

        def with_scalars(step: int, micro_batch: int, *operands: Tensor) -> tuple[Tensor, ...]:
            return run(torch.tensor(step), torch.tensor(micro_batch), *operands)  # type: ignore[no-any-return]

        return with_scalars

    def _shapes(self, instr: Instr) -> list[tuple[int, ...]]:
        """Of the local operands."""
        graph, view = self._place.graph, self._place.view
        return [
            local_shape(layout, graph.tensor[t].shape, view.mesh, view.coords)
            for t, layout in zip(graph.ops[graph.position[instr.on]].inputs, instr.operands, strict=True)
        ]

    def _reads_nothing(self, instr: Instr) -> bool:
        """Whether an operand has no element on this rank."""
        return any(0 in shape for shape in self._shapes(instr))

    def _traced(self, call: Local, instr: Instr) -> fx.GraphModule:
        """A call of ours as a graph of torch's operators on (step, micro_batch, *operands)."""
        graph, device = self._place.graph, self._place.device
        described = [graph.tensor[t] for t in graph.ops[graph.position[instr.on]].inputs]
        operands: list[Shape] = [
            (shape, dtype_of(d), device) for d, shape in zip(described, self._shapes(instr), strict=True)
        ]
        scalar: Shape = (), torch.int64, torch.device("cpu")

        def flat(step: Tensor, micro_batch: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
            return tuple(call(list(xs), Moment(step, micro_batch)))

        return traced(flat, [scalar, scalar, *operands])


def _taken(graph: fx.Graph, made: fx.Node, count: int) -> list[fx.Node]:
    return [graph.call_function(operator.getitem, (made, k)) for k in range(count)]


def _inlined(graph: fx.Graph, root: torch.nn.Module, module: fx.GraphModule, given: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes of `module` in `graph`, on given operands; its constants become buffers of `root`."""
    node: dict[fx.Node, fx.Node] = {}
    operands = iter(given)
    for old in module.graph.nodes:
        if old.op == "placeholder":
            node[old] = next(operands)
        elif old.op == "output":
            return [node[x] for x in old.args[0]]
        elif old.op == "get_attr":
            name = f"constant{len(list(root.buffers()))}"
            root.register_buffer(name, getattr(module, old.target))
            node[old] = graph.get_attr(name)
        else:
            node[old] = graph.node_copy(old, lambda x: node[x])
    raise ExecutionError("a traced call has no output")


def _gives_a_tensor(target: Any) -> bool:
    returns = target._schema.returns
    return len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)


def _connected(call: Local, flows: Sequence[int]) -> Local:
    """`call` with every operand of `flows` in the history of its results.

    Kernels leave operands out when there is nothing to compute. A rank whose part is empty would then not carry out the
    duals of moves in front of the op, for which the other ranks wait.
    """

    def whole(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        nothing = sum((operands[k].flatten()[:0].sum() for k in flows), start=operands[flows[0]].new_zeros(()))
        return tuple(x + nothing.to(x.dtype) if x.is_floating_point() else x for x in call(operands, moment))

    return whole


def _named(call: Local, kind: str) -> Callable[[int, int, list[Tensor]], Sequence[Tensor]]:
    """A function whose name FX can write into its code."""

    def local(step: int, micro_batch: int, operands: list[Tensor]) -> Sequence[Tensor]:
        return call(operands, Moment(step, micro_batch))

    local.__name__ = local.__qualname__ = re.sub(r"\W", "_", f"local_{kind}")
    return local


def flows_of(instrs: Iterable[Instr], backward: Iterable[Instr]) -> dict[str, tuple[int, ...]]:
    """Op -> operands whose gradient its backward instruction makes."""
    made = {i.on: i for i in instrs if i.kind == "compute"}
    return {
        i.on: tuple(k for k, value in enumerate(made[i.on].inputs) if GRAD + value in i.outputs)
        for i in backward
        if i.kind == "compute"
    }
