"""What DAPPLE's searches read: states of the layer graph with their sums for one iteration of the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from ..graph.ir import Floats
from ..plan.model import Plan
from ..plan.problem import Problem
from ..solvers.antichains import states_of
from ._placement import Servers
from ._profile import Profile, kept_nodes, profile_of


@dataclass(frozen=True, slots=True)
class Sums:
    """Per state, for the whole batch: seconds and bytes of everything up to it, and bytes that go on after it."""

    profile: Profile
    kept: tuple[int, ...]
    below: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    """[k, j]: is state k part of state j?"""
    forward: Floats
    backward: Floats
    activation: Floats
    params: Floats
    out: Floats

    def __len__(self) -> int:
        return len(self.out)

    @property
    def total(self) -> float:
        """Seconds of one device for the batch."""
        return float(self.forward[-1] + self.backward[-1])

    def work(self, k: int, j: int) -> float:
        """Seconds of the part after state k (−1 = from the beginning) up to state j."""
        return self._part(self.forward, k, j) + self._part(self.backward, k, j)

    def _part(self, values: Floats, k: int, j: int) -> float:
        return float(values[j] - (values[k] if k >= 0 else 0.0))

    def forwards(self, k: int, j: int) -> float:
        return self._part(self.forward, k, j)

    def backwards(self, k: int, j: int) -> float:
        return self._part(self.backward, k, j)

    def weights(self, k: int, j: int) -> float:
        """Bytes of parameters."""
        return self._part(self.params, k, j)

    def stored(self, k: int, j: int) -> float:
        """Bytes of activations."""
        return self._part(self.activation, k, j)

    def ends(self, plan: Plan) -> tuple[int, ...] | None:
        """The state after each stage of a plan; None if a stage ends at none."""
        known = {row.tobytes(): i for i, row in enumerate(self.below)}
        column = {v: c for c, v in enumerate(self.kept)}
        done = np.zeros(len(self.kept), bool)
        found = []
        for nodes in self.profile.parts(plan):
            done[[column[v] for v in nodes if v in column]] = True
            if done.tobytes() not in known:
                return None
            found.append(known[done.tobytes()])
        return tuple(found)


def sums_of(problem: Problem) -> Sums:
    """States as recorded, or all of the graph's."""
    samples = problem.recipe.samples
    profile = profile_of(problem, samples)
    kept = kept_nodes(profile)
    values = problem.graph.values
    if "below" in values:
        below = np.asarray(values["below"], bool)
        out = np.asarray(values["cut_bytes"], np.float64) * (samples / problem.graph.samples)
    else:
        at = {v: i for i, v in enumerate(kept)}
        states = states_of(len(kept), [(at[a], at[b]) for a, b in profile.edges if a in at and b in at], limit=500)
        if states is None:
            raise Unsupported(
                f"dapple cuts chains of layers: this graph of {len(kept)} layers has more than 500 places to cut"
            )
        below = states.below
        out = states.front.astype(np.float64) @ profile.activation[kept]
    inside = below.astype(np.float64)
    return Sums(
        profile, tuple(kept), below, (inside @ (1.0 - inside).T == 0) & ~np.eye(len(below), dtype=bool),
        inside @ profile.forward[kept], inside @ profile.backward[kept], inside @ profile.activation[kept],
        inside @ profile.params[kept], out,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """Stages of a pipeline: the state after each and its devices; `rp` replicas of every slot, M micro-batches."""

    ends: tuple[int, ...]
    devices: tuple[tuple[int, ...], ...]
    rp: int
    twice: bool = True
    """The block counts a cut's bytes twice, forward and back; the two-stage plans of the public code once."""


def micro_batches(samples: int, rp: int, micro: int) -> int:
    """Truncated, as the public code has it, but at least 1 (it scores 0 there)."""
    return samples // rp // micro


def latency(sums: Sums, servers: Servers, plan: Candidate, samples: int, micro: int) -> float:
    """Seconds of an iteration as the public code scores it; inf without a micro-batch.

    A stage before the last is charged the sum of one layer too many, since its end is used inclusively there.
    """
    m = micro_batches(samples, plan.rp, micro)
    if m < 1:
        return float("inf")
    starts = (-1, *plan.ends[:-1])
    block, cuts = 0.0, 0.0
    for i, (k, j) in enumerate(zip(starts, plan.ends)):
        block = max(block, sums.work(k, j) / len(plan.devices[i]))
        if i:
            src, dst, out = plan.devices[i - 1], plan.devices[i], float(sums.out[k])
            block = max(block, servers.transfer(src, dst, (2.0 if plan.twice else 1.0) * out))
            cuts += servers.transfer(src, dst, out / (plan.rp * m))
    block /= m
    last = len(plan.ends) - 1
    tail = 0.0
    for i, (k, j) in enumerate(zip(starts, plan.ends)):
        nbytes = sums.weights(k, j if i == last else min(j + 1, len(sums) - 1))
        tail = max(tail, servers.all_reduce(plan.devices[i], nbytes) - i * block)
    return block * (m - 1) + sums.total / (plan.rp * m) + cuts + tail
