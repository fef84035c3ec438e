"""Megatron's strings for what each stage holds: "Et*15|t*16|t*16|t*15L".

E the embedding, t a layer, m a layer of multi-token prediction, L norm, head and loss; "|" between stages, x*n and (ab|)*n repeat,
commas say nothing. Part i is chunk i div pp of rank i mod pp (core/transformer/pipeline_parallel_layer_layout.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .._words import whole_number
from .model import Share

_GROUP = re.compile(r"\(([^)]+)\)\*(\d+)")
_LETTER = re.compile(r"(.)\*(\d+)")
_RUN = 4
"""Layers from which "t*n" is shorter and clearer than that many letters."""
_MOST = 4_096
"""Letters that one repetition makes: more layers than any model has."""


def written(shares: Sequence[Share]) -> str:
    """The string of what stages hold, in order of stages."""
    return "|".join(_part(share) for share in shares)


def _part(share: Share) -> str:
    n = len(share.layers)
    return ("E" if share.before else "") + (f"t*{n}" if n >= _RUN else "t" * n) + ("L" if share.after else "")


def parts(text: str) -> tuple[str, ...]:
    """The letters of each part, repetitions written out.

    Raises:
        ValueError: another letter than E, t, m and L.
    """
    plain = text.replace(",", "")
    for pattern in (_GROUP, _LETTER):
        plain = pattern.sub(_repeated, plain)
    odd = next((c for c in plain if c not in "EtmL|"), "")
    if odd:
        raise ValueError(f'"{odd}" in the layout {text}: it is made of E, t, m, L, |, x*n and (…)*n')
    return tuple(plain.split("|"))


def _repeated(found: re.Match[str]) -> str:
    times = whole_number(found[2])
    if times is None or times * len(found[1]) > _MOST:
        raise ValueError(f"{found[0]} in the layout makes more than {_MOST:,} letters")
    return found[1] * times


def counts(text: str, layers: int) -> tuple[int, ...]:
    """Layers of each part.

    Raises:
        ValueError: what Megatron refuses (embedding not first, head and loss not last, another number of layers), or an embedding
        or head beyond an empty part, which no plan here has.
    """
    found = parts(text)
    flat = "".join(found)
    if not flat.startswith("E") or flat.count("E") != 1:
        raise ValueError(f"the layout {text} must begin with its one E, the embedding")
    if not flat.endswith("L") or flat.count("L") != 1:
        raise ValueError(f"the layout {text} must end with its one L, head and loss")
    if flat.count("t") != layers:
        raise ValueError(f"the layout {text} has {flat.count('t')} layers, but the model has {layers}")
    if "E" not in found[0] or "L" not in found[-1]:
        raise ValueError(f"the layout {text} leaves its first or its last part empty: drop that part")
    return tuple(part.count("t") for part in found)
