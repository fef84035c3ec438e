"""A PyTorch module becomes a Graph: traced on fake tensors at full depth, in normal form, every op with its rule.

    module, kwargs ─ export (fake CPU tensors) ─▶ aten calls ─ emit ─▶ ops in normal form ─ flag samples ─▶ Graph

Normal form: a product and its bias are two ops; in-place ops are written out of place; tied parameters are one tensor;
bags of equal length are look-ups and
a sum; dropout at rate 0, casts to the own dtype and reshapes to the own shape are gone. The shapes of a reshape and an expand
are written out, and a reshape that copies nothing is called "view".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from ..errors import CaptureError, InputError
from ._builder import Builder
from ._export import export_module
from ._values import spec_of
from ._walk import Walker
from .ir import Floats, Graph, Ints, Role, Tensor
from .samples import flag_samples
from .serial import digest_of
from .transformers_hooks import ATTENTION, experts_note


def capture(
    module: torch.nn.Module, kwargs: Mapping[str, object], samples: int, *, loss: str = "loss", train: bool = True
) -> Graph:
    """The forward graph of module(**kwargs), with training derived.

    Args:
        module: on the meta device or a real one; left as it was. Nothing is allocated.
        kwargs: example inputs by keyword, at `samples` samples; tensors of any device, or nests of them.
        samples: the size of the batch dim, at least 2 if factors are to be told apart by it.
        loss: key or attribute of the output that training minimises, unless the output is a tensor.
        train: in training mode; else in evaluation mode, of which only the forward has a meaning.

    Raises:
        CaptureError: an operator without a row in graph/kinds, or no scalar loss in the output.
        InputError: samples below 1.
    """
    if samples < 1:
        raise InputError(f"samples is {samples}: capture needs at least 1 sample")
    refuse_masks(module, kwargs)
    ties = tied_parameters(module)
    program = export_module(module, kwargs, train)
    walker = Walker(Builder())
    inputs = _bring_all(program, module, ties, kwargs, walker)
    walker.walk(program.graph_module)
    spec = program.call_spec.out_spec
    assert spec is not None
    nodes = next(n for n in program.graph_module.graph.nodes if n.op == "output").args[0]
    leaves = list(nodes)
    named = [next(iter(walker.names(leaf)), None) for leaf in leaves]
    outputs = tuple(dict.fromkeys(name for name in named if name is not None))
    found = find_loss(pytree.tree_unflatten(named, spec), walker.builder.tensors, loss)
    graph = _finish(program, walker.builder, samples, inputs, outputs, found, ties, getattr(module, "config", None))
    return replace(graph, running={op: kept for op, kept in walker.running.items() if op in graph.position})


def _finish(
    program: ExportedProgram,
    builder: Builder,
    samples: int,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    loss: str,
    ties: Mapping[str, str],
    config: object,
) -> Graph:
    ops = builder.prune(outputs)
    used = {name for op in ops for name in (*op.inputs, *op.outputs)} | set(inputs) | set(outputs)
    tensors = tuple(t for t in builder.tensors.values() if t.name in used)
    unused = sum(1 for t in builder.tensors.values() if t.role == "param" and t.name not in used)
    notes = [note] if (note := experts_note(getattr(config, "_experts_implementation", None))) else []
    if unused:
        notes.append(f"{unused} parameters take no part in the loss and are left out")
    aliases = {alias: name for alias, name in ties.items() if alias != name and name in used}
    values = {name: value for name, value in _constants(program).items() if name in used}
    graph = Graph(
        flag_samples(ops, tensors, samples),
        tensors,
        samples,
        inputs=inputs,
        outputs=outputs,
        loss=loss,
        aliases=aliases,
        values=values,
        notes=tuple(notes),
    )
    return replace(graph, digest=digest_of(graph))


def refuse_masks(module: torch.nn.Module, kwargs: Mapping[str, object]) -> None:
    """Our attention of transformers models comes without masks: refuses whatever would be lost without a word."""
    config = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) != ATTENTION:
        return
    masks = [name for name, value in kwargs.items() if name.endswith("attention_mask") and value is not None]
    if masks:
        raise CaptureError(
            f"the input {masks[0]} is a padding mask, which captured attention leaves out: pack the sequences without "
            "padding and do not pass it"
        )
    if hasattr(config, "num_attention_heads") and not getattr(module, "_supports_sdpa", True):
        raise CaptureError(
            f"{type(module).__name__} computes attention in a way of its own, which would lose its mask here: build it with "
            'config._attn_implementation = "eager"'
        )


def tied_parameters(module: torch.nn.Module) -> dict[str, str]:
    """Every name of a parameter -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def input_names(kwargs: Mapping[str, object]) -> list[str]:
    """Names of the leaves of the example inputs: the keyword, and "batch.tokens" inside of nests."""
    paths, _ = pytree.tree_flatten_with_path(dict(kwargs))
    return [".".join(_key(part) for part in path) for path, _ in paths]


def _key(part: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)


def _bring_all(
    program: ExportedProgram,
    module: torch.nn.Module,
    ties: Mapping[str, str],
    kwargs: Mapping[str, object],
    walker: Walker,
) -> tuple[str, ...]:
    """Tensors for the placeholders: parameters and buffers under their own names, inputs under their keywords."""
    trainable = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
    taken = {*trainable, *(name for name, _ in module.named_buffers(remove_duplicate=False))}
    labels = iter(input_names(kwargs))
    inputs: list[str] = []
    places = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(places, program.graph_signature.input_specs, strict=True):
        value = node.meta.get("val")
        if spec.kind == InputKind.USER_INPUT:
            label = next(labels)
            if not isinstance(value, torch.Tensor):
                walker.env[node] = value
                continue
            name = f"{label}:input" if label in taken else label
            role: Role = "input"
            needs = False
            inputs.append(name)
        else:
            target = str(spec.target)
            name = ties.get(target, target)
            role = "param" if spec.kind == InputKind.PARAMETER else "buffer"
            needs = trainable.get(target, False) and role == "param"
            if role == "param" and not needs:
                role = "buffer"
        if not isinstance(value, torch.Tensor):
            walker.env[node] = value
            continue
        shape = spec_of(value)
        tensor = Tensor(name, shape.nbytes, shape.shape, shape.dtype, role)
        walker.env[node] = name
        walker.builder.bring(tensor, needs, tuple(int(s) for s in value.stride()))
    return tuple(inputs)


def _constants(program: ExportedProgram) -> dict[str, Ints | Floats]:
    """Tensors that the module made from Python numbers while it was traced: their values matter."""
    found: dict[str, Ints | Floats] = {}
    for name, value in program.constants.items():
        if isinstance(value, torch.Tensor) and not _is_fake(value) and not value.is_meta:
            wide = torch.float64 if value.is_floating_point() else torch.int64
            found[name] = value.detach().to(wide).numpy()
    return found


def _is_fake(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "FakeTensor"


def find_loss(output: object, tensors: Mapping[str, Tensor], loss: str) -> str:
    """The scalar that training minimises: the output, its entry or attribute `loss`, or the first scalar of a tuple."""
    candidate: object = None
    if isinstance(output, str):
        candidate = output
    elif isinstance(output, Mapping) and loss in output:
        candidate = output[loss]
    elif getattr(output, loss, None) is not None:
        candidate = getattr(output, loss)
    elif isinstance(output, (list, tuple)):
        candidate = next((o for o in output if isinstance(o, str) and not tensors[o].shape), None)
    if isinstance(candidate, str) and tensors[candidate].shape in ((), (1,)):
        return candidate
    if isinstance(candidate, str):
        raise CaptureError(
            f"the output {loss!r} has shape {tensors[candidate].shape}: the loss must be one number, such as the mean over "
            "the batch"
        )
    raise CaptureError(
        f"no loss in the output: return a scalar tensor, a tuple that has one, or an output with the entry {loss!r} "
        "(transformers models return it when they are given labels)"
    )


__all__ = ["capture", "find_loss", "input_names", "tied_parameters"]
