"""Part of `make docs`: docs/planners/*.md, a page for each planner of the package.

A page is the docstring of the planner's module, its tags, its settings with their defaults, the cases that its tests assert
(`reference_cases` of tests, read without running them), and what is not there yet (`Info.missing`).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from meshwright.planners import registry
from meshwright.planners.base import Planner
from meshwright.settings import about_parameters, parameters

from .pages import DOCS, ROOT, prose, table, with_table, write

FOLDER, TESTS = DOCS / "planners", ROOT / "tests"
FAMILIES: Mapping[str, str] = {
    "hybrid": "Several kinds of parallelism at once",
    "tensor": "Ops cut over all devices",
    "pipeline": "Stages",
    "placement": "Whole ops on devices",
    "data": "Copies of the model",
}
PUBLISHED = re.compile(
    r"publi|mindspore|reference|paper|original|author|worked|by_hand|every_plan|brute|oracle|independent|enumerat|exhaustive"
)
"""Tests that hold a planner against something other than itself have such a word in their name."""


@dataclass(frozen=True, slots=True)
class Cases:
    planner: str
    what: str
    source: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    file: str


@cache
def cases() -> tuple[Cases, ...]:
    """All that tests declare, in the order of files and lines."""
    return tuple(
        c
        for file in sorted(TESTS.rglob("test_*.py"))
        for c in cases_of(file.read_text(encoding="utf-8"), file.relative_to(TESTS).as_posix())
    )


def cases_of(text: str, file: str) -> Iterator[Cases]:
    """Those of one module; its constants and `range` may stand in rows, and `pytest.param` around one."""
    known: dict[str, Any] = {
        "range": range,
        "pytest": SimpleNamespace(param=lambda *values, **_: values, mark=SimpleNamespace(slow=None)),
    }
    for statement in ast.parse(text).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        call = statement.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "reference_cases":
            planner, what = (_value(a, known) for a in call.args)
            rest = {k.arg: _value(k.value, known) for k in call.keywords}
            yield Cases(planner, what, rest["source"], rest["columns"], rest["rows"], file)
        else:
            try:
                known[statement.targets[0].id] = ast.literal_eval(call)
            except ValueError:
                continue


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "reference_cases", "eval"), {"__builtins__": {}, **known})


def held_tests(name: str) -> Iterator[tuple[str, str]]:
    """(file, claim) of tests that hold a planner against published or independent values."""
    for file in sorted((TESTS / "planners").glob(f"test_{name}*.py")):
        if file.stem != f"test_{name}" and any(file.stem == f"test_{other}" for other in registry.names()):
            continue
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(function, ast.FunctionDef)
                and function.name.startswith("test_")
                and PUBLISHED.search(function.name)
            ):
                yield file.relative_to(TESTS).as_posix(), function.name.removeprefix("test_").replace("_", " ")


def page(kind: type[Planner]) -> str:
    """The page of one planner."""
    info = kind.info
    module = inspect.getmodule(kind)
    assert module is not None and module.__file__ is not None
    source = Path(module.__file__).resolve().relative_to(ROOT).as_posix()
    name = f"test_{Path(source).stem}"
    lines = [
        f"# {info.name}", "",
        f"{_sentence(info.title)} {info.year}, {_reference(info.reference)}. Source: [`{source}`](../../{source}).", "",
        *table(
            ("family", "decides", "handles", "goals", "unit of its objective"),
            [(info.family, _words(info.decides), _words(info.handles) or "–", _words(info.goals), kind.unit or "of the cost model")],
        ), "",
        "```", f"meshwright plan gpt2 --cluster a100x8 --planner {info.name}", f"meshwright planners {info.name}", "```", "",
        "## Method", "", *prose(inspect.cleandoc(module.__doc__ or "")), "",
        "## What is not faithful", "",
    ]  # fmt: skip
    lines += [f"- Not there yet: {part}." for part in info.missing] or [
        "No part of the method is missing; where it differs from its source, the section above says so."
    ]
    lines += ["", "## Settings", ""]
    rows = list(_settings(kind))
    lines += table(("`--set`", "values", "default", "meaning"), rows) if rows else ["None."]
    lines += ["", "## Reference cases", ""]
    own = [c for c in cases() if c.planner == info.name]
    for c in own:
        lines += [f"### {c.what}", "", f"By {c.source}; asserted by [`{c.file}`](../../tests/{c.file}).", ""]
        figures = [k for k in range(len(c.columns)) if all(isinstance(row[k], int | float) for row in c.rows)]
        lines += [*table(c.columns, [[_cell(x) for x in row] for row in c.rows], figures), ""]
    claims = list(held_tests(Path(source).stem))
    if claims:
        lines += ["### What tests hold it against" if own else "What tests hold it against:", ""]
        lines += [f"- {claim} ([`{file}`](../../tests/{file}))" for file, claim in claims] + [""]
    if not own and not claims:
        lines += [
            f"No values of others are known; [`{name}.py`](../../tests/planners/{name}.py) tests it by properties.",
            "",
        ]
    lines += [
        "Every planner also runs the [conformance suite](../../CONTRIBUTING.md#add-a-planner-in-one-file): same seed, same plan; the "
        "memory limit; the budget; never better than brute force on tiny problems.", "",
        "[All planners](README.md)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _sentence(title: str) -> str:
    return title if title.endswith((".", "?", "!")) else f"{title}."


def _reference(text: str) -> str:
    """arXiv numbers and DOIs as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?i)\bdoi[: ]\s*(10\.\S+[^\s.,;)])", r"[doi:\1](https://doi.org/\1)", text)


def _words(tags: frozenset[str]) -> str:
    return ", ".join(sorted(tags))


def _settings(kind: type[Planner]) -> Iterator[tuple[str, str, str, str]]:
    about = about_parameters(kind)
    defaults = inspect.signature(kind).parameters
    for key, of in parameters(kind).items():
        yield f"`{key}`", _type(of), f"`{_default(defaults[key].default)}`", about.get(key, "")


def _default(value: object) -> str:
    return (
        "none"
        if value is None
        else ",".join(map(str, value)) or "()"
        if isinstance(value, tuple)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _type(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("none" if k is NoneType else _type(k) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_type(get_args(kind)[0])}, …"
    names = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    return names.get(kind, "value")


def _cell(value: object) -> str:
    if isinstance(value, bool | str):
        return str(value) or "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,}" if value == round(value) and abs(value) < 1e15 else f"{value:.12g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_cell(v)}" for k, v in value.items()) or "–"
    assert isinstance(value, Sequence)
    inside = [_cell(v) for v in value]
    return f"{inside[0]} × {len(inside)}" if len(inside) > 4 and len(set(inside)) == 1 else ", ".join(inside)


def overview() -> list[str]:
    """Rows of the index, by family."""
    lines: list[str] = []
    ours = own_planners()
    for family, words in FAMILIES.items():
        kinds = [k for k in ours.values() if k.info.family == family]
        if kinds:
            lines += [f"## {words}", ""]
            rows = [
                (
                    f"[{i.name}]({i.name}.md)",
                    i.year,
                    i.title,
                    _words(i.decides),
                    _words(i.handles) or "–",
                    f"{len(i.missing)}" if i.missing else "",
                )
                for i in sorted((k.info for k in kinds), key=lambda i: (i.year, i.name))
            ]
            lines += [*table(("planner", "year", "what", "decides", "handles", "missing parts"), rows, (1,)), ""]
    return lines


def brief() -> list[str]:
    """Rows of the README."""
    rows = [
        (f"[{i.name}](docs/planners/{i.name}.md)", i.family, i.year, i.title, _words(i.decides))
        for i in sorted(
            (k.info for k in own_planners().values()), key=lambda i: (list(FAMILIES).index(i.family), i.year, i.name)
        )
    ]
    return table(("planner", "family", "year", "what", "decides"), rows, (2,))


def own_planners() -> dict[str, type[Planner]]:
    """Of the package itself: plug-ins that happen to be installed have pages of their own elsewhere."""
    return {n: k for n, k in registry.planners().items() if k.__module__.startswith("meshwright.")}


def rebuilt() -> dict[Path, str]:
    """Every file of this part with its text."""
    index = FOLDER / "README.md"
    head = index.read_text(encoding="utf-8") if index.exists() else "<!-- table: planners -->\n<!-- end -->\n"
    readme = ROOT / "README.md"
    return {
        index: with_table(head, "planners", overview()),
        readme: with_table(readme.read_text(encoding="utf-8"), "planners", brief()),
        **{FOLDER / f"{name}.md": page(kind) for name, kind in own_planners().items()},
    }


def main() -> None:
    texts = rebuilt()
    for path, text in texts.items():
        write(path, text)
    for old in set(FOLDER.glob("*.md")) - set(texts):
        old.unlink()
        print(f"removed {old.relative_to(ROOT)}")
