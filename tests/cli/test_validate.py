"""`validate` from the command line: rows that ship, rows of a folder, the limit, the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from in_process import Command

ONE = ("validate", "--source", "megatron-sc21", "-q")


def test_the_rows_that_ship_need_no_folder(meshwright: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHWRIGHT_DATA", raising=False)
    done = meshwright(*ONE)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["source", "steps", "error", "median", "90", "%", "in", "order", "tau", "regret", "constant", "its", "own", "3", "rows"]  # fmt: skip
    assert re.match(r"megatron-sc21 +6 +[0-9.]+ %", lines[1])
    assert "6 of 1 source, each predicted by constants fitted without it" in done.out
    assert "Left out" in done.out


def test_the_object_lists_sources_with_their_errors(meshwright: Command) -> None:
    answer = json.loads(meshwright(*ONE, "--json").out)
    assert (answer["schema"], answer["status"], answer["unit"]) == ("meshwright.validate/2", "ok", "per cent")
    (source,) = answer["sources"]
    assert {"source", "rows", "mape", "median", "p90", "baseline", "own_baseline", "tau", "regret", "memory"} <= set(
        source
    )
    assert source["source"] == "megatron-sc21"
    assert source["rows"] == answer["rows"] == len(answer["predictions"]) == 6
    mean = sum(abs(p["error"]) for p in answer["predictions"]) / 6
    assert source["mape"] == pytest.approx(mean, abs=0.01) == answer["mape"]
    assert answer["left_out"] and all(isinstance(n, int) for n in answer["left_out"].values())


def test_an_error_above_the_limit_turns_the_answer_into_no(meshwright: Command) -> None:
    good = meshwright(*ONE, "--json", "--max-error", "100")
    assert good.code == 0, good.err
    bad = meshwright(*ONE, "--max-error", "0")
    assert bad.code == 1
    last = bad.out.splitlines()[-1]
    assert re.fullmatch(r"The mean error over sources is [0-9.]+ %, above the 0 % of --max-error\.", last)


def test_a_folder_of_the_same_columns_is_read(meshwright: Command, data_folder: Path, tmp_path: Path) -> None:
    text = (data_folder / "measured" / "megatron-sc21.csv").read_text(encoding="utf-8")
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    own = json.loads(meshwright(*ONE, "--json", "--data", str(tmp_path)).out)
    assert own["sources"][0]["mape"] == json.loads(meshwright(*ONE, "--json").out)["sources"][0]["mape"]
    empty = meshwright("validate", "-q", "--data", str(tmp_path / "none"))
    assert empty.code == 2
    assert empty.err.startswith("meshwright: no measured rows in ")


def test_the_page_has_every_step_and_fetches_nothing(meshwright: Command, tmp_path: Path) -> None:
    done = meshwright(*ONE, "--html", "-o", str(tmp_path / "page"))
    assert done.code == 0, done.err
    html = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href)=["']?https?:""", re.sub("<script.*?</script>", "", html, flags=re.DOTALL))
    rows = re.findall(r"<td>megatron-sc21</td><td>(megatron-sc21-[^<]+)</td>", html)
    assert len(set(rows)) == 6
    assert done.out.splitlines()[-1].startswith("Wrote ")
