"""Part of `make docs`: writes the tables of docs/layouts.md from the functions that say and count volumes."""

from __future__ import annotations

from collections.abc import Iterator

from meshwright.cost.volumes import SCHEMES, Scheme, grid_side, linear_volume
from meshwright.errors import InputError
from meshwright.testing.linear import linear_received

from .pages import DOCS, with_table, write

PAGE = DOCS / "layouts.md"
CASE = (32, 16, 64)
GRIDS: tuple[tuple[Scheme, int, int], ...] = (
    ("1d-column", 4, 1), ("1d-column", 8, 1), ("1d-row", 4, 1), ("1d-row", 8, 1), ("1d-row-sequence", 4, 1),
    ("1d-row-sequence", 8, 1), ("2d", 4, 1), ("2.5d", 8, 2), ("3d", 8, 1),
)  # fmt: skip
LAYER = (8192, 12288, 49152)
DEVICES = (4, 8, 16, 27, 32, 64, 256)


def counted() -> Iterator[str]:
    yield "| scheme | devices | received, by the table | counted in the program | W a rank | X a rank | gathered | steps |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for scheme, devices, depth in GRIDS:
        v = linear_volume(scheme, *CASE, devices, depth)
        own = linear_received(scheme, *CASE, devices, depth)
        grid = f"{devices} (d = {depth})" if depth > 1 else str(devices)
        yield f"| {scheme} | {grid} | {v.received:,.0f} | {own:,.0f} | {v.weight:,.0f} | {v.operand:,.0f} | {v.gathered:,.0f} | {v.steps} |"


def compared() -> Iterator[str]:
    yield "| devices | " + " | ".join(SCHEMES) + " |"
    yield "| ---: |" + " ---: |" * len(SCHEMES)
    for devices in DEVICES:
        yield f"| {devices} | " + " | ".join(_least(scheme, devices) for scheme in SCHEMES) + " |"


def _least(scheme: Scheme, devices: int) -> str:
    """Of 2.5d the best depth above 1."""
    found = []
    for depth in range(2, devices + 1) if scheme == "2.5d" else (1,):
        try:
            grid_side(scheme, devices, depth)
        except InputError:
            continue
        found.append((linear_volume(scheme, *LAYER, devices, depth).received, depth))
    if not found:
        return "–"
    received, depth = min(found)
    return f"{received / 1e6:,.0f}" + (f" (d = {depth})" if depth > 1 else "")


def rebuilt(text: str) -> str:
    return with_table(with_table(text, "counted", counted()), "compared", compared())


def main() -> None:
    write(PAGE, rebuilt(PAGE.read_text(encoding="utf-8")))
