"""Section 7 of the report: the plan stage by stage in words, and what the prediction assumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .._words import gib, percent, plural
from ..plan.model import Cut, Layout, OpSharding, Plan, Stage
from .charts.base import table
from .charts.mesh import mesh_words, spans
from .outcome import Outcome

STAGES = 64
"""More stages are summed up in a last line."""
PLACEMENTS = 4
STAGE_HEADS = ("stage", "ops", "devices", "mesh", "ops cut", "parameters at rest", "recompute")


def stage_table(outcome: Outcome) -> str:
    """One row a stage: its ops, its mesh, how its ops are cut, what rests cut, what runs again."""
    plan = outcome.plan
    assert plan is not None
    rows = [stage_words(k, stage) for k, stage in enumerate(plan.stages[:STAGES])]
    text = '<div class="words">' + table(STAGE_HEADS, rows, left=7) + "</div>"
    more = len(plan.stages) - STAGES
    return text + (f"<p>… and {more:,} more stages.</p>" if more > 0 else "") + f"<p>{schedule_words(plan)}</p>"


def schedule_words(plan: Plan) -> str:
    """ "Schedule 1f1b: 32 micro-batches a step of 1,024 samples." """
    s = plan.schedule
    args = ", ".join(f"{k} {v}" for k, v in s.args.items())
    name = s.name if len(plan.stages) > 1 else "accumulation"
    return (
        f"Schedule {name}{f' ({args})' if args else ''}: {s.micro_batches:,} "
        f"micro-batch{'es' if s.micro_batches != 1 else ''} a step of {plan.samples:,} samples."
    )


def stage_words(k: int, stage: Stage) -> list[str]:
    return [
        str(k), ops_words(stage), spans(stage.mesh.devices), mesh_words(stage), cut_words(stage), storage_words(stage),
        again_words(stage),
    ]  # fmt: skip


def again_words(stage: Stage) -> str:
    """ "12 ops, not of the last micro-batch"."""
    if not stage.recompute:
        return "none"
    last = f"{stage.keep_last:,} micro-batches" if stage.keep_last > 1 else "micro-batch"
    return f"{len(stage.recompute)} ops" + (f", not of the last {last}" if stage.keep_last else "")


def ops_words(stage: Stage) -> str:
    """Spans of blocks by name, single ops by their number."""
    named = [o for o in stage.ops if o.endswith("]")]
    single = len(stage.ops) - len(named)
    words = [*named[:3], *([f"{len(named) - 3} more spans"] if len(named) > 3 else [])]
    if single:
        words.append(
            f"{single} single op{'s' if single > 1 else ''}" if named or single > 3 else ", ".join(stage.ops[:3])
        )
    return " + ".join(words)


def cut_words(stage: Stage) -> str:
    """The commonest ways of cutting ops, with how many ops have each: "12 × m over dp"."""
    ways = Counter(sharding_words(s) for s in stage.shardings.values())
    common = ways.most_common(PLACEMENTS)
    words = [f"{plural(n, 'op')}: {way}" for way, n in common]
    rest = sum(ways.values()) - sum(n for _, n in common)
    return "; ".join(words + ([f"{rest} other"] if rest else [])) or "copies everywhere"


def sharding_words(s: OpSharding) -> str:
    words = _cut_words(s.cuts)
    gradients = sorted({_cut_words(own) for own in s.backward.values()} - {words})
    return words + "".join(f" (gradient: {own})" for own in gradients)


def _cut_words(cuts: Mapping[str, tuple[Cut, ...]]) -> str:
    return ", ".join(f"{factor} over {_axes(c)}" for factor, c in cuts.items() if c) or "copies"


def storage_words(stage: Stage) -> str:
    """What of the parameters rests cut, over which axes."""
    found: Counter[str] = Counter()
    for storage in stage.storage.values():
        parts = []
        for name, layout in (("weights", storage.param), ("gradients", storage.grad), ("optimizer", storage.state)):
            axes = _layout_axes(layout) if layout is not None else ""
            if axes:
                parts.append(f"{name} over {axes}")
        found[", ".join(parts) or "whole"] += 1
    return "; ".join(f"{plural(n, 'parameter')}: {way}" for way, n in found.most_common(3)) or "as they are used"


def assumptions(outcome: Outcome) -> list[str]:
    """What the figures rest on, in sentences."""
    q, sim = outcome.question, outcome.simulation
    assert sim is not None
    kept = q.installed - q.usable
    lines = [
        f"{gib(kept)} GiB of the {gib(q.installed)} GiB of a {q.device_word} stay free for the allocator and libraries.",
        f"Weights compute in {q.precision}; master weights and optimizer state are float32.",
        "MFU counts three forward passes and half of causal attention, and nothing that runs again.",
        f"Error model: {outcome.error.provenance}. Ties: {outcome.error.pairs_source}.",
    ]
    if sim.bubble > 0:
        lines.append(f"The mean device waits {percent(sim.bubble)} of the step for other stages.")
    for t in q.cluster.types:
        lines += [f"{t.name} {field.replace('_', ' ')}: {source}" for field, source in t.sources.items()]
    return lines + list(q.notes)


def _axes(cuts: tuple[Cut, ...]) -> str:
    return " × ".join(c.axis + (f" {':'.join(map(str, c.weights))}" if c.weights else "") for c in cuts)


def _layout_axes(layout: Layout) -> str:
    cuts = [c for dim in layout.dims for _, found in dim for c in found]
    return _axes(tuple(cuts)) if cuts else ""
