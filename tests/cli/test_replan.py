"""`replan` from the command line: the new plan, what moves, what is read of a real checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import Command
from json_schema import faults

from meshwright.cli.described import answers
from meshwright.request import read

SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
PARAMETERS = 2 * 128 * 64 + 64 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64)
"""Two embeddings, the last norm; two layers of q and o, k and v, three of the MLP, two norms."""


@pytest.fixture
def planned(meshwright: Command, tmp_path: Path) -> str:
    """ZeRO-1 on four processes: each holds a quarter of the state."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    done = meshwright(
        "plan", "config.json", "-c", "localx4", "--batch", "4", "--seq", "32", "--precision", "fp32", "-o", "small", "-q",
        "--fix", "dp=4,zero=1,micro_batch=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    return "small"


def test_half_of_the_devices_are_left(meshwright: Command, planned: str, tmp_path: Path) -> None:
    done = meshwright("replan", planned, "-c", "localx2", "--fix", "dp=2,zero=1", "-q", "--json", "-o", "half")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert faults(found, answers("replan")["ReplanAnswer"]) == []
    moves = found["moves"]
    assert moves["stay"] == {"0": 0, "1": 1}
    whole = 12.0 * PARAMETERS
    total = moves["kept_bytes"] + moves["sent_bytes"] + moves["read_bytes"]
    # Every element is held once under ZeRO-1; half of them were on the two devices that are gone.
    assert total == pytest.approx(whole, rel=1e-9)
    assert moves["read_bytes"] == pytest.approx(whole / 2, rel=0.02)
    assert sum(d["sent_bytes"] for d in moves["devices"]) == sum(d["received_bytes"] for d in moves["devices"]) > 0
    assert moves["send_s"] > 0 and found["resume"] is None
    assert (moves["send_low_s"], moves["send_high_s"]) == (None, None) and "nobody has measured" in moves["send_note"]
    old, new = read(tmp_path / "small" / "problem.toml"), read(tmp_path / "half" / "problem.toml")
    assert (old.batch, old.seq, old.precision, old.planner) == (new.batch, new.seq, new.precision, new.planner)
    assert new.cluster == "localx2"


def test_the_screen_has_the_table_the_moves_and_what_is_next(meshwright: Command, planned: str) -> None:
    done = meshwright("replan", planned, "-c", "localx2", "--fix", "", "-q", "-o", "half")
    lines = done.out.splitlines()
    assert done.code == 0, done.err
    heads = [line.split(" ")[0] for line in lines if line[:1].isalpha()]
    assert heads == ["Plan", "Step", "Memory", "Why", "Sure?", "Moves", "Next", "Wrote"]
    assert any(line.startswith("Moves    2 of 4 devices stay, 2 are gone, 0 are new.") for line in lines)
    sent = " ".join(done.out.split()).partition("Sending takes ")[2]
    assert ("No interval for sending: nobody has measured" in sent) == bool(sent)
    assert any("meshwright run half --resume DIR" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_what_ranks_read_is_what_the_new_plan_holds(meshwright: Command, planned: str) -> None:
    assert meshwright("run", planned, "--steps", "1", "-q", "-o", "small/run").code == 0
    done = meshwright("replan", planned, "-c", "localx2", "--fix", "dp=2,zero=1", "-q", "--json", "-o", "half")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["resume"]["checkpoint"].endswith("small/run/step-1")
    ranks = found["resume"]["ranks"]
    assert [r["rank"] for r in ranks] == [0, 1]
    # Of each element a float32 weight and AdamW's two moments.
    assert sum(r["bytes"] for r in ranks) == 12 * PARAMETERS
    for r, d in zip(ranks, found["moves"]["devices"], strict=True):
        assert r["bytes"] == d["kept_bytes"] + d["received_bytes"] + d["read_bytes"]
    here = {p.name for p in Path("small/run/step-1").glob("*.distcp")}
    assert {f for r in ranks for f in r["files"]} == here
    shown = meshwright(
        "replan", planned, "-c", "localx2", "--fix", "dp=2,zero=1", "-q", "-o", "half", "--resume", "small/run/step-1"
    ).out
    assert "Resume   Started again from small/run/step-1, ranks read" in shown
    assert "meshwright run half --resume small/run/step-1" in shown
    more = meshwright("run", "half", "--steps", "1", "--resume", "small/run/step-1", "-q", "--json", "-o", "more")
    assert [s["step"] for s in json.loads(more.out)["steps"]] == [2]


def test_a_checkpoint_of_another_model_is_refused(meshwright: Command, planned: str) -> None:
    assert meshwright("run", planned, "--steps", "1", "-q").code == 0
    Path("config.json").write_text(json.dumps(SMALL | {"vocab_size": 130}))
    other = (
        "plan",
        "config.json",
        "-c",
        "localx4",
        "--batch",
        "4",
        "--seq",
        "32",
        "--precision",
        "fp32",
        "-q",
        "-o",
        "other",
    )
    assert meshwright(*other).code == 0
    done = meshwright("replan", "other", "-c", "localx2", "-q", "--resume", "run/step-1", "-o", "half")
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "meshwright: run/step-1: written for another model: model.embed_tokens.weight has shape (128, 64) there, not (130, 64)",
    )
    assert not Path("half").exists()
    done = meshwright("replan", planned, "-c", "localx2", "-q", "-o", "half")
    assert done.code == 2 and "128×64" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("small", "-c", "localx4"),
            "localx4 is the cluster that the plan is for, so nothing moves: give another one with -c, or what is gone with --lost",
        ),
        (("small", "-c", "localx2", "--lost", "4"), "--lost 4: localx4 has devices 0 to 3"),
        (("small", "-c", "localx2", "--lost", "a"), "--lost a: write the numbers of devices as 3,17"),
        (("small", "-c", "localx4", "--lost", "3", "-o", "small"), "small/ holds the plan that is replaced: give another folder with -o"),
        (("small", "-c", "localx2", "--resume", "none"), "none: no whole checkpoint: a folder that a run wrote holds meshwright.json"),
        (("nothing", "-c", "localx2"), "nothing: no such file or directory: give a plan.json or its folder"),
    ],
)  # fmt: skip
def test_errors(meshwright: Command, planned: str, args: tuple[str, ...], message: str) -> None:
    done = meshwright("replan", *args, "-q")
    assert (done.code, done.err.splitlines()[-1]) == (2, f"meshwright: {message}")
