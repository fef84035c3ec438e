"""What the shell completes: models, clusters, planners, plans, degrees that divide the cluster. Loads no torch, and no parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._epilogs import EPILOG


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


def exporter_names(incomplete: str) -> list[str]:
    from ..export.registry import names

    return [n for n in names() if n.startswith(incomplete)]


def plan_paths(incomplete: str) -> list[str]:
    base = Path(incomplete).parent
    folders = sorted(p for p in base.iterdir() if (p / "plan.json").exists()) if base.is_dir() else []
    return [str(p) for p in folders if str(p).startswith(incomplete)] + _files(incomplete, (".json",))


def layout_words(ctx: Any, incomplete: str) -> list[str]:
    """Degrees that divide the cluster: "tp=2", "tp=4", … after what is there already; `ctx` is the parser's."""
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


def setting_names(ctx: Any, incomplete: str) -> list[str]:
    """ "devices=", … of a profile, and the parameters of the planner that was named; `ctx` is the parser's."""
    from ..planners.registry import planners
    from ..settings import parameters

    found = ["devices", "memory", "bandwidth", "micro_batches", "workers"]
    if kind := planners().get(ctx.params.get("planner") or ""):
        found += [name for name in parameters(kind) if name not in found]
    return [f"{name}=" for name in found if name.startswith(incomplete)]


def quick(env: Mapping[str, str]) -> list[str]:
    """Commands, models, clusters and planners for bash, without the parser, whose import a person would wait for.

    [] = not one of those, or nothing found: the parser answers.
    """
    line, place = env.get("COMP_WORDS", ""), env.get("COMP_CWORD", "")
    if env.get("_MESHWRIGHT_COMPLETE") != "complete_bash" or not place.isdigit() or re.search(r"[\"'\\]", line):
        return []
    words = line.split()
    before, incomplete = words[1 : int(place)], "".join(words[int(place) : int(place) + 1])
    if incomplete.startswith("-"):
        return []
    if not before:
        return [name for name in EPILOG if name != "meshwright" and name.startswith(incomplete)]
    command, last = before[0], before[-1]
    searches = command in ("plan", "compare")
    if searches and last in ("-c", "--cluster"):
        return cluster_names(incomplete)
    if len(before) == 1 and (searches or command == "models"):
        return model_names(incomplete)
    if (len(before) == 1 and command == "check") or (command == "plan" and last == "--planner"):
        return planner_names(incomplete)
    return []


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    base = Path(incomplete).parent
    if not base.is_dir():
        return []
    shown = (str(p) for p in sorted(base.iterdir()) if p.name.endswith(endings))
    return [s for s in shown if s.startswith(incomplete)]
