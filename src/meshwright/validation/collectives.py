"""Constants of collectives from published timings of single calls (collectives.csv), and how far they are off.

Fitted for each device family: the share of the nominal link rate that rings reach (`inner`), what a round costs besides
(`fill`), the start of a call (`start`) and the rate of all-to-all (`exchange`). Calls are priced by the cost model itself.

How a profiler timed its calls is fitted with them and thrown away: seconds of the host a call (they synchronise around
each), and seconds a member where the call takes a list of tensors. Lists of all_gather and reduce_scatter are copied from
or to one buffer (torch does), which is added at the device's memory bandwidth.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..cluster import Mesh, presets
from ..cost import Analytic, Group
from ..cost.base import Collective
from ..cost.constants import Family, family
from ..graph.ir import Floats

KINDS: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MACHINES = {
    "A100-SXM": "a100", "A100-SXM (not stated; NVLink node)": "a100", "A100-SXM-40GB": "a100-40", "V100-SXM": "v100",
    "V100-SXM2-32GB": "v100", "L4-24GB": "l4", "A10G-24GB": "a10g",
}  # fmt: skip
"""Accelerator of the table -> preset whose nodes of eight ran the calls."""
PLAIN = frozenset({"vtrain-lut"})
"""Sources that ran nccl-tests: buffers in place, no host between two calls."""
LISTS = frozenset({"all_gather", "reduce_scatter"})
SENTINEL, LARGEST, SMALLEST = 1e5, 1e12, 1e6
"""Seconds and bytes that no call took (sentinels of the profilers); below a megabyte profilers time themselves."""
WIRED = frozenset({4, 8})
"""Group sizes that are held to a figure where pairs are wired: two devices have two links, one or none, by their numbers."""
FITTED = ("inner", "fill", "start", "exchange")
PRIOR = {"inner": 1.0, "fill": 0.7, "start": 0.5, "exchange": 0.3, "host": 1.0, "member": 1.0}
"""Standard deviation of the logarithm around the guess."""
GUESS = {"inner": 0.5, "fill": 0.2, "start": 25e-6, "exchange": 0.8, "host": 20e-6, "member": 5e-6}
NOISE = 0.1
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one kind by one group size of one source. Bytes as `CostModel.collective` counts them; seconds."""

    source: str
    machine: str
    kind: Collective
    ranks: int
    nbytes: Floats
    seconds: Floats

    @property
    def family(self) -> str:
        return presets()[self.machine].device.family


@dataclass(frozen=True, slots=True)
class Fit:
    """What the calls of one family say."""

    values: Mapping[str, float]
    """Field of `Family` -> value."""
    errors: Mapping[tuple[str, Collective, int], float]
    """(source, kind, ranks) -> mean relative error."""


def read_calls(folder: Path) -> list[Calls]:
    """Timed collectives in `folder`/measured/collectives.csv, cleaned as its notes say."""
    found: dict[tuple[str, str, Collective, int], list[tuple[float, float]]] = {}
    with (folder / "measured" / "collectives.csv").open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            kind = next((k for k in KINDS if k == row["op"]), None)
            if kind is None or row["accel"] not in MACHINES or row["nodes"] != "1":
                continue
            ranks, nbytes, seconds = int(row["n_ranks"]), float(row["bytes"]), float(row["time_us"]) * 1e-6
            if seconds > SENTINEL or not SMALLEST <= nbytes < LARGEST:
                continue
            if presets()[MACHINES[row["accel"]]].inside.pair and ranks not in WIRED:
                continue
            if kind == "all_gather":  # these profilers count what one member brings
                nbytes *= ranks
            found.setdefault((row["source"], MACHINES[row["accel"]], kind, ranks), []).append((nbytes, seconds))
    return [Calls(*key, *np.array(sorted(timed)).T) for key, timed in sorted(found.items())]


def fit_calls(calls: Sequence[Calls]) -> Fit:
    """Constants of one family from its calls.

    Raises:
        ValueError: no calls, or of several families.
    """
    names = {c.family for c in calls}
    if len(names) != 1:
        raise ValueError(f"calls of one device family are fitted together, not of {sorted(names)}")
    base = family(names.pop())
    sources = sorted({c.source for c in calls} - PLAIN)
    keys = [*FITTED, *(f"{what} {s}" for s in sources for what in ("host", "member"))]
    guess = np.log([GUESS[k.split()[0]] for k in keys])
    spread = np.array([PRIOR[k.split()[0]] for k in keys])
    weight = np.concatenate([_weights(c.nbytes) for c in calls])
    measured = np.concatenate([c.seconds for c in calls])

    def errors(z: Floats) -> Floats:
        values = dict(zip(keys, np.exp(guess + spread * z), strict=True))
        found: Floats = np.log(np.concatenate([price(c, base, values) for c in calls]) / measured)
        return found

    z = np.zeros(len(keys))
    for _ in range(ROUNDS):
        here = errors(z)
        jacobian = np.stack([(errors(z + 1e-3 * step) - here) / 1e-3 for step in np.eye(len(z))], axis=1)
        scale = weight * np.minimum(1.0, 0.3 / np.maximum(np.abs(here), 1e-9)) / NOISE**2
        normal = jacobian.T @ (scale[:, None] * jacobian) + np.eye(len(z))
        z = z + np.clip(np.linalg.solve(normal, -(jacobian.T @ (scale * here) + z)), -1.0, 1.0)
    values = dict(zip(keys, np.exp(guess + spread * z).tolist(), strict=True))
    off = {(c.source, c.kind, c.ranks): float(np.abs(price(c, base, values) / c.seconds - 1.0).mean()) for c in calls}
    return Fit({k: values[k] for k in FITTED}, off)


def price(calls: Calls, base: Family, values: Mapping[str, float]) -> Floats:
    """Seconds of calls as their profiler would have timed them; `values`: fields of the family, "host SOURCE", "member SOURCE"."""
    constants = replace(
        base,
        inner=min(values["inner"], 1.0),
        fill=values["fill"],
        start=values["start"],
        exchange=min(values["exchange"], 1.0),
    )
    preset = presets()[calls.machine]
    model = Analytic(families={calls.family: constants})
    mesh = Mesh(range(calls.ranks), ("x",), (calls.ranks,))
    found = model.collective(calls.kind, calls.nbytes, Group(preset.cluster(8), mesh, ("x",)))
    if calls.source in PLAIN:
        return found
    found = found + values.get(f"host {calls.source}", 0.0)
    if calls.kind != "all_reduce":
        found = found + calls.ranks * values.get(f"member {calls.source}", 0.0)
    if calls.kind in LISTS:
        found = found + 2.0 * calls.nbytes / (preset.device.bandwidth * constants.memory)
    return found


def _weights(nbytes: Floats) -> Floats:
    """One for each decade of bytes, shared by the calls in it: a profiler that timed many sizes says no more."""
    decade = np.floor(np.log10(nbytes)).astype(int)
    _, place, count = np.unique(decade, return_inverse=True, return_counts=True)
    found: Floats = 1.0 / count[place]
    return found
