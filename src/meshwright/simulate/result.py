"""What a simulation says, and the task graph it runs. Units: seconds, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .._views import Viewed
from ..errors import Unsupported
from ..graph.ir import Floats, Ints

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "loss", "buffers")


def step_time(seconds: float) -> float:
    """The seconds of a step, of which a rate can be taken.

    Raises:
        Unsupported: none: a profile whose costs are all zero.
    """
    if seconds <= 0:
        raise Unsupported("the step takes no time: every cost that this plan pays is zero")
    return seconds


@dataclass(frozen=True, slots=True, eq=False)
class TaskGraph:
    """Compressed rows: x_ptr[i]:x_ptr[i+1] belong to task i. Ready tasks of a resource go by (priority, ready time, id)."""

    duration: Floats
    """Until successors may go on."""
    occupancy: Floats
    """Until its resources are free: longer or shorter than the duration."""
    priority: Floats
    resource_ptr: Ints
    resource: Ints
    """Held together; none = contention free."""
    successor_ptr: Ints
    successor: Ints
    memory_ptr: Ints
    pool: Ints
    at_start: Floats
    at_end: Floats
    """Bytes added to the pool at the start and at the end of the task."""
    copies: Ints
    """Identical devices this task stands for."""
    origin: Ints
    """What it came from, for reports."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One class of devices that do the same: a pipeline rank with all its replicas and tensor shards."""

    name: str
    """"stage 0", "gpus 0-63"."""
    devices: int
    first_device: int
    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One bar of the timeline."""

    lane: int
    stream: str
    """compute, tp, dp, send, recv, optimizer."""
    name: str
    kind: str
    """F, B, I, W, all_gather, …"""
    stage: int
    micro_batch: int
    start: float
    duration: float
    nbytes: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Simulation(Viewed):
    step_seconds: float
    """Asynchronous plans: steady-state period of `samples` samples."""
    samples_per_second: float
    mfu: float
    """Model FLOPs (three forwards; causal attention halved; no recompute) over peak · devices · step."""
    bubble: float
    """Share of the step that the mean lane waits for other stages."""
    exposed_communication: float
    """Seconds of the slowest lane in which only communication runs."""
    lanes: tuple[Lane, ...]
    peak: Floats
    """Bytes per lane."""
    peak_by: tuple[Mapping[str, float], ...]
    """Per lane: category -> bytes at its peak."""
    memory_at: tuple[Floats, ...]
    memory: tuple[Floats, ...]
    """Per lane a step function: times, and bytes[time, category of CATEGORIES]."""
    seconds_by: Mapping[str, float]
    """Of the slowest lane: compute, each exposed collective kind, send, optimizer, bubble, idle: they add up to step_seconds."""
    events: tuple[Event, ...] = ()
    staleness: int = 0
    """Largest version distance seen; 0 = synchronous."""
    priced_by: str = ""
    calls_by: Mapping[str, int] = field(default_factory=dict)
    """Collective kind -> calls of the slowest lane in one step."""
    bytes_by: Mapping[str, float] = field(default_factory=dict)
    lane_seconds: tuple[Mapping[str, float], ...] = ()
    """Per lane, with details: "forward" and "backward" compute, then the keys of `seconds_by`; they add up to the step."""
