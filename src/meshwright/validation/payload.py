"""The one JSON object of a validation: what the table, the page and error_model.toml are made of. Errors are in per cent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .intervals import SHARE, Interval
from .memory import ONE_SIDED, Fits, MemoryScore, memory_error
from .order import APART, NEAR, Order
from .prediction import Prediction
from .score import Report, Score
from .three_rows import OwnRows

SCHEMA = "meshwright.validate/2"


def validate_object(report: Report, *, rows: bool = True) -> dict[str, Any]:
    """Everything that a validation found; `rows`: with every row, its source and what was predicted for it."""
    return {
        "schema": SCHEMA,
        "status": "ok",
        "unit": "per cent",
        "rows": report.rows,
        "mape": _percent(report.mape),
        "median_over_sources": _percent(report.median),
        "baseline": _percent(report.baseline),
        "own_baseline": _percent(report.own_baseline),
        "after_three_rows": _percent(report.after_three),
        "three_rows": [_own_rows(o) for o in report.own_rows],
        "sources": [{"source": s.name, "flagged": s.flagged, **_score(s)} for s in report.sources],
        "devices": [{"device": s.name, **_score(s)} for s in report.devices],
        "strata": [{"stratum": s.name, **_score(s)} for s in report.strata],
        "pairs": {
            "pairs": report.pairs.pairs,
            "error": _percent(report.pairs.error),
            "ordered": _percent(report.pairs.ordered),
            "near": _percent(NEAR - 1),
        },
        "intervals": [_interval(i) for i in report.intervals],
        "share": _percent(SHARE),
        "memory": [_memory(m) for m in report.memory],
        "memory_intervals": [_interval(i) for i in report.memory_intervals],
        "out_of_memory": _fits(report.fits),
        "left_out": dict(report.refused),
        **({"predictions": [_prediction(p) for p in report.predictions]} if rows else {}),
    }


def _percent(value: float) -> float | None:
    return round(100 * value, 3) if value == value else None


def _score(s: Score) -> dict[str, Any]:
    return {
        "rows": s.rows,
        "sources": list(s.sources),
        "devices": list(s.devices),
        "mape": _percent(s.mape),
        "median": _percent(s.median),
        "p90": _percent(s.p90),
        "baseline": _percent(s.baseline),
        "own_baseline": _percent(s.own_baseline),
        "after_three_rows": _percent(s.after_three),
        **_order(s.order),
        "memory": [_memory(m) for m in s.memory],
    }


def _own_rows(o: OwnRows) -> dict[str, Any]:
    return {
        "own": o.own,
        "sources": o.sources,
        "share": _percent(o.share),
        "before": _percent(o.before),
        "after": _percent(o.after),
    }


def _order(o: Order) -> dict[str, Any]:
    return {
        "groups": o.groups,
        "pairs": o.pairs,
        "apart": _percent(APART),
        "ordered": _percent(o.ordered),
        "tau": _rounded(o.tau),
        "tau_within_model": _rounded(o.tau_model),
        "regret": _percent(o.regret),
        "worst_regret": _percent(o.worst_regret),
    }


def _rounded(value: float) -> float | None:
    return round(value, 4) if value == value else None


def _interval(i: Interval) -> dict[str, Any]:
    found = {k: v if v == v else None for k, v in asdict(i).items()}
    return {**found, "covered": _percent(i.covered), "covered_unseen": _percent(i.covered_unseen)}


def _memory(m: MemoryScore) -> dict[str, Any]:
    return {
        "kind": m.kind,
        "one_sided": m.kind in ONE_SIDED,
        "rows": m.rows,
        "mape": _percent(m.mape),
        "median": _percent(m.median),
        "p90": _percent(m.p90),
    }


def _fits(f: Fits) -> dict[str, Any]:
    return {
        "ran": f.ran,
        "false_oom": _percent(f.false_oom),
        "failed": len(f.failed),
        "recognised": f.recognised,
        "false_fit": _percent(f.false_fit),
        "rows": [
            {
                "id": p.row.id,
                "source": p.row.source,
                "where": p.row.where,
                "recognised": not p.fits,
                "needs_bytes": p.peak,
                "usable_bytes": p.usable,
            }
            for p in f.failed
        ],
    }


def _prediction(p: Prediction) -> Mapping[str, Any]:
    r = p.row
    kind = "resting" if r.allocated else r.memory_kind
    off = memory_error(p, kind)
    return {
        "id": r.id,
        "source": r.source,
        "where": r.where,
        "device": r.device,
        "kind": p.kind,
        "flagged": p.flagged,
        "devices": r.devices,
        "layout": _layout(p),
        "measured_s": r.seconds,
        "predicted_s": p.seconds,
        "error": _percent(p.error),
        "memory_kind": kind if off is not None else None,
        "memory_error": _percent(off) if off is not None else None,
    }


def _layout(p: Prediction) -> str:
    """ "dp8 tp2 z1": the degrees above one, ZeRO, micro-batch and recompute."""
    r = p.row
    degrees = [
        f"{name}{n}" for name, n in (("dp", r.dp), ("tp", r.tp), ("pp", r.pp), ("cp", r.cp), ("ep", r.ep)) if n > 1
    ]
    if r.chunks > 1:
        degrees.append(f"×{r.chunks}")
    if r.zero:
        degrees.append(f"z{r.zero}")
    return " ".join([*degrees, f"µ{r.micro_batch}", *([r.recompute] if r.recompute != "none" else [])])
