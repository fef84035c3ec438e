"""--tokens, --price, --objective: days, money, least memory, and what is refused where no price is known."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

import pytest
from in_process import Command

from meshwright.cluster import Cluster, DeviceType, presets, resolve
from meshwright.report.training import training
from meshwright.request import read, tokens_of

SMALL = ("gpt2", "--batch", "64", "--seq", "256")


@pytest.mark.parametrize(
    ("text", "value"),
    [("15e12", 15e12), ("15T", 15e12), ("300B", 3e11), ("1.5M", 1.5e6), ("64k", 64e3), ("1,000", 1e3), ("7", 7.0)],
)
def test_tokens_are_read(text: str, value: float) -> None:
    assert tokens_of(text) == value


@pytest.mark.parametrize("text", ["", "T", "15 X", "-1", "0", "0.5", "nan", "inf", "1e400", "1e-3"])
def test_what_is_no_number_of_tokens_is_refused(meshwright: Command, text: str) -> None:
    done = meshwright("plan", "gpt2", f"--tokens={text}")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"meshwright: --tokens {text}: write a number of tokens, such as 15e12, 15T or 300B\n"


def test_days_and_money_are_those_of_the_step_and_the_price() -> None:
    """By hand: 1e9 tokens of 4,096 a step, 2 s each, 16 devices at 3 for an hour."""
    device = DeviceType("X", "gpu", 1e9, {}, 1e9, price_per_hour=3.0)
    found = training(1e9, 4096, 2.0, (1.0, 4.0), Cluster("c", (device,), 16))
    assert found.steps == 244_141 == ceil(1e9 / 4096)
    assert found.seconds == 488_282.0 and (found.low, found.high) == (244_141.0, 976_564.0)
    assert found.device_hours == pytest.approx(16 * 488_282 / 3600)
    assert found.cost == pytest.approx(3 * 16 * 488_282 / 3600)


def test_the_price_of_a_cluster_is_that_of_all_its_devices() -> None:
    cheap, dear = (DeviceType(n, "gpu", 1e9, {}, 1e9, price_per_hour=p) for n, p in (("a", 1.0), ("b", 2.5)))
    free = DeviceType("c", "gpu", 1e9, {}, 1e9)
    assert Cluster("m", (cheap, dear), 3, (0, 1, 1)).price_per_hour == 6.0
    assert Cluster("m", (cheap, free), 3, (0, 1, 1)).price_per_hour is None
    assert Cluster("m", (cheap, free), 2, (0, 0)).price_per_hour == 2.0
    priced = [p for p in presets().values() if p.device.price_per_hour]
    assert priced and all("price_per_hour" in p.sources for p in priced), "a price needs its source"
    assert resolve("v100-p3x16").price_per_hour == pytest.approx(16 * presets()["v100-p3"].device.price_per_hour)


def test_plan_says_days_and_money(meshwright: Command, tmp_path: Path) -> None:
    answer = json.loads(
        meshwright("plan", *SMALL, "-c", "a100x8", "--tokens", "10B", "--price", "2.5", "--json", "-q").out
    )
    found, step = answer["training"], answer["simulation"]["step_s"]
    steps = ceil(10e9 / (64 * 256))
    assert (found["tokens"], found["steps"]) == (10e9, steps)
    assert found["days"] == pytest.approx(steps * step / 86400)
    assert found["cost"] == pytest.approx(8 * 2.5 * steps * step / 3600)
    low, high = answer["candidates"][0]["step_low_s"], answer["candidates"][0]["step_high_s"]
    assert (found["days_low"], found["days_high"]) == pytest.approx((steps * low / 86400, steps * high / 86400))
    shown = meshwright("show", "gpt2-a100x8", "--text").out
    line = next(x for x in shown.splitlines() if x.startswith("Train "))
    assert line.startswith(f"Train    10,000,000,000 tokens in {steps:,} steps: ")
    assert "GPU-hours at 2.50 each cost " in shown
    assert "GPU-hours at 2.50 each cost " in (tmp_path / "gpt2-a100x8" / "report.html").read_text()
    again = read(tmp_path / "gpt2-a100x8" / "problem.toml")
    assert (again.tokens, again.price) == (10e9, 2.5)
    # It is the same problem with another number of tokens, and without any.
    assert meshwright("plan", *SMALL, "-c", "a100x8", "-q").code == 0
    assert "Train " not in meshwright("show", "gpt2-a100x8", "--text").out


def test_where_no_price_is_known_that_is_said(meshwright: Command) -> None:
    done = meshwright("simulate", *SMALL, "-c", "h100x8", "--dp", "8", "--tokens", "1T", "--json")
    assert json.loads(done.out)["training"]["cost"] is None
    text = " ".join(meshwright("simulate", *SMALL, "-c", "h100x8", "--dp", "8", "--tokens", "1T").out.split())
    assert "no price of H100-80GB is known: give --price, or price_per_hour in a cluster.toml." in text


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("plan", *SMALL, "-c", "h100x8", "--objective", "cost"),
            "--objective cost: no price of H100-80GB is known: give --price, or price_per_hour in a cluster.toml",
        ),
        (
            ("plan", "resnet-50", "-c", "h100x8", "--tokens", "1T"),
            "--tokens: resnet-50 is trained on samples, not on tokens: leave it out",
        ),
        (
            ("compare", *SMALL, "-c", "h100x8", "--objective", "cost"),
            "compare judges all planners on one cluster, where the cheapest plan is the fastest: leave out --objective cost",
        ),
        (("plan", *SMALL, "--price", "0"), "--price 0: must be a number of money, above 0"),
        (
            ("plan", *SMALL, "-c", "a100x8", "--objective", "memory", "--planner", "gpipe"),
            "planner gpipe cannot search for least memory: its goals are time",
        ),
    ],
)
def test_the_whole_sentence_is(meshwright: Command, args: tuple[str, ...], sentence: str) -> None:
    done = meshwright(*args, "-q")
    assert (done.code, done.out, done.err) == (2, "", f"meshwright: {sentence}\n")


def test_the_cheapest_size_is_that_of_all_sizes_planned_one_by_one(meshwright: Command, tmp_path: Path) -> None:
    answer = json.loads(meshwright("plan", *SMALL, "-c", "v100-p3x16", "--objective", "cost", "--json", "-q").out)
    price = presets()["v100-p3"].device.price_per_hour
    costs = {}
    for n in (1, 2, 4, 8, 16):
        one = json.loads(meshwright("plan", *SMALL, "-c", f"v100-p3x{n}", "--json", "-q", "-o", f"on{n}").out)
        costs[f"v100-p3x{n}"] = n * price * one["simulation"]["step_s"] / 3600 / (64 * 256)
    assert {s["cluster"]: s["cost_per_item"] for s in answer["sizes"]} == pytest.approx(costs)
    best = min(costs, key=lambda c: costs[c])
    assert answer["problem"]["cluster"] == best
    assert read(tmp_path / f"gpt2-{best}" / "problem.toml").objective == "cost"
    # What is written asks for itself again.
    again = json.loads(meshwright("plan", f"gpt2-{best}/problem.toml", "--json", "-q").out)
    assert again["plan"] == answer["plan"]


def test_least_memory_is_the_least_of_all_points(meshwright: Command) -> None:
    args = ("gpt2", "--batch", "8", "--seq", "128", "-c", "a100x2")
    answer = json.loads(meshwright("plan", *args, "--objective", "memory", "--json", "-q").out)
    fastest = json.loads(meshwright("plan", *args, "--json", "-q", "-o", "fast").out)
    rows = [c["memory_bytes"] for c in answer["candidates"] if c["fits"]]
    assert rows == sorted(rows)
    assert answer["candidates"][0]["memory_bytes"] == pytest.approx(answer["objective"])
    assert (answer["unit"], fastest["unit"]) == ("B", "s")
    assert rows[0] <= min(c["memory_bytes"] for c in fastest["candidates"])
    assert answer["candidates"][0]["step_s"] >= fastest["candidates"][0]["step_s"]
