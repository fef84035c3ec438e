"""The shape of plan.json, as types: what `serial` writes and `_read` takes. Numbers in a stage count in the lists above it.

A layout dim is a list of sub-dimensions [size, cut, …], a cut is an axis or {"axis", "weights"}; a range of devices is
"0:64:8"; an action is a text such as "2F3", or [kind, on, micro-batch, span, peer]; two in a list run jointly.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Required, TypeAlias, Union

from typing_extensions import TypedDict

from ..cost.base import Collective
from .model import RecomputeAt

Devices: TypeAlias = Union[str, list[Union[int, str]]]  # noqa: UP007


class CutFile(TypedDict):
    axis: str
    weights: list[int]


OneCut: TypeAlias = Union[str, CutFile]  # noqa: UP007


class MeshFile(TypedDict):
    devices: Devices
    axes: NotRequired[list[str]]
    shape: NotRequired[list[int]]


class LayoutFile(TypedDict):
    dims: list[list[list[int | OneCut]]]
    partial: NotRequired[list[str]]


class ShardingFile(TypedDict):
    cuts: dict[str, list[OneCut]]
    variant: NotRequired[str]
    kept: NotRequired[list[str]]
    backward: NotRequired[dict[str, dict[str, list[OneCut]]]]


class StorageFile(TypedDict, total=False):
    param: int
    grad: int
    state: int
    home: list[int]
    resident: float


class SumStepFile(TypedDict):
    kind: Collective
    axes: list[str]
    at_zero: NotRequired[list[str]]


class SumFile(TypedDict):
    axes: list[str]
    steps: list[SumStepFile]


class StageFile(TypedDict, total=False):
    ops: Required[list[str]]
    mesh: Required[int]
    shardings: int
    layouts: int
    gradients: int
    storage: int
    recompute: int | list[str]
    recompute_at: RecomputeAt
    recompute_blocks: int
    keep_last: int
    offload: list[str]
    deal: str
    pipe: int
    sums: list[SumFile]


class RowFile(TypedDict):
    devices: Devices
    actions: list[Any]


class WeightsFile(TypedDict, total=False):
    flush: bool
    update_every: int
    reads: Literal["newest", "previous", "entry"]
    stash: bool
    sync_every: int
    distance: int


class ScheduleFile(TypedDict):
    name: str
    micro_batches: NotRequired[int]
    args: NotRequired[dict[str, int | float | str]]
    rows: NotRequired[list[RowFile]]
    weights: NotRequired[WeightsFile]


class PlanFile(TypedDict, total=False):
    schema: Required[Literal["meshwright.plan/1"]]
    graph: Required[str]
    samples: Required[int]
    meshes: list[MeshFile]
    layouts: list[LayoutFile]
    shardings: list[ShardingFile]
    storages: list[StorageFile]
    tables: list[dict[str, int]]
    sets: list[list[str]]
    stages: list[StageFile]
    schedule: ScheduleFile
    frozen: list[str]
    cached: list[str]
    inputs: dict[str, list[Any]]
    precision: str
    rewritten: dict[str, Any]
