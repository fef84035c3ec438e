"""The shipped text and its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meshwright.errors import InputError
from meshwright.execute.training.data import read_text, tokenised


def test_the_shipped_text_is_a_whole_book() -> None:
    text = read_text()
    assert text.startswith("In the beginning God created the heaven and the earth.")
    assert len(text) > 150_000
    assert text.count("\n\n") == 49  # fifty chapters


def test_tokens_give_the_text_back_when_the_vocabulary_holds_all_characters() -> None:
    text = read_text()[:5000]
    found = tokenised(text, 256)
    assert "".join(found.characters[t] for t in found.tokens.tolist()) == text


def test_a_small_vocabulary_is_never_left() -> None:
    found = tokenised(read_text(), 16)
    assert int(found.tokens.max()) == 15


def test_windows_are_stretches_of_the_text_that_change_with_the_step_only() -> None:
    text = tokenised(read_text(), 64)
    a, b = text.windows(4, 20, 0, 0), text.windows(4, 20, 1, 0)
    assert torch.equal(a, text.windows(4, 20, 0, 0)) and not torch.equal(a, b)
    joined = text.tokens.unfold(0, 21, 1)
    assert all(bool((joined == row).all(1).any()) for row in a)


def test_bad_texts_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the text has 3 characters: a sample needs 9$"):
        tokenised("abc", 8).windows(1, 8, 0, 0)
    with pytest.raises(InputError, match=r"the text is empty"):
        tokenised("", 8)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bad\.txt: not a text in UTF-8 \(byte 0\)$"):
        read_text(bad)
    with pytest.raises(InputError, match=r"none\.txt: No such file or directory$"):
        read_text(tmp_path / "none.txt")
