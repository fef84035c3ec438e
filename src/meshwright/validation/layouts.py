"""How Megatron-LM deals layers to stages where it does so unevenly."""

from __future__ import annotations

import re


def stated(text: str) -> tuple[int, ...]:
    """Layers of each stage of a layout such as "Et*4|(t*4|)*14tmL": t a layer, m one for the token after the next, E the
    embedding, L the loss; | ends a stage, x*4 and (…)*14 repeat."""
    text = re.sub(r"([Etm])\*(\d+)", lambda found: found[1] * int(found[2]), text.replace("\\", ""))
    text = re.sub(r"\(([^()]*)\)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    return tuple(sum(stage.count(c) for c in "tm") for stage in text.split("|"))


def lighter_last(layers: int, stages: int) -> tuple[int, ...]:
    """As many as come to a stage, rounded up, and what is left on the last, which has the head twice with a second loss
    (Megatron-Bridge deals DeepSeek-V3 so: its model cards); () where that leaves nothing."""
    each = -(-layers // stages)
    last = layers - each * (stages - 1)
    return (each,) * (stages - 1) + (last,) if last > 0 else ()


def with_ends(layers: int, stages: int, first: int, last: int) -> tuple[int, ...]:
    """So many on the first and the last stage, the others evenly."""
    return (first, *((layers - first - last) // (stages - 2),) * (stages - 2), last)


def with_counted_ends(layers: int, stages: int) -> tuple[int, ...]:
    """Evenly where embedding and loss count as a layer each: the first and the last stage have one less."""
    each = (layers + 2) // stages
    return (each - 1, *(each,) * (stages - 2), each - 1)
