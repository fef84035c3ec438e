"""What the shell completes: models, clusters, planners, plans, degrees that divide the cluster. Loads no torch."""

from __future__ import annotations

import re
from pathlib import Path

import typer


def model_names(incomplete: str) -> list[str]:
    from ..graph.zoo import entries

    return [e.name for e in entries() if e.name.startswith(incomplete)] + _files(incomplete, (".json", ".toml"))


def cluster_names(incomplete: str) -> list[str]:
    """Presets with one node's count and with the counts of 8 and 64 devices or more."""
    from ..cluster.presets import presets

    names = ["local", *(f"{p.name}x{p.node * k}" for p in presets().values() for k in (1, 8))]
    return [n for n in names if n.startswith(incomplete)] + _files(incomplete, (".toml",))


def planner_names(incomplete: str) -> list[str]:
    from ..planners.registry import names

    return [n for n in names() if n.startswith(incomplete)] + _files(incomplete, (".py",))


def plan_paths(incomplete: str) -> list[str]:
    base = Path(incomplete).parent
    folders = sorted(p for p in base.iterdir() if (p / "plan.json").exists()) if base.is_dir() else []
    return [str(p) for p in folders if str(p).startswith(incomplete)] + _files(incomplete, (".json",))


def layout_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """Degrees that divide the cluster: "tp=2", "tp=4", … after what is there already."""
    from ..cluster import resolve

    done, comma, last = incomplete.rpartition(",")
    spec = ctx.params.get("cluster") or "local"
    try:
        count = resolve(spec).count
    except Exception:
        return []
    degrees = [d for d in range(1, count + 1) if count % d == 0] if count <= 1 << 16 else []
    words = [f"{axis}={d}" for axis in ("dp", "tp", "pp") if not re.search(rf"\b{axis}=", done) for d in degrees]
    return [f"{done}{comma}{w}" for w in words if w.startswith(last)]


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    base = Path(incomplete).parent
    if not base.is_dir():
        return []
    shown = (str(p) for p in sorted(base.iterdir()) if p.name.endswith(endings))
    return [s for s in shown if s.startswith(incomplete)]
