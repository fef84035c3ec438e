"""The report: complete without JavaScript, and quiet in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hand_made import hopper, priced, simulation, small_plan

from meshwright.report.charts.memory import thinned
from meshwright.report.charts.mesh import spans
from meshwright.report.charts.plans import pareto
from meshwright.report.html import report_html
from meshwright.report.outcome import Outcome

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Text(HTMLParser):
    """Words outside of scripts and styles, and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self._skip = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip += tag in ("script", "style")
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data") and v]

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)


@pytest.fixture
def report(outcome: Outcome) -> str:
    return report_html(outcome)


def parsed(html: str) -> Text:
    text = Text()
    text.feed(html)
    return text


def test_nothing_is_fetched(report: str) -> None:
    assert all(link.startswith("data:") for link in parsed(report).links)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', report)
    assert policy and policy[1].startswith("default-src 'none';") and "unsafe-eval" not in policy[1]


def test_it_is_under_4_MB(report: str) -> None:
    assert len(report.encode()) < 4_000_000


def test_every_section_and_figure_is_there_without_javascript(report: str, outcome: Outcome) -> None:
    words = " ".join(" ".join(parsed(report).words).split())
    for part in ("Why", "How sure", "2. ", "3. ", "4. ", "5. ", "6. ", "7. The plan in words", *outcome.sentences()):
        assert part in words
    for figure in ("15.6 s", "8,402", "46.4 %", "63.1", "exposed all-gather", "over by 20.9", "model.layers[0:4]"):
        assert figure in words
    assert report.count("<details") == report.count('<details class="plain" open')


def test_its_figures_are_those_of_the_json(report: str, outcome: Outcome) -> None:
    found = re.search(r'<script type="application/json" id="answer">(.*?)</script>', report, re.DOTALL)
    assert found
    answer = json.loads(found[1])
    assert answer["schema"] == "meshwright.plan/1"
    assert answer["simulation"]["step_s"] == outcome.candidates[0].step_s
    assert len(answer["candidates"]) == len(outcome.candidates) + len(outcome.misses)
    assert answer["candidates"][-1]["step_s"] is None  # nan is not JSON


def test_a_script_in_a_name_stays_text(outcome: Outcome) -> None:
    nasty = replace(outcome, question=replace(outcome.question, model="<script>alert(1)</script>"))
    html = report_html(nasty)
    assert "<script>alert(1)" not in html


def test_our_own_javascript_is_short() -> None:
    from importlib.resources import files

    assert len(files("meshwright.report").joinpath("page/page.js").read_text().splitlines()) <= 100


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize(("devices", "width"), [(64, 390), (64, 1280), (1024, 1280)])
def test_a_browser_draws_every_chart_without_network_or_errors(
    outcome: Outcome, tmp_path: Path, devices: int, width: int
) -> None:
    stages = 1 if devices == 64 else 4
    memory = {"weights": 20.0, "activations": 40.0}
    shown = replace(
        outcome,
        question=replace(outcome.question, cluster=hopper(devices)),
        plan=small_plan(devices, stages),
        simulations=(simulation(15.6, {"compute": 14.0, "all_reduce": 1.6}, memory, lanes=stages),),
        candidates=tuple(priced(f"dp{k}", 15.6 + k / 10, 60 - k / 10) for k in range(40)),
    )
    page = tmp_path / "report.html"
    page.write_text(report_html(shown), encoding="utf-8")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000",
            "--virtual-time-budget=6000", "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "[bokeh" not in line]
    assert not console
    assert done.stdout.count("bk-Figure") + done.stdout.count("bk-figure") + done.stdout.count("data-root-id") >= 5
    assert 'id="chart-time"' in done.stdout
    requests = re.findall(r'"url":"(https?://[^"]*)"', log.read_text(errors="replace"))
    assert not [u for u in requests if "bokeh" in u or "cdn" in u]


def test_thinning_keeps_ends_and_extremes() -> None:
    values = np.sin(np.linspace(0, 60, 20_000))
    values[7_777] = 5.0
    keep = thinned(values, 1200)
    assert len(keep) <= 1202 and keep[0] == 0 and keep[-1] == len(values) - 1
    assert 7_777 in keep
    assert list(thinned(values[:100], 1200)) == list(range(100))


def test_the_front_has_no_point_that_another_beats(outcome: Outcome) -> None:
    front = pareto(outcome.candidates)
    for c in outcome.candidates:
        assert any(f.step_s <= c.step_s and f.memory_bytes <= c.memory_bytes for f in front)
    assert [c.layout for c in front] == ["dp64 z2", "dp64 z3", "dp32 tp2 z1"]


def test_devices_are_named_in_spans() -> None:
    assert (spans([0, 1, 2, 3]), spans([0, 8, 16]), spans([5]), spans([0, 3, 4])) == (
        "0-3", "0, 8 … 16", "5", "0, 3, 4",
    )  # fmt: skip
