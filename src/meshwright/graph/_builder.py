"""Ops in the making: names, rules, FLOPs and kept tensors of one call after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from ..errors import CaptureError
from ._values import is_view
from .ir import Arg, Op, Rule, Slot, Tensor
from .kinds import Call, Saved, Spec, kind_of
from .saved import FLOATS


@dataclass(frozen=True, slots=True)
class Form:
    """How an op is written: its row in the table, the torch operator that runs it, its arguments."""

    kind: str
    call: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...] = ()

    def look(self) -> Call:
        """For reading arguments by name."""
        return Call(self.kind, self.args, self.kwargs, (), ())


def cast_to(dtype: str) -> Form:
    return Form("to", "aten.to.dtype", (Slot(0), f"torch.{dtype}"))


def reshape_to(shape: tuple[int, ...], view: bool = True) -> Form:
    """Always run as a reshape: the parts that a rank holds need not lie as densely as the whole."""
    return Form("view" if view else "reshape", "aten.reshape.default", (Slot(0), shape))


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


@dataclass
class Builder:
    """Appends ops. A tensor is called like the op that makes it; a repeated name gets a number."""

    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    needs: dict[str, bool] = field(default_factory=dict)
    stride: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _seen: Counter[str] = field(default_factory=Counter)
    _known: dict[object, tuple[Rule, float, Saved]] = field(default_factory=dict)

    def bring(self, tensor: Tensor, needs: bool, stride: tuple[int, ...]) -> None:
        """A tensor from outside: input, parameter, buffer or constant."""
        if tensor.name not in self.tensors:
            self.tensors[tensor.name] = tensor
            self.needs[tensor.name] = needs
            self.stride[tensor.name] = stride

    def spec(self, name: str) -> Spec:
        tensor = self.tensors[name]
        return Spec(tensor.shape, tensor.dtype)

    def emit(
        self,
        node: Node,
        form: Form,
        operands: Sequence[str],
        specs: Sequence[Spec],
        strides: Sequence[tuple[int, ...]] = (),
    ) -> list[str]:
        """Appends one op and returns the names of its results. Strides: contiguous unless given."""
        row = kind_of(form.kind)
        if row is None:
            raise CaptureError(
                f"the operator {form.kind} is not in the table of op kinds ({source_of(node)}): add a row to graph/kinds",
                where=source_of(node),
            )
        name = self._name(module_path(node), form.kind)
        outputs = [name] if len(specs) == 1 else [f"{name}:{i}" for i in range(len(specs))]
        needed = tuple(self.needs[o] for o in operands)
        key = (form.kind, form.args, form.kwargs, tuple(self.spec(o) for o in operands), tuple(specs), needed)
        if key not in self._known:
            request = Call(form.kind, form.args, form.kwargs, key[3], key[4], needed)
            self._known[key] = (_rule(row.rule, request, node), row.flops(request), row.saved(request))
        rule, flops, saved = self._known[key]
        flows = row.differentiable and any(needed)
        for o, spec, stride in zip(outputs, specs, strides or [dense(s.shape) for s in specs], strict=True):
            self.tensors[o] = Tensor(o, spec.nbytes, spec.shape, spec.dtype)
            self.needs[o] = flows and spec.dtype in FLOATS
            self.stride[o] = stride
        keeps = any(self.needs[o] for o in outputs)
        names, extra = self._kept(form.kind, saved, operands, outputs) if keeps else ((), 0.0)
        self.ops.append(
            Op(
                name,
                form.kind,
                tuple(operands),
                tuple(outputs),
                rule,
                flops,
                names,
                extra,
                module=module_path(node),
                call=form.call,
                args=form.args,
                kwargs=form.kwargs,
                source=source_of(node),
            )
        )
        return outputs

    def _name(self, module: str, kind: str) -> str:
        base = name = f"{module}/{kind}" if module else kind
        while name in self._seen or name in self.tensors:
            self._seen[base] += 1
            name = f"{base}.{self._seen[base] + 1}"
        self._seen[name] += 0
        return name

    def _kept(
        self, kind: str, saved: Saved, operands: Sequence[str], outputs: Sequence[str]
    ) -> tuple[tuple[str, ...], float]:
        """Names and further bytes. A product folds x[a, b, k] to [a · b, k]: where that copies, the copy is kept."""
        names, extra = [operands[i] for i in saved.operands], saved.extra
        if kind in ("linear", "matmul") and 0 in saved.operands and len(self.tensors[operands[1]].shape) == 2:
            shape = self.tensors[operands[0]].shape
            if len(shape) > 2 and not is_view(shape, self.stride[operands[0]], (_product(shape[:-1]), shape[-1])):
                names.remove(operands[0])
                extra += self.tensors[operands[0]].nbytes
        return tuple(dict.fromkeys([*names, *(outputs[i] for i in saved.results)])), extra

    def prune(self, outputs: Sequence[str]) -> list[Op]:
        """The ops that lead to `outputs`; ops are pure, so the others do nothing."""
        wanted = set(outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if any(name in wanted for name in op.outputs):
                wanted.update(op.inputs)
                kept.append(op)
        kept.reverse()
        return kept


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


def _rule(build: Callable[[Call], Rule], request: Call, node: Node) -> Rule:
    try:
        return build(request)
    except (IndexError, ValueError, KeyError, ZeroDivisionError) as error:
        raise CaptureError(
            f"{request.kind} at {source_of(node)} with operands {[s.shape for s in request.operands]} has no factor rule "
            f"({error})",
            where=source_of(node),
        ) from error


def module_path(node: Node) -> str:
    """Path of the nn.Module whose forward made the call; "" for the root."""
    stack: dict[str, tuple[str, Any]] | None = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return str(stack[next(reversed(stack))][0]).removeprefix("L['self'].")


def source_of(node: Node) -> str:
    """file:line of the innermost frame outside torch; of an installed package from the package's folder on."""
    trace = node.meta.get("stack_trace") or ""
    found, end = "", len(trace)
    while (start := trace.rfind('File "', 0, end)) >= 0:
        file, _, rest = trace[start + 6 : trace.find("\n", start)].partition('", line ')
        place = file.rpartition("site-packages/")[2]
        found = f"{place}:{rest.split(',')[0].strip()}"
        if not place.startswith("torch/"):
            return found
        end = start
    return found
