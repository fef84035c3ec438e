"""From a traced torch graph to normal form: pure ops with slots, biases as ops of their own, no no-ops."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from ..errors import CaptureError
from ._bags import length_of_bags, look_up
from ._builder import Builder, Form, cast_to, dense, reshape_to, source_of
from ._values import PLACES, is_view, plain, spec_of
from ._versions import Versions
from .ir import Arg, Running, Slot
from .kinds import Spec, kind_of
from .saved import FLOATS

DROPPED = frozenset({"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"})
READS = frozenset({"item", "_local_scalar_dense", "is_nonzero"})
RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as"})
EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "half", "bfloat16"})
SAME = frozenset({"alias", "lift_fresh", "lift_fresh_copy", "positive"})
RENAMED = {
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "native_dropout": "dropout",
    "negative": "neg",
    "not_equal": "ne",
    "numpy_T": "t",
    "subtract": "sub",
    "true_divide": "div",
}
"""Other names of the same kind; `Op.call` keeps the own one."""
NEW = {"new_zeros": "zeros", "new_ones": "ones", "new_full": "full", "new_empty": "empty"}
"""They read only the dtype of their operand: capture writes it out."""
FUNCTIONAL = {"aten.normal.default": "aten.normal_functional.default"}
"""In-place operators whose pure twin has another name."""
LOW_PRECISION = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d", "einsum"})
"""Kinds that autocast runs in its own dtype."""


@dataclass
class Walker:
    """Reads nodes in order. `env`: per node the name of a tensor, a list of names, or a constant."""

    builder: Builder
    env: dict[Node, object] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    """Op -> statistics that it renews."""
    versions: Versions = field(init=False)
    _autocast: bool = False

    def __post_init__(self) -> None:
        self.versions = Versions(self.builder)

    def names(self, value: object) -> list[str]:
        """The current names of the tensors that a node (or a nest of nodes) stands for."""
        if isinstance(value, (list, tuple)):
            return [name for v in value for name in self.names(v)]
        if isinstance(value, Node):
            return self.names(self.env[value])
        return [self.versions.current(value)] if self._is_tensor(value) else []  # type: ignore[arg-type]

    def walk(self, owner: GraphModule) -> None:
        """All calls of a graph; `owner` has the bodies that higher-order calls name."""
        for node in owner.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                self.env[node] = getattr(owner, str(node.target), None)

    def _call(self, node: Node) -> None:
        target = node.target
        if target is operator.getitem:
            source, index = node.args
            held = self.env[source] if isinstance(source, Node) else None
            assert isinstance(held, list) and isinstance(index, int)
            self.env[node] = held[index]
            return
        name = getattr(target, "__name__", str(target))
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            self._region(node, name)
        elif isinstance(target, torch._ops.OpOverload):
            self._operator(node, target)
        else:
            raise CaptureError(
                f"{name} at {source_of(node)} cannot be captured: write it with torch operators on tensors",
                where=source_of(node),
            )

    def _region(self, node: Node, name: str) -> None:
        """Inlines the body of no_grad or autocast; no gradient leaves a no_grad body."""
        before = self._autocast
        if name == "wrap_with_set_grad_enabled":
            gradient, body, *operands = node.args
        else:
            _, _, on, _, body, *operands = node.args
            gradient, self._autocast = True, bool(on)
        inner = self.env[body] if isinstance(body, Node) else body
        assert isinstance(inner, GraphModule)
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, operand in zip(places, operands, strict=True):
            self.env[place] = self.env[operand] if isinstance(operand, Node) else operand
        self.walk(inner)
        self._autocast = before
        output = next(n for n in inner.graph.nodes if n.op == "output").args[0]
        nodes = output if isinstance(output, (list, tuple)) else [output]
        results = [self.env[n] if isinstance(n, Node) else n for n in nodes]
        self.env[node] = results if gradient else [self._detached(r, node) for r in results]

    def _detached(self, value: object, node: Node) -> object:
        if isinstance(value, str) and self.builder.needs.get(value):
            name = self.versions.current(value)
            form = Form("detach", "aten.detach.default", (Slot(0),))
            return self._emit(node, form, [name], [self.builder.spec(name)], [self.builder.stride[name]])[0]
        return value

    def _operator(self, node: Node, target: torch._ops.OpOverload) -> None:
        """Drops no-ops, takes biases apart, gives in-place results a new version; emits the rest as it is."""
        kind, call = target._schema.name.split("::")[1], str(target)
        if kind in DROPPED:
            return
        if kind in READS:
            raise CaptureError(
                f"the value of a tensor is read into Python at {source_of(node)}: keep it a tensor, or pass it as a number",
                where=source_of(node),
            )
        inplace = target._schema.is_mutable and kind.endswith("_") and not kind.endswith("__")
        if inplace:
            call = call.replace(f".{kind}.", f".{kind[:-1]}.")
            call = FUNCTIONAL.get(call, call)
            kind = call.split(".")[1]
        operands: list[str] = []
        args, kwargs = self._arguments(node, operands)
        value = node.meta.get("val")
        results = _tensors(value)
        if any(isinstance(n, torch.SymInt) for t in results for n in t.shape):
            raise CaptureError(
                f"the shape of the result of {kind} at {source_of(node)} depends on values: use a form with a fixed shape, "
                "such as torch.where instead of an index by a condition",
                where=source_of(node),
            )
        specs = [spec_of(v) for v in results]
        strides = [tuple(int(s) for s in v.stride()) for v in results]
        form = Form(RENAMED.get(kind, kind), call, args, kwargs)
        if inplace and (kind == "requires_grad" or (kind == "detach" and not self.builder.needs[operands[0]])):
            self.env[node] = operands[0]
            return
        if inplace and kind in ("squeeze", "unsqueeze", "transpose", "t", "swapaxes"):
            raise CaptureError(
                f"{kind}_ at {source_of(node)} changes the shape of a tensor in place: use {kind} instead",
                where=source_of(node),
            )
        if inplace:
            before = self.builder.spec(operands[0])
            made = (
                self._copied(node, operands, before)
                if kind == "copy"
                else self._pure(node, form, operands, specs, strides)
            )
            name = self._cast(node, made[0], before.dtype)
            self.env[node] = self.versions.write(node, operands[0], name)
            return
        if self._is_nothing(form, operands, specs):
            self.env[node] = operands[0]
            return
        if form.kind == "embedding_bag" and (length := length_of_bags(node, self.builder, form, operands)):
            unread = [None] * (len(results) - 1)
            self.env[node] = [*look_up(node, self.builder, operands, length), *unread]
            return
        made = self._pure(node, form, operands, specs, strides)
        self.env[node] = made if isinstance(value, (list, tuple)) else (made[0] if made else None)

    def _arguments(self, node: Node, operands: list[str]) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
        """Plain arguments; the tensors among them go to `operands`, once per occurrence."""

        def slot(value: object) -> Arg:
            held = self.env[value] if isinstance(value, Node) else value
            if self._is_tensor(held):
                operands.append(self.versions.current(str(held)))
                return Slot(len(operands) - 1)
            if isinstance(held, (list, tuple)):
                return tuple(slot(v) for v in held)
            if held is None or isinstance(held, (bool, int, float)):
                return held
            raise CaptureError(f"an argument of type {type(held).__name__} cannot be captured ({source_of(node)})")

        args = tuple(plain(a, slot) for a in node.args)
        kwargs = tuple((k, plain(v, slot)) for k, v in node.kwargs.items() if k not in PLACES)
        return args, kwargs

    def _is_tensor(self, value: object) -> bool:
        return isinstance(value, str) and value in self.builder.tensors

    def _is_nothing(self, form: Form, operands: list[str], specs: list[Spec]) -> bool:
        """The result is operand 0 itself."""
        if not operands or not specs:
            return False
        kind, look = form.kind, form.look()
        same = self.builder.spec(operands[0]) == specs[0]
        if kind == "dropout":
            return look.get(1, "p", 0.0) == 0.0 or look.get(2, "train", True) is False
        if kind == "contiguous":
            return not form.kwargs and self.builder.stride[operands[0]] == dense(specs[0].shape)
        if kind in CASTS:
            copies = True in [a for a in (*form.args[1:], *(v for _, v in form.kwargs)) if isinstance(a, bool)]
            return same and not copies and "memory_format" not in dict(form.kwargs)
        if kind in RESHAPES or kind in EXPANDS or kind in SAME:
            return same
        return kind == "slice" and same and look.integer(4, "step", 1) == 1

    def _pure(
        self, node: Node, form: Form, operands: list[str], specs: list[Spec], strides: list[tuple[int, ...]]
    ) -> list[str]:
        """One call in normal form: written out shapes, casts and biases."""
        kind = form.kind
        if kind in RESHAPES:
            view = is_view(self.builder.spec(operands[0]).shape, self.builder.stride[operands[0]], specs[0].shape)
            form, operands = reshape_to(specs[0].shape, view), operands[:1]
        elif kind in EXPANDS:
            form, operands = Form("expand", "aten.expand.default", (Slot(0), specs[0].shape)), operands[:1]
        elif kind in CASTS:
            form, operands = cast_to(specs[0].dtype), operands[:1]
        elif kind in NEW:
            form, operands = _created(form, specs[0])
        elif kind == "batch_norm":
            return self._normed(node, form, operands, specs, strides)
        if self._autocast and kind in LOW_PRECISION:
            operands = [self._cast(node, name, specs[0].dtype) for name in operands]
        return self._biased(node, form, operands, specs, strides) or self._emit(node, form, operands, specs, strides)

    def _normed(
        self, node: Node, form: Form, operands: list[str], specs: list[Spec], strides: list[tuple[int, ...]]
    ) -> list[str]:
        """A batch norm; one in training mode neither reads nor writes running statistics: they are kept beside the graph."""
        running = self._running(form, operands)
        made = self._emit(node, *_without_running(form, operands), specs, strides)
        if running is not None:
            self.running[self.builder.ops[-1].name] = running
        return made

    def _running(self, form: Form, operands: list[str]) -> Running | None:
        look, tensors = form.look(), self.builder.tensors
        mean, var = look.get(3, "running_mean"), look.get(4, "running_var")
        if look.get(5, "training") is False or not isinstance(mean, Slot) or not isinstance(var, Slot):
            return None
        names = operands[mean.index], operands[var.index]
        if any(tensors[name].role != "buffer" for name in names):
            return None  # made on the way: nobody keeps it
        count = f"{names[0].rpartition('.')[0]}.num_batches_tracked".removeprefix(".")
        return Running(*names, count if count in tensors else "", float(look.get(6, "momentum", 0.1)))  # type: ignore[arg-type]

    def _emit(
        self, node: Node, form: Form, operands: list[str], specs: list[Spec], strides: list[tuple[int, ...]]
    ) -> list[str]:
        made = self.builder.emit(node, form, operands, specs, strides)
        row = kind_of(form.kind)
        if row and row.alias and operands:
            self.versions.viewed(node, form, operands[0], made, specs, strides)
        return made

    def _biased(
        self, node: Node, form: Form, operands: list[str], specs: list[Spec], strides: list[tuple[int, ...]]
    ) -> list[str]:
        """A product with a bias as product and add: a bias inside would be added once per part of a cut sum."""
        kind, look = form.kind, form.look()
        if kind in ("addmm", "baddbmm") and look.get(3, "beta", 1) == 1 and look.get(4, "alpha", 1) == 1:
            product = "mm" if kind == "addmm" else "bmm"
            bare = Form(product, f"aten.{product}.default", (Slot(0), Slot(1)))
            return self._add(node, self._emit(node, bare, operands[1:3], specs, strides), operands[0], specs, strides)
        if not isinstance(look.get(2, "bias"), Slot):
            return []
        if kind == "linear":
            bare = Form(kind, form.call, (Slot(0), Slot(1)))
            return self._add(node, self._emit(node, bare, operands[:2], specs, strides), operands[2], specs, strides)
        if kind.startswith("conv") and kind.endswith("d"):
            args = tuple(None if i == 2 else a for i, a in enumerate(form.args))
            bare = Form(kind, form.call, args, tuple((k, v) for k, v in form.kwargs if k != "bias"))
            whole = self._emit(node, bare, operands[:2], specs, strides)
            bias = self.builder.spec(operands[2])
            tall = Spec((bias.shape[0], *(1,) * int(kind[-2])), bias.dtype)
            shaped = self._emit(node, reshape_to(tall.shape), [operands[2]], [tall], [dense(tall.shape)])
            return self._add(node, whole, shaped[0], specs, strides)
        return []

    def _add(
        self, node: Node, product: list[str], bias: str, specs: list[Spec], strides: list[tuple[int, ...]]
    ) -> list[str]:
        form = Form("add", "aten.add.Tensor", (Slot(0), Slot(1)))
        return self._emit(node, form, [product[0], bias], specs, strides)

    def _cast(self, node: Node, name: str, dtype: str) -> str:
        """Casts that torch makes unseen (autocast, results written in place) as ops."""
        spec = self.builder.spec(name)
        if spec.dtype == dtype or spec.dtype not in FLOATS:
            return name
        return self._emit(node, cast_to(dtype), [name], [Spec(spec.shape, dtype)], [self.builder.stride[name]])[0]

    def _copied(self, node: Node, operands: list[str], target: Spec) -> list[str]:
        """x.copy_(y) leaves y, cast and broadcast, in x."""
        name = operands[1]
        if self.builder.spec(name).dtype != target.dtype:
            spec = Spec(self.builder.spec(name).shape, target.dtype)
            name = self._emit(node, cast_to(target.dtype), [name], [spec], [dense(spec.shape)])[0]
        if self.builder.spec(name).shape != target.shape:
            form = Form("expand", "aten.expand.default", (Slot(0), target.shape))
            name = self.builder.emit(node, form, [name], [target])[0]
        return [name]


def _created(form: Form, spec: Spec) -> tuple[Form, list[str]]:
    """new_full(x, size, value) as full(size, value, dtype of x)."""
    kind = NEW[form.kind]
    value = (form.look().get(2, "fill_value"),) if kind == "full" else ()
    call = f"aten.{kind}.{'memory_format' if kind == 'empty' else 'default'}"
    return Form(kind, call, (spec.shape, *value), (("dtype", f"torch.{spec.dtype}"),)), []


def _without_running(form: Form, operands: list[str]) -> tuple[Form, list[str]]:
    """batch_norm in training mode reads no running statistics; without them it writes none."""
    if form.look().get(5, "training") is False:
        return form, operands
    kept: list[str] = []
    args: list[Arg] = []
    for i, arg in enumerate(form.args):
        if isinstance(arg, Slot) and i not in (3, 4):
            kept.append(operands[arg.index])
            args.append(Slot(len(kept) - 1))
        else:
            args.append(None if isinstance(arg, Slot) else arg)
    return Form(form.kind, form.call, tuple(args), form.kwargs), kept


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []
