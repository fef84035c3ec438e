"""Measured steps of a user's own stack, as a file: TOML in, problems with their plans and seconds out.

schema = 1
software = "modern"                # optional: the generation that is nearest ("eager", "unfused", …)
[common]                           # of every step that does not say otherwise
model = "llama-3.1-8b"
cluster = "h100x64"
batch = 1024                       # samples a step
seq = 8192
[[step]]
dp = 64                            # as on the command line: dp, tp, pp, cp, ep, vpp, zero, micro_batch, recompute, schedule
zero = 2
step_seconds = 15.2
memory = "63 GiB"                  # optional: of the fullest device
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ._spelling import nearest
from ._toml import read_toml
from .answer import by_hand
from .cluster._positions import line_of, positions
from .cluster._units import BadQuantity, quantity
from .cost.constants import software
from .errors import InputError
from .layout_by_hand import LayoutByHand
from .report.layout_words import layout_words
from .request import FAULTS_SHOWN, LARGEST, Request
from .stated import state

if TYPE_CHECKING:
    from .calibration.stack import Step

Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]


def _bytes(text: object) -> float:
    try:
        return quantity(text, "memory")
    except BadQuantity as error:
        raise ValueError(str(error)) from None


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Common(_Row):
    model: str | None = None
    cluster: str | None = None
    batch: Count | None = None
    seq: Count | None = None
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    dp: Count | None = None
    tp: Count | None = None
    pp: Count | None = None
    cp: Count | None = None
    ep: Count | None = None
    vpp: Count | None = None
    zero: Annotated[int, Field(strict=True, ge=0, le=3)] | None = None
    micro_batch: Count | None = None
    recompute: Literal["none", "light", "full"] | None = None
    schedule: str | None = None
    context: Literal["ulysses", "gather"] | None = None


class _Step(_Common):
    step_seconds: Annotated[float, Field(gt=0)]
    memory: Annotated[float, BeforeValidator(_bytes)] | None = None


class _File(_Row):
    schema_: Literal[1] = Field(alias="schema")
    software: str = "modern"
    common: _Common = _Common()
    step: Annotated[list[_Step], Field(min_length=1)]


_LAYOUT = ("dp", "tp", "pp", "cp", "ep", "vpp", "zero", "micro_batch", "recompute", "schedule", "context")
_ASKED = ("batch", "seq", "precision")


@dataclass(frozen=True, slots=True)
class OwnSteps:
    steps: tuple[Step, ...]
    software: str


def read(path: Path, said: Callable[[str, int, int], None] = lambda what, done, total: None) -> OwnSteps:
    """The steps of a file, each with the plan of its layout.

    Raises:
        InputError: no such file, not TOML, faulty fields (all are named, ten at most), or a layout that is not legal.
    """
    parsed = _parsed(path)
    found = []
    for k, row in enumerate(parsed.step):
        said("plans", k, len(parsed.step))
        found.append(_step(path, k, {**_given(parsed.common), **_given(row)}))
    said("plans", len(parsed.step), len(parsed.step))
    return OwnSteps(tuple(found), parsed.software)


def _given(row: _Row) -> dict[str, Any]:
    return row.model_dump(exclude_none=True)


def _step(path: Path, k: int, given: dict[str, Any]) -> Step:
    from .calibration.stack import Step

    where = f"{path.name}: [[step]] number {k + 1}"
    for name in ("model", "cluster"):
        if name not in given:
            raise InputError(f'{where} has no "{name}", and [common] has none either', where=str(path))
    layout = LayoutByHand(**{name: given[name] for name in _LAYOUT if name in given})
    request = Request(given["model"], given["cluster"], **{name: given[name] for name in _ASKED if name in given})
    try:
        stated = state(request)
        outcome = by_hand(stated, layout)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", where=str(path)) from error
    if outcome.plan is None:
        raise InputError(f"{where}: {outcome.reason}", where=str(path))
    name = f"step {k + 1}: {stated.source.name} on {stated.problem.cluster.name}, {layout_words(outcome.plan)}"
    return Step(name, stated.problem, outcome.plan, given["step_seconds"], given.get("memory", 0.0))


def _parsed(path: Path) -> _File:
    text, table = read_toml(path, f"no file {path}: docs/calibrate.md shows one with three steps")
    try:
        parsed = _File.model_validate(table)
    except ValidationError as errors:
        raise InputError(_faults(path.name, text, errors), where=str(path)) from None
    if parsed.software not in software():
        near = nearest(parsed.software, software())
        hint = f'did you mean "{near}"?' if near else f"there are {', '.join(software())}"
        line = line_of(positions(text), ("software",))
        raise InputError(f'{path.name}:{line}: no software generation "{parsed.software}": {hint}', where=str(path))
    return parsed


def _faults(name: str, text: str, errors: ValidationError) -> str:
    lines = positions(text)
    sentences = []
    for fault in errors.errors(include_url=False)[:FAULTS_SHOWN]:
        keys = tuple(k for k in fault["loc"])
        at = f"{name}:{line_of(lines, keys)}: "
        table = "[[step]]" if keys[0] == "step" else f"[{keys[0]}]" if len(keys) > 1 else "the file"
        tables: dict[str, type[_Row]] = {"step": _Step, "common": _Common}
        known = tables.get(str(keys[0]), _File) if len(keys) > 1 else _File
        names = [f.alias or n for n, f in known.model_fields.items()]
        if fault["type"] == "extra_forbidden":
            near = nearest(str(keys[-1]), names)
            hint = f'did you mean "{near}"?' if near else f"it has {', '.join(names)}"
            sentences.append(f'{at}no field "{keys[-1]}" in {table}: {hint}')
        elif fault["type"] == "missing":
            sentences.append(f'{at}{table} has no "{keys[-1]}"')
        else:
            message = fault["msg"].removeprefix("Value error, ").lower()
            value = fault["input"]
            shown = f'"{value}"' if isinstance(value, str) else str(value)
            said = message if message.startswith("= ") else f"= {shown}: {message}"
            sentences.append(f"{at}{keys[-1]} {said}")
    return "; ".join(sentences)
