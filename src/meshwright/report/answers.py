"""The shapes of what `plan`, `simulate`, `compare` and `show` say with --json, as types.

The functions that make these objects return them, so the type checker holds one against the other; `meshwright schema`
makes JSON schemas of them. Units are in the keys. A number that JSON cannot say (nan, infinity) is null.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Optional, TypeAlias

from typing_extensions import TypedDict

Real: TypeAlias = Optional[float]  # noqa: UP045
Plan: TypeAlias = dict[str, Any]
"""As in plan.json."""
Goals = Literal["ok", "stopped", "infeasible"]


class CandidateAnswer(TypedDict):
    layout: str
    micro_batch: int
    micro_batches: int
    recompute: str
    schedule: str
    step_s: Real
    step_low_s: Real
    step_high_s: Real
    items_per_s_per_device: Real
    mfu: Real
    memory_bytes: Real
    memory_low_bytes: Real
    memory_high_bytes: Real
    over_bytes: Real
    fits: bool
    tie_with: int | None


class LaneAnswer(TypedDict):
    name: str
    devices: int
    first_device: int
    stages: list[int]
    peak_bytes: Real
    peak_bytes_by: dict[str, float]


class SimulationAnswer(TypedDict):
    step_s: Real
    samples_per_s: Real
    mfu: Real
    bubble: Real
    exposed_communication_s: Real
    staleness: int
    priced_by: str
    seconds_by: dict[str, float]
    calls_by: dict[str, int]
    bytes_by: dict[str, float]
    lanes: list[LaneAnswer]


class ProblemAnswer(TypedDict):
    model: str
    parameters: float
    cluster: str
    devices: int
    batch: int
    seq: int
    precision: str
    optimizer: str
    defaults: list[str]
    memory_bytes: Real
    usable_bytes: Real
    notes: list[str]
    shapes: dict[str, list[int]]


class ResultAnswer(TypedDict):
    planner: str
    status: str
    reason: str
    evaluations: int
    refused: int
    points: int
    objective: Real
    unit: str
    bound_s: Real
    seed: int
    search_s: float
    hints: list[str]


class BindingAnswer(TypedDict):
    kind: str
    layout: str
    needs_bytes: Real
    over_bytes: Real
    faster_by: Real


class DifferenceAnswer(TypedDict):
    layout: str
    rank: int
    bytes: Real
    step_s: Real
    by_s: dict[str, float]


class WhyAnswer(TypedDict):
    binding: BindingAnswer
    runner_up: DifferenceAnswer | None
    others: list[DifferenceAnswer]
    sentences: list[str]


class ErrorModelAnswer(TypedDict):
    family: str
    kind: str
    share: float
    low: Real
    high: Real
    steps: int
    sources: int
    others: dict[str, str]
    """"step", "memory": whose constants predict it, where they are not those that ship."""
    pairs_within: float
    pairs_source: str
    provenance: str


class TrainingAnswer(TypedDict):
    tokens: float
    steps: int
    days: float
    days_low: Real
    days_high: Real
    device_hours: float
    cost: Real


class SizeAnswer(TypedDict):
    cluster: str
    devices: int
    step_s: Real
    cost_per_item: Real
    reason: str


class PlanAnswer(TypedDict):
    schema: Literal["meshwright.plan/1"]
    status: Goals
    objective: Real
    unit: str
    bound: Real
    problem: ProblemAnswer
    result: ResultAnswer
    details: Any
    plan: Plan | None
    simulation: SimulationAnswer | None
    candidates: list[CandidateAnswer]
    why: WhyAnswer | None
    error_model: ErrorModelAnswer
    training: TrainingAnswer | None
    sizes: list[SizeAnswer]
    files: dict[str, str]
    seconds: float


class ChangeAnswer(TypedDict):
    options: dict[str, dict[str, Any]]
    step_s: Real
    memory_bytes: Real
    fits: bool


class GainsAnswer(TypedDict):
    step_s: Real
    changes: list[ChangeAnswer]


_From = TypedDict("_From", {"from": str})


class ImportedAnswer(PlanAnswer, _From):
    """Of `simulate --from`."""

    trainer: str
    ignored: dict[str, str]
    gains: GainsAnswer


class DeviceMovesAnswer(TypedDict):
    device: int
    kept_bytes: float
    received_bytes: float
    read_bytes: float
    sent_bytes: float


class PieceAnswer(TypedDict):
    tensor: str
    alike: int
    from_device: int | None
    """None: from a checkpoint."""
    to_device: int
    bytes: float


class MovesAnswer(TypedDict):
    """Of training state, from a plan to the one that replaces it."""

    stay: dict[str, int]
    """Device of the old cluster -> its number in the new one."""
    kept_bytes: float
    sent_bytes: float
    read_bytes: float
    send_s: float
    send_low_s: None
    """No move was ever measured, so nothing is known of its error."""
    send_high_s: None
    send_note: str
    """What is to be said of that; "" where nothing is sent."""
    devices: list[DeviceMovesAnswer]
    biggest: list[PieceAnswer]


class RankReadsAnswer(TypedDict):
    rank: int
    bytes: int
    tensors: int
    files: list[str]


class ResumeAnswer(TypedDict):
    """What each rank reads of a checkpoint when it starts from there."""

    checkpoint: str
    ranks: list[RankReadsAnswer]


class ReplanAnswer(_From):
    schema: Literal["meshwright.replan/1"]
    status: Goals
    new: PlanAnswer
    moves: MovesAnswer | None
    resume: ResumeAnswer | None


class ComparedAnswer(TypedDict):
    """One planner of `compare`."""

    planner: str
    family: str
    status: str
    fits: bool
    layout: str | None
    step_s: Real
    step_low_s: Real
    step_high_s: Real
    staleness: int
    to_best: Real
    memory_bytes: Real
    claim: Real
    claim_unit: str
    bound: Real
    search_s: float
    reason: str


class AskedAnswer(TypedDict):
    model: str
    cluster: str
    batch: int
    seq: int


class CompareAnswer(TypedDict):
    schema: Literal["meshwright.compare/1"]
    status: Goals
    problem: AskedAnswer
    seed: int
    budget_s: Real
    planners: list[ComparedAnswer]
    error_model: ErrorModelAnswer | None
    """Of the plans that fit; None = there is none."""
    plans: dict[str, Plan | None]
    files: dict[str, str]


class PlanOfTwo(TypedDict):
    folder: str
    candidate: CandidateAnswer
    simulation: SimulationAnswer | None


class DiffAnswer(TypedDict):
    """Of `show --diff`."""

    schema: Literal["meshwright.diff/1"]
    status: Literal["ok"]
    plans: list[PlanOfTwo]
    gains: NotRequired[GainsAnswer]
    """Where both are layouts that one can be changed into the other."""


class OpAnswer(TypedDict):
    part: str
    op: str
    cut: str
    rests: str
    forward: list[str]
    backward: list[str]


class ShardingsAnswer(TypedDict):
    """Of `show --shardings`: a list of ops for each plan."""

    schema: Literal["meshwright.shardings/1"]
    status: Literal["ok"]
    plans: list[list[OpAnswer]]


class RecordedProblem(TypedDict):
    file: str
    format: str
    nodes: int
    edges: int
    devices: int
    memory_bytes: Real
    bandwidth_bytes_per_s: list[Real]
    samples: int
    settings: dict[str, Any]


class RecordedStage(TypedDict):
    nodes: list[int | str]
    devices: list[int]
    replicas: int
    parts: int
    recompute: list[int | str]
    load: Real


class PlannerOfProfile(TypedDict):
    name: str
    title: str
    parameters: dict[str, Any]


class FrontierPoint(TypedDict):
    memory: Real
    objective: Real
    plan: Plan


class RecordedAnswer(TypedDict):
    """Of `plan` of a recorded profile."""

    schema: Literal["meshwright.recorded/1"]
    status: str
    objective: Real
    unit: str
    bound: Real
    gap: Real
    reason: str
    problem: RecordedProblem
    planner: PlannerOfProfile
    stages: list[RecordedStage]
    details: Any
    plan: Plan | None
    frontier: list[FrontierPoint]
    asynchronous: bool
    staleness: int
    simulation: SimulationAnswer | None
    not_simulated: str
    search_s: float
    evaluations: int
    seed: int
    files: NotRequired[dict[str, str]]


class RecordedRow(TypedDict):
    file: str
    planner: str
    family: str
    status: str
    objective: Real
    unit: str
    bound: Real
    gap: Real
    step_s: Real
    samples_per_s: Real
    memory_bytes: Real
    search_s: float
    asynchronous: bool
    staleness: int
    reason: str
    not_simulated: str
    stages: list[RecordedStage]


class RecordedCompareAnswer(TypedDict):
    """Of `compare` of recorded profiles."""

    schema: Literal["meshwright.compare-recorded/1"]
    status: Goals
    seed: int
    budget_s: Real
    problems: list[RecordedProblem]
    planners: list[RecordedRow]
