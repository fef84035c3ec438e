"""Text as tokens: the shipped book or the user's file, one token a character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ..ops.randomness import bits, stream


@dataclass(frozen=True, slots=True)
class Text:
    """A text as numbers below `vocabulary`, the most frequent characters first; what is left over shares the last one."""

    tokens: Tensor
    """int64 [characters]."""
    characters: str

    def windows(self, count: int, length: int, step: int, seed: int) -> Tensor:
        """int64 [count, length + 1]: stretches of the text, drawn anew each step, the same in every process.

        Raises:
            InputError: the text is shorter than one stretch.
        """
        room = len(self.tokens) - length
        if room < 1:
            raise InputError(f"the text has {len(self.tokens):,} characters: a sample needs {length + 1:,}")
        starts = bits(stream("windows", seed, step), torch.arange(count)) % room
        return self.tokens[starts.unsqueeze(1) + torch.arange(length + 1)]


def read_text(path: str | Path | None = None) -> str:
    """A file's text, or the shipped book (data/README.md says which)."""
    if path is None:
        return (files("meshwright.execute") / "data" / "genesis.txt").read_text(encoding="utf-8")
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8 (byte {error.start})") from error


def tokenised(text: str, vocabulary: int) -> Text:
    """One token a character. Same text and vocabulary, same numbers."""
    if not text:
        raise InputError("the text is empty: give one with at least a sample's length of characters")
    counts: Mapping[str, int] = Counter(text)
    order = sorted(counts, key=lambda c: (-counts[c], c))
    number = {c: min(k, vocabulary - 1) for k, c in enumerate(order)}
    return Text(torch.tensor([number[c] for c in text], dtype=torch.int64), "".join(order[:vocabulary]))
