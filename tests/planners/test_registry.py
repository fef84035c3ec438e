"""Planners by name, by entry point, by file; what is not there says what is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.planners import Planner, load, names, planners, register
from meshwright.planners.gpipe import GPipe

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXAMPLE = ROOT / "examples" / "even_cells.py"


def test_planners_of_ours_are_found_by_name() -> None:
    assert {"gpipe", "grid"} <= set(names())
    assert planners()["gpipe"] is GPipe
    assert isinstance(load("gpipe"), GPipe)


def test_listing_and_naming_planners_loads_neither_torch_nor_their_compiler() -> None:
    code = (
        "import sys, meshwright.planners as p; p.planners(); p.names();"
        "print([m for m in ('torch', 'numba', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_of_its_own_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE / "packages" / "good"))
    assert "replicas" in names() and planners()["replicas"].__module__ == "replicas_planner"
    assert load("replicas").info.family == "data"


def test_a_broken_package_is_skipped_with_a_warning_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE / "packages" / "broken"))
    with pytest.warns(RuntimeWarning) as caught:
        found = planners()
    assert "broken" not in found and "also-broken" not in found and "gpipe" in found
    assert sorted(str(w.message) for w in caught) == [
        'planner plug-in "also-broken" of broken-planner 0.3 is broken and skipped: TypeError: json:dumps is no Planner class with search and objective',
        "planner plug-in \"broken\" of broken-planner 0.3 is broken and skipped: ModuleNotFoundError: No module named 'no_such_module'",
    ]
    with pytest.warns(RuntimeWarning), pytest.raises(InputError) as error:
        load("broken")
    assert str(error.value) == 'planner "broken" of broken-planner 0.3 is broken: mend or remove that package'


def test_an_unknown_name_gives_the_nearest() -> None:
    count = len(names())
    with pytest.raises(InputError) as error:
        load("gpip")
    assert str(error.value) == f'no planner "gpip": did you mean gpipe? ("meshwright planners" lists {count})'
    with pytest.raises(InputError) as error:
        load("something-else")
    assert str(error.value) == f'no planner "something-else" ("meshwright planners" lists {count})'


def test_a_planner_is_loaded_from_its_file() -> None:
    planner = load(str(EXAMPLE))
    assert planner.info.name == "even-cells"
    assert type(load(str(EXAMPLE))) is type(planner)
    assert type(load(f"{EXAMPLE}:EvenCells")) is type(planner)


TWO = """
from meshwright.planners import Planner
from meshwright.planners.gpipe import GPipe
class A(Planner):
    info = GPipe.info
    def search(self, problem, run): ...
    def objective(self, problem, plan): ...
class B(A): ...
"""


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        (None, "", "no file {path}: give the path of a Python file that defines a planner, or a planner's name"),
        ("x = (", "", "{path}:1: '(' was never closed"),
        ("import no_such_thing", "", "{path} cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        (
            "x = 1",
            "",
            "{path} defines no planner: it needs a class of meshwright.planners.Planner with search and objective",
        ),
        (TWO, "", "{path} defines 2 planners, A, B: name one, such as {path}:A"),
        (
            TWO.replace("info = ", "word = "),
            ":A",
            "{path}: A has no info: set info = Info(name=…, …), which says what it takes",
        ),
        (TWO, ":C", '{path} has no planner "C": it defines A, B'),
    ],
)
def test_a_file_without_a_planner_says_what_is_wrong(
    tmp_path: Path, text: str | None, suffix: str, message: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as error:
        load(f"{path}{suffix}")
    assert str(error.value) == message.format(path=path)


def test_an_edited_file_is_loaded_anew(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = TWO.replace("class B(A): ...", "")
    path.write_text(text + "A.mark = 1\n")
    first = load(str(path))
    path.write_text(text + "A.mark = 2\n")
    assert (first.mark, load(str(path)).mark) == (1, 2)  # type: ignore[attr-defined]


def test_a_name_belongs_to_one_planner() -> None:
    class Other(GPipe):
        pass

    with pytest.raises(InputError, match=r'planner name "gpipe" is taken by meshwright\.planners\.gpipe'):
        register(Other)
    assert issubclass(Other, Planner)
