"""Kernels compile late, are cached where that is possible, and are not loaded before they are needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meshwright import _jit


def doubled(x):
    return 2 * x.sum()


@pytest.fixture
def fresh_cache():
    _jit._cache_folder.cache_clear()
    yield
    _jit._cache_folder.cache_clear()


def test_the_package_loads_no_compiler_and_no_torch():
    code = "import sys, meshwright.simulate; print([m for m in ('numba', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_one_array_flavour_reaches_the_kernel():
    run = _jit.kernel(np.float64)(doubled)
    flavours = [np.arange(6), np.arange(6, dtype=np.int32), np.arange(12.0)[::2] / 2, np.asfortranarray(np.arange(6.0))]
    locked = np.arange(6.0)
    locked.flags.writeable = False
    assert {run(x) for x in [*flavours, locked]} == {30.0}


def test_a_wrong_number_of_arguments_is_said():
    with pytest.raises(TypeError, match="doubled takes 1 arguments, got 2"):
        _jit.kernel(np.float64)(doubled)(np.ones(1), np.ones(1))


def test_the_users_folder_comes_first_and_is_taken_as_it_is(tmp_path, monkeypatch, fresh_cache):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    assert _jit._cache_folder(Path(_jit.__file__)) == tmp_path / "mine"


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path, monkeypatch, fresh_cache):
    (tmp_path / "package").mkdir()
    source = tmp_path / "package" / "kernels.py"
    source.write_text("x = 1\n")
    (tmp_path / "package" / "__pycache__").write_text("a file, not a folder")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = _jit._cache_folder(source)
    assert found is not None and found.parent == tmp_path / "cache" / "meshwright"
    # Another text of the kernels is another folder: a stale result never comes back.
    source.write_text("x = 2\n")
    _jit._cache_folder.cache_clear()
    assert _jit._cache_folder(source) not in (None, found)


def test_with_no_place_at_all_kernels_still_run(monkeypatch):
    monkeypatch.setattr(_jit, "_cache_folder", lambda source: None)
    assert _jit.kernel(np.float64)(doubled)(np.ones(3)) == 6
