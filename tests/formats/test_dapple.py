"""DAPPLE's states: layers are found from them and give them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshwright.formats.dapple import parse, recognises, write

COLUMNS = ("cumulative_ms", "cumulative_activation_bytes", "cumulative_parameter_bytes", "cut_bytes")


def test_public_states_are_given_back(data_folder: Path) -> None:
    document = json.loads((data_folder / "dapple" / "states.json").read_text())
    assert recognises(document) and not recognises({"nodes": []})
    for name, profile in document.items():
        problem = parse(document, "f", name)
        again = write(problem, name)[name]
        assert (again["profile_batch"], again["states"], again["is_chain"]) == (
            profile["profile_batch"], profile["states"], profile["is_chain"],
        )  # fmt: skip
        for column in COLUMNS:
            assert again[column] == pytest.approx(profile[column], rel=1e-9, abs=1e-6)
        if not profile["is_chain"]:
            assert [sorted(ks) for ks in again["predecessors"]] == [sorted(ks) for ks in profile["predecessors"]]


def test_times_and_activations_are_scaled_to_the_batch_and_parameters_are_not(data_folder: Path) -> None:
    document = json.loads((data_folder / "dapple" / "states.json").read_text())
    own, large = (parse(document, "f", "vgg-19", batch=batch) for batch in (32, 2048))
    assert sum(t.nbytes for t in own.graph.params()) == sum(t.nbytes for t in large.graph.params()) == 548047022
    assert large.graph.samples == 2048
    seconds = [sum(sum(r.seconds.values()) for r in p.cost.ops.values()) for p in (own, large)]  # type: ignore[attr-defined]
    assert seconds[1] == pytest.approx(64 * seconds[0])
    assert list(large.graph.values["cut_bytes"]) == pytest.approx([64 * x for x in own.graph.values["cut_bytes"]])
