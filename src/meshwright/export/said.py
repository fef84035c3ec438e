"""What a target makes of each word of a plan: written as options, its own default, close to it, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .setup import Setup

Level = Literal["exact", "close", "refused"]
"""exact: same placement, order and communication. close: same maths and memory, other communication or order, priced again
as the target runs it. refused: the target cannot say it."""

WORDS = (
    "model", "devices", "dp", "replicate", "zero", "reshard", "tp", "sequence", "cp", "context", "ep", "whole_experts", "pp", "chunks",
    "stages", "schedule", "micro_batch", "micro_batches", "samples", "recompute", "precision", "optimizer",
)  # fmt: skip
"""All that a plan of layouts says (fields of `layouts.Point` and `Recognised`) and what it was priced in. Every target has an
answer to each; a plan that says more is refused by `layouts.recognise`."""


@dataclass(frozen=True, slots=True)
class Said:
    """The answer to one word."""

    word: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options as they are written; none where the target's default, or what is beside it, says the same."""
    level: Level = "exact"
    why: str = ""
    """Of close and refused: one sentence. Of exact without options: whose default it is, or where the user's code says it."""
    runs_as: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Setup.layout` as the target runs them, where that is close or, when refused, the nearest that it can say."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a target demands of a setup."""

    name: str
    """Short, for tests and the page: "batch splits"."""
    broken: Callable[[Setup], str]
    """What is wrong and what would be right: 'a batch that splits over dp 64 × micro-batch 1: 1,000 does not; use 960 or
    1,024'; "" where it holds. The sentence begins with the target's name and "needs"."""
    unevenly: bool = False
    """Our own runner takes what breaks it, in unequal parts: the sentence ends with that."""
