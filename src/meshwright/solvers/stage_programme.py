"""Layers into pipeline stages, devices into submeshes, and which goes with which: Alpa's inter-operator programme.

    F(s, i, d; t_max) = min over k ≥ i, submesh of n ≤ d devices, configuration:  t(i, k, submesh, configuration) ≤ t_max
                        and s − 1 ≤ following(i, k, submesh, configuration)   of   t + F(s − 1, k + 1, d − n)
    T = min over t_max of  min over s F(s, 0, D; t_max) + (B − 1) · slowest stage

Source: Zheng et al., "Alpa" (OSDI 2022), section 5.2, equations 5 and 6. Exact, where the authors' program steps over values
of t_max closer than 1e-6 s: F never rises with t_max, so that between two tried values a < b nothing costs less than
F(b) + (B − 1) · (the next value after a), and most values need not be tried. Configurations of one submesh, and submeshes of
equally many devices, are alternatives of which the cheapest that may be followed by s − 1 stages counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np

from ..errors import InputError
from ._stage_kernels import slowest, sums
from .cost_graph import Floats
from .mixed_integer import Ints

Space = Literal["all", "power_of_two", "small_power_of_two"]
SPACES: tuple[Space, ...] = get_args(Space)
"""Of numbers of hosts in a submesh."""


@dataclass(frozen=True, slots=True)
class StageChoice:
    first: int
    stop: int
    """Layers first … stop − 1."""
    mesh: int
    config: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stages:
    """The best stages in order; () with cost inf if layers, devices and memory allow none."""

    cost: float
    stages: tuple[StageChoice, ...]
    tried: int = 0
    """Values of t_max for which the tables were filled."""


def best_stages(
    seconds: Floats,
    following: Ints,
    devices_of: Sequence[int],
    devices: int,
    micro_batches: int,
    *,
    inference: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Stages:
    """Every layer in one stage, every device in one submesh, at the least latency of one step.

    Args:
        seconds: [layers, layers, submeshes, configurations] of one micro-batch, forward and backward, of layers i … k; inf =
            impossible.
        following: same shape: greatest number of stages that may follow such a stage (each keeps one more micro-batch in
            flight); −1 = does not fit at all.
        devices_of: per submesh.
        micro_batches: B.
        inference: no backward and nothing in flight: s · (slowest of s stages) counts instead, the latency of a micro-batch
            through a pipeline in lockstep.
        progress: called with (values of t_max tried, best cost so far).

    Raises:
        InputError: shapes that do not fit, or times that are no numbers of 0 or more.
    """
    _check(seconds, following, devices_of, devices, micro_batches)
    layers = seconds.shape[0]
    work = _Tables(seconds, following, devices_of, min(layers, devices), inference)
    if inference:
        found = slowest(work.price, work.sizes, devices)
        by_count = [s * found[s, 0, devices] for s in range(1, len(found))]
        s = 1 + int(np.argmin(by_count))
        if by_count[s - 1] == inf:
            return Stages(inf, (), 1)
        return Stages(float(by_count[s - 1]), work.path(found, s, devices, inf), 1)
    return _enumerated(work, devices, micro_batches, progress)


def _enumerated(
    work: _Tables, devices: int, micro_batches: int, progress: Callable[[int, float], None] | None
) -> Stages:
    """The best over all t_max, by halving: intervals of values between which nothing can be better are left out."""
    values = np.unique(work.price[np.isfinite(work.price)])
    best, tried = Stages(inf, ()), 0

    def least_sum(t_max: float) -> float:
        nonlocal best, tried
        found = sums(work.price, work.sizes, devices, t_max)
        tried += 1
        totals = found[1:, 0, devices]
        s = 1 + int(np.argmin(totals))
        least = float(totals[s - 1])
        if least < inf:
            stages = work.path(found, s, devices, t_max)
            cost = least + (micro_batches - 1) * max(x.seconds for x in stages)
            if cost < best.cost:
                best = Stages(cost, stages)
        if progress is not None:
            progress(tried, best.cost)
        return least

    if not len(values) or least_sum(values[-1]) == inf:
        return Stages(inf, (), tried)
    open_intervals = [(-1, len(values) - 1, least_sum(values[-1]))]
    while open_intervals:
        a, b, least = open_intervals.pop()
        # Values a < v < b have sums of at least that of b.
        if b - a < 2 or least + (micro_batches - 1) * values[a + 1] >= best.cost:
            continue
        middle = (a + b) // 2
        of_middle = least_sum(values[middle])
        open_intervals.append((middle, b, least))
        if of_middle < inf:
            open_intervals.append((a, middle, of_middle))
    return Stages(best.cost, best.stages, tried)


class _Tables:
    """Per number of following stages and size of a submesh the cheapest alternative of each interval of layers."""

    def __init__(
        self, seconds: Floats, following: Ints, devices_of: Sequence[int], stages: int, inference: bool
    ) -> None:
        self.seconds, self.following, self.devices_of, self.inference = seconds, following, devices_of, inference
        self.sizes = np.unique(np.asarray(devices_of, np.int64))
        layers = seconds.shape[0]
        self.price = np.full((stages, len(self.sizes), layers, layers), inf)
        for after in range(stages):
            allowed = np.where(following >= (0 if inference else after), seconds, inf)
            for m, n in enumerate(self.sizes):
                own = allowed[:, :, np.asarray(devices_of) == n]
                self.price[after, m] = own.reshape(layers, layers, -1).min(axis=2)

    def path(self, found: Floats, s: int, devices: int, most: float) -> tuple[StageChoice, ...]:
        """The stages behind found[s, 0, devices]; of equals the first submesh, the first configuration, the longest stage."""
        stages: list[StageChoice] = []
        i, d = 0, devices
        layers = self.seconds.shape[0]
        while s:
            i, d, s = self._step(found, i, d, s, most, layers, stages)
        return tuple(stages)

    def _step(
        self, found: Floats, i: int, d: int, s: int, most: float, layers: int, stages: list[StageChoice]
    ) -> tuple[int, int, int]:
        for mesh, n in enumerate(self.devices_of):
            if n > d:
                continue
            m = int(np.searchsorted(self.sizes, n))
            for k in range(layers - 1, i - 1, -1):
                own = self.price[s - 1, m, i, k]
                rest = found[s - 1, k + 1, d - n]
                total = max(own, rest) if self.inference else own + rest
                if own > most or own == inf or total != found[s, i, d]:
                    continue
                allowed = np.where(
                    self.following[i, k, mesh] >= (0 if self.inference else s - 1), self.seconds[i, k, mesh], inf
                )
                if allowed.min() != own:
                    continue
                stages.append(StageChoice(i, k + 1, mesh, int(np.argmin(allowed)), float(own)))
                return k + 1, d - n, s - 1
        raise AssertionError("the tables have no stage that their value is made of")


def _check(seconds: Floats, following: Ints, devices_of: Sequence[int], devices: int, micro_batches: int) -> None:
    if seconds.ndim != 4 or seconds.shape[0] != seconds.shape[1] or seconds.shape[2] != len(devices_of):
        raise InputError(
            f"times of stages have the shape {seconds.shape}, wanted (layers, layers, {len(devices_of)} submeshes, configurations)"
        )
    if following.shape != seconds.shape:
        raise InputError(
            f"numbers of following stages have the shape {following.shape}, wanted that of the times, {seconds.shape}"
        )
    if np.isnan(seconds).any() or (seconds < 0).any():
        raise InputError("a time of a stage is below 0 or no number: wanted seconds, or inf where it is impossible")
    if devices < 1 or micro_batches < 1 or min(devices_of, default=0) < 1:
        raise InputError(
            "a submesh has no devices, or there are no devices or micro-batches: wanted at least one of each"
        )


def submeshes(hosts: int, per_host: int, space: Space = "all") -> tuple[tuple[int, int], ...]:
    """Shapes (hosts, devices of each) that any multiset of covers the cluster with, if their devices add up to it.

    (1, 2^p) inside a host, (n, all) over several; a host of another number of devices than a power of two is a submesh, too.
    Source: section 5.1 and its theorem 1; names of the spaces as in the authors' options.

    Args:
        space: "all" numbers of hosts, "power_of_two", or "small_power_of_two" (at most 4 hosts).

    Raises:
        InputError: no such space, or devices of a host that are no power of two.
    """
    if per_host & (per_host - 1):
        raise InputError(
            f"hosts of {per_host} devices cannot be covered by submeshes of 1, 2, 4, … devices: wanted a power of two"
        )
    inside = [(1, 2**p) for p in range(per_host.bit_length())]
    every = range(2, hosts + 1)
    if space not in SPACES:
        raise InputError(f'no space of submeshes "{space}": there are {", ".join(SPACES)}')
    most = 4 if space == "small_power_of_two" else hosts
    over = [n for n in every if space == "all" or (n & (n - 1) == 0 and n <= most)]
    return (*inside, *((n, per_host) for n in over))


def covering(shapes: Sequence[tuple[int, int]]) -> tuple[range, ...]:
    """Devices of each submesh: larger ones first, so that whole hosts come before parts of hosts, each part in one host."""
    found = [range(0)] * len(shapes)
    at = 0
    for s in sorted(range(len(shapes)), key=lambda s: -shapes[s][0] * shapes[s][1]):
        n = shapes[s][0] * shapes[s][1]
        found[s] = range(at, at + n)
        at += n
    return tuple(found)
