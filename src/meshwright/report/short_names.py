"""Short names of parameters, ops and values of one model, no two alike: "c_attn", "mlp.c_proj", "ln_1.bias", "post_att…"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..graph.ir import Graph

LONG = 18
"""Characters above which a name is cut, if its beginning tells it from all others."""

WORTH = 6
"""Characters that go at least where a name is cut."""


def short_names(names: Iterable[str], graph: Graph, most: int = LONG) -> dict[str, str]:
    """Per name its last part, with as many of those before it as tell it from the others.

    What is of the first of equal blocks stands for all of them, and loses the block's number; ".weight" is left out.
    Of what is then longer than `most` characters only as much of its beginning is left as no other name has, half of them
    at least.
    """
    parts = {name: _parts(name, graph) for name in dict.fromkeys(names)}
    labels = {name: ".".join(_telling(own, parts.values())) for name, own in parts.items()}
    return _cut({name: label if _once(label, labels) else name for name, label in labels.items()}, most)


def _once(label: str, labels: Mapping[str, str]) -> bool:
    return sum(other == label for other in labels.values()) == 1


def _parts(name: str, graph: Graph) -> tuple[str, ...]:
    """ "transformer.h.0.attn.c_proj/mm" -> transformer, h, attn, c_proj, mm."""
    for run in graph.runs:
        name = re.sub(rf"^{re.escape(run.name)}\.0(?=[./]|$)", run.name.replace("\\", r"\\"), name)
    path, _, op = name.partition("/")
    parts = [p for p in path.split(".") if p]
    if not op and len(parts) > 1 and parts[-1] == "weight":
        parts.pop()
    return (*parts, op) if op else tuple(parts)


def _telling(own: tuple[str, ...], every: Iterable[tuple[str, ...]]) -> list[str]:
    """The last part, and those others that no other name has all of; of equals, the last."""
    chosen = {len(own) - 1}
    rivals = [set(other) for other in every if other != own and other[-1:] == own[-1:]]
    while rivals:
        out = [(sum(part not in other for other in rivals), k) for k, part in enumerate(own) if k not in chosen]
        most, k = max(out, default=(0, 0))
        if not most:  # all parts of it are in another: the whole
            return list(own)
        chosen.add(k)
        rivals = [other for other in rivals if own[k] in other]
    return [own[k] for k in sorted(chosen)]


def _cut(labels: Mapping[str, str], most: int) -> dict[str, str]:
    """Long ones to the beginning that no other has, where that is much shorter."""
    found = {}
    for name, label in labels.items():
        keep = most // 2
        while len(label) > most and keep < len(label) and sum(o.startswith(label[:keep]) for o in labels.values()) > 1:
            keep += 1
        found[name] = f"{label[:keep]}…" if len(label) > most and keep <= len(label) - WORTH else label
    return found
