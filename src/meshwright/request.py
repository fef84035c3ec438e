"""A problem as a person states it: names and options, readable from and written to problem.toml.

Every plan writes one, so any result can be run again. A path in it is relative to the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._spelling import nearest
from ._toml import read_toml
from .errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError

SCHEMA = 1
PRECISIONS: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
FAULTS_SHOWN = 10
LARGEST = 10**12
"""Samples a step, and tokens a sample, that may be asked for."""
_TIMES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be planned. None = the default, which the answer states."""

    model: str
    """A name of the zoo, a path to a config.json, or "model.py:build"."""
    cluster: str = "local"
    """A name, or a path to a TOML file."""
    batch: int | None = None
    seq: int | None = None
    precision: str = "bf16"
    optimizer: str = "adamw"
    keep_free: float | None = None
    """Bytes held back on every device; None = a tenth of its memory."""
    planner: str = "grid"
    budget: float | None = None
    """Seconds."""
    objective: str = "step"
    fix: Mapping[str, int] = field(default_factory=dict)
    allow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0
    attention_share: float = 1.0
    """Of packed documents that do not see each other: sum of squared lengths over the squared length of the sequence."""
    routing_skew: float = 1.0
    """Tokens of the busiest device of experts over the mean."""
    profile: str = ""
    """Constants of `meshwright calibrate`: a name or a path; "" = the machine's own where the cluster is local."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """KEY=VALUE: parameters of the planner; where the model is a recorded profile, also what overrides its file."""
    mesh: str = ""
    """Axes of the mesh as "x=2,y=4", for planners that are told one."""
    annotations: str = ""
    """A file of sharding annotations, by its path."""
    trainer: str = ""
    """NAME or NAME@VERSION: only what this trainer runs exactly is searched."""
    recorded: bool = False
    """The model is a profile with prices and devices of its own, by its path."""
    tokens: float | None = None
    """To train with the plan: how long and for how much is said of it."""
    price: float | None = None
    """Money for one device and hour; None = what the cluster says."""

    def same_problem(self, other: Request) -> bool:
        """Whether both ask the same question, by whatever search."""
        return self.question() == other.question()

    def question(self) -> tuple[object, ...]:
        """What two requests must share to ask for the same thing."""
        model, cluster = (_absolute(w) if _is_path(w) else w for w in (self.model, self.cluster))
        model = os.path.realpath(self.model) if self.recorded else model
        # Parameters of a planner are no part of the question, but what overrides a profile is.
        overrides = sorted(self.settings.items()) if self.recorded else ()
        data = (self.batch, self.seq, self.attention_share, self.routing_skew, *overrides)
        return (model, cluster, *data, self.precision, self.optimizer, self.keep_free)

    def skews(self) -> tuple[tuple[str, float], ...]:
        """Settings that say how unlike the data's work is, by name; 1 = even."""
        return ("attention_share", self.attention_share), ("routing_skew", self.routing_skew)

    def seen_from(self, folder: Path) -> Request:
        """The same request with paths relative to `folder`, where its problem.toml will lie."""

        def moved(word: str) -> str:
            path, colon, function = word.partition(":")
            return os.path.relpath(path, folder) + colon + function if _is_path(word) else word

        model, cluster, planner, profile = map(moved, (self.model, self.cluster, self.planner, self.profile))
        model = os.path.relpath(self.model, folder) if self.recorded else model
        annotations = os.path.relpath(self.annotations, folder) if self.annotations else ""
        return replace(self, model=model, cluster=cluster, planner=planner, profile=profile, annotations=annotations)


def to_toml(request: Request, comment: str = "") -> str:
    """The file that asks for `request` again."""
    kind = "code" if re.search(r"\.py:\w+$", request.model) else "config" if _is_path(request.model) else "name"
    kind = "recorded" if request.recorded else kind
    file = "file" if _is_path(request.cluster) else "name"
    lines = [f"# {comment}"] if comment else []
    lines += [f"schema = {SCHEMA}", "[model]", f"{kind} = {_quoted(request.model)}"]
    if request.batch is not None:
        lines.append(f"batch = {request.batch}")
    if request.seq is not None:
        lines.append(f"seq = {request.seq}")
    lines += [f"{name} = {value!r}" for name, value in request.skews() if value != 1.0]
    if request.tokens is not None:
        lines.append(f"tokens = {_plain(request.tokens)}")
    lines += [f"precision = {_quoted(request.precision)}", f"optimizer = {_quoted(request.optimizer)}"]
    lines += ["[cluster]", f"{file} = {_quoted(request.cluster)}"]
    if request.keep_free is not None:
        lines.append(f'keep_free = "{request.keep_free / 2**30!r} GiB"')
    if request.price is not None:
        lines.append(f"price = {_plain(request.price)}")
    if request.profile:
        lines.append(f"profile = {_quoted(request.profile)}")
    lines += ["[search]", f"planner = {_quoted(request.planner)}"]
    if request.budget is not None:
        lines.append(f'budget = "{request.budget:g} s"')
    if request.objective != "step":
        lines.append(f"objective = {_quoted(request.objective)}")
    if request.fix:
        lines.append("fix = { " + ", ".join(f"{k} = {v}" for k, v in request.fix.items()) + " }")
    if request.allow:
        listed = (f"{k} = [{', '.join(map(_quoted, v))}]" for k, v in request.allow.items())
        lines.append("allow = { " + ", ".join(listed) + " }")
    for name, text in (("mesh", request.mesh), ("annotations", request.annotations)):
        if text:
            lines.append(f"{name} = {_quoted(text)}")
    if request.trainer:
        lines.append(f"for = {_quoted(request.trainer)}")
    if request.settings:
        said = ", ".join(f"{key} = {_quoted(text)}" for key, text in request.settings.items())
        lines.append(f"set = {{ {said} }}")
    lines.append(f"seed = {request.seed}")
    return "\n".join(lines) + "\n"


def tokens_of(text: str) -> float:
    """ "15e12", "15T" or "300B" as a number of tokens.

    Raises:
        ValueError: says how to write it.
    """
    found = re.fullmatch(r"\s*(\d[\d,_]*(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([kMBT]?)\s*", text)
    value = float(found[1].replace(",", "").replace("_", "")) * _TIMES[found[2]] if found else 0.0
    if not 1 <= value < inf:
        raise ValueError("write a number of tokens, such as 15e12, 15T or 300B")
    return value


def read(path: Path) -> Request:
    """The request in a problem.toml.

    Raises:
        InputError: no such file, not TOML, unknown or faulty fields (all of them, ten at most).
    """
    text, table = read_toml(path, f"no file {path}: a problem file is written by every plan")
    from pydantic import ValidationError

    from ._problem_schema import ProblemFile

    try:
        parsed = ProblemFile.model_validate(table)
    except ValidationError as error:
        raise InputError(_faults(path.name, text, error), where=str(path)) from None
    return parsed.request(path.parent)


def _faults(name: str, text: str, error: ValidationError) -> str:
    from ._problem_schema import fields_of

    sentences = []
    for fault in error.errors(include_url=False)[:FAULTS_SHOWN]:
        keys = [str(k) for k in fault["loc"]]
        line = line_of(text, keys)
        at = f"{name}:{line}: " if line else f"{name}: "
        table = f"[{keys[0]}]" if len(keys) > 1 else "the top level"
        if fault["type"] == "extra_forbidden":
            near = nearest(keys[-1], fields_of(keys[:-1]))
            known = f'did you mean "{near}"?' if near else f"it has {', '.join(fields_of(keys[:-1]))}"
            sentences.append(f'{at}no field "{keys[-1]}" in {table}: {known}')
        elif fault["type"] == "missing":
            sentences.append(f'{name}: no "{keys[-1]}" in {table}, which every problem needs')
        else:
            message = fault["msg"].removeprefix("Value error, ")
            sentences.append(f"{at}{'.'.join(keys)} = {_shown(fault['input'])}: {message[0].lower() + message[1:]}")
    return "; ".join(sentences)


def line_of(text: str, keys: list[str]) -> int:
    """Line (from 1) of the key at the path `keys` in TOML of tables and plain keys; of its nearest parent; or 0."""
    table: list[str] = []
    best, depth = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line)
        if header:
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            here = table
        elif assigned := re.match(r"\s*([\w.\-\"']+)\s*=", line):
            here = [*table, *(part.strip("\"'") for part in assigned[1].split("."))]
        else:
            continue
        if here == keys[: len(here)] and len(here) > depth:
            best, depth = number, len(here)
    return best


def _is_path(word: str) -> bool:
    return "/" in word or word.startswith(".") or bool(re.search(r"\.(toml|json|py)(:\w*)?$", word))


def _absolute(word: str) -> str:
    path, colon, function = word.partition(":")
    return os.path.realpath(path) + colon + function


def _plain(value: float) -> str:
    """A number as TOML has it, whole where it is."""
    return repr(int(value)) if value == int(value) else repr(value)


def _quoted(word: str) -> str:
    return json.dumps(word, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else str(value)
