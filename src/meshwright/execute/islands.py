"""Runs of local ops as plain FX graphs: what autograd differentiates and torch.compile compiles."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..lower.program import GRAD, Instr
from .calls import Place
from .site import Local, Moment, Recorded, filled

Run = Callable[..., tuple[Tensor, ...]]
DRAWN = frozenset(
    ("rand", "randn", "rand_like", "randn_like", "uniform", "normal_functional", "exponential", "dropout")
)
"""Kinds whose numbers depend on the moment and on the name of the op."""


@dataclass(frozen=True, slots=True)
class Island:
    """Consecutive ops without a collective between them. `run(moment, *inputs)` gives the outputs."""

    ops: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    again: bool
    """All of its ops are in the rerun list; else none is."""
    run: Run
    carrying: frozenset[str]
    """Inputs to which gradients flow."""


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
        key = self._key(instrs, flows, inputs, outs) if not alone else None
        run = self._made.get(key) if key else None
        if run is None:
            run = self._built(instrs, calls, flows, inputs, outs, alone)
            if key:
                self._made[key] = run
        carrying = frozenset(i.inputs[k] for i in instrs for k in flows.get(i.on, ())) & set(inputs)
        return Island(tuple(i.on for i in instrs), inputs, outs, again, run, carrying)

    def _key(
        self, instrs: Sequence[Instr], flows: Mapping[str, tuple[int, ...]], inputs: Sequence[str], outs: Sequence[str]
    ) -> object:
        """Islands with equal keys do the same with their inputs."""
        graph, number = self._place.graph, {n: k for k, n in enumerate(inputs)}
        parts: list[object] = []
        for i in instrs:
            op = graph.ops[graph.position[i.on]]
            tensors = tuple((graph.tensor[t].shape, graph.tensor[t].dtype) for t in (*op.inputs, *op.outputs))
            parts.append((op.call, op.args, op.kwargs, tensors, i.cuts, i.operands, i.results, flows.get(i.on)))
            parts.append(i.on if self._draws(i) else None)
            parts.append(tuple(number[n] for n in i.inputs))
            number |= {n: len(number) + k for k, n in enumerate(i.outputs)}
        return (*parts, tuple(number[n] for n in outs))

    def _draws(self, instr: Instr) -> bool:
        op = self._place.graph.ops[self._place.graph.position[instr.on]]
        return op.kind in DRAWN or op.kind == "scaled_dot_product_attention"

    def _built(
        self,
        instrs: Sequence[Instr],
        calls: Mapping[str, Local],
        flows: Mapping[str, tuple[int, ...]],
        inputs: Sequence[str],
        outs: Sequence[str],
        alone: bool,
    ) -> Run:
        graph = fx.Graph()
        moment = graph.placeholder("moment")
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
            if isinstance(call, Recorded) and _plain(call):
                args = tuple(filled(a, operands) for a in call.args)
                result = graph.call_function(
                    call.target, args, {k: filled(a, operands) for k, a in call.kwargs.items()}
                )
                single = _gives_a_tensor(call.target)
            else:
                result, single = graph.call_function(_named(call, op.kind), (operands, moment)), False
            for k, name in enumerate(i.outputs):
                node[name] = result if single else graph.call_function(operator.getitem, (result, k))
            if own:
                carries.update(i.outputs)
        graph.output(tuple(node[n] for n in outs))
        module = fx.GraphModule(torch.nn.Module(), graph, "Island")
        if self._compile and not alone:
            return torch.compile(module, backend=self._compile, fullgraph=True, dynamic=False)
        return module.forward


def _plain(call: Recorded) -> bool:
    return isinstance(call.target, torch._ops.OpOverload)


def _gives_a_tensor(target: Any) -> bool:
    returns = target._schema.returns
    return len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)


def _named(call: Local, kind: str) -> Callable[[list[Tensor], Moment], Sequence[Tensor]]:
    """A function whose name FX can write into its code."""

    def local(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        return call(operands, moment)

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
