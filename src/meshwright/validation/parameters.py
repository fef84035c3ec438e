"""Which constants are fitted to measured steps, around which guesses, and how a value reaches the tables.

A parameter scales all its targets together: the first target takes the value, the others keep their ratio to it. The
guesses are round figures from data sheets and single-kernel measurements, made before any fit; `spread` is the standard
deviation of the logarithm that they are trusted with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from math import exp, log
from typing import Any, TypeVar

from ..cost.constants import Family, Software, families, software

MOST = 0.98
"""No share of a rate, and no overlap, is above this."""


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    targets: tuple[str, ...]
    """"family NAME.FIELD" or "software NAME.FIELD"; * stands for any text."""
    guess: float
    spread: float


# Of Hopper: 35 products alone on one H200 (torch 2.11) reach .92 and .80 of the 16- and 8-bit peaks at depth 141, and run
# 10 % slower under the power that whole steps draw.
PARAMETERS = (
    Parameter("a100.gemm_16", ("family a100.gemm_16",), 0.75, 0.10),
    Parameter("v100.gemm_16", ("family v100.gemm_16",), 0.72, 0.12),
    Parameter("h100.gemm_16", ("family h100.gemm_16", "family h100-500w.gemm_16"), 0.80, 0.10),
    Parameter("h100.gemm_8", ("family h100.gemm_8", "family h100-500w.gemm_8"), 0.70, 0.12),
    Parameter("a100.attention_first", ("family a100.attention_first",), 0.42, 0.10),
    Parameter("h100.attention_first", ("family h100.attention_first", "family h100-500w.attention_first"), 0.22, 0.15),
    Parameter("a100.attention_modern", ("family a100.attention_modern", "family a100.attention_flash"), 0.55, 0.15),
    Parameter("h100.attention_modern", ("family h100.attention_modern", "family h100-500w.attention_modern"), 0.54, 0.20),
    Parameter("h100.attention_flash", ("family h100.attention_flash", "family h100-500w.attention_flash"), 0.34, 0.15),
    Parameter("blackwell.gemm_16", ("family blackwell.gemm_16", "family blackwell-ultra.gemm_16"), 0.65, 0.15),
    Parameter("blackwell.gemm_8", ("family blackwell.gemm_8",), 0.60, 0.15),
    Parameter("blackwell.gemm_4", ("family blackwell.gemm_4",), 0.45, 0.20),
    Parameter("blackwell-ultra.gemm_8", ("family blackwell-ultra.gemm_8",), 0.65, 0.15),
    Parameter("blackwell-ultra.gemm_4", ("family blackwell-ultra.gemm_4",), 0.45, 0.20),
    Parameter("blackwell.attention_modern", ("family blackwell.attention_[fm][lo]*", "family blackwell-ultra.attention_[fm][lo]*"), 0.45, 0.25),
    Parameter("t4.gemm_16", ("family t4.gemm_16",), 0.45, 0.20),
    Parameter("l4.gemm_16", ("family l4.gemm_16",), 0.45, 0.20),
    Parameter("small_head", ("family *.small_head",), 0.85, 0.15),
    Parameter("depth", ("family a100.depth", "family v100.depth", "family p100.depth", "family t4.depth", "family l4.depth",
                        "family a10g.depth"), 250.0, 0.70),
    Parameter("h100.depth", ("family h100*.depth", "family blackwell*.depth", "family cdna*.depth"), 140.0, 0.50),
    Parameter("launch", ("family *.launch",), 7e-6, 0.60),
    Parameter("score_rate", ("family *.score_rate",), 0.55, 0.25),
    Parameter("score_bytes", ("family *.score_bytes",), 5.0, 0.30),
    Parameter("misaligned", ("family *.misaligned",), 4.0, 0.40),
    Parameter("outer", ("family [!c]*.outer", "family cdna*.outer"), 0.80, 0.20),
    Parameter("inner", ("family h100.inner", "family h100-500w.inner"), 0.85, 0.10),
    Parameter("floor.eager", ("software eager.floor_*", "software first.floor_*", "software unfused*.floor_*"), 0.8e-3, 0.50),
    Parameter("floor.compiled", ("software modern.floor_*", "software overlapped.floor_*", "software counted.floor_*"), 0.4e-3, 0.50),
    Parameter("fused.eager", ("software eager.fused", "software first.fused", "software unfused*.fused"), 1.0, 0.30),
    Parameter("fused.compiled", ("software modern.fused", "software overlapped.fused", "software graphed.fused", "software counted.fused"), 0.7, 0.30),
    Parameter("quantise", ("software *.quantise",), 0.8, 0.40),
    Parameter("overlap", ("software modern.overlap_[ds]*", "software eager.overlap_[ds]*", "software first.overlap_[ds]*",
                          "software overlapped.overlap_[ds]*", "software graphed.overlap_[ds]*",
                          "software counted.overlap_[ds]*"), 0.85, 0.10),
    Parameter("overlap_tensor", ("software overlapped.overlap_tensor", "software graphed.overlap_tensor", "software counted.overlap_tensor"), 0.60, 0.20),
    Parameter("overlap_gradient", ("software unfused-2022.overlap_gradient", "software overlapped.overlap_gradient",
                                   "software graphed.overlap_gradient", "software counted.overlap_gradient"), 0.70, 0.20),
    Parameter("transfer", ("software *.transfer",), 0.80, 0.40),
    Parameter("dispatch", ("software overlapped.dispatch", "software modern.dispatch", "software eager.dispatch"), 1.0e-3, 0.50),
    Parameter("expert", ("software overlapped.expert", "software modern.expert", "software eager.expert"), 40e-6, 0.50),
    Parameter("dispatch.counted", ("software counted.dispatch",), 0.8e-3, 0.40),
    Parameter("straggle", ("software *.straggle",), 0.004, 0.70),
    Parameter("fixed", ("software *.fixed",), 0.005, 0.60),
    Parameter("rate.first", ("software first.rate",), 1.0, 0.06),
)  # fmt: skip
_Row = TypeVar("_Row", Family, Software)
Values = Mapping[str, float]
"""Parameter -> value."""


def guesses() -> dict[str, float]:
    return {p.name: p.guess for p in PARAMETERS}


def shipped() -> dict[str, float]:
    """What the tables of the package hold."""
    return {p.name: _first(p) for p in PARAMETERS}


def tables(values: Values) -> tuple[dict[str, Family], dict[str, Software]]:
    """The package's tables with the parameters replaced; a parameter that is missing stays as shipped."""
    found_f, found_s = dict(families()), dict(software())
    for p in PARAMETERS:
        if p.name not in values:
            continue
        scale = values[p.name] / _first(p)
        for kind, name, field in targets(p):
            if kind == "family":
                found_f[name] = _replaced(found_f[name], field, scale)
            else:
                found_s[name] = _replaced(found_s[name], field, scale)
    return found_f, found_s


def _replaced(row: _Row, field: str, scale: float) -> _Row:
    value = float(getattr(row, field)) * scale
    share = field.startswith(("gemm", "attention", "overlap", "inner", "outer"))
    changes: dict[str, Any] = {field: min(value, MOST) if share else value}
    return replace(row, **changes)


def targets(parameter: Parameter) -> Iterable[tuple[str, str, str]]:
    """("family" or "software", name, field) of each target."""
    for pattern in parameter.targets:
        kind, _, path = pattern.partition(" ")
        table, row = (families(), Family) if kind == "family" else (software(), Software)
        for name in table:
            for field in fields(row):
                if fnmatch(f"{name}.{field.name}", path):
                    yield kind, name, field.name


def _first(parameter: Parameter) -> float:
    kind, name, field = next(iter(targets(parameter)))
    return float(getattr(families()[name] if kind == "family" else software()[name], field))


def logs(values: Values) -> list[float]:
    """In units of the spread from the guess, in the order of `PARAMETERS`."""
    return [log(values[p.name] / p.guess) / p.spread for p in PARAMETERS]


def from_logs(z: Iterable[float]) -> dict[str, float]:
    return {p.name: p.guess * exp(p.spread * x) for p, x in zip(PARAMETERS, z, strict=True)}
