"""Write every block of a folded program out under its own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..graph.ir import Graph
from .program import APART, GRAD, RAW, Instr, Param, Program, Segment, StageCode


def unroll(program: Program, graph: Graph) -> Program:
    stages = _stages(program.stages, graph)
    if any(s.keep_last for s in stages):
        keeping = _stages([replace(s, segments=s.keeping) for s in program.stages], graph)
        stages = tuple(replace(s, keeping=other.segments) for s, other in zip(stages, keeping, strict=True))
    return replace(program, stages=stages)


def _stages(stages: Sequence[StageCode], graph: Graph) -> tuple[StageCode, ...]:
    folded = {s.name for stage in stages for s in stage.segments}
    inside = frozenset(i for r in graph.runs if r.name in folded for i in range(r.first, r.first + r.length * r.count))
    return tuple(_stage(s, graph, inside) for s in stages)


def outside_names(graph: Graph, segment: Segment, inside: frozenset[int]) -> dict[str, str]:
    """What a stretch reads of a folded run: the representative's result -> the result of the block that it really reads."""
    names: dict[str, str] = {}
    for op in graph.ops[segment.first : segment.first + segment.length]:
        for t in op.inputs:
            if (name := _folded(graph, inside, t)) != t:
                names[name] = t
    return names


def _folded(graph: Graph, inside: frozenset[int], t: str) -> str:
    """What the folded program calls a tensor: of a folded run, the representative's."""
    made = graph.producer.get(t, -1)
    if made not in inside:
        return t
    return graph.ops[graph.representative[made]].outputs[graph.ops[made].outputs.index(t)]


def block_names(graph: Graph, segment: Segment, block: int, inside: frozenset[int]) -> dict[str, str]:
    """Names in the folded program of a block's ops, operands and results -> those of block number `block`."""
    names: dict[str, str] = {}
    for k in range(segment.length):
        rep, own = graph.ops[segment.first + k], graph.ops[segment.first + block * segment.length + k]
        names[rep.name] = own.name
        # block 0 may read the last block of another folded run
        names.update(zip((_folded(graph, inside, t) for t in rep.inputs), own.inputs, strict=True))
        names.update(zip(rep.outputs, own.outputs, strict=True))
    return names


def rename(instr: Instr, names: dict[str, str], suffix: str) -> Instr:
    """Map names; converted values ("t@3") get the block's suffix, so that no two blocks share one."""

    def value(name: str) -> str:
        grad, base = (GRAD, name[1:]) if name.startswith(GRAD) else ("", name)
        if base in names:
            return grad + names[base]
        if base.endswith((RAW, APART)) and base[:-1] in names:
            return grad + names[base[:-1]] + base[-1]
        stem, at, tail = base.rpartition("@")
        return f"{grad}{names.get(stem, stem)}@{tail}{suffix}" if at else name

    return replace(
        instr,
        on=names.get(instr.on, instr.on),
        within=names.get(instr.within, instr.within),
        inputs=tuple(map(value, instr.inputs)),
        outputs=tuple(map(value, instr.outputs)),
    )


def _renamed(s: Segment, names: dict[str, str], suffix: str) -> Segment:
    return replace(
        s,
        forward=tuple(rename(i, names, suffix) for i in s.forward),
        rerun=tuple(rename(i, names, suffix) for i in s.rerun),
        backward=tuple(rename(i, names, suffix) for i in s.backward),
    )


def _stage(stage: StageCode, graph: Graph, inside: frozenset[int]) -> StageCode:
    segments: list[Segment] = []
    owners: dict[str, list[str]] = {}
    for s in stage.segments:
        if s.name in ("", "constants"):
            names = {} if s.name else outside_names(graph, s, inside)
            segments.append(_renamed(s, names, "") if names else s)
            continue
        for b in range(s.block, s.block + s.count):
            names = block_names(graph, s, b, inside)
            segments.append(replace(_renamed(s, names, f".{b}"), first=s.first + b * s.length, block=b, count=1))
            for p in stage.params:
                if p.name in names and names[p.name] not in owners.setdefault(p.name, []):
                    owners[p.name].append(names[p.name])
    params: list[Param] = []
    every: list[Instr] = []
    update: list[Instr] = []
    for p in stage.params:
        for name in owners.get(p.name, [p.name]):
            names = {p.name: name}
            params.append(replace(p, name=name, count=1))
            every += [rename(i, names, "") for i in stage.grads if i.on == p.name]
            update += [rename(i, names, "") for i in stage.update if i.on == p.name]
    return replace(stage, segments=tuple(segments), params=tuple(params), grads=tuple(every), update=tuple(update))
