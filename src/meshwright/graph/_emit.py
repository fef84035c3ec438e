"""From a traced torch graph to normal form: pure ops with slots, biases as ops of their own, no no-ops."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import CaptureError
from ._values import PLACES, is_view, plain, spec_of
from .ir import Arg, Op, Rule, Slot, Tensor
from .kinds import Call, Saved, Spec, kind_of
from .saved import FLOATS

Value = object
"""Of a node: the name of a tensor, a list of names (several results), or a constant."""
DROPPED = frozenset({"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_constrain_range"})
RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "half", "bfloat16"})
EXACT = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d", "einsum"})
"""Kinds that autocast runs in its low precision."""


@dataclass
class Emitter:
    """Walks nodes in order and appends ops. Names: a tensor is called like the op that makes it."""

    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    needs: dict[str, bool] = field(default_factory=dict)
    _env: dict[Node, Value] = field(default_factory=dict)
    _stride: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _root: dict[str, str] = field(default_factory=dict)
    _seen: Counter[str] = field(default_factory=Counter)
    _newest: dict[str, str] = field(default_factory=dict)
    _stale: dict[str, str] = field(default_factory=dict)
    _known: dict[object, tuple[Rule, float, Saved]] = field(default_factory=dict)
    _autocast: torch.dtype | None = None

    def bring(self, node: Node, name: str, tensor: Tensor, needs: bool, stride: tuple[int, ...]) -> None:
        """A tensor from outside: input, parameter or buffer."""
        self._env[node] = name
        if name not in self.tensors:
            self.tensors[name] = tensor
            self.needs[name] = needs
            self._stride[name] = stride
            self._root[name] = name

    def constant(self, node: Node, value: object) -> None:
        self._env[node] = value

    def names(self, value: object) -> list[str]:
        """The current names of the tensors that a node (or a nest of nodes) stands for."""
        if isinstance(value, (list, tuple)):
            return [name for v in value for name in self.names(v)]
        if isinstance(value, Node):
            return self.names(self._env[value])
        return [self._current(value)] if isinstance(value, str) and value in self.tensors else []

    def walk(self, owner: GraphModule) -> None:
        """All calls of a graph; `owner` has the submodules that higher-order calls name."""
        for node in owner.graph.nodes:
            if node.op == "call_function":
                self._call(owner, node)
            elif node.op == "get_attr":
                self._env[node] = getattr(owner, str(node.target), None)

    def _call(self, owner: GraphModule, node: Node) -> None:
        target = node.target
        if target is operator.getitem:
            held = self._env[node.args[0]] if isinstance(node.args[0], Node) else None
            if not isinstance(held, (list, tuple)):
                raise CaptureError(f"an element of something that is no tuple is taken ({source_of(node)})")
            self._env[node] = held[node.args[1]]  # type: ignore[index]
            return
        name = getattr(target, "__name__", str(target))
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            self._region(node, name)
            return
        if not isinstance(target, torch._ops.OpOverload):
            raise CaptureError(
                f"{name} cannot be captured ({source_of(node)}): write it with torch operators on tensors",
                where=source_of(node),
            )
        kind = target._schema.name.split("::")[1]
        if kind in DROPPED:
            return
        inplace = target._schema.is_mutable and kind.endswith("_") and not kind.endswith("__")
        self._normal(node, target, kind[:-1] if inplace else kind, inplace)

    def _region(self, node: Node, name: str) -> None:
        """Inlines the body of no_grad or autocast; no gradient leaves a no_grad body."""
        if name == "wrap_with_set_grad_enabled":
            enabled, body, *operands = node.args
            dtype = self._autocast
        else:
            _, low, on, _, body, *operands = node.args
            enabled = True
            dtype = low if on and isinstance(low, torch.dtype) else (torch.get_autocast_dtype("cpu") if on else None)
        inner = self._env[body] if isinstance(body, Node) else body
        assert isinstance(inner, GraphModule)
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, operand in zip(places, operands, strict=True):
            self._env[place] = self._env[operand] if isinstance(operand, Node) else operand
        before, self._autocast = self._autocast, dtype
        self.walk(inner)
        self._autocast = before
        output = next(n for n in inner.graph.nodes if n.op == "output").args[0]
        results = [
            self._env[n] if isinstance(n, Node) else n
            for n in (output if isinstance(output, (list, tuple)) else [output])
        ]
        if not enabled:
            results = [self._detached(r, node) for r in results]
        self._env[node] = results

    def _detached(self, value: object, node: Node) -> object:
        if isinstance(value, str) and self.needs.get(value):
            spec = self._spec(value)
            return self._emit(
                node, "detach", "aten.detach.default", (Slot(0),), (), [value], [spec], [self._stride[value]]
            )[0]
        return value

    # ------------------------------------------------------------------ one call

    def _normal(self, node: Node, target: torch._ops.OpOverload, kind: str, inplace: bool) -> None:
        """Drops no-ops, takes biases apart, renames in-place results; emits the rest as it is."""
        operands: list[str] = []
        args, kwargs = self._arguments(node, operands)
        results = _tensors(node.meta.get("val"))
        specs = [spec_of(v) for v in results]
        strides = [tuple(int(s) for s in v.stride()) for v in results]
        call = str(target)
        if inplace:
            call = call.replace(f"{kind}_.", f"{kind}.")
        if not inplace and self._is_nothing(kind, args, kwargs, operands, specs):
            self._env[node] = operands[0]
            return
        if kind == "contiguous" and self._stride[operands[0]] == _dense(specs[0].shape) and not kwargs:
            self._env[node] = operands[0]
            return
        if kind in RESHAPES:
            fits = is_view(self._spec(operands[0]).shape, self._stride[operands[0]], specs[0].shape)
            kind, call = ("view" if fits else "reshape"), "aten.reshape.default"
            args, kwargs = (Slot(0), specs[0].shape), ()
        elif kind in ("expand", "expand_as", "broadcast_to"):
            kind, call, operands = "expand", "aten.expand.default", operands[:1]
            args, kwargs = (Slot(0), specs[0].shape), ()
        elif kind in CASTS:
            kind, call, operands = "to", "aten.to.dtype", operands[:1]
            args, kwargs = (Slot(0), f"torch.{specs[0].dtype}"), ()
        elif kind == "batch_norm":
            args, operands = _without_running(args, operands)
        if self._autocast is not None and kind in EXACT:
            operands = [self._cast(node, name, specs[0].dtype) for name in operands]
        names = self._biased(node, kind, call, args, kwargs, operands, specs, strides)
        if names is None:
            names = self._emit(node, kind, call, args, kwargs, operands, specs, strides)
        if inplace:
            names = [self._rewritten(node, operands[0], names[0])]
        value = node.meta.get("val")
        self._env[node] = names if isinstance(value, (list, tuple)) else (names[0] if names else None)

    def _arguments(self, node: Node, operands: list[str]) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
        """Plain arguments; the tensors among them go to `operands`, once per occurrence."""

        def slot(value: object) -> Arg:
            held = self._env[value] if isinstance(value, Node) else value
            if isinstance(held, str) and held in self.tensors:
                operands.append(self._current(held))
                return Slot(len(operands) - 1)
            if isinstance(held, (list, tuple)):
                return tuple(slot(v) for v in held)
            if held is None or isinstance(held, (bool, int, float)):
                return held
            raise CaptureError(f"an argument of type {type(held).__name__} cannot be captured ({source_of(node)})")

        args = tuple(plain(a, slot) for a in node.args)
        kwargs = tuple((k, plain(v, slot)) for k, v in node.kwargs.items() if k not in PLACES)
        return args, kwargs

    def _is_nothing(
        self,
        kind: str,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        operands: list[str],
        specs: list[Spec],
    ) -> bool:
        """The result is operand 0 itself."""
        if not operands or not specs:
            return False
        same = self._spec(operands[0]) == specs[0]
        if kind == "dropout":
            call = Call(kind, args, kwargs, (), ())
            return call.get(1, "p", 0.0) == 0.0 or call.get(2, "train", True) is False
        if kind in CASTS:
            forced = any(value is True for value in (*args[1:], *(v for k, v in kwargs if k == "copy")))
            return same and not forced and not any(k == "memory_format" for k, _ in kwargs)
        if kind in RESHAPES or kind in ("expand", "expand_as", "alias", "lift_fresh", "lift_fresh_copy", "positive"):
            return same
        if kind == "slice":
            return same and Call(kind, args, kwargs, (), ()).integer(4, "step", 1) == 1
        return False

    def _biased(
        self,
        node: Node,
        kind: str,
        call: str,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        operands: list[str],
        specs: list[Spec],
        strides: list[tuple[int, ...]],
    ) -> list[str] | None:
        """A product with a bias as product and add: a bias inside would be added once per part of a cut sum."""
        spec, stride = specs[0] if specs else Spec(()), strides[0] if strides else ()
        look = Call(kind, args, kwargs, (), ())
        if kind in ("addmm", "baddbmm") and look.get(3, "beta", 1) == 1 and look.get(4, "alpha", 1) == 1:
            product = "mm" if kind == "addmm" else "bmm"
            whole = self._emit(
                node, product, f"aten.{product}.default", (Slot(0), Slot(1)), (), operands[1:3], [spec], [stride]
            )
            return self._add(node, whole[0], operands[0], spec, stride)
        if kind == "linear" and isinstance(look.get(2, "bias"), Slot):
            whole = self._emit(node, kind, call, (Slot(0), Slot(1)), (), operands[:2], [spec], [stride])
            return self._add(node, whole[0], operands[2], spec, stride)
        if kind.startswith("conv") and kind[-1] == "d" and isinstance(look.get(2, "bias"), Slot):
            rest = tuple(None if i == 2 else a for i, a in enumerate(args))
            named = tuple((k, v) for k, v in kwargs if k != "bias")
            whole = self._emit(node, kind, call, rest, named, operands[:2], [spec], [stride])
            bias = self._spec(operands[2])
            rank = int(kind[-2])
            tall = Spec((bias.shape[0], *(1,) * rank), bias.dtype)
            shaped = self._emit(
                node,
                "view",
                "aten.reshape.default",
                (Slot(0), tall.shape),
                (),
                [operands[2]],
                [tall],
                [_dense(tall.shape)],
            )
            return self._add(node, whole[0], shaped[0], spec, stride)
        return None

    def _add(self, node: Node, product: str, bias: str, spec: Spec, stride: tuple[int, ...]) -> list[str]:
        return self._emit(node, "add", "aten.add.Tensor", (Slot(0), Slot(1)), (), [product, bias], [spec], [stride])

    def _cast(self, node: Node, name: str, dtype: str) -> str:
        """Autocast casts operands unseen; here the cast is an op."""
        spec = self._spec(name)
        if spec.dtype == dtype or spec.dtype not in FLOATS:
            return name
        made = Spec(spec.shape, dtype)
        return self._emit(
            node, "to", "aten.to.dtype", (Slot(0), f"torch.{dtype}"), (), [name], [made], [self._stride[name]]
        )[0]

    # ------------------------------------------------------------------ in-place ops

    def _current(self, name: str) -> str:
        """The newest version of a tensor that was written in place."""
        while name in self._newest:
            name = self._newest[name]
        if name in self._stale:
            raise CaptureError(
                f"{name} is a view of a tensor that is written in place at {self._stale[name]} and is read again "
                "afterwards: write out of place there (x = x + y instead of x += y)",
                where=self._stale[name],
            )
        return name

    def _rewritten(self, node: Node, target: str, made: str) -> str:
        """`made` replaces `target` wherever the program reads it from here on; other views of its storage are stale."""
        old, new = self._spec(target), self._spec(made)
        if old.dtype != new.dtype:
            made = self._cast(node, made, old.dtype)
        root = self._root[target]
        for name, own in self._root.items():
            if own == root and name not in (target, made) and name not in self._newest:
                self._stale[name] = source_of(node)
        self._newest[target] = made
        return made

    # ------------------------------------------------------------------ ops

    def _spec(self, name: str) -> Spec:
        tensor = self.tensors[name]
        return Spec(tensor.shape, tensor.dtype)

    def _emit(
        self,
        node: Node,
        kind: str,
        call: str,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        operands: Sequence[str],
        specs: Sequence[Spec],
        strides: Sequence[tuple[int, ...]],
    ) -> list[str]:
        """Appends one op and returns the names of its results."""
        row = kind_of(kind)
        if row is None:
            raise CaptureError(
                f"the operator {kind} is not in the table of op kinds ({source_of(node)}): add a row to graph/kinds",
                where=source_of(node),
            )
        module = module_path(node)
        base = f"{module}/{kind}" if module else kind
        name = base
        while name in self.tensors or name in self._seen:
            self._seen[base] += 1
            name = f"{base}.{self._seen[base] + 1}"
        self._seen[name] += 0
        outputs = [name] if len(specs) == 1 else [f"{name}:{i}" for i in range(len(specs))]
        own_needs = tuple(self.needs[o] for o in operands)
        flows = row.differentiable and any(own_needs)
        key = (kind, args, kwargs, tuple(self._spec(o) for o in operands), tuple(specs), own_needs)
        if key not in self._known:
            request = Call(kind, args, kwargs, key[3], key[4], own_needs)
            self._known[key] = (self._rule(row.rule, request, node), row.flops(request), row.saved(request))
        rule, flops, saved = self._known[key]
        for o, spec, stride in zip(outputs, specs, strides, strict=True):
            self.tensors[o] = Tensor(o, spec.nbytes, spec.shape, spec.dtype)
            self.needs[o] = flows and spec.dtype in FLOATS
            self._stride[o] = stride
            self._root[o] = self._root[operands[0]] if row.alias and operands else o
        keeps = flows and any(self.needs[o] for o in outputs)
        self.ops.append(
            Op(
                name,
                kind,
                tuple(operands),
                tuple(outputs),
                rule,
                flops,
                tuple(dict.fromkeys([*(operands[i] for i in saved.operands), *(outputs[i] for i in saved.results)]))
                if keeps
                else (),
                saved.extra if keeps else 0.0,
                module=module,
                call=call,
                args=args,
                kwargs=kwargs,
                source=source_of(node),
            )
        )
        return outputs

    def _rule(self, build: Any, request: Call, node: Node) -> Rule:
        try:
            rule: Rule = build(request)
        except (IndexError, ValueError, KeyError, ZeroDivisionError) as error:
            raise CaptureError(
                f"{request.kind} at {source_of(node)} with operands {[s.shape for s in request.operands]} has no factor "
                f"rule ({error})",
                where=source_of(node),
            ) from error
        return rule

    def prune(self, outputs: Sequence[str]) -> list[Op]:
        """The ops that lead to `outputs`; purely functional ops have no other effect."""
        wanted = set(outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if any(name in wanted for name in op.outputs):
                wanted.update(op.inputs)
                kept.append(op)
        kept.reverse()
        return [replace(op, saved=tuple(s for s in op.saved)) for op in kept] if len(kept) != len(self.ops) else kept


def _without_running(args: tuple[Arg, ...], operands: list[str]) -> tuple[tuple[Arg, ...], list[str]]:
    """batch_norm in training mode reads no running statistics; without them it writes none."""
    if len(args) > 5 and args[5] is False:
        return args, operands
    kept: list[str] = []
    fresh: list[Arg] = []
    for i, arg in enumerate(args):
        if isinstance(arg, Slot):
            if i in (3, 4):
                fresh.append(None)
                continue
            kept.append(operands[arg.index])
            fresh.append(Slot(len(kept) - 1))
        else:
            fresh.append(arg)
    return tuple(fresh), kept


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def module_path(node: Node) -> str:
    """Path of the nn.Module whose forward made the call; "" for the root."""
    stack: Mapping[str, tuple[str, Any]] | None = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return str(next(reversed(stack.values()))[0]).removeprefix("L['self'].")


def source_of(node: Node) -> str:
    """file:line of the innermost frame of the user's code; of an installed package from the package's folder on."""
    trace = node.meta.get("stack_trace")
    if not trace:
        return ""
    start = trace.rfind('File "')
    if start < 0:
        return ""
    end = trace.find("\n", start)
    file, _, rest = trace[start + 6 : end if end >= 0 else len(trace)].partition('", line ')
    return f"{file.rpartition('site-packages/')[2]}:{rest.split(',')[0]}"
