"""Islands under torch's autograd do what the tape of single ops does, hold no more than they must, and compile."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from execute.conftest import Model, Pools, zoo_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan
from execute.stage_jobs import Ran, both, compiled
from execute.test_dropout import dropping_model
from meshwright.errors import Unsupported
from meshwright.execute.ops import calls
from meshwright.execute.ops.site import Local, Moment, Site
from meshwright.execute.ranks.device import Hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.ranks.worker import Context
from meshwright.execute.stage.flight import Flight
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.runtime import Runtime
from meshwright.lower.program import GRAD

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
        flight = Flight(Moment(0, 0), runtime.locals[0].params, dict(model.batch[0]))
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


class _Storages(TorchDispatchMode):
    """Every storage that torch makes while active."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[torch.UntypedStorage]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self._made.append(weakref.ref(x.untyped_storage()))
        return out

    def alive(self) -> int:
        """Bytes of those that are still there."""
        storages = [s for ref in self._made if (s := ref()) is not None]
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _left_behind(model: Model, recompute: str) -> int:
    """Bytes that a forward leaves for its backward; nothing waits for the garbage collector."""
    local = _runtime(model, recompute).locals[0]
    runner, flight = local.runner, Flight(Moment(0, 0), local.params, dict(model.batch[0]))
    gc.collect()
    gc.disable()
    try:
        with _Storages() as storages:
            runner.forward(flight)
        held = storages.alive()
        flight.grads[GRAD + model.graph.loss] = torch.ones(())
        with _Storages() as later:
            runner.backward(flight, "all", lambda grads: None)
        assert storages.alive() == later.alive() == 0
        return held
    finally:
        gc.enable()


def test_a_block_that_is_recomputed_leaves_its_input_alone() -> None:
    samples, tokens, width, item = 4, 8, 32, 4
    two, four = (_left_behind(zoo_model("llama-3.1-8b", blocks=n), "full") for n in (2, 4))
    assert four - two == 2 * samples * tokens * width * item
    two, four = (_left_behind(zoo_model("llama-3.1-8b", blocks=n), "none") for n in (2, 4))
    assert four - two > 20 * samples * tokens * width * item


def _agree(single: Ran, islands: Ran, close: float = 2e-6) -> None:
    torch.testing.assert_close(islands.losses, single.losses, rtol=close, atol=0)
    assert sorted(islands.gradients) == sorted(single.gradients)
    largest = max((float(g.abs().max()) for g in single.gradients.values() if g.numel()), default=0.0)
    for name, grad in single.gradients.items():
        torch.testing.assert_close(islands.gradients[name], grad, rtol=close, atol=close * largest)
    assert single.calls == single.promised
    assert islands.calls == islands.promised
    assert islands.order == single.order


@pytest.mark.parametrize("recompute", ("none", "light", "full"))
@pytest.mark.parametrize("name", ("llama-3.1-8b", "gpt2", "user-net"))
def test_on_one_rank_the_tape_of_single_ops_agrees(name: str, recompute: str) -> None:
    model = zoo_model(name)
    task = model.task(plan_of(model.graph, Layout(recompute=recompute), len(model.batch)))
    _agree(*both(Context(0, 1, CPU), task))


SEVERAL = (
    Layout(tp=2, sequence=True, recompute="full"),
    Layout(dp=2, zero=3, recompute="light"),
    Layout(tp=2, pp=2, recompute="full"),
    Layout(dp=2, tp=2, sequence=True, zero=2),
)


@pytest.mark.parametrize("layout", SEVERAL, ids=str)
def test_on_several_ranks_the_tape_of_single_ops_agrees(layout: Layout, pools: Pools) -> None:
    model = zoo_model("llama-3.1-8b")
    task = model.task(plan_of(model.graph, layout, len(model.batch)))
    answers = pools(layout.ranks).run("execute.stage_jobs:both", task)
    for single, islands in answers:
        _agree(single, islands)
    for stage in range(layout.pp):  # buckets are launched in this order
        orders = [islands.order[stage] for _, islands in answers if stage in islands.order]
        assert all(order == orders[0] for order in orders)
        assert sorted(orders[0]) == sorted(p.name for p in task.program.stages[stage].params)


@pytest.mark.parametrize("seeds", (range(1), pytest.param(range(1, 40), marks=pytest.mark.slow)), ids=str)
def test_random_plans_agree_with_the_tape_of_single_ops(seeds: range, pools: Pools) -> None:
    model = zoo_model("gpt2")
    for seed in seeds:
        plan = random_plan(model.graph, (2, 2), ("x", "y"), len(model.batch), seed)
        stage = plan.stages[0]
        again = frozenset(random.Random(seed).sample(stage.ops, len(stage.ops) // 2))
        plan = replace(plan, stages=(replace(stage, recompute=again),))
        for single, islands in pools(4).run("execute.stage_jobs:both", model.task(plan)):
            _agree(single, islands)


def test_gradients_of_the_last_blocks_are_complete_first() -> None:
    model = zoo_model("llama-3.1-8b")
    _, islands = both(Context(0, 1, CPU), model.task(plan_of(model.graph, Layout(), 2)))
    order = islands.order[0]
    blocks = [int(name.split(".")[2]) for name in order if ".layers." in name]
    assert blocks == sorted(blocks, reverse=True)
    assert order[-1] == "model.embed_tokens.weight"


@pytest.mark.parametrize("recompute", ("light", pytest.param("none", marks=pytest.mark.slow)))
def test_a_compiled_stage_gives_the_same(recompute: str) -> None:
    model = zoo_model("gpt2")
    task = model.task(plan_of(model.graph, Layout(recompute=recompute), 2))
    _agree(*compiled(Context(0, 1, CPU), (task, "aot_eager")))


@pytest.mark.parametrize("layout", (Layout(tp=2), pytest.param(Layout(dp=2, zero=3), marks=pytest.mark.slow)), ids=str)
def test_compiled_stages_hold_their_collectives_apart(layout: Layout, pools: Pools) -> None:
    model = zoo_model("llama-3.1-8b", blocks=1)
    task = model.task(plan_of(model.graph, layout, 2))
    for eager, islands in pools(2).run("execute.stage_jobs:compiled", (task, "aot_eager")):
        _agree(eager, islands)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("llama-3.1-8b", "gpt2", "user-net"))
def test_a_stage_compiled_by_inductor_gives_the_same(name: str, pools: Pools) -> None:
    model = zoo_model(name)
    for layout in (Layout(recompute="light"), Layout(tp=2, sequence=True, recompute="full")):
        task = model.task(plan_of(model.graph, layout, 2))
        for single, islands in pools(layout.ranks).run("execute.stage_jobs:compiled", (task, "inductor")):
            _agree(single, islands, 1e-5)


def test_a_compiled_stage_draws_the_same_masks_and_compiles_once() -> None:
    model = dropping_model()
    plan = plan_of(model.graph, Layout(), len(model.batch))
    losses = []
    for compile in (None, "aot_eager"):
        runtime = Runtime(
            model.program(plan), model.graph, plan, model.values, model.constants, SGD(), CPU, Groups(), compile=compile
        )
        with torch._dynamo.config.patch(error_on_recompile=True):
            losses.append([x for _ in range(3) for x in runtime.train_step(model.batch).losses])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    assert len({round(x, 6) for x in losses[0]}) == len(losses[0])


def test_a_split_backward_does_not_compile() -> None:
    model = zoo_model("llama-3.1-8b", blocks=4, micro_batches=4)
    plan = plan_of(model.graph, Layout(pp=2, schedule="zb-h1"), 4)
    with pytest.raises(Unsupported, match="another schedule"):
        Runtime(
            model.program(plan),
            model.graph,
            plan,
            model.values,
            model.constants,
            SGD(),
            CPU,
            Groups(),
            compile="inductor",
        )


def test_an_evaluation_records_nothing() -> None:
    model = zoo_model("gpt2")
    local = _runtime(model, "full").locals[0]
    runner, flight = local.runner, Flight(Moment(0, 0), local.params, dict(model.batch[0]))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x), lambda x: x):
        runner.forward(flight, record=False)
    assert not saved and not any(taped.exits for taped in flight.tape)
