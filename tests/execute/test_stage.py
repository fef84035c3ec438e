"""What one micro-batch holds between its forward and its backward, and dropout that no plan changes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from execute.conftest import Model, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.execute import calls
from meshwright.execute.device import Hardware
from meshwright.execute.flight import Flight
from meshwright.execute.mesh_groups import Groups
from meshwright.execute.optimizer import SGD
from meshwright.execute.runtime import Runtime
from meshwright.execute.site import Local, Moment, Site

CPU = Hardware(torch.device("cpu"), "gloo")


def _runtime(model: Model, recompute: str) -> Runtime:
    plan = plan_of(model.graph, Layout(recompute=recompute), len(model.batch))
    return Runtime(model.program(plan), model.graph, plan, model.values, model.constants, SGD(), CPU, Groups())


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, weakref.ref[torch.UntypedStorage]]]:
    """Op -> weak reference to the storage of its result, the last time it ran."""
    made: dict[str, weakref.ref[torch.UntypedStorage]] = {}
    original = calls.localise

    def localise(site: Site) -> Local:
        call = original(site)

        def watched(operands: list[Tensor], moment: Moment) -> object:
            results = call(operands, moment)
            made[site.op.name] = weakref.ref(results[0].untyped_storage())
            return results

        return watched  # type: ignore[return-value]

    monkeypatch.setattr(calls, "localise", localise)
    yield made


def _held(recompute: str, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], int]:
    """Ops whose result is still in memory after the forward; bytes of these."""
    model = zoo_model("llama-3.1-8b")
    with _watched(monkeypatch) as made:
        runtime = _runtime(model, recompute)
        flight = Flight(Moment(0, 0), dict(model.batch[0]))
        runtime.locals[0].runner.forward(flight)
        gc.collect()
        alive = {name: ref() for name, ref in made.items() if ref() is not None}
        size = sum({s.data_ptr(): s.nbytes() for s in alive.values() if s is not None}.values())
        return set(alive), size


def test_what_is_recomputed_is_not_held_between_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, most = _held("none", monkeypatch)
    monkeypatch.undo()
    light, less = _held("light", monkeypatch)
    monkeypatch.undo()
    full, least = _held("full", monkeypatch)
    assert least < less < most
    inside = {name for name in kept if ".layers.0." in name and "mlp" in name}
    assert any("silu" in name or "mul" in name for name in inside)
    assert not any("silu" in name or "mul" in name for name in light if ".layers.0.mlp" in name)
    outside = "unsqueeze"  # a view of the rotary table, which all blocks share
    assert not {n for n in full if ".layers.0." in n and ("mlp" in n or "self_attn" in n) and outside not in n}
    assert least * 3 < most


def test_a_flight_holds_nothing_after_its_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo_model("llama-3.1-8b")
    with _watched(monkeypatch) as made:
        runtime = _runtime(model, "light")
        runtime.gradients(model.batch)
        gc.collect()
        assert [name for name, ref in made.items() if ref() is not None] == []
