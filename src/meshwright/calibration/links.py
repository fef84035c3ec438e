"""Collectives between the ranks of this machine: timed in every size of group, all groups at the same time.

The wire between two ranks follows by the cost model's own collectives: the bandwidth, latency and start that explain what
was timed best. Ranks that share a core take turns: what they say together is slower by ranks over cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from ..cluster.model import Mesh
from ..cluster.presets import local
from ..cost import Analytic
from ..cost.base import Collective, Group
from ..cost.constants import family, generation
from ..graph.ir import Floats
from .posterior import Guess, most_likely
from .profile import Measured, with_constants
from .timing import Timing

if TYPE_CHECKING:
    from ..execute.ranks.pool import Pool

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "transfer"]
KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "transfer")
CPU_BYTES = (2**12, 2**16, 2**19, 2**22, 2**24)
GPU_BYTES = (2**12, 2**16, 2**20, 2**24, 2**28)
FAMILY = "cpu"
"""Whose other constants are used: the wire is found with them, whatever it joins."""
FITTED = ("start", "fill", "exchange")
"""Constants of the family that are found with the wire."""
LEAST_FILL = 0.1
"""Guess where a family has none: a share of 0 has no logarithm."""
NOISE = 0.2
"""Of one collective around the model's form, which knows one wire and no kinds."""


@dataclass(frozen=True, slots=True)
class Talk:
    """One collective in every group of `size` neighbouring ranks."""

    kind: Kind
    size: int
    nbytes: int
    """As `CostModel.collective` counts them; of a transfer: of the message."""

    @property
    def name(self) -> str:
        return f"{self.kind} of {self.size} ranks, {self.nbytes} bytes"


@dataclass(frozen=True, slots=True)
class Found:
    bandwidth: float = 0.0
    """Bytes/s one way between two ranks that have a core each; 0: nothing was measured."""
    latency: float = 0.0
    family: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)


def talks(ranks: int, gpu: bool) -> list[Talk]:
    """What is timed between so many ranks."""
    sizes = [n for n in range(2, ranks + 1) if ranks % n == 0]
    found = []
    for kind in KINDS:
        for n in sizes if kind != "transfer" else sizes[:1]:
            found += [Talk(kind, n, b) for b in (GPU_BYTES if gpu else CPU_BYTES)]
    return found


def measure(
    pool: Pool, ranks: int, cores: int, device: str, rounds: int, say: Callable[[str, int, int], None]
) -> Found:
    """Times all talks on the ranks of a pool, and fits the wire."""
    wanted = talks(ranks, device == "cuda")
    say("collectives", 0, rounds)

    def event(rank: int, value: object) -> None:
        if rank == 0 and isinstance(value, int):
            say("collectives", value, rounds)

    timings = pool.run("meshwright.calibration.jobs:collectives", (wanted, rounds), event=event)
    slowest = [max((t[k] for t in timings), key=lambda t: t.seconds) for k in range(len(wanted))]
    return fit(wanted, slowest, ranks, cores if device == "cpu" else ranks)


def fit(wanted: list[Talk], timings: list[Timing], ranks: int, cores: int) -> Found:
    """The wire that explains the timings best, between ranks that have `cores` to share."""
    seconds = np.array([t.seconds for t in timings])
    base, eager = family(FAMILY), generation("eager")
    wire = local(2).levels[0]
    big = max(range(len(wanted)), key=lambda k: wanted[k].nbytes * (wanted[k].kind == "all_reduce"))
    guess = max(wire.bandwidth, wanted[big].nbytes / timings[big].seconds)
    turns = max(1.0, ranks / cores)
    guesses = [
        Guess("bandwidth", guess, 1.0),
        Guess("latency", wire.latency / 4, 1.0),
        Guess("start", base.start / 4, 1.0),
        Guess("fill", max(base.fill, LEAST_FILL), 1.0),
        Guess("exchange", base.exchange, 0.7),
        Guess("transfer", eager.transfer, 0.7),
    ]

    def predict(values: Mapping[str, float]) -> Floats:
        return turns * _seconds(wanted, values, ranks)

    found = most_likely(predict, seconds, guesses, NOISE)
    predicted = predict(found.values)
    measured = {
        talk.name: Measured(t.seconds, t.low, t.high, t.repeats, float(p))
        for talk, t, p in zip(wanted, timings, predicted, strict=True)
    }
    values = found.values
    constants = {"inner": 1.0, **{name: values[name] for name in FITTED}}
    return Found(values["bandwidth"], values["latency"], constants, {"transfer": values["transfer"]}, measured)


def _seconds(wanted: list[Talk], values: Mapping[str, float], ranks: int) -> Floats:
    """By the cost model, each rank on a core of its own."""
    cluster = local(ranks)
    level = replace(cluster.levels[0], bandwidth=values["bandwidth"], latency=values["latency"])
    cluster = replace(cluster, levels=(level,))
    constants = with_constants(family(FAMILY), {"inner": 1.0, **{name: values[name] for name in FITTED}})
    software = replace(generation("eager"), transfer=values["transfer"])
    cost = Analytic(software=software, families={FAMILY: constants})
    out = []
    for talk in wanted:
        nbytes = np.array([float(talk.nbytes)])
        if talk.kind == "transfer":
            out.append(float(cost.transfer(nbytes, 0, 1, cluster)[0]))
            continue
        mesh = Mesh(range(ranks), ("group", "member"), (ranks // talk.size, talk.size))
        out.append(float(cost.collective(cast(Collective, talk.kind), nbytes, Group(cluster, mesh, ("member",)))[0]))
    return np.array(out)
