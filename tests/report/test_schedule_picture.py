"""Pictures of schedules: every action is in them, where the clock says, and readable; the docs have the current ones."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
from parts import schedules

from meshwright.plan.model import Action
from meshwright.plan.schedules import GENERATORS, generate, timed
from meshwright.report.schedule_picture import GAP, HEIGHT, LEFT, SCALE, TOP, WORDS, _luminance, fill, schedule_svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
SPACE = "{http://www.w3.org/2000/svg}"


def cells(svg: str) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of each action that takes time."""
    found = []
    for rect in ElementTree.fromstring(svg).iter(f"{SPACE}rect"):
        x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        if rect.attrib.get("class") != "t" and y > TOP and h <= HEIGHT:
            found.append((x, y, w, h))
    return found


@pytest.mark.parametrize("picture", schedules.PICTURES, ids=lambda p: p.file)
def test_the_docs_have_the_picture_that_the_generator_draws(picture: object) -> None:
    file = DOCS / "schedules" / f"{picture.file}.svg"  # type: ignore[attr-defined]
    assert file.read_text(encoding="utf-8") == schedules.drawing(picture)


def test_the_page_shows_every_schedule() -> None:
    page = (DOCS / "schedules.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(GENERATORS)
    shown = re.findall(r"\(schedules/(\S+)\.svg\)", page)
    assert sorted(shown) == sorted(p.file for p in schedules.PICTURES)
    assert {p.name for p in schedules.PICTURES} == set(GENERATORS)
    assert {f.stem for f in (DOCS / "schedules").glob("*.svg")} == set(shown)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1", "pipedream", "zb-v"])
def test_every_action_is_a_cell_where_it_runs(name: str) -> None:
    chunks = 2 if name == "zb-v" else 1
    rows = generate(name, 3, 6)
    got = sorted(cells(schedule_svg(rows, chunks=chunks)))
    want = []
    for r, row in enumerate(timed(rows, chunks=chunks)):
        for bar in row:
            if bar.end > bar.start:
                x, y = LEFT + bar.start * SCALE + 0.5, TOP + r * (HEIGHT + GAP) + 0.5
                want.append((x, y, (bar.end - bar.start) * SCALE - 1, HEIGHT - 1))
    assert len(got) == len(want)
    for a, b in zip(got, sorted(want), strict=True):
        assert a == pytest.approx(b, abs=0.06)


@pytest.mark.parametrize("picture", schedules.PICTURES, ids=lambda p: p.file)
def test_cells_of_a_row_do_not_overlap_and_words_stay_inside(picture: object) -> None:
    svg = schedules.drawing(picture)
    root = ElementTree.fromstring(svg)
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, w, _ in cells(svg):
        rows.setdefault(y, []).append((x, x + w))
    for spans in rows.values():
        assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans)))
    width = float(root.attrib["width"])
    for text in root.iter(f"{SPACE}text"):
        words, x = text.text or "", float(text.attrib["x"])
        kind = text.attrib.get("class", "")
        right = x if kind == "e" else x + 3.2 * len(words) if kind.startswith("n") else x + 6.3 * len(words)
        assert right <= width, words


def test_a_joint_pair_lies_in_two_halves_of_one_place() -> None:
    halves = [c for c in cells(schedule_svg(generate("dualpipev", 2, 4), chunks=2)) if c[3] < HEIGHT - 1]
    assert halves and len(halves) % 2 == 0
    by_place: dict[tuple[float, float], list[float]] = {}
    for x, y, w, _ in halves:
        by_place.setdefault((x, w), []).append(y)
    assert all(len(ys) % 2 == 0 for ys in by_place.values())


def test_numbers_can_be_read_on_their_cells() -> None:
    """WCAG 2.2, contrast of text: 4.5 to 1."""
    for kind in WORDS:
        for place in range(4):
            tone = _luminance(fill(kind, place))
            ink = 1.0 if tone < 0.2 else _luminance("#1a1a1a")
            bright, dark = max(tone, ink), min(tone, ink)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (kind, place)


def test_shades_of_one_kind_differ_and_no_backward_looks_like_a_forward() -> None:
    tones = {(kind, place): _luminance(fill(kind, place)) for kind in "FB" for place in range(4)}
    assert max(t for (kind, _), t in tones.items() if kind == "B") < min(
        t for (kind, _), t in tones.items() if kind == "F"
    )
    for kind in "FBIW":
        assert len({fill(kind, place) for place in range(4)}) == 4


def test_a_stage_may_take_longer() -> None:
    rows = generate("pipedream", 2, 6, replicas="3,1")
    bars = timed(rows, stretch={0: 3.0})
    lengths = {(b.entry.kind, b.entry.on): b.end - b.start for row in bars for b in row if isinstance(b.entry, Action)}
    assert (lengths["F", 0], lengths["F", 1], lengths["B", 0], lengths["B", 1]) == (3.0, 1.0, 6.0, 2.0)
