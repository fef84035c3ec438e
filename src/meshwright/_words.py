"""Numbers and names as people read them: the same in the table, the report, and the errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor, isfinite, log10

GIB = 2.0**30
MISSING = "–"

TIME_PARTS: Mapping[str, str] = {
    "compute": "compute",
    "all_gather": "exposed all-gather",
    "reduce_scatter": "exposed reduce-scatter",
    "all_reduce": "exposed all-reduce",
    "all_to_all": "exposed all-to-all",
    "broadcast": "exposed broadcast",
    "reduce": "exposed reduce",
    "permute": "exposed permute",
    "send": "exposed send",
    "optimizer": "optimizer",
    "bubble": "bubble",
    "idle": "idle",
}
"""Key of `Simulation.seconds_by` -> the word for it; other keys are shown with blanks for underscores."""


def decimals_for(value: float, digits: int = 3) -> int:
    """Decimals that show `value` to `digits` significant digits."""
    if value == 0 or not isfinite(value):
        return 0
    rounded = float(f"{abs(value):.{digits - 1}e}")
    return max(0, digits - 1 - floor(log10(rounded)))


def number(value: float, digits: int = 3) -> str:
    """To `digits` significant digits, with commas; exponents from 10^7 on; a dash for what is not known."""
    if not isfinite(value):
        return MISSING
    if abs(value) >= 1e7:
        return f"{value:.{digits - 1}e}".replace("e+", "e")
    return f"{value:,.{min(decimals_for(value, digits), 9)}f}"


def gib(nbytes: float, unit: float = GIB) -> str:
    """Bytes as GiB (or as `unit`) to one decimal, without the unit."""
    return f"{nbytes / unit:,.1f}" if isfinite(nbytes) else MISSING


def memory_unit(largest: float) -> tuple[float, str]:
    """(bytes, name) of the unit for a table whose largest figure is `largest` bytes: GiB, or MiB below one."""
    return (GIB, "GiB") if not largest < GIB else (2.0**20, "MiB")


def size(nbytes: float) -> str:
    """Bytes with the unit that fits them, whatever they are: "8 GiB", "1.42 MiB", "14 B"."""
    for unit, word in ((GIB, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if isfinite(nbytes) and nbytes >= 0.99 * unit:
            return f"{number(nbytes / unit)} {word}"
    return f"{nbytes:.4g} B" if isfinite(nbytes) else MISSING


def percent(share: float, decimals: int = 1) -> str:
    """0.464 -> "46.4 %"."""
    return f"{100 * share:.{decimals}f} %" if isfinite(share) else MISSING


def count(value: float) -> str:
    return f"{value:,.0f}" if isfinite(value) else MISSING


def money(value: float) -> str:
    """To three digits, never with an exponent: 12,300,000 or 0.61."""
    if not isfinite(value):
        return MISSING
    return number(value) if abs(value) < 1e3 else f"{float(f'{value:.2e}'):,.0f}"


def parameters(n: float) -> str:
    """8030261248 -> "8.03 B"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{number(n / size)} {unit}"
    return count(n)


def file_size(nbytes: float) -> str:
    """14321 -> "14 kB", 712000 -> "0.7 MB"."""
    return f"{max(1, round(nbytes / 1e3))} kB" if nbytes < 5e5 else f"{nbytes / 1e6:.1f} MB"


def time_part(key: str) -> str:
    return TIME_PARTS.get(key, key.replace("_", " "))


def rounded_parts(parts: Mapping[str, float], decimals: int) -> list[tuple[str, str]]:
    """Parts as text that add up to the rounded total: largest remainders are rounded up, zeros are left out."""
    scale = 10.0**decimals
    total = round(sum(parts.values()) * scale)
    floors = {k: floor(v * scale + 1e-9) for k, v in parts.items()}
    short = total - sum(floors.values())
    by_remainder = sorted(parts, key=lambda k: parts[k] * scale - floors[k], reverse=True)
    for key in by_remainder[: max(0, short)]:
        floors[key] += 1
    return [(k, f"{n / scale:,.{decimals}f}") for k, n in floors.items() if n > 0]


def joined(items: Sequence[str], last: str = "and") -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def sentence_list(names: Iterable[str], limit: int = 10) -> str:
    """Names for a sentence, at most `limit` of them."""
    found = list(names)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def whole_number(text: str) -> int | None:
    """What 18 digits or fewer say; None for any other text, signs that only look like digits ("²") among them."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None
