"""Nothing fits: exit 3, the nearest misses, what would fit."""

from __future__ import annotations

import json

from in_process import Command


def test_the_sentence_names_the_least_need_and_a_cluster_that_holds_it(meshwright: Command) -> None:
    done = meshwright("plan", "gpt3-2.7b", "-c", "p100x2", "--batch", "16", "--seq", "512", "--json", "-q")
    assert done.code == 3, done.out[:500]
    answer = json.loads(done.out)
    least = answer["candidates"][0]
    gib = 2.0**30
    larger = [h for h in answer["result"]["hints"] if not h.startswith("--")]
    assert larger, answer["result"]["hints"]
    assert done.err.splitlines()[-1] == (
        f"meshwright: infeasible: gpt3-2.7b on p100x2 needs at least {least['memory_bytes'] / gib:.1f} GiB a GPU "
        f"({least['layout']}, {least['recompute']} recompute), {least['over_bytes'] / gib:.1f} over; the smallest p100 "
        f"cluster that holds it is {larger[0].split()[0]}"
    )
    assert (answer["status"], answer["plan"]) == ("infeasible", None)
    assert least["over_bytes"] == min(c["over_bytes"] for c in answer["candidates"])
    fits = meshwright("plan", "gpt3-2.7b", "-c", larger[0].split()[0], "--batch", "16", "--seq", "512", "-q")
    assert fits.code == 0


def test_the_table_shows_three_misses_and_nothing_is_written(meshwright: Command) -> None:
    done = meshwright("plan", "gpt3-2.7b", "-c", "p100x2", "--batch", "16", "--seq", "512", "-q")
    assert done.code == 3
    lines = done.out.splitlines()
    assert sum(line.startswith("✗") and "over by" in line for line in lines) == 3
    assert meshwright("show", "gpt3-2.7b-p100x2").code != 0


def test_another_planner_that_finds_nothing_is_told_what_grid_finds_there(meshwright: Command) -> None:
    problem = ("plan", "gpt3-1.3b", "-c", "p100x8", "--batch", "16", "--seq", "512", "-q")
    done = meshwright(*problem, "--planner", "megatron", "--set", "tensor=1", "--json")
    assert done.code == 3, done.out[:500]
    assert done.err.splitlines()[-1].endswith("; --planner grid has a plan that fits")
    assert json.loads(done.out)["result"]["hints"] == ["--planner grid"]
    assert meshwright(*problem, "--planner", "grid").code == 0
