"""Fields, types and ranges of problem.toml. Only `request` reads it: pydantic is loaded when a file is."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from .cluster._units import BadQuantity, quantity
from .request import LARGEST, PRECISIONS, Request, tokens_of


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _sayable(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("no name and no path holds a character 0")
        return value


def _counted(value: object) -> object:
    if isinstance(value, str):
        return tokens_of(value)
    if isinstance(value, int | float) and not 1 <= value < inf:
        raise ValueError("must be a number of at least 1")
    return value


Tokens = Annotated[float, BeforeValidator(_counted, json_schema_input_type=Annotated[float, Field(ge=1)] | str)]
"""A number, or a text such as "15T"."""


class ModelTable(_Table):
    name: str | None = None
    config: str | None = None
    code: str | None = None
    recorded: str | None = None
    batch: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    seq: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    precision: str = "bf16"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    attention_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    routing_skew: Annotated[float, Field(ge=1)] = 1.0

    tokens: Tokens | None = None

    @field_validator("precision")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PRECISIONS:
            raise ValueError(f"must be one of {', '.join(PRECISIONS)}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> ModelTable:
        if sum(v is not None for v in (self.name, self.config, self.code, self.recorded)) != 1:
            raise ValueError("give exactly one of name, config, code, recorded")
        return self


class ClusterTable(_Table):
    name: str | None = None
    file: str | None = None
    keep_free: str | None = None
    profile: str | None = None
    price: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ClusterTable:
        if (self.name is None) == (self.file is None):
            raise ValueError("give exactly one of name, file")
        return self

    @field_validator("keep_free")
    @classmethod
    def _bytes(cls, value: str | None) -> str | None:
        if value is not None:
            keep_free_bytes(value)
        return value


class SearchTable(_Table):
    planner: str = "grid"
    budget: str | None = None
    objective: Literal["step", "cost", "memory"] = "step"
    fix: dict[str, Annotated[int, Field(ge=1)]] = {}
    allow: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    set: dict[str, str] = {}
    mesh: str = ""
    annotations: str = ""
    for_: str = Field(default="", alias="for")
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("budget")
    @classmethod
    def _seconds(cls, value: str | None) -> str | None:
        if value is not None:
            budget_seconds(value)
        return value


class ProblemFile(_Table):
    schema_: Literal[1] = Field(alias="schema")
    model: ModelTable
    cluster: ClusterTable
    search: SearchTable = Field(default_factory=SearchTable)

    def request(self, folder: Path) -> Request:
        """With paths made relative to where the command runs."""
        model = self.model.name or _beside(folder, self.model.config or self.model.code or self.model.recorded or "")
        cluster = self.cluster.name or _beside(folder, self.cluster.file or "")
        profile = self.cluster.profile or ""
        profile = _beside(folder, profile) if profile.endswith(".toml") else profile
        planner = _beside(folder, self.search.planner) if self.search.planner.endswith(".py") else self.search.planner
        return Request(
            model,
            cluster,
            self.model.batch,
            self.model.seq,
            self.model.precision,
            self.model.optimizer,
            keep_free_bytes(self.cluster.keep_free) if self.cluster.keep_free is not None else None,
            planner,
            budget_seconds(self.search.budget) if self.search.budget is not None else None,
            self.search.objective,
            self.search.fix,
            {k: tuple(v) for k, v in self.search.allow.items()},
            self.search.seed,
            self.model.attention_share,
            self.model.routing_skew,
            profile,
            self.search.set,
            self.search.mesh,
            _beside(folder, self.search.annotations) if self.search.annotations else "",
            self.search.for_,
            self.model.recorded is not None,
            self.model.tokens,
            self.cluster.price,
        )


def fields_of(path: list[str]) -> list[str]:
    """Names that the table at `path` may hold."""
    tables: dict[str, type[BaseModel]] = {"model": ModelTable, "cluster": ClusterTable, "search": SearchTable}
    if not path:
        return ["schema", *tables]
    table = tables.get(path[0])
    return [f.alias or name for name, f in table.model_fields.items()] if table and len(path) == 1 else []


def keep_free_bytes(text: str) -> float:
    try:
        return quantity(text, "memory", zero=True)
    except BadQuantity:
        raise ValueError('write "8 GiB" (2^30 bytes) or "8 GB" (10^9 bytes)') from None


def budget_seconds(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h)\s*", text)
    try:
        value = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise ValueError('write "60 s", "5 min" or "1 h"')
    return value


def _beside(folder: Path, word: str) -> str:
    return word if Path(word.partition(":")[0]).is_absolute() else str(folder / word)
