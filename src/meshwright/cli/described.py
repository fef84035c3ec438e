"""All commands, answers and files, described for scripts: taken from the functions, the types and the models themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from ._epilogs import EXAMPLES

EXIT_CODES: Mapping[str, str] = {
    "0": "done",
    "1": "the answer is no: verify differs, check fails, a rank died, --max-error passed",
    "2": "bad input, said in one sentence",
    "3": "infeasible: nothing fits",
    "70": "a bug of ours; the sentence names the file with the traceback",
    "130": "stopped with nothing",
}
_TYPES: Mapping[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string"}
_CHOICES = re.compile(r"[\w.-]+(\|[\w.-]+)+")


def command(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Of one command: its help, arguments, options and examples."""
    hints = get_type_hints(function, include_extras=True)
    arguments, options = [], []
    for parameter in inspect.signature(function).parameters.values():
        kind, info = _split(hints[parameter.name])
        default = parameter.default
        found = _type(kind) | {"help": re.sub(r"  \[default: .*\]$", "", info.help or "")}
        if info.metavar and _CHOICES.fullmatch(info.metavar) and found["type"] == "string":
            found["choices"] = info.metavar.split("|")
        if isinstance(info, ArgumentInfo):
            word = (info.metavar or parameter.name.upper()).strip("[]")
            arguments.append({"name": word, "required": default is parameter.empty, **found})
            continue
        if info.envvar:
            found["environment"] = info.envvar
        if info.metavar and "choices" not in found:
            found["value"] = info.metavar
        said = re.search(r"\[default: (.*)\]$", info.help or "")
        shown = default if default not in (None, parameter.empty, "") else said[1] if said else None
        # Inside Annotated the parser takes the first flag for a default.
        flags = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("-")]
        shown = str(shown) if isinstance(shown, Path) else shown
        options.append({"flags": flags, "required": default is parameter.empty, "default": shown, **found})
    about = inspect.cleandoc(function.__doc__ or "")
    return {"help": about, "arguments": arguments, "options": options, "examples": list(EXAMPLES[name])}


def answers(name: str) -> dict[str, Any]:
    """JSON schemas of what a command says with --json, by the name of their type."""
    from pydantic import TypeAdapter

    from .answers import ANSWERS

    return {kind.__name__: TypeAdapter(kind).json_schema() for kind in ANSWERS[name]}


def error() -> dict[str, Any]:
    """The JSON schema of an error."""
    from pydantic import TypeAdapter

    from .answers import ErrorAnswer

    return TypeAdapter(ErrorAnswer).json_schema()


def files() -> Mapping[str, Callable[[], dict[str, Any]]]:
    """Files that people and we write -> their JSON schema; TOML is described as the object that it holds."""

    def problem() -> dict[str, Any]:
        from .._problem_schema import ProblemFile

        return ProblemFile.model_json_schema()

    def cluster() -> dict[str, Any]:
        from ..cluster.toml import _File

        return _File.model_json_schema()

    def annotations() -> dict[str, Any]:
        from ..annotation_file import _File

        return _File.model_json_schema()

    def steps() -> dict[str, Any]:
        from ..own_steps import _File

        return _File.model_json_schema()

    def plan() -> dict[str, Any]:
        from pydantic import TypeAdapter

        from ..plan.file_types import PlanFile

        return TypeAdapter(PlanFile).json_schema()

    return {
        "problem.toml": problem,
        "cluster.toml": cluster,
        "annotations.toml": annotations,
        "steps.toml": steps,
        "plan.json": plan,
    }


def _split(hint: Any) -> tuple[Any, ArgumentInfo | OptionInfo]:
    """(type, what the parser was told) of a parameter."""
    if get_origin(hint) is Annotated:
        kind, *rest = get_args(hint)
        for info in rest:
            if isinstance(info, ArgumentInfo | OptionInfo):
                return kind, info
    raise AssertionError(f"{hint}: every parameter of a command says how it is written")


def _type(kind: Any) -> dict[str, Any]:
    """{"type", "repeated", "choices"} of a parameter's type."""
    if get_origin(kind) in (Union, UnionType):
        [kind] = [k for k in get_args(kind) if k is not NoneType]
    if get_origin(kind) is list:
        return {**_type(get_args(kind)[0]), "repeated": True}
    if get_origin(kind) is Literal:
        return {"type": "string", "choices": list(get_args(kind))}
    return {"type": _TYPES[kind]}
