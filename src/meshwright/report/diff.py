"""Two plans side by side: what differs in the layout, the step and the memory."""

from __future__ import annotations

from .._words import GIB, MISSING, gib, number, percent, time_part
from .answers import DiffAnswer
from .lines import Line, columns
from .outcome import Outcome
from .payload import candidate_object, simulation_object


def diff_lines(a: Outcome, b: Outcome, width: int) -> list[Line]:
    rows = [["", a.folder or "first", b.folder or "second", "difference"], *_rows(a, b)]
    texts = columns(rows, {1, 2, 3})
    return [Line(t[:width], "title" if i == 0 else "") for i, t in enumerate(texts)]


def _rows(a: Outcome, b: Outcome) -> list[list[str]]:
    first, second = _facts(a), _facts(b)
    rows = []
    for key in (*first, *(k for k in second if k not in first)):
        x, y = first.get(key, 0.0), second.get(key, 0.0)
        if isinstance(x, str) or isinstance(y, str):
            rows.append([key, str(x), str(y), "" if x == y else "≠"])
        else:
            change = percent(y / x - 1) if x else MISSING
            rows.append([key, number(x), number(y), change if y < x or not x else f"+ {change}"])
    return rows


def _facts(o: Outcome) -> dict[str, float | str]:
    sim = o.simulation
    best = (*o.candidates, *o.misses)[0]
    facts: dict[str, float | str] = {
        "model": o.question.model,
        "cluster": o.question.cluster.name,
        "layout": best.layout,
        "micro-batch": f"{best.micro_batch} × {best.micro_batches}",
        "recompute": best.recompute,
    }
    if sim is not None:
        facts["step s"] = sim.step_seconds
        facts |= {f"  {time_part(k)} s": v for k, v in sim.seconds_by.items()}
        facts["memory GiB"] = float(sim.peak.max()) / GIB
        facts |= {f"  {k} GiB": v / GIB for k, v in sim.peak_by[int(sim.peak.argmax())].items()}
    else:
        facts["memory GiB"] = gib(best.memory_bytes)
    return facts


def diff_object(a: Outcome, b: Outcome) -> DiffAnswer:
    return {
        "schema": "meshwright.diff/1",
        "status": "ok",
        "plans": [
            {
                "folder": o.folder,
                "candidate": candidate_object((*o.candidates, *o.misses)[0]),
                "simulation": simulation_object(o.simulation) if o.simulation else None,
            }
            for o in (a, b)
        ],
    }
