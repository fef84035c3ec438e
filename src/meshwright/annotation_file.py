"""A file of sharding annotations, in TOML or JSON, and a mesh as it is written on the command line.

    schema = 1
    mesh = { x = 2, y = 4 }                  # optional
    [[annotate]]
    tensor = "*.mlp.up_proj.weight"          # a tensor or an op by name, or a pattern
    dims = ["y", "_"]                        # per dim the axes that cut it, major first: "x", "x+y", part "x:(1)2", "_" none
    never = ["x"]                            # axes that may not cut it
    priority = [0, 1]                        # per dim, 0 first

A "?" behind a dim lets propagation add axes there; all other dims stay as they are written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ._parsed import ENCODING, parsed_json
from ._spelling import nearest
from ._toml import read_toml
from ._words import whole_number
from .cluster.model import Cluster, Mesh
from .errors import InputError
from .plan.model import Cut, Layout
from .plan.problem import Annotation

FAULTS_SHOWN = 10


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Annotate(_Table):
    tensor: Annotated[str, Field(min_length=1)]
    dims: list[str] | None = None
    never: list[str] = []
    priority: list[Annotated[int, Field(ge=0)]] = []


class _File(_Table):
    schema_: Literal[1] = Field(alias="schema")
    mesh: dict[str, Annotated[int, Field(ge=1)]] = {}
    annotate: Annotated[list[_Annotate], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a file says."""

    axes: dict[str, int]
    """Of its mesh; none if it names none."""
    annotations: tuple[Annotation, ...]


def read(path: Path) -> Wishes:
    """The annotations of a file.

    Raises:
        InputError: no such file, neither TOML nor JSON, unknown or faulty fields (all of them, ten at most).
    """
    if path.suffix == ".json":
        try:
            table = parsed_json(path.read_text(encoding=ENCODING))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text: {error.reason} at byte {error.start}", where=str(path)) from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: no JSON, {error.msg}", where=str(path)) from error
    else:
        _, table = read_toml(path, f"no file {path}: a file of annotations is written by hand")
    try:
        parsed = _File.model_validate(table)
    except ValidationError as error:
        raise InputError(_faults(path.name, error), where=str(path)) from None
    found = [_annotation(row, f"{path.name}: annotate[{k}]") for k, row in enumerate(parsed.annotate)]
    return Wishes(dict(parsed.mesh), tuple(found))


def _annotation(row: _Annotate, where: str) -> Annotation:
    layout = None
    opened: list[int] = []
    if row.dims is None and not row.never:
        raise InputError(f'{where} says nothing of "{row.tensor}": give dims, or never', where=where)
    if row.dims is not None:
        dims = []
        for d, text in enumerate(row.dims):
            own = text.strip()
            if own.endswith("?"):
                opened.append(d)
                own = own[:-1].strip()
            axes = [] if own in ("", "_") else [axis.strip() for axis in own.split("+")]
            if not text.strip() or "" in axes:
                raise InputError(f'{where}.dims[{d}] = "{text}": write "_", or axes as "x" or "x+y"', where=where)
            dims.append(((0, tuple(map(Cut, axes))),))
        layout = Layout(tuple(dims))
    return Annotation(row.tensor, layout, tuple(opened), tuple(row.never), tuple(row.priority), where=where)


def _faults(name: str, error: ValidationError) -> str:
    sentences = []
    for fault in error.errors(include_url=False)[:FAULTS_SHOWN]:
        at = ""
        for key in fault["loc"]:
            at += f"[{key}]" if isinstance(key, int) else f".{key}" if at else str(key)
        known = list(_Annotate.model_fields) if at.startswith("annotate[") else ["schema", "mesh", "annotate"]
        if fault["type"] == "extra_forbidden":
            near = nearest(str(fault["loc"][-1]), known)
            sentences.append(
                f'no field "{at}": ' + (f'did you mean "{near}"?' if near else f"there are {', '.join(known)}")
            )
        elif fault["type"] == "missing":
            sentences.append(f'no "{at}", which every file of annotations needs')
        else:
            message = fault["msg"].removeprefix("Value error, ")
            sentences.append(f"{at} = {fault['input']!r}: {message[0].lower() + message[1:]}")
    return "; ".join(f"{name}: {sentence}" for sentence in sentences)


def axes_of(text: str) -> dict[str, int]:
    """ "x=2,y=4" -> {"x": 2, "y": 4}.

    Raises:
        InputError: anything else.
    """
    found: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, size = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier() or not (count := whole_number(size)) or name in found:
            raise InputError(f'--mesh {text}: write each axis once with its size, as "x=2,y=4"', where="--mesh")
        found[name] = count
    if not found:
        raise InputError(f'--mesh "{text}" has no axis: write "x=2,y=4"', where="--mesh")
    return found


def mesh_on(cluster: Cluster, axes: dict[str, int]) -> Mesh:
    """The first devices of a cluster, row major.

    Raises:
        InputError: more than it has.
    """
    n = prod(axes.values())
    if n > cluster.count:
        words = " × ".join(f"{a} {k}" for a, k in axes.items())
        raise InputError(f"a mesh of {words} = {n:,} devices, but {cluster.name} has {cluster.count:,}", where="--mesh")
    return Mesh(range(n), tuple(axes), tuple(axes.values()))
