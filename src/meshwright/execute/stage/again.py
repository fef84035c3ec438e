"""What a segment saves for its backward when its program runs some of its forward again.

forward    a tensor saved by an op that runs again      ──▶ token (unit, number)      nothing is held
           a view of a value that is made again         ──▶ handle (value, strides)   nothing is held
           anything else                                ──▶ itself
backward   the rerun list once, then tokens and handles are exchanged for what it saved and made
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...errors import ExecutionError


@dataclass(frozen=True, slots=True)
class _Token:
    unit: int
    number: int


@dataclass(frozen=True, slots=True)
class Handle:
    """A saved tensor that is made again before it is read: a view of the storage of `value`."""

    value: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(value: str, x: Tensor) -> Handle:
        return Handle(value, tuple(x.shape), x.stride(), int(x.storage_offset()))

    def view(self, values: Mapping[str, Tensor]) -> Tensor:
        return values[self.value].as_strided(self.size, self.stride, self.offset)


_Saved: TypeAlias = "Tensor | _Token | Handle"


class Again:
    """Of one segment and one micro-batch."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], str]] = {}
        self._count: dict[int, int] = {}
        self._saved: dict[_Token, Tensor] = {}
        self._handles: set[str] = set()
        self.values: dict[str, Tensor] = {}
        """Made by the rerun list."""

    def forward(self, unit: int, again: bool) -> AbstractContextManager[None]:
        """While a unit runs forward. `again`: its ops run again."""
        return saved_tensors_hooks((lambda x: self._token(unit)) if again else self._kept, self._unpack)

    def rerun(self, unit: int) -> AbstractContextManager[None]:
        """While a unit runs again: its saved tensors are recorded."""
        self._count[unit] = 0

        def record(x: Tensor) -> _Token:
            token = self._token(unit)
            self._saved[token] = x.detach()
            return token

        return saved_tensors_hooks(record, self._unpack)

    def remade(self, name: str, x: Tensor) -> None:
        """`x` will be made again under this name."""
        if x.numel():
            storage = x.untyped_storage()
            self._storages[storage.data_ptr()] = weakref.ref(storage), name

    def settle(self) -> None:
        """The rerun list has run: drop what nothing asks for."""
        self.values = {n: x for n, x in self.values.items() if n in self._handles}

    def clear(self) -> None:
        self.values, self._saved, self._storages = {}, {}, {}

    def _token(self, unit: int) -> _Token:
        number = self._count.get(unit, 0)
        self._count[unit] = number + 1
        return _Token(unit, number)

    def _kept(self, x: Tensor) -> _Saved:
        found = self._storages.get(x.untyped_storage().data_ptr()) if x.numel() else None
        if found is None or found[0]() is None:  # another storage at the place of one that was freed
            return x
        self._handles.add(found[1])
        return Handle.of(found[1], x)

    def _unpack(self, saved: _Saved) -> Tensor:
        if isinstance(saved, Handle):
            return saved.view(self.values)
        if isinstance(saved, _Token):
            if saved not in self._saved:
                raise ExecutionError("an op that runs again saves less than it saved before: the program is damaged")
            return self._saved.pop(saved)  # an op reads what it saved once
        return saved
