"""The shapes of what the other commands say with --json, and which command says what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from ..report.answers import (
    CompareAnswer,
    DiffAnswer,
    ImportedAnswer,
    PlanAnswer,
    Real,
    RecordedAnswer,
    RecordedCompareAnswer,
    ReplanAnswer,
    ShardingsAnswer,
)

Verdict: TypeAlias = Literal["ok", "error"]
Done: TypeAlias = Literal["ok"]


class Fault(TypedDict):
    code: str
    message: str
    where: str
    hint: str


class ErrorAnswer(TypedDict):
    """Of every command that ends with exit code 2, 3 or 70 before it has an answer."""

    schema: Literal["meshwright.error/1"]
    status: Literal["error", "infeasible"]
    error: Fault


class Losses(TypedDict):
    one_process: float
    plan: float


class Worst(TypedDict):
    parameter: str
    error: Real
    limit: float


class Counted(TypedDict):
    predicted: int
    ran: int


class VerifyAnswer(TypedDict):
    schema: Literal["meshwright.verify/1"]
    status: Verdict
    equal: bool
    loss: Losses
    gradients: int
    worst: Worst
    collectives: dict[str, Counted]
    problems: list[str]
    scaled: str
    not_verified: list[str]
    seconds: float


class Promise(TypedDict):
    name: str
    passed: bool
    note: str
    fault: str


class CheckAnswer(TypedDict):
    schema: Literal["meshwright.check/1"]
    status: Verdict
    planner: str
    checks: list[Promise]


class NewAnswer(TypedDict):
    schema: Literal["meshwright.new/1"]
    status: Done
    planner: str
    files: dict[str, str]
    next: str


class StepAnswer(TypedDict):
    step: int
    loss: float


class RankAnswer(TypedDict):
    rank: int
    predicted: Real
    measured: Real
    parts_most_in: str


class RunAnswer(TypedDict):
    schema: Literal["meshwright.run/1"]
    status: Done
    ranks: int
    checkpoint: str | None
    weights: str | None
    steps: list[StepAnswer]
    step_s: list[RankAnswer]
    seconds: float


class SlurmFile(TypedDict):
    slurm: str


class SlurmAnswer(TypedDict):
    """Of `run --slurm`, which trains nothing."""

    schema: Literal["meshwright.run/1"]
    status: Done
    files: SlurmFile
    launch: str


class DeviceAnswer(TypedDict):
    name: str
    peak: dict[str, float]
    bandwidth: float
    count: int
    link_bandwidth: float
    link_latency_s: float


class CalibrateAnswer(TypedDict):
    schema: Literal["meshwright.calibrate/1"]
    status: Done
    file: str
    generation: str
    machine: dict[str, Any] | None
    device: DeviceAnswer | None
    family: dict[str, dict[str, Any]]
    software: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, Any]]


class ModelAnswer(TypedDict):
    name: str
    family: str
    parameters: int
    batch: int
    seq: int
    source: str


class ModelsAnswer(TypedDict):
    schema: Literal["meshwright.models/1"]
    status: Done
    models: list[ModelAnswer]


class ClusterAnswer(TypedDict):
    name: str
    device: str
    kind: str
    memory_bytes: float
    node: int
    bandwidth_bytes_per_s: float
    peak_flop_per_s: dict[str, float]
    price_per_hour: Real
    sources: dict[str, str]
    inside: str
    between: str


class ClustersAnswer(TypedDict):
    schema: Literal["meshwright.clusters/1"]
    status: Done
    clusters: list[ClusterAnswer]


class PlannerAnswer(TypedDict):
    name: str
    title: str
    year: int
    reference: str
    family: str
    decides: list[str]
    handles: list[str]
    goals: list[str]
    missing: list[str]
    settings: dict[str, str]
    about_settings: dict[str, str]


class PlannersAnswer(TypedDict):
    schema: Literal["meshwright.planners/1"]
    status: Done
    planners: list[PlannerAnswer]


class ExporterAnswer(TypedDict):
    name: str
    title: str
    versions: list[str]
    installed: str | None
    device_order: list[str]
    takes: str
    source: str
    conditions: list[str]


class ExportersAnswer(TypedDict):
    schema: Literal["meshwright.exporters/1"]
    status: Done
    exporters: list[ExporterAnswer]


class Target(TypedDict):
    name: str
    version: NotRequired[str]
    installed: NotRequired[str | None]


class WordAnswer(TypedDict):
    word: str
    options: dict[str, Any]
    level: str
    why: str


class Price(TypedDict):
    step_s: float
    memory_bytes: float


class ReadBack(TypedDict):
    same: bool
    known_version: bool
    step_s: float


class ExportAnswer(TypedDict):
    schema: Literal["meshwright.export/1"]
    status: Done
    target: Target
    level: str
    sentences: NotRequired[list[str]]
    words: NotRequired[list[WordAnswer]]
    plan: NotRequired[Price]
    as_run: NotRequired[Price]
    folder: NotRequired[str]
    files: dict[str, int]
    """Name -> bytes."""
    check: NotRequired[ReadBack]


class ValidateAnswer(TypedDict):
    schema: Literal["meshwright.validate/2"]
    status: Done
    unit: str
    rows: int
    mape: Real
    median_over_sources: Real
    baseline: Real
    own_baseline: Real
    after_three_rows: Real
    three_rows: list[dict[str, Any]]
    """What is left after three rows of the source, by how many of them were of the row's own stack."""
    sources: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    pairs: dict[str, Any]
    intervals: list[dict[str, Any]]
    share: Real
    memory: list[dict[str, Any]]
    memory_intervals: list[dict[str, Any]]
    out_of_memory: dict[str, Any]
    left_out: dict[str, Any]
    predictions: NotRequired[list[dict[str, Any]]]
    files: NotRequired[dict[str, str]]


class SchemaAnswer(TypedDict):
    schema: Literal["meshwright.schema/1"]
    status: Done
    version: str
    exit_codes: dict[str, str]
    commands: dict[str, dict[str, Any]]
    error: dict[str, Any]
    files: dict[str, dict[str, Any]]


ANSWERS: Mapping[str, tuple[Any, ...]] = {
    "plan": (PlanAnswer, RecordedAnswer),
    "simulate": (PlanAnswer, ImportedAnswer),
    "compare": (CompareAnswer, RecordedCompareAnswer),
    "show": (PlanAnswer, DiffAnswer, ShardingsAnswer),
    "verify": (VerifyAnswer,),
    "run": (RunAnswer, SlurmAnswer),
    "export": (ExportAnswer,),
    "replan": (ReplanAnswer,),
    "check": (CheckAnswer,),
    "new": (NewAnswer,),
    "calibrate": (CalibrateAnswer,),
    "validate": (ValidateAnswer,),
    "planners": (PlannersAnswer,),
    "models": (ModelsAnswer,),
    "clusters": (ClustersAnswer,),
    "exporters": (ExportersAnswer,),
    "schema": (SchemaAnswer,),
}
"""Command -> what its --json may be, besides `ErrorAnswer`."""
