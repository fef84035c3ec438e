"""The one JSON object of an answer. Units are in the keys; keys are only added inside a schema number."""

from __future__ import annotations

from ..plan.serial import to_json
from ..simulate.result import Simulation
from .answers import CandidateAnswer, DifferenceAnswer, ErrorModelAnswer, PlanAnswer, SimulationAnswer, WhyAnswer
from .candidates import Candidate
from .outcome import Outcome
from .training import size_object, training_object
from .why import Difference


def plan_object(outcome: Outcome) -> PlanAnswer:
    """Everything that the table and the report say."""
    q = outcome.question
    return {
        "schema": "meshwright.plan/1",
        "status": outcome.status,
        "objective": outcome.claim,
        "unit": outcome.claim_unit,
        "bound": outcome.bound,
        "problem": {
            "model": q.model,
            "parameters": q.parameter_count,
            "cluster": q.cluster.name,
            "devices": q.cluster.count,
            "batch": q.batch,
            "seq": q.seq,
            "precision": q.precision,
            "optimizer": q.optimizer,
            "defaults": sorted(q.defaults),
            "memory_bytes": q.installed,
            "usable_bytes": q.usable,
            "notes": list(q.notes),
            "shapes": {t.name: list(t.shape) for t in q.graph.params()},
        },
        "result": {
            "planner": outcome.planner,
            "status": outcome.result_status,
            "reason": outcome.reason,
            "evaluations": outcome.evaluated,
            "refused": outcome.refused,
            "points": outcome.points,
            "objective": outcome.claim,
            "unit": outcome.claim_unit,
            "bound_s": outcome.bound,
            "seed": outcome.seed,
            "search_s": outcome.seconds,
            "hints": list(outcome.hints),
        },
        "details": outcome.details,
        "plan": to_json(outcome.plan) if outcome.plan is not None else None,
        "simulation": simulation_object(outcome.simulation) if outcome.simulation else None,
        "candidates": outcome.records(),
        "why": why_object(outcome),
        "error_model": error_model_object(outcome),
        "training": training_object(outcome.training) if outcome.training is not None else None,
        "sizes": [size_object(size) for size in outcome.sizes],
        "files": {name: f"{outcome.folder}/{name}" for name in outcome.files},
        "seconds": outcome.seconds,
    }


def error_model_object(outcome: Outcome) -> ErrorModelAnswer:
    """How sure predictions are."""
    error = outcome.error
    measured = error.ranges.get((outcome.family, outcome.kind))
    return {
        "family": outcome.family,
        "kind": outcome.kind,
        "share": error.share,
        "low": measured.low if measured else None,
        "high": measured.high if measured else None,
        "steps": measured.steps if measured else 0,
        "sources": measured.sources if measured else 0,
        "others": {str(what): whose for what, whose in error.others.items()},
        "pairs_within": error.pairs_within,
        "pairs_source": error.pairs_source,
        "provenance": error.provenance,
    }


def candidate_object(
    c: Candidate,
    tie: int = -1,
    interval: tuple[float, float] | None = None,
    memory_interval: tuple[float, float] | None = None,
) -> CandidateAnswer:
    low, high = interval or (None, None)
    memory_low, memory_high = memory_interval or (None, None)
    return {
        "layout": c.layout,
        "micro_batch": c.micro_batch,
        "micro_batches": c.micro_batches,
        "recompute": c.recompute,
        "schedule": c.schedule,
        "step_s": c.step_s,
        "step_low_s": low,
        "step_high_s": high,
        "items_per_s_per_device": c.tokens_per_s_per_device,
        "mfu": c.mfu,
        "memory_bytes": c.memory_bytes,
        "memory_low_bytes": memory_low,
        "memory_high_bytes": memory_high,
        "over_bytes": c.over_bytes,
        "fits": c.fits,
        "tie_with": tie + 1 if tie >= 0 else None,
    }


def simulation_object(s: Simulation) -> SimulationAnswer:
    return {
        "step_s": s.step_seconds,
        "samples_per_s": s.samples_per_second,
        "mfu": s.mfu,
        "bubble": s.bubble,
        "exposed_communication_s": s.exposed_communication,
        "staleness": s.staleness,
        "priced_by": s.priced_by,
        "seconds_by": dict(s.seconds_by),
        "calls_by": dict(s.calls_by),
        "bytes_by": dict(s.bytes_by),
        "lanes": [
            {
                "name": lane.name,
                "devices": lane.devices,
                "first_device": lane.first_device,
                "stages": list(lane.stages),
                "peak_bytes": float(s.peak[i]),
                "peak_bytes_by": dict(s.peak_by[i]),
            }
            for i, lane in enumerate(s.lanes)
        ],
    }


def why_object(outcome: Outcome) -> WhyAnswer | None:
    if not outcome.simulations:
        return None
    why = outcome.why
    b = why.binding
    return {
        "binding": {
            "kind": b.kind,
            "layout": b.layout,
            "needs_bytes": b.needs_bytes,
            "over_bytes": b.over_bytes,
            "faster_by": b.faster_by,
        },
        "runner_up": _difference(why.runner_up) if why.runner_up else None,
        "others": [_difference(d) for d in why.others],
        "sentences": outcome.sentences(),
    }


def _difference(d: Difference) -> DifferenceAnswer:
    return {"layout": d.layout, "rank": d.rank, "bytes": d.bytes, "step_s": d.seconds, "by_s": dict(d.by_part)}
