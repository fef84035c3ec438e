"""Write every block of a folded program out under its own names."""

from __future__ import annotations

from dataclasses import replace

from ..graph.ir import Graph
from .program import GRAD, RAW, Instr, Param, Program, Segment, StageCode


def unroll(program: Program, graph: Graph) -> Program:
    return replace(program, stages=tuple(_stage(s, graph) for s in program.stages))


def block_names(graph: Graph, segment: Segment, block: int) -> dict[str, str]:
    """Representative's names of ops, operands and results -> those of block number `block`."""
    names: dict[str, str] = {}
    for k in range(segment.length):
        rep, own = graph.ops[segment.first + k], graph.ops[segment.first + block * segment.length + k]
        names[rep.name] = own.name
        names.update(zip(rep.inputs, own.inputs, strict=True))
        names.update(zip(rep.outputs, own.outputs, strict=True))
    return names


def rename(instr: Instr, names: dict[str, str], suffix: str) -> Instr:
    """Map names; converted values ("t@3") get the block's suffix, so that no two blocks share one."""

    def value(name: str) -> str:
        grad, base = (GRAD, name[1:]) if name.startswith(GRAD) else ("", name)
        if base in names:
            return grad + names[base]
        if base.endswith(RAW) and base[:-1] in names:
            return grad + names[base[:-1]] + RAW
        stem, at, tail = base.rpartition("@")
        return f"{grad}{names.get(stem, stem)}@{tail}{suffix}" if at else name

    return replace(
        instr,
        on=names.get(instr.on, instr.on),
        inputs=tuple(map(value, instr.inputs)),
        outputs=tuple(map(value, instr.outputs)),
    )


def _stage(stage: StageCode, graph: Graph) -> StageCode:
    segments: list[Segment] = []
    owners: dict[str, list[str]] = {}
    for s in stage.segments:
        if s.name in ("", "constants"):
            segments.append(s)
            continue
        for b in range(s.block, s.block + s.count):
            names, suffix = block_names(graph, s, b), f".{b}"
            again = {
                part: tuple(rename(i, names, suffix) for i in instrs)
                for part, instrs in (("forward", s.forward), ("rerun", s.rerun), ("backward", s.backward))
            }
            segments.append(replace(s, first=s.first + b * s.length, block=b, count=1, **again))  # type: ignore[arg-type]
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
