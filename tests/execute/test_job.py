"""A user's own loop under a plan is the loop that everybody writes on one process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import meshwright as mw
from execute import dying_loop, loops
from execute.conftest import Pools
from execute.layouts import Layout
from execute.loops import DROPPING, FROZEN, GPT2, PAIRS, SCORER, Ran, Saving, Task, by_hand, trained
from execute.unlike import ALL, DEALT, DP2_DP1, TP2_DP2, WEIGHTED, WEIGHTED_PIPE, Unlike
from meshwright.errors import ExecutionError, InputError, Unsupported

LAYOUTS = [Layout(dp=2), Layout(tp=2), Layout(dp=2, zero=3), Layout(pp=2)]


def on_ranks(pools: Pools, layout: Layout | Unlike, task: Task) -> list[Ran]:
    return pools(layout.ranks).run("execute.loops:trained", task)


def check_same(ran: list[Ran], truth: Ran, weights: float = 2e-5) -> None:
    for r in ran:
        assert r.losses == pytest.approx(truth.losses, rel=2e-6)
        assert r.norms == pytest.approx(truth.norms, rel=1e-5)
        assert r.evaluated == pytest.approx(truth.evaluated, rel=1e-5)
        for name, x in r.weights.items():
            torch.testing.assert_close(x, truth.weights[name], rtol=0, atol=weights, msg=lambda m, n=name: f"{n}: {m}")
    assert {n for r in ran for n in r.weights} == set(truth.weights)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_net_with_several_inputs_trains_as_on_one_process(pools: Pools, layout: Layout) -> None:
    ran = on_ranks(pools, layout, Task(SCORER, SCORER.plan(layout)))
    check_same(ran, by_hand(SCORER))


@pytest.mark.parametrize("layout", [Layout(dp=2, tp=2), Layout(dp=2, pp=2, zero=1)], ids=str)
def test_gpt2_of_transformers_trains_unchanged_with_its_own_loss(pools: Pools, layout: Layout) -> None:
    ran = on_ranks(pools, layout, Task(GPT2, GPT2.plan(layout)))
    check_same(ran, by_hand(GPT2))
    assert "lm_head.weight" in ran[-1].weights  # tied: under both of its names


@pytest.mark.parametrize("layout", [DP2_DP1, TP2_DP2, DEALT, WEIGHTED_PIPE], ids=str)
def test_a_loop_under_stages_of_unequal_replicas(pools: Pools, layout: Unlike) -> None:
    ran = on_ranks(pools, layout, Task(SCORER, SCORER.plan(layout)))
    check_same(ran, by_hand(SCORER))
    assert {r.share[1] for r in ran} == {1}  # the last stage reads all labels, whole or in turn


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL, ids=str)
def test_gpt2_under_stages_of_unequal_replicas(pools: Pools, layout: Unlike) -> None:
    check_same(on_ranks(pools, layout, Task(GPT2, GPT2.plan(layout))), by_hand(GPT2))


def test_a_rank_with_more_samples_knows_which(pools: Pools) -> None:
    """Parts of 1 and 2 of a micro-batch of 4 samples: 1 and 3."""
    ran = on_ranks(pools, WEIGHTED, Task(GPT2, GPT2.plan(WEIGHTED)))
    check_same(ran, by_hand(GPT2))
    assert [r.share for r in ran] == [(0, 2, 2), (1, 2, 6)]


@pytest.mark.slow
def test_stages_are_compiled_on_demand(pools: Pools) -> None:
    layout = Layout(pp=2)
    task = Task(SCORER, SCORER.plan(layout), options={"compile": "aot_eager"})
    check_same(on_ranks(pools, layout, task), by_hand(SCORER))


def test_frozen_parameters_stay_as_they_are(pools: Pools) -> None:
    layout = Layout(dp=2)
    truth = by_hand(FROZEN)
    ran = on_ranks(pools, layout, Task(FROZEN, FROZEN.plan(layout)))
    assert ran[0].losses == pytest.approx(truth.losses, rel=2e-6)
    assert "embed.weight" not in ran[0].weights
    assert len(ran[0].weights) == len(truth.weights) - 1


def test_batches_may_be_tuples(pools: Pools) -> None:
    layout = Layout(dp=2)
    check_same(on_ranks(pools, layout, Task(PAIRS, PAIRS.plan(layout))), by_hand(PAIRS))


def test_gradients_are_clipped_by_their_global_norm(pools: Pools) -> None:
    layout = Layout(tp=2)
    truth = by_hand(SCORER, clip=0.5)
    assert max(truth.norms) > 0.5
    check_same(on_ranks(pools, layout, Task(SCORER, SCORER.plan(layout), clip=0.5)), truth)


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(tp=2, sequence=True), Layout(pp=2)], ids=str)
def test_dropout_is_that_of_the_same_loop_on_one_device(pools: Pools, layout: Layout) -> None:
    alone = trained(None, Task(DROPPING, DROPPING.plan(Layout())))
    ran = on_ranks(pools, layout, Task(DROPPING, DROPPING.plan(layout)))
    for r in ran:
        assert r.losses == pytest.approx(alone.losses, rel=2e-6)
        assert r.evaluated == pytest.approx(alone.evaluated, rel=1e-5)
    assert alone.losses[0] != pytest.approx(by_hand(DROPPING).losses[0], rel=1e-3)


def test_the_module_is_left_as_it_was() -> None:
    model = loops.gpt2()
    before = {n: p.clone() for n, p in model.named_parameters()}
    kept = (model.config.to_dict(), model.config._attn_implementation, model.training, set(vars(model)), type(model))
    job = mw.parallelize(model, GPT2.plan(Layout()), optimizer=loops.momentum)
    job.train_step(loops.text(0))
    assert (
        model.config.to_dict(),
        model.config._attn_implementation,
        model.training,
        set(vars(model)),
        type(model),
    ) == kept
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


SHARES = [
    (Layout(dp=2), [(0, 2, 4), (1, 2, 4)]),
    (Layout(tp=2), [(0, 1, 8)] * 2),
    (Layout(pp=2), [(0, 1, 8)] * 2),
    (Layout(dp=2, pp=2), [(0, 2, 4), (1, 2, 4)] * 2),
    (Layout(dp=2, tp=2), [(0, 2, 4)] * 2 + [(1, 2, 4)] * 2),
]


@pytest.mark.parametrize(("layout", "wanted"), SHARES, ids=lambda x: str(x) if isinstance(x, Layout) else "")
def test_ranks_know_their_share_of_the_samples(layout: Layout, wanted: list[tuple[int, int, int]]) -> None:
    from meshwright.execute.step.shares import shares
    from meshwright.graph.user_model import Feed, graph_of, like
    from meshwright.lower import lower, unrolled
    from meshwright.plan.problem import Recipe

    model, batch = SCORER.model, SCORER.batch(0)
    feed = Feed.of(model, batch, SCORER.criterion)
    graph = graph_of(model, feed, like(feed.named(batch)), 4, loss=SCORER.criterion)
    plan = loops.plan_of(graph, layout, 2)
    program = unrolled(lower(graph, plan, Recipe(plan.samples)), graph)
    found = shares(program, graph)
    assert [(s.rank, s.world, 2 * s.count) for _, s in sorted(found.items())] == wanted


def test_ranks_of_one_share_that_are_given_different_samples_are_told(pools: Pools) -> None:
    layout = Layout(tp=2)
    said = pools(2).run("execute.loops:refused", Task(SCORER, SCORER.plan(layout), odd_rank=1))
    assert (
        said
        == [
            "ranks 0 and 1 were given different samples in step 1, but both have data_rank 0 of 1: give every rank the samples "
            "of its job.data_rank"
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [(Layout(dp=2, zero=2), Layout(tp=2)), pytest.param(Layout(pp=2), Layout(), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_loop_goes_on_under_another_plan(pools: Pools, tmp_path: Path, first: Layout, second: Layout) -> None:
    folder = tmp_path / "ckpt"
    whole = pools(2).run(
        "execute.loops:saved", Saving(Task(SCORER, SCORER.plan(first), steps=4, optimizer="adamw"), folder)
    )[0]
    saving = Saving(Task(SCORER, SCORER.plan(second), steps=4, on_meta=True, optimizer="adamw"), folder)
    if second.ranks == 1:
        rest = loops.resumed(None, saving)
    else:
        rest = pools(second.ranks).run("execute.loops:resumed", saving)[0]
    assert rest == pytest.approx(whole[2:], rel=2e-6)


@pytest.mark.parametrize(
    "layout", [Layout(dp=2, zero=1), pytest.param(Layout(dp=2, tp=2, zero=3), marks=pytest.mark.slow)], ids=str
)
def test_torch_checkpoints_the_state_dict_by_itself(pools: Pools, tmp_path: Path, layout: Layout) -> None:
    for r in pools(layout.ranks).run(
        "execute.loops:checkpointed_by_torch", Saving(Task(GPT2, GPT2.plan(layout)), tmp_path / "dcp")
    ):
        before, spoilt, after = r
        assert after == pytest.approx(before, rel=1e-6)
        assert abs(spoilt - before) > 1e-4
    # and a plain module reads the same folder
    import torch.distributed.checkpoint as dcp

    state = {n: torch.full_like(x, float("nan")) for n, x in loops.gpt2().state_dict().items()}
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert all(x.isfinite().all() for x in state.values())


def test_a_model_on_meta_is_filled_from_safetensors(pools: Pools, tmp_path: Path) -> None:
    loops.gpt2().save_pretrained(tmp_path / "pretrained")
    layout = Layout(tp=2)
    task = Task(GPT2, GPT2.plan(layout), on_meta=True, options={"weights": tmp_path / "pretrained"})
    check_same(on_ranks(pools, layout, task), by_hand(GPT2))


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(tp=2)], ids=str)
def test_a_real_model_starts_from_the_values_of_rank_0(pools: Pools, layout: Layout) -> None:
    ran = pools(2).run("execute.loops:unseeded", Task(SCORER, SCORER.plan(layout)))
    truth = ran[0][0]
    assert not torch.equal(ran[1][0]["head.weight"], truth["head.weight"])
    for _, started, untouched in ran:
        assert untouched
        assert all(torch.equal(x, truth[n]) for n, x in started.items())


def test_a_plain_process_has_plain_tensors_that_torch_saves_and_loads(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    job = mw.parallelize(loops.gpt2(), GPT2.plan(Layout()), optimizer=loops.momentum)
    before = job.eval_step(loops.text(9))
    assert {n: tuple(x.shape) for n, x in job.state_dict().items()} == {
        n: tuple(x.shape) for n, x in loops.gpt2().state_dict().items()
    }
    dcp.save(job.state_dict(), checkpoint_id=tmp_path / "dcp")
    job.train_step(loops.text(0))
    state = job.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "dcp")
    job.load_state_dict(state)
    assert job.eval_step(loops.text(9)) == before


@pytest.mark.slow
def test_whole_tensors_of_a_plain_module_are_loaded_too() -> None:
    job = mw.parallelize(loops.gpt2(), GPT2.plan(Layout()), optimizer=loops.momentum)
    other = loops.gpt2()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    job.load_state_dict(other.state_dict())
    assert job.eval_step(loops.text(3)) == pytest.approx(other(**loops.text(3)).loss.item(), rel=1e-6)
    with pytest.raises(InputError) as told:
        job.load_state_dict({"lm_head.weight": torch.zeros(2, 2)})
    assert told.value.message == (
        "transformer.wte.weight has shape (2, 2) in the state that is to be loaded: the model has it as (64, 32)"
    )


def test_buffers_of_a_model_on_meta_are_made_as_their_module_makes_them() -> None:
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    from meshwright.execute.saved.pretrained import made_again

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 64,
    }
    for cls, config in (
        (LlamaForCausalLM, LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0)),
        (BertForMaskedLM, BertConfig(**sizes)),
    ):
        real = dict(cls(config).named_buffers())
        with torch.device("meta"):
            empty = cls(config)
        for name, value in real.items():
            torch.testing.assert_close(made_again(empty, name), value)
        assert all(b.is_meta for b in empty.buffers())

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(3.0))

    with torch.device("meta"):
        empty = Own()
    with pytest.raises(InputError) as told:
        made_again(empty, "table")
    assert told.value.message == (
        'the buffer table is on the meta device, so it has no values: build the model outside of torch.device("meta"), or '
        "give weights= that hold it"
    )


def test_a_plan_in_bf16_computes_in_bf16_and_keeps_float32_masters() -> None:
    plan = GPT2.plan(Layout(), dtype="bfloat16")
    exact = mw.parallelize(loops.gpt2(), plan, optimizer=loops.momentum, precision="fp32")
    short = mw.parallelize(loops.gpt2(), plan, optimizer=loops.momentum)
    a = [exact.train_step(loops.text(k)).loss for k in range(3)]
    b = [short.train_step(loops.text(k)).loss for k in range(3)]
    assert a != b
    assert b == pytest.approx(a, rel=2e-2)
    assert a == pytest.approx(by_hand(GPT2).losses, rel=2e-6)
    assert {x.dtype for x in short.state_dict().values()} == {torch.float32}
    with pytest.raises(InputError) as told:
        mw.parallelize(loops.gpt2(), plan, optimizer=loops.momentum, precision="int8")
    assert told.value.message == 'no precision "int8": use one of bf16, fp16, fp32'
    with pytest.raises(InputError) as told:
        mw.parallelize(loops.gpt2(), GPT2.plan(Layout()), optimizer=loops.momentum, precision="bf16")
    assert told.value.message == (
        'the plan is for fp32, where a model has no casts: plan it with precision="bf16" to compute in that'
    )


@pytest.mark.slow
def test_a_plan_is_verified_against_the_function_that_builds_its_model() -> None:
    answer = mw.plan(
        loops.Scorer,
        inputs=loops.scores(0),
        loss=loops.score,
        cluster="localx2",
        batch=8,
        precision="fp32",
        fix={"tp": 2},
    )
    result = mw.verify(answer, loops.Scorer, inputs=loops.scores(0), loss=loops.score, full_size=True)
    assert result.check().gradients == 21
    with pytest.raises(InputError, match="for another model than test_job-Tiny"):
        mw.verify(answer.plan, Tiny, inputs=loops.scores(0), loss=loops.score)


class Tiny(loops.Scorer):
    def forward(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)).mean(1))


def test_a_bare_body_s_file_fills_the_model_with_a_head(tmp_path: Path) -> None:
    whole = loops.gpt2()
    whole.transformer.save_pretrained(tmp_path / "body")  # names without "transformer."
    with torch.device("meta"):
        empty = loops.gpt2()
    job = mw.parallelize(empty, GPT2.plan(Layout()), optimizer=loops.momentum, weights=tmp_path / "body")
    truth = by_hand(GPT2, 1)
    assert job.train_step(loops.text(0)).loss == pytest.approx(truth.losses[0], rel=2e-6)


def test_weights_of_another_model_are_refused_in_one_sentence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError) as told:
        mw.parallelize(
            loops.gpt2(), GPT2.plan(Layout()), optimizer=loops.momentum, weights=tmp_path / "other.safetensors"
        )
    assert told.value.message == (
        f"{tmp_path / 'other.safetensors'}: 28 of 28 parameters of the model are not there, first transformer.wte.weight; "
        "the names there are like other.weight"
    )


def test_a_plan_of_another_model_is_refused_before_anything_is_allocated() -> None:
    class Wider(loops.Scorer):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(6, 6)

        def forward(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return self.extra(super().forward(tokens, weight))

    plan = SCORER.plan(Layout())
    with pytest.raises(InputError) as told:
        mw.parallelize(Wider(), plan, optimizer=loops.momentum, loss=loops.score)
    assert told.value.message == (
        'the plan is for another model than Wider: it says nothing of 2 of 35 ops, first "extra/linear"'
    )
    answer = mw.plan(
        loops.Scorer, inputs=loops.scores(0), loss=loops.score, cluster="localx1", batch=8, precision="fp32"
    )
    other = loops.Scorer()
    other.head = nn.Linear(16, 7)
    with pytest.raises(InputError) as told:
        mw.parallelize(other, answer, optimizer=loops.momentum, loss=loops.score)
    assert told.value.message == (
        "the plan is for another model than Scorer: 2 of 21 parameters differ, first head.weight (6×16, not 7×16)"
    )


def test_a_plan_of_several_devices_in_one_process_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--fast"])
    with pytest.raises(InputError) as told:
        mw.parallelize(loops.scorer(), SCORER.plan(Layout(dp=2)), optimizer=loops.momentum, loss=loops.score)
    assert told.value.message == (
        "the plan has 2 devices and this is a single process: start it with torchrun --nnodes 1 --nproc-per-node 2 train.py "
        "--fast"
    )


BATCHES = [
    ({"tokens": 8, "weight": 8}, "the batch has no label: the model and its loss read tokens, weight and label"),
    (
        {"tokens": 8, "weight": 8, "label": 8, "mask": 8},
        "the batch has mask, which was not there in planning: the model and its loss read tokens, weight and label",
    ),
    (
        {"tokens": 4, "weight": 4, "label": 4},
        'the batch has "tokens" of shape (4, 8) and dtype int64, this rank takes (8, 8) of int64: 8 samples a step',
    ),
]


@pytest.mark.parametrize(("sizes", "sentence"), BATCHES, ids=["missing", "extra", "short"])
def test_a_batch_that_does_not_fit_is_refused(sizes: dict[str, int], sentence: str) -> None:
    job = mw.parallelize(loops.scorer(), SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)
    whole = {**loops.scores(0), "mask": torch.ones(8)}
    with pytest.raises(InputError) as told:
        job.train_step({n: whole[n][:size] for n, size in sizes.items()})
    assert told.value.message == sentence


def test_a_job_that_is_gone_has_written_its_checkpoint_and_holds_no_weights(tmp_path: Path) -> None:
    job = mw.parallelize(loops.scorer(), SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)
    job.train_step(loops.scores(0))
    job.save(tmp_path / "ckpt")
    held = [weakref.ref(x) for group in job.optimizer.param_groups for x in group["params"]]
    assert len(held) == 21
    del job
    gc.collect()
    assert (tmp_path / "ckpt" / "meshwright.json").is_file()
    assert not any(x() is not None for x in held)


def test_a_step_in_which_another_rank_ends_says_how_to_go_on(tmp_path: Path) -> None:
    job = mw.parallelize(loops.scorer(), SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)

    def closed(*_: object) -> None:
        raise RuntimeError(
            "[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:18304"
        )

    job.train_step(loops.scores(0))
    job._trainer.step = closed  # type: ignore[method-assign,assignment]
    with pytest.raises(ExecutionError) as told:
        job.train_step(loops.scores(1))
    assert told.value.message == "another rank ended at step 2, so this one was stopped"
    job.save(tmp_path / "a")
    job.wait()
    job._saves.append(tmp_path / "b")  # begun, never complete
    with pytest.raises(ExecutionError) as told:
        job.train_step(loops.scores(1))
    assert told.value.message == (
        f'another rank ended at step 2, so this one was stopped; go on with job.load("{tmp_path / "a"}") (loads under any plan)'
    )


@pytest.mark.slow
def test_a_users_script_whose_other_rank_is_killed_ends_in_one_sentence(tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1",
        "MESHWRIGHT_DEVICE": "cpu",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        dying_loop.__file__,
    ]
    ran = subprocess.run(
        [*command, str(tmp_path / "ckpt")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    text = (
        "meshwright.errors.ExecutionError: another rank ended at step 4, so this one was stopped; go on with "
        f'job.load("{tmp_path / "ckpt"}") (loads under any plan)'
    )
    assert text in ran.stderr, ran.stderr[-3000:]


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), "1", True], ids=str)
def test_a_clip_that_is_no_positive_number_is_refused(clip: Any) -> None:
    plan = SCORER.plan(Layout())
    job = mw.parallelize(loops.scorer(), plan, optimizer=loops.momentum, loss=loops.score, clip=2)
    sentence = f"clip is {clip!r}: give the largest norm of the gradients, a number above 0, or None"
    with pytest.raises(InputError) as told:
        job.clip = clip
    assert told.value.message == sentence and job.clip == 2
    with pytest.raises(InputError) as told:
        mw.parallelize(loops.scorer(), plan, optimizer=loops.momentum, loss=loops.score, clip=clip)
    assert told.value.message == sentence


def test_what_is_no_module_is_refused() -> None:
    model: Any = "x"
    with pytest.raises(InputError) as told:
        mw.parallelize(model, SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)
    assert told.value.message == "the model is of type str: give a torch.nn.Module, such as build() returns"


def test_numbers_are_cast_but_never_to_integers() -> None:
    job = mw.parallelize(loops.scorer(), SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)
    whole = loops.scores(0)
    wide = job.eval_step({**whole, "weight": whole["weight"].double()})
    assert wide == job.eval_step(whole)
    with pytest.raises(InputError, match=r'"tokens" of shape .* and dtype float32, this rank takes .* of int64'):
        job.eval_step({**whole, "tokens": whole["tokens"].float()})


def test_schedulers_of_torch_work_on_the_jobs_optimizer() -> None:
    plan = SCORER.plan(Layout())
    job = mw.parallelize(loops.scorer(), plan, optimizer=loops.momentum, loss=loops.score)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(job.optimizer, 0.5)
    own = mw.parallelize(
        loops.scorer(), plan, optimizer=loops.momentum, loss=loops.score,
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )  # fmt: skip
    for k in range(3):
        a, b = job.train_step(loops.scores(k)), own.train_step(loops.scores(k))
        scheduler.step()
        assert a.loss == b.loss
        assert job.optimizer.param_groups[0]["lr"] == own.optimizer.param_groups[0]["lr"] == 0.1 * 0.5 ** (k + 1)


def test_a_model_that_evaluates_otherwise_than_it_trains_is_refused() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.inner(x))
            return (x if self.training else x.tanh()).square().mean()

    batch = {"x": torch.randn(4, 4)}
    answer = mw.plan(Normed, inputs=batch, cluster="localx1", batch=4, precision="fp32")
    job = mw.parallelize(Normed(), answer, optimizer=loops.momentum)
    assert job.train_step(batch).loss > 0
    with pytest.raises(Unsupported) as told:
        job.eval_step(batch)
    assert told.value.message.startswith(
        "in evaluation mode the model computes something else, first in square: a plan runs the training mode"
    )


@pytest.mark.slow
def test_dropout_inside_of_attention_is_off_while_evaluating() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))  # all its dropout at 0.1
    answer = mw.plan(lambda: model, inputs=loops.text(0), cluster="localx1", batch=8, precision="fp32")
    job = mw.parallelize(model, answer, optimizer=loops.momentum)
    truth = model.eval()(**loops.text(1)).loss.item()
    assert job.eval_step(loops.text(1)) == pytest.approx(truth, rel=1e-5)


def test_a_loss_that_is_no_number_is_named_with_its_step_and_rank() -> None:
    job = mw.parallelize(loops.scorer(), SCORER.plan(Layout()), optimizer=loops.momentum, loss=loops.score)
    job.train_step(loops.scores(0))
    batch = loops.scores(1)
    batch["weight"][3] = float("nan")
    with pytest.raises(mw.MeshwrightError) as told:
        job.train_step(batch)
    assert told.value.message == (
        "the loss is nan at step 2, which rank 0 made first (input weight); the weights are those of step 1"
    )
    truth = by_hand(SCORER, 2)
    assert job.train_step(loops.scores(1)).loss == pytest.approx(truth.losses[1], rel=2e-6)


def test_the_report_sets_the_measured_step_beside_the_predicted_one() -> None:
    answer = mw.plan(
        loops.Scorer, inputs=loops.scores(0), loss=loops.score, cluster="localx1", batch=8, precision="fp32"
    )
    job = mw.parallelize(loops.scorer(), answer, optimizer=loops.momentum, loss=loops.score)
    for k in range(3):
        job.train_step(loops.scores(k))
    report = job.report()
    assert report.steps == 2
    assert report.ranks[0].step[0] == pytest.approx(answer.simulation.step_seconds, rel=0.01)
    assert report.ranks[0].step[1] > 0
    assert any(line.startswith("They part most where") for line in report.lines())


def test_a_loop_of_one_file(tmp_path: Path) -> None:
    """A plan that is written and loaded again knows what its model is fed."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom execute.loops import Scorer, score, scores\n"
        "class Net(Scorer):\n"
        "    def forward(self, tokens, weight, label):\n"
        "        return score(super().forward(tokens, weight), {'label': label})\n"
        "def build():\n    return Net(), scores(0)\n"
    )
    mw.plan(f"{tmp_path / 'net.py'}:build", cluster="localx1", batch=8, precision="fp32", folder=tmp_path / "out")
    plan = mw.load(tmp_path / "out")
    assert {n: shape for n, (shape, _) in plan.inputs.items()} == {"tokens": (-1, 8), "weight": (-1,), "label": (-1,)}

    class Net(loops.Scorer):
        def forward(self, tokens: torch.Tensor, weight: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return loops.score(super().forward(tokens, weight), {"label": label})

    torch.manual_seed(0)
    job = mw.parallelize(Net(), plan, optimizer=loops.momentum)
    micro_batches = max(1, plan.schedule.micro_batches)
    truth = by_hand(SCORER, 2, micro_batches=micro_batches)
    assert [job.train_step(loops.scores(k)).loss for k in range(2)] == pytest.approx(truth.losses, rel=2e-6)
    assert job.report().priced_for == "local×1" or job.report().priced_for


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    """Its dropout would go on with other masks."""
    plan = SCORER.plan(Layout())
    job = mw.parallelize(loops.Scorer(), plan, optimizer=loops.momentum, loss=loops.score, seed=1)
    job.save(tmp_path / "ck")
    job.wait()
    other = mw.parallelize(loops.Scorer(), plan, optimizer=loops.momentum, loss=loops.score)
    with pytest.raises(InputError, match=r"ck: written with seed 1, the job has 0: parallelize\(…, seed=1\)"):
        other.load(tmp_path / "ck")
