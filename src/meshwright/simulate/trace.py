"""A simulation as a trace for Perfetto or chrome://tracing: JSON, gzipped.

process = lane (pid = its first device)      thread = stream; slices that would overlap get a stream of their own
X  a bar, microseconds                       s, f  an arrow from a send to its receive
C  memory by category, stacked               M  names and order
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..cluster.model import Cluster
from ..errors import InputError
from ..graph.ir import Floats
from .result import CATEGORIES, Event, Lane, Simulation

Entry: TypeAlias = dict[str, object]
STREAMS = ("compute", "tp", "dp", "send", "recv", "optimizer")
MEMORY_POINTS = 4_000
"""Counter samples per lane; beyond it each stretch keeps its lowest and its highest."""


def write_trace(simulation: Simulation, path: Path, *, cluster: Cluster | None = None, title: str = "") -> None:
    """Write `path` (….json.gz), whole or not at all.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as raw:
            try:
                # No name and no time inside: the same simulation gives the same bytes.
                with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as out:
                    for text in _chunks(simulation, cluster, title):
                        out.write(text.encode())
                raw.close()
                os.chmod(raw.name, 0o644)
                os.replace(raw.name, path)
            except BaseException:
                raw.close()
                os.unlink(raw.name)
                raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name a folder that exists and is yours") from error


def trace_entries(simulation: Simulation, cluster: Cluster | None = None) -> Iterator[Entry]:
    """Entries of the trace: metadata, then per lane and thread in ascending time."""
    ids: dict[tuple[str, int], int] = {}
    by_lane: list[list[Event]] = [[] for _ in simulation.lanes]
    for event in simulation.events:
        by_lane[event.lane].append(event)
    for k, lane in enumerate(simulation.lanes):
        pid = lane.first_device
        yield _meta("process_name", pid, 0, name=_process(lane, cluster))
        yield _meta("process_sort_index", pid, 0, sort_index=pid)
        tid = 0
        for stream in STREAMS:
            for row, bars in enumerate(_rows([e for e in by_lane[k] if e.stream == stream])):
                tid += 1
                yield _meta("thread_name", pid, tid, name=stream if not row else f"{stream} {row + 1}")
                yield _meta("thread_sort_index", pid, tid, sort_index=tid)
                for event in bars:
                    yield from _bar(event, pid, tid, ids)
        if k < len(simulation.memory):
            yield from _memory(pid, simulation.memory_at[k], simulation.memory[k])


def _bar(event: Event, pid: int, tid: int, ids: dict[tuple[str, int], int]) -> Iterator[Entry]:
    start = event.start * 1e6
    args: Entry = {"stage": event.stage, "micro-batch": event.micro_batch}
    if event.nbytes:
        args["bytes"] = event.nbytes
    yield {
        "ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": event.duration * 1e6,
        "name": event.name, "cat": event.kind, "args": args,
    }  # fmt: skip
    if event.stream in ("send", "recv"):
        # A send and its receive have one name and one micro-batch; whichever comes first takes the next number.
        number = ids.setdefault((event.name, event.micro_batch), len(ids) + 1)
        flow: Entry = {"pid": pid, "tid": tid, "ts": start, "id": number, "name": "transfer", "cat": "transfer"}
        yield flow | ({"ph": "s"} if event.stream == "send" else {"ph": "f", "bp": "e"})


def _rows(bars: list[Event]) -> list[list[Event]]:
    """Bars in rows in which none overlaps the next: slices of a thread must nest."""
    rows: list[list[Event]] = []
    ends: list[float] = []
    for event in sorted(bars, key=lambda e: (e.start, -e.duration)):
        k = next((k for k, end in enumerate(ends) if event.start >= end - 1e-12), len(rows))
        if k == len(rows):
            rows.append([])
            ends.append(0.0)
        rows[k].append(event)
        ends[k] = event.start + event.duration
    return rows


def _memory(pid: int, times: Floats, table: Floats) -> Iterator[Entry]:
    """GiB by category; of several values at one time the last one holds."""
    for i in _thinned(times, table.sum(axis=1)):
        parts = {name: round(float(x) / 2**30, 4) for name, x in zip(CATEGORIES, table[i], strict=True)}
        yield {"ph": "C", "pid": pid, "tid": 0, "ts": float(times[i]) * 1e6, "name": "memory GiB", "args": parts}


def _thinned(times: Floats, total: Floats) -> list[int]:
    """Indices to show: all, or the lowest and the highest of each stretch."""
    n = len(times)
    if n <= MEMORY_POINTS:
        return list(range(n))
    found = {0, n - 1}
    for part in np.array_split(np.arange(n), MEMORY_POINTS // 2):
        found |= {int(part[np.argmin(total[part])]), int(part[np.argmax(total[part])])}
    return sorted(found)


def _process(lane: Lane, cluster: Cluster | None) -> str:
    """ "gpu 3 · node 0 · stage 1 · stands for 64"."""
    kind = cluster.type_of(lane.first_device).kind if cluster else "device"
    words = [f"{kind} {lane.first_device}"]
    if cluster and cluster.levels:
        words.append(f"node {cluster.component(0, lane.first_device)}")
    words.append(f"stage{'s' * (len(lane.stages) > 1)} {', '.join(map(str, lane.stages))}")
    if lane.devices > 1:
        words.append(f"stands for {lane.devices:,}")
    return " · ".join(words)


def _meta(what: str, pid: int, tid: int, **args: object) -> Entry:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}


def _chunks(simulation: Simulation, cluster: Cluster | None, title: str) -> Iterator[str]:
    other = json.dumps({"title": title, "step_seconds": simulation.step_seconds, "priced_by": simulation.priced_by})
    yield f'{{"displayTimeUnit":"ms","otherData":{other},"traceEvents":['
    before = ""
    for entry in trace_entries(simulation, cluster):
        yield before + json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        before = ",\n"
    yield "]}"
