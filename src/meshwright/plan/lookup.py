"""What a stage says about one op, tensor or parameter: its own entry, else that of its copy in block 0 of its run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ..errors import InputError
from ..graph.ir import Graph, Run
from .model import Layout, OpSharding, Stage, Storage

_SPAN = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True, slots=True)
class Span:
    """Ops first … stop − 1 of a graph that one stage holds: whole blocks of a run that are treated alike, or loose ops."""

    run: Run | None
    first: int
    stop: int
    block: int = 0
    """Number of its first block in the run."""
    count: int = 1
    """Blocks."""

    @property
    def length(self) -> int:
        """Ops of one block."""
        return (self.stop - self.first) // self.count


def span_entry(run: Run, first: int, stop: int) -> str:
    """The entry of `Stage.ops` for blocks first … stop − 1 of a run."""
    return f"{run.name}[{first}:{stop}]"


def entry_range(graph: Graph, entry: str) -> range:
    """Indices of the ops that one entry of `Stage.ops` stands for.

    Raises:
        InputError: neither an op nor blocks of a run of this graph.
    """
    index = graph.position.get(entry)
    if index is not None:
        return range(index, index + 1)
    match = _SPAN.fullmatch(entry)
    if match is None:
        raise InputError(
            f'no op "{entry}" in this graph: entries are op names or blocks of a run such as "layers[0:4]"'
        )
    name, first, stop = match[1], int(match[2]), int(match[3])
    runs = [run for run in graph.runs if run.name == name]
    if len(runs) != 1:
        names = ", ".join(run.name for run in graph.runs) or "none"
        raise InputError(f'"{entry}" names {len(runs)} runs of equal blocks: this graph has {names}')
    run = runs[0]
    if not 0 <= first < stop <= run.count:
        raise InputError(f'"{entry}" is outside of the run: {name} has blocks 0 to {run.count - 1}')
    return range(run.first + first * run.length, run.first + stop * run.length)


def stage_ops(graph: Graph, stage: Stage) -> tuple[int, ...]:
    """Indices of a stage's ops, in the order of `Stage.ops`."""
    return tuple(i for entry in stage.ops for i in entry_range(graph, entry))


def sharding_of(graph: Graph, stage: Stage, op: int) -> OpSharding | None:
    """How op number `op` computes; None = copies everywhere."""
    found = stage.shardings.get(graph.ops[op].name)
    return found if found is not None else stage.shardings.get(graph.ops[graph.representative[op]].name)


def representative_tensor(graph: Graph, tensor: str) -> str:
    """The tensor in the same place of block 0; itself outside of runs and for graph inputs."""
    op = graph.producer.get(tensor)
    if op is None:
        return graph.representative_param.get(tensor, tensor)
    first = graph.representative[op]
    return tensor if first == op else graph.ops[first].outputs[graph.ops[op].outputs.index(tensor)]


def layout_of(graph: Graph, stage: Stage, tensor: str) -> Layout | None:
    """Layout at rest of an activation; None = as produced, with its sums completed."""
    found = stage.layouts.get(tensor)
    return found if found is not None else stage.layouts.get(representative_tensor(graph, tensor))


def gradient_of(graph: Graph, stage: Stage, tensor: str) -> Layout | None:
    """Layout at rest of the gradient of an activation; None = as the activation."""
    found = stage.gradients.get(tensor)
    return found if found is not None else stage.gradients.get(representative_tensor(graph, tensor))


def storage_of(graph: Graph, stage: Stage, param: str) -> Storage | None:
    """Storage of a parameter; None = as its op computes with it."""
    found = stage.storage.get(param)
    return found if found is not None else stage.storage.get(graph.representative_param.get(param, param))


def recomputes(graph: Graph, stage: Stage, op: int) -> bool:
    """Does this op run again before the backward of its block?"""
    named = bool(stage.recompute) and (
        graph.ops[op].name in stage.recompute or graph.ops[graph.representative[op]].name in stage.recompute
    )
    return named and (not stage.recompute_blocks or op in first_blocks(graph, stage))


def first_blocks(graph: Graph, stage: Stage) -> frozenset[int]:
    """Indices of the ops of the stage's first `recompute_blocks` blocks, of whatever runs."""
    found: set[int] = set()
    left = stage.recompute_blocks
    for span in spans(graph, stage):
        if span.run is not None and left > 0:
            found.update(range(span.first, span.first + min(left, span.count) * span.length))
            left -= span.count
    return frozenset(found)


def offloads(graph: Graph, stage: Stage, tensor: str) -> bool:
    """Does this activation wait in host memory between forward and backward?"""
    return bool(stage.offload) and (tensor in stage.offload or representative_tensor(graph, tensor) in stage.offload)


def spans(graph: Graph, stage: Stage) -> tuple[Span, ...]:
    """The stage's ops as maximal spans in program order.

    Whole blocks of a run in a row that no entry singles out share one span; a block with entries of its own is a span of
    one block; ops outside of runs, and parts of blocks, are loose spans.
    """
    special = _special_blocks(graph, stage)
    ranges = _joined(entry_range(graph, entry) for entry in stage.ops)
    found: list[Span] = []
    for piece in ranges:
        at = piece.start
        for r, run in sorted(enumerate(graph.runs), key=lambda pair: pair[1].first):
            end = run.first + run.length * run.count
            first = -(-(max(at, run.first) - run.first) // run.length)
            last = (min(piece.stop, end) - run.first) // run.length
            if first >= last or run.first >= piece.stop:
                continue
            begin = run.first + first * run.length
            if begin > at:
                found.append(Span(None, at, begin))
            borders = sorted({first, last} | {b for s in special.get(r, ()) for b in (s, s + 1) if first <= b <= last})
            for b, c in pairwise(borders):
                start = run.first + b * run.length
                found.append(Span(run, start, start + (c - b) * run.length, b, c - b))
            at = run.first + last * run.length
        if at < piece.stop:
            found.append(Span(None, at, piece.stop))
    return tuple(found)


def _joined(ranges: Iterable[range]) -> list[range]:
    found: list[range] = []
    for piece in ranges:
        if found and found[-1].stop == piece.start:
            found[-1] = range(found[-1].start, piece.stop)
        else:
            found.append(piece)
    return found


def _special_blocks(graph: Graph, stage: Stage) -> dict[int, set[int]]:
    """Run number -> blocks (other than 0) that an entry of the stage names."""
    found: dict[int, set[int]] = {}
    if not graph.runs:
        return found
    ops = {graph.position[n] for names in (stage.shardings, stage.recompute) for n in names if n in graph.position}
    for name in (*stage.layouts, *stage.gradients, *stage.storage, *stage.offload):
        if representative_tensor(graph, name) == name:
            continue  # speaks for all copies, or for a tensor that no block owns
        if name in graph.producer:
            ops.add(graph.producer[name])
        # A rest layout also changes how each reader gets the tensor; a storage how each reader gathers the parameter.
        ops.update(op for op, _ in graph.consumers.get(name, ()))
    for op in ops:
        for r, run in enumerate(graph.runs):
            block = (op - run.first) // run.length
            if run.first <= op and 0 < block < run.count:
                found.setdefault(r, set()).add(block)
    return found
