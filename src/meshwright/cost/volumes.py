"""Elements that a rank receives for one linear layer Y[M, N] = X[M, K] · W[K, N], forward and backward, by layout scheme.

    scheme          devices   received                                            W a rank    X a rank    gathered copies
    1d-column       p         2 (p−1)/p · MK                                      KN/p        MK          –
    1d-row          p         2 (p−1)/p · MN                                      KN/p        MK/p        –
    1d-row-sequence p         2 (p−1)/p · MN                                      KN/p        MK/p        –
    2d              q²        3 (q−1)/q² · (MK + KN)                              KN/q²       MK/q²       a block of each
    2.5d            q² d      3 (q−1)/q² · (MK/d + KN) + 2 (d−1)/d · KN/q²        KN/q²       MK/(d q²)   a block of each
    3d              q³        2 (q−1)/q³ · (MK + KN + MN)                         KN/q³       MK/q³       (MK + KN)/q²

Rings: an all-reduce of n elements over p brings 2 (p−1)/p · n to each member, a gather to n, or a scatter, broadcast or sum of
n, (p−1)/p · n (of the last two: the mean of the members). Sources: Shoeybi et al., arXiv 1909.08053, section 3; Korthikanti et
al., arXiv 2205.05198, section 4.2; Xu and You, arXiv 2104.05343; Wang et al., arXiv 2105.14500; Bian et al., arXiv 2105.14450.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ..errors import InputError
from .base import Collective

Scheme: TypeAlias = Literal["1d-column", "1d-row", "1d-row-sequence", "2d", "2.5d", "3d"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@dataclass(frozen=True, slots=True)
class Volume:
    """Of one linear layer on one rank, in elements."""

    received: float
    """Forward and backward, the mean over all ranks."""
    weight: float
    """Of W, at rest."""
    operand: float
    """Of X, at rest."""
    gathered: float
    """Of copies that are there while it computes, at most."""
    steps: int
    """Collectives that wait for each other: what latency counts."""


def ring_share(kind: Collective, members: int) -> float:
    """Elements that a member receives, over those that it holds (a gather: over those that it ends with)."""
    return (2.0 if kind == "all_reduce" else 1.0) * (members - 1) / members


def grid_side(scheme: Scheme, devices: int, depth: int = 1) -> int:
    """q (of 1D: p) of `devices`.

    Raises:
        InputError: a scheme that does not exist, or devices that do not form its grid.
    """
    if scheme not in SCHEMES:
        raise InputError(f'no scheme "{scheme}": there are {", ".join(SCHEMES)}')
    if devices < 1 or depth < 1:
        raise InputError(f"{scheme} cannot cut a layer over {devices} devices, {depth} deep: take 1 or more")
    if scheme.startswith("1d"):
        return devices
    if scheme == "3d":
        q = max(1, round(math.pow(devices, 1 / 3)))
        if q**3 != devices:
            raise InputError(f"3d needs q³ devices: {devices} are none, {q**3} or {(q + 1) ** 3} are")
        return q
    if scheme == "2d":
        depth = 1
    q = max(1, math.isqrt(devices // depth))
    if q * q * depth != devices:
        kind = "2d needs q² devices" if scheme == "2d" else f"2.5d of depth {depth} needs {depth} q² devices"
        raise InputError(f"{kind}: {devices} are none, {q * q * depth} or {(q + 1) ** 2 * depth} are")
    if depth > q:
        raise InputError(f"2.5d is at most as deep as its grid is wide: depth {depth} on {q} × {q} is too deep")
    return q


def norm_volume(tokens: int, devices: int) -> float:
    """Elements received for a layer norm of so many local tokens whose features are cut over `devices`: Σ x and Σ x²
    forward, Σ dy and Σ dy·x̂ backward."""
    return 4 * tokens * ring_share("all_reduce", devices)


def loss_volume(tokens: int, devices: int) -> float:
    """Elements received for a cross entropy of so many local tokens whose classes are cut over `devices`: the maximum, the
    sum of exponentials, the label's logit."""
    return 3 * tokens * ring_share("all_reduce", devices)


def linear_volume(scheme: Scheme, m: int, k: int, n: int, devices: int, depth: int = 1) -> Volume:
    """See the module's table. `depth`: of 2.5d, d.

    Raises:
        InputError: devices that do not form the scheme's grid.
    """
    q = grid_side(scheme, devices, depth)
    x, w, y = float(m * k), float(k * n), float(m * n)
    if scheme == "1d-column":
        return Volume(2 * (q - 1) / q * x, w / q, x, 0.0, 1)
    if scheme.startswith("1d"):
        return Volume(2 * (q - 1) / q * y, w / q, x / q, 0.0, 1 if scheme == "1d-row" else 2)
    if scheme == "3d":
        return Volume(2 * (q - 1) / q**3 * (x + w + y), w / q**3, x / q**3, (x + w) / q**2, 6)
    d = depth if scheme == "2.5d" else 1
    received = 3 * (q - 1) / q**2 * (x / d + w) + 2 * (d - 1) / d * w / q**2
    return Volume(received, w / q**2, x / (d * q**2), (x / d + w) / q**2, 6 * q + (d > 1))
