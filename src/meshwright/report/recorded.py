"""A planner's answer to a recorded problem: the table of its stages, the table of many planners, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from .._words import MISSING, number, percent, plural, size
from ..plan.lookup import stage_ops
from ..plan.model import Plan, Stage
from ..plan.problem import Problem
from ..plan.serial import to_json
from ..simulate.result import Simulation
from .answers import RecordedAnswer, RecordedCompareAnswer, RecordedProblem, RecordedRow, RecordedStage
from .compare import About
from .layout_words import recompute_words
from .lines import Line, Style, columns, labelled
from .payload import simulation_object

SHOWN = 40
"""Stages in the table."""
POINTS = 8
"""Of a frontier in words."""
PRECISE = 9
"""Digits of an objective that people compare with published ones."""


@dataclass(frozen=True)
class Profiled:
    """A problem read from a profile."""

    file: str
    format: str
    problem: Problem
    settings: Mapping[str, Any]
    """What overrides the file."""


@dataclass(frozen=True)
class Answered:
    """One planner's answer."""

    profiled: Profiled
    about: About
    parameters: Mapping[str, Any]
    """Of the planner, where they are not its defaults."""
    status: str
    """The result's own, or "refused" (it cannot take this problem), or "failed"."""
    reason: str
    objective: float
    unit: str
    bound: float | None
    search_s: float
    evaluations: int
    seed: int
    details: Any
    """What the planner says besides: replicas, speed-up, …."""
    plan: Plan | None
    loads: tuple[float, ...] = field(default=())
    staleness: int = 0
    """Updates that a gradient comes late; 0 = synchronous."""
    simulation: Simulation | None = None
    not_simulated: str = ""
    frontier: tuple[tuple[float, float, Plan], ...] = ()
    """(memory, objective, plan) that the planner found none better than in both, least memory first."""

    @property
    def memory(self) -> float | None:
        """Bytes on the fullest device by the simulator."""
        if self.simulation is None:
            return None
        return float(self.simulation.peak.max())

    @property
    def gap(self) -> float | None:
        """Relative distance from the planner's own proven bound."""
        if self.bound is None or not isfinite(self.objective) or not self.objective:
            return None
        return abs(self.objective - self.bound) / abs(self.objective)

    def order(self) -> tuple[int, float, str]:
        """Synchronous plans by simulated step, asynchronous ones, those not simulated, then those without a plan."""
        if self.plan is None:
            return 3, inf, self.about.name
        if self.simulation is None:
            return 2, inf, self.about.name
        return 1 if self.staleness else 0, self.simulation.step_seconds, self.about.name


def plan_lines(a: Answered, width: int, asked: bool = True) -> list[Line]:
    """The answer for a person. `asked`: the planner was named, not taken because of the file."""
    title, told = title_of(a.profiled), f"{a.about.name}" + ("" if asked else ", the planner of this format")
    head = f"{title}     {told}"
    lines = [Line(head, "title")] if len(head) <= width else [Line(title, "title"), Line(f"    {told}")]
    if a.plan is None:
        return lines
    lines += _stage_lines(a)
    lines.append(Line(""))
    bound = "no bound" if a.bound is None else f"bound {number(a.bound, PRECISE)}, gap {percent(a.gap or 0.0, 2)}"
    spent = f"{a.status} after {number(a.search_s, 2)} s of search"
    lines.append(Line(f"Objective {number(a.objective, PRECISE)} {a.unit}     {bound}     {spent}"))
    if a.reason:
        lines += [Line(t) for t in labelled("", [a.reason], width, indent=10)]
    said, simulated = _details(a), _simulated(a)
    for word, text in (("Also", said), ("Frontier", _frontier(a)), ("Simulated", simulated)):
        if text:
            lines += [Line(t) for t in labelled(word, [text], width, indent=10)]
    if idle := _idle(a):
        lines.append(Line(f"Devices   {idle}"))
    return lines


def title_of(p: Profiled) -> str:
    """The file, its size, its devices."""
    graph, cluster = p.problem.graph, p.problem.cluster
    kinds: dict[str, int] = {}
    for d in range(cluster.count):
        kinds[cluster.type_of(d).name] = kinds.get(cluster.type_of(d).name, 0) + 1
    memory = {t.name: f" of {size(t.memory)}" for t in cluster.types if isfinite(t.memory)}
    devices = " + ".join(
        plural(n, name if name != "profiled" else "device") + memory.get(name, "") for name, n in kinds.items()
    )
    return f"{p.file} ({p.format}), {plural(len(graph.ops), 'node')}, on {devices}"


def _stage_lines(a: Answered) -> list[Line]:
    plan = a.plan
    assert plan is not None
    graph = plan.rewritten or a.profiled.problem.graph
    unit = a.unit or "load"
    heads = ["stage", "nodes", "", "devices", "replicas", "parts", "recomputed", f"load {unit}"]
    rows = [heads]
    for s, stage in enumerate(plan.stages[:SHOWN]):
        names = [graph.ops[i].name for i in stage_ops(graph, stage)]
        d, t = degrees(stage)
        again = (
            recompute_words(Plan(plan.graph, plan.samples, (stage,), plan.schedule), graph) if stage.recompute else ""
        )
        load = number(a.loads[s], 6) if s < len(a.loads) else ""
        rows.append([str(s), str(len(names)), _ends(names), _spans(stage), str(d), str(t), again, load])
    keep = [0, 1, 2, 3, *(k for k in (4, 5) if any(row[k] != "1" for row in rows[1:])), *(k for k in (6, 7) if any(r[k] for r in rows[1:]))]  # fmt: skip
    texts = columns([[row[k] for k in keep] for row in rows], {j for j, k in enumerate(keep) if k in (0, 1, 4, 5, 7)})
    slowest = max(range(len(a.loads)), key=a.loads.__getitem__) if a.loads else -1
    styles: list[Style] = ["quiet", *("chosen" if s == slowest else "" for s in range(len(rows) - 1))]
    lines = [Line(t, style) for t, style in zip(texts, styles, strict=True)]
    if len(plan.stages) > SHOWN:
        lines.append(Line(f"… and {plural(len(plan.stages) - SHOWN, 'more stage')}: --json lists all", "quiet"))
    return lines


def _ends(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}" if names else MISSING


def _spans(stage: Stage) -> str:
    """ "0-3, 8"."""
    spans: list[list[int]] = []
    for d in sorted(set(stage.mesh.devices)):
        if spans and spans[-1][1] == d - 1:
            spans[-1][1] = d
        else:
            spans.append([d, d])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ", ".join(texts[:4]) + (", …" if len(texts) > 4 else "")


def degrees(stage: Stage) -> tuple[int, int]:
    """(replicas, parts of each)."""
    t = stage.mesh.size("tp")
    return len(stage.mesh.devices) // t, t


def _scalar(value: Any) -> str:
    return number(value, PRECISE) if isinstance(value, float) else str(value)


def _frontier(a: Answered) -> str:
    """A few points, evenly, of (memory, objective); --json has all, with their plans."""
    if not a.frontier:
        return ""
    last = len(a.frontier) - 1
    shown = sorted({round(k * last / (POINTS - 1)) for k in range(POINTS)})
    points = " · ".join(f"{number(m, PRECISE)} and {number(t, PRECISE)}" for m, t, _ in (a.frontier[k] for k in shown))
    return f"{plural(len(a.frontier), 'point')} of memory and {a.unit or 'price'}: {points}"


def facts_lines(a: Answered) -> list[str]:
    """What is said besides stages and objective, a sentence each."""
    simulated = _simulated(a)
    return [t for t in (a.reason, _details(a), simulated and f"Simulated: {simulated}", _idle(a)) if t]


def _details(a: Answered) -> str:
    details = a.details if isinstance(a.details, dict) else {}
    said = [f"{k.replace('_', ' ')} {_scalar(v)}" for k, v in details.items() if isinstance(v, int | float | str)]
    return " · ".join(said)


def _idle(a: Answered) -> str:
    """Of devices that the plan leaves out; "" if it uses all."""
    assert a.plan is not None
    used, count = len({d for s in a.plan.stages for d in s.mesh.devices}), a.profiled.problem.cluster.count
    return f"{used:,} of {count:,} are used: more do not help this objective" if used < count else ""


def _simulated(a: Answered) -> str:
    sim = a.simulation
    if sim is None:
        return f"not: {a.not_simulated}" if a.not_simulated else ""
    late = f", asynchronous: gradients up to {plural(a.staleness, 'update')} late" if a.staleness else ""
    held = f"peak {_memory(a)}, " if a.memory is not None else ""
    return (
        f"step {number(sim.step_seconds, 4)} s for {plural(a.profiled.problem.recipe.samples, 'sample')}, "
        f"{number(sim.samples_per_second)} samples/s, {held}bubble {percent(sim.bubble)}{late}"
    )


def _memory(a: Answered) -> str:
    return MISSING if a.memory is None else size(a.memory)


def plan_object(a: Answered) -> RecordedAnswer:
    """The one JSON object of an answer; `status` is the result's own."""
    return {
        "schema": "meshwright.recorded/1",
        "status": a.status,
        "objective": a.objective if a.plan is not None else None,
        "unit": a.unit,
        "bound": a.bound,
        "gap": a.gap,
        "reason": a.reason,
        "problem": _problem_object(a.profiled),
        "planner": {"name": a.about.name, "title": a.about.title, "parameters": dict(a.parameters)},
        "stages": stage_objects(a),
        "details": a.details,
        "plan": to_json(a.plan) if a.plan is not None else None,
        "frontier": [{"memory": m, "objective": t, "plan": to_json(p)} for m, t, p in a.frontier],
        "asynchronous": a.staleness > 0,
        "staleness": a.staleness,
        "simulation": simulation_object(a.simulation) if a.simulation is not None else None,
        "not_simulated": a.not_simulated,
        "search_s": a.search_s,
        "evaluations": a.evaluations,
        "seed": a.seed,
    }


def _problem_object(p: Profiled) -> RecordedProblem:
    cluster, graph = p.problem.cluster, p.problem.graph
    edges = {(graph.producer[t], i) for i, op in enumerate(graph.ops) for t in op.inputs if t in graph.producer}
    return {
        "file": p.file,
        "format": p.format,
        "nodes": len(graph.ops),
        "edges": len(edges),
        "devices": cluster.count,
        "memory_bytes": p.problem.limits.usable(cluster.types[0].memory),
        "bandwidth_bytes_per_s": [level.bandwidth for level in cluster.levels],
        "samples": p.problem.recipe.samples,
        "settings": dict(p.settings),
    }


def stage_objects(a: Answered) -> list[RecordedStage]:
    """The cuts: nodes of each stage by the names of the file, devices, degrees, load."""
    if a.plan is None:
        return []
    graph = a.plan.rewritten or a.profiled.problem.graph
    found: list[RecordedStage] = []
    for s, stage in enumerate(a.plan.stages):
        d, t = degrees(stage)
        again = {graph.ops[graph.position[name]].name for name in stage.recompute if name in graph.position}
        found.append(
            {
                "nodes": [_id(graph.ops[i].name) for i in stage_ops(graph, stage)],
                "devices": sorted(set(stage.mesh.devices)),
                "replicas": d,
                "parts": t,
                "recompute": sorted(map(_id, again), key=str),
                "load": a.loads[s] if s < len(a.loads) else None,
            }
        )
    return found


def _id(name: str) -> int | str:
    return int(name) if name.lstrip("-").isdecimal() else name


HEADS = ("family", "objective", "", "gap", "step s", "samples/s", "memory", "search s", "status")


def compare_lines(answers: Sequence[Answered], width: int) -> list[Line]:
    """The table of many planners on one profile, as a paper would print it."""
    lines = [Line(f"{title_of(answers[0].profiled)}     judged by: simulator + recorded cost", "title")]
    rows = [["planner", *HEADS]]
    for a in answers:
        sim = a.simulation
        rows.append(
            [
                a.about.name + (f" †{a.staleness}" if a.staleness else ""),
                a.about.family,
                number(a.objective, 6) if a.plan is not None else MISSING,
                a.unit.replace("micro-batch", "µbatch") if a.plan is not None else "",
                percent(a.gap) if a.gap is not None and a.plan is not None else MISSING,
                number(sim.step_seconds, 4) if sim else MISSING,
                number(sim.samples_per_second) if sim else MISSING,
                _memory(a),
                number(a.search_s, 2),
                a.status,
            ]
        )
    texts = columns(rows, {2, 4, 5, 6, 7, 8})
    if max(map(len, texts)) > width:
        texts = columns([[row[0], *row[2:]] for row in rows], {1, 3, 4, 5, 6, 7}, 1)
    first = next((i for i, a in enumerate(answers) if a.order()[0] == 0), -1)
    styles: list[Style] = ["quiet", *("chosen" if i == first else "refused" if a.plan is None else "" for i, a in enumerate(answers))]  # fmt: skip
    lines += [Line(t, s) for t, s in zip(texts, styles, strict=True)]
    notes = ["gap: of the planner's own objective to its own proven bound"]
    if any(a.staleness for a in answers):
        notes.append("†k: asynchronous, gradients are up to k updates late, so its steps are not those of the others")
    lines += [Line(t, "quiet") for t in labelled("", ["; ".join(notes)], width, indent=0)]
    for a in answers:
        why = a.reason if a.plan is None else a.not_simulated and f"not simulated, {a.not_simulated}"
        if why:
            lines += [Line(t) for t in labelled("", [f"{a.about.name}: {why}"], width, indent=0)]
    return lines


def compare_object(problems: Sequence[Sequence[Answered]], seed: int, budget: float | None) -> RecordedCompareAnswer:
    """One JSON object for all files; a row a planner and file."""
    found = any(a.plan is not None for answers in problems for a in answers)
    return {
        "schema": "meshwright.compare-recorded/1",
        "status": "ok" if found else "infeasible",
        "seed": seed,
        "budget_s": budget,
        "problems": [_problem_object(answers[0].profiled) for answers in problems if answers],
        "planners": [compare_row(a) for answers in problems for a in answers],
    }


def compare_row(a: Answered) -> RecordedRow:
    """One planner on one profile; units in the keys."""
    sim = a.simulation
    return {
        "file": a.profiled.file,
        "planner": a.about.name,
        "family": a.about.family,
        "status": a.status,
        "objective": a.objective if a.plan is not None else None,
        "unit": a.unit,
        "bound": a.bound,
        "gap": a.gap,
        "step_s": sim.step_seconds if sim else None,
        "samples_per_s": sim.samples_per_second if sim else None,
        "memory_bytes": a.memory,
        "search_s": a.search_s,
        "asynchronous": a.staleness > 0,
        "staleness": a.staleness,
        "reason": a.reason,
        "not_simulated": a.not_simulated,
        "stages": stage_objects(a),
    }
