"""problem.toml: written, read again, and faulted by line."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.request import Request, line_of, read, to_toml

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-."), min_size=1).filter(
    lambda s: not s.startswith(".")
)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Request,
        model=NAMES, cluster=NAMES, batch=st.none() | st.integers(1, 10**6), seq=st.none() | st.integers(1, 10**6),
        precision=st.sampled_from(["bf16", "fp16", "fp32"]), keep_free=st.none() | st.integers(0, 2**37).map(float),
        budget=st.none() | st.integers(1, 10**4).map(float), fix=st.dictionaries(st.sampled_from(["dp", "tp"]), st.integers(1, 64)),
        allow=st.dictionaries(st.just("recompute"), st.lists(st.sampled_from(["none", "full"]), min_size=1).map(tuple)),
        seed=st.integers(0, 2**31),
    )
)  # fmt: skip
def test_what_is_written_is_read_again(asked: Request) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "problem.toml"
        path.write_text(to_toml(asked))
        assert read(path) == asked


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Request("sub/model.py:build", "sub/cluster.toml")
    folder = tmp_path / "answer"
    folder.mkdir()
    (folder / "problem.toml").write_text(to_toml(asked.seen_from(folder)))
    assert 'code = "../sub/model.py:build"' in (folder / "problem.toml").read_text()
    assert read(folder / "problem.toml").same_problem(asked)


def test_all_faults_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "problem.toml"
    path.write_text(
        'schema = 1\n[model]\nname = "gpt2"\nbath = 64\nprecision = "bf15"\n[cluster]\nname = "h100x8"\nkeep_free = "8"\n'
        '[search]\nbudget = "60"\n'
    )
    with pytest.raises(InputError) as caught:
        read(path)
    assert set(caught.value.message.split("; ")) == {
        'problem.toml:4: no field "bath" in [model]: did you mean "batch"?',
        'problem.toml:5: model.precision = "bf15": must be one of bf16, fp16, fp32',
        'problem.toml:8: cluster.keep_free = "8": write "8 GiB" (2^30 bytes) or "8 GB" (10^9 bytes)',
        'problem.toml:10: search.budget = "60": write "60 s", "5 min" or "1 h"',
    }


def test_a_missing_file_and_a_file_that_is_not_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a problem file is written by every plan"):
        read(tmp_path / "problem.toml")
    (tmp_path / "problem.toml").write_text("schema = \n")
    with pytest.raises(InputError, match=r"problem\.toml: not TOML: Invalid value \(at line 1, column 10\)"):
        read(tmp_path / "problem.toml")


def test_lines_are_found_in_tables_and_inline_tables() -> None:
    text = "schema = 1\n[search]\nseed = 3\nfix = { pp = 1, tp = 0 }\n"
    assert [line_of(text, k) for k in (["schema"], ["search"], ["search", "seed"], ["search", "fix", "tp"])] == [
        1,
        2,
        3,
        4,
    ]
    assert line_of(text, ["nowhere"]) == 0
