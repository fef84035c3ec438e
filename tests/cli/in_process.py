"""What a command that ran in the test's own process gave back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Command(Protocol):
    def __call__(self, *args: str) -> Done: ...
