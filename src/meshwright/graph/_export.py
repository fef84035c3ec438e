"""A module as a torch export program, with nothing allocated: its parameters become fake CPU tensors while it is traced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

VALUE_READS = (".item()", "_local_scalar_dense", ".numpy()", "numpy()")
"""What the message of a failed non-strict export has when only tracing the bytecode can help."""


def export_module(module: torch.nn.Module, kwargs: Mapping[str, object], train: bool = True) -> ExportedProgram:
    """The program of module(**kwargs) in training or evaluation mode. The module is the same before and after.

    Strict tracing takes 3 to 4 times as long and is tried only where the other kind stops at a read of a value.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_state(module, mode), training(module, train), warnings.catch_warnings():
        # Recurrent layers keep a list of their parameters beside the table, which export takes for an assignment.
        warnings.filterwarnings("ignore", message=r"The tensor attributes self\..*_flat_weights")
        example = pytree.tree_map(lambda value: fake(value, mode), dict(kwargs))
        try:
            return torch.export.export(module, (), example, strict=False)
        except Exception as error:
            if not any(mark in str(error) for mark in VALUE_READS):
                raise
            return torch.export.export(module, (), example, strict=True)


def fake(value: object, mode: FakeTensorMode) -> object:
    """A CPU tensor of the same shape, strides and dtype without storage; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")


@contextmanager
def fake_state(module: torch.nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Parameters and buffers replaced by fakes, one fake per tensor so that ties survive; restored at the end."""
    memo: dict[int, torch.Tensor] = {}
    before: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    try:
        for owner in module.modules():
            for table in _tables(owner):
                for name, tensor in list(table.items()):
                    if tensor is None:
                        continue
                    before.append((table, name, tensor))
                    if id(tensor) not in memo:
                        empty: Any = fake(tensor, mode)
                        if isinstance(tensor, torch.nn.Parameter):
                            empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                        memo[id(tensor)] = empty
                    table[name] = memo[id(tensor)]
            _relist(owner)
        yield
    finally:
        for table, name, tensor in before:
            table[name] = tensor
        for owner in module.modules():
            _relist(owner)


def _relist(module: torch.nn.Module) -> None:
    """Recurrent layers keep a list of their parameters beside the table."""
    if isinstance(module, torch.nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _tables(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


@contextmanager
def training(module: torch.nn.Module, train: bool) -> Iterator[None]:
    """The module and all its parts in training or evaluation mode; each as before at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(train)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
