"""A layout as it is given on the command line: degrees, what rests cut, micro-batch; what is left out is worked out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ._words import count
from .cluster.model import Cluster
from .errors import InputError
from .layouts.again import MODULES, WORDS, known
from .layouts.point import Point


@dataclass(frozen=True, slots=True)
class LayoutByHand:
    dp: int | None = None
    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    ep: int | None = None
    vpp: int = 1
    """Chunks a device (interleaved)."""
    zero: int = 0
    micro_batch: int = 1
    """Samples of one micro-batch on one replica."""
    recompute: str = "none"
    schedule: str = ""
    context: str = ""
    """How attention sees all positions where cp > 1; "" = the faster."""
    replicate: int = 1
    """Groups of the dp replicas that each hold all that ZeRO cuts (hybrid sharding)."""

    def completed(self, cluster: Cluster) -> LayoutByHand:
        """All degrees: one of dp, tp, pp that is missing is worked out, two that are missing: the later is 1.

        Raises:
            InputError: the degrees do not multiply to the devices.
        """
        degrees = {"dp": self.dp, "tp": self.tp, "pp": self.pp}
        others = {k: n for k, n in (("cp", self.cp or 1), ("ep", self.ep or 1)) if n > 1}
        given = {**{k: v for k, v in degrees.items() if v is not None}, **others}
        product, n = prod(given.values()), cluster.count
        spelled = " × ".join(f"{k} {v}" for k, v in given.items())
        if all(v is not None for v in degrees.values()) and product != n:
            raise InputError(
                f"{spelled} = {count(product)} devices but {cluster.name} has {count(n)}: "
                "leave one out and it is worked out for you",
                where="--dp --tp --pp",
            )
        if n % product:
            raise InputError(
                f"{spelled} = {count(product)} devices, which does not divide the {count(n)} of {cluster.name}: "
                f"nearest are {_nearest_divisors(product, n)}",
                where="--dp --tp --pp",
            )
        free = next((k for k in ("dp", "tp", "pp") if k not in given), "")
        filled = {k: v if v is not None else n // product if k == free else 1 for k, v in degrees.items()}
        if not known(self.recompute):
            raise InputError(
                f'no recompute "{self.recompute}": use one of {", ".join(WORDS)}, first:K (the first K blocks of every stage), or '
                f"parts joined by + such as core_attn+mlp+ (of {', '.join(MODULES)})",
                where="--recompute",
            )
        if self.replicate > 1 and ((filled["dp"] or 1) % self.replicate or not self.zero):
            raise InputError(
                f"--replicate {self.replicate}: copies of what ZeRO cuts need --zero 1, 2 or 3 and a number that divides dp {filled['dp']}",
                where="--replicate",
            )
        if filled["pp"] == 1 and self.vpp > 1:
            raise InputError(f"--vpp {self.vpp} cuts pipeline stages in chunks, but pp is 1: give --pp", where="--vpp")
        return LayoutByHand(
            filled["dp"], filled["tp"], filled["pp"], self.cp or 1, self.ep or 1, self.vpp, self.zero, self.micro_batch, self.recompute,
            self.schedule or ("interleaved" if self.vpp > 1 else "1f1b"), self.context, self.replicate,
        )  # fmt: skip


def spelled(point: Point) -> dict[str, str]:
    """Options of `meshwright simulate` that say a point."""
    p = point
    found = {
        "--dp": p.dp, "--tp": p.tp, "--pp": p.pp, "--cp": p.cp, "--ep": p.ep, "--vpp": p.chunks, "--zero": p.zero,
        "--replicate": p.replicate, "--micro-batch": p.micro_batch, "--recompute": p.recompute,
        "--schedule": p.schedule if p.pp > 1 else "", "--context": p.context if p.cp > 1 else "",
        "sequence parallelism": ("no", "yes")[p.sequence],
    }  # fmt: skip
    return {name: str(value) for name, value in found.items()}


def _nearest_divisors(product: int, n: int) -> str:
    below = next(d for d in range(min(product, n), 0, -1) if n % d == 0)
    above = next((d for d in range(product + 1, n + 1) if n % d == 0), None)
    return f"{below} and {above}" if above else str(below)
