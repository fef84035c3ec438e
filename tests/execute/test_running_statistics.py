"""Running statistics of batch norms under plans are those of one process, which is written out with torch's own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import meshwright as mw
from execute.conftest import Model, Pools
from execute.statistics_jobs import RATE, Batch, Course, Ended, Normed
from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.refusal import why_not
from meshwright.execute.proof.verification import Reference, constants_of
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.statistics import Each
from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage, Weights
from meshwright.planners._profile import by_samples

SAMPLES, STATISTICS = 4, ("running_mean", "running_var", "num_batches_tracked")


def _batches(steps: int, micro_batches: int) -> list[list[Batch]]:
    g = torch.Generator().manual_seed(0)
    return [
        [{n: 2 + 3 * torch.randn(SAMPLES, 4, generator=g) for n in ("x", "t")} for _ in range(micro_batches)]
        for _ in range(steps)
    ]


@cache
def _model() -> tuple[Model, nn.Module]:
    """And the module with the values that training starts from."""
    torch.manual_seed(3)
    module = Normed()
    for norm in (module.first, module.second):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    graph = with_runs(capture(module, _batches(1, 1)[0][0], SAMPLES))
    values = Values(0, given={n: p.detach().clone() for n, p in module.named_parameters()})
    constants = {n: x.clone() for n, x in constants_of(graph, module).items()}
    return Model(graph, module, values, constants, (), Reference((), {}, {}, values)), module


def _watched(norm: nn.Module, inputs: list[Tensor]) -> RemovableHandle:
    """Keeps what the norm is given."""
    return norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))


def _one_process(steps: Sequence[Sequence[Batch]], each: Each) -> Normed:
    """Micro-batch by micro-batch; the statistics of each norm by torch's own update, of one batch of all that it saw, or of one
    after the other."""
    module = copy.deepcopy(_model()[1])
    assert isinstance(module, Normed)
    for batches in steps:
        seen: dict[nn.Module, list[Tensor]] = {module.first: [], module.second: []}
        twins = {norm: copy.deepcopy(norm) for norm in seen}
        hooks = [_watched(norm, inputs) for norm, inputs in seen.items()]
        module.zero_grad()
        for one in batches:
            (module(**one) / len(batches)).backward()
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for p in module.parameters():
                p -= RATE * p.grad
            for norm, twin in twins.items():
                for x in [torch.cat(seen[norm])] if each == "mini-batch" else seen[norm]:
                    twin(x)
                norm.load_state_dict({**norm.state_dict(), **{n: twin.state_dict()[n] for n in STATISTICS}})
    return module


def _plan(micro_batches: int, meshes: Sequence[Mesh], cuts: Mapping[str, OpSharding] | None = None) -> Plan:
    graph = _model()[0].graph
    names = [op.name for op in graph.ops]
    border = next(k for k, op in enumerate(graph.ops) if op.module == "outer")
    ends = [0, border, len(names)] if len(meshes) == 2 else [0, len(names)]
    stages = tuple(Stage(tuple(names[a:b]), m, cuts or {}) for (a, b), m in zip(pairwise(ends), meshes, strict=True))
    return Plan(graph.digest, SAMPLES * micro_batches, stages, Schedule("1f1b", micro_batches))


def _channels(axis: str) -> dict[str, OpSharding]:
    """Norms cut along their channels."""
    graph = _model()[0].graph
    return {op.name: OpSharding({"channels": (Cut(axis),)}) for op in graph.ops if op.kind == "batch_norm"}


def _line(*devices: int) -> Mesh:
    return Mesh(devices, ("data",), (len(devices),))


def _ran(pools: Pools, course: Course) -> list[Ended]:
    ranks = len({d for s in course.task.plan.stages for d in s.mesh.devices})
    return pools(ranks).run("execute.statistics_jobs:trained", course)


def _alike(found: Sequence[Ended], module: Normed, last: Sequence[Batch]) -> None:
    state, names = module.state_dict(), set()
    for one in found:
        names |= one.statistics.keys()
        for name, x in one.statistics.items():
            torch.testing.assert_close(x, state[name], rtol=1e-4, atol=1e-5)
    assert names == {f"{norm}.{s}" for norm in ("first", "second") for s in STATISTICS}
    module.eval()
    with torch.no_grad():
        losses = [float(module(**one)) for one in last]
    for one in found:
        assert one.evaluated == pytest.approx(losses, rel=1e-4)


PLANS: Mapping[str, Callable[[], Plan]] = {
    "two stages": lambda: _plan(3, [_line(0), _line(1)]),
    "recomputed": lambda: _recomputed(_plan(3, [_line(0), _line(1)])),
    "samples cut": lambda: _plan(2, [_line(0, 1)], by_samples(_model()[0].graph, "data")),
    "split backward": lambda: replace(_plan(3, [_line(0), _line(1)]), schedule=Schedule("zb-h1", 3)),
}


def _recomputed(plan: Plan) -> Plan:
    graph = _model()[0].graph
    return replace(
        plan, stages=tuple(replace(s, recompute=frozenset(op.name for op in graph.ops)) for s in plan.stages)
    )


@pytest.mark.parametrize("each", ["mini-batch", "micro-batch"])
@pytest.mark.parametrize("name", PLANS)
def test_they_are_those_of_one_process(name: str, each: Each, pools: Pools) -> None:
    plan = PLANS[name]()
    model = _model()[0]
    assert why_not(plan, model.graph) is None
    steps = _batches(3, plan.schedule.micro_batches)
    _alike(_ran(pools, Course(model.task(plan), steps, each)), _one_process(steps, each), steps[-1])
    other: Each = "micro-batch" if each == "mini-batch" else "mini-batch"
    assert not torch.allclose(
        _one_process(steps, each).state_dict()["first.running_var"],
        _one_process(steps, other).state_dict()["first.running_var"],
        rtol=1e-3,
    )


def test_pipes_add_up_what_each_of_them_saw(pools: Pools) -> None:
    model, steps = _model()[0], _batches(2, 4)
    plan = _plan(4, [_line(0), _line(1)])
    back = [replace(s, mesh=_line(1 - k), pipe=1) for k, s in enumerate(plan.stages)]
    plan = replace(plan, stages=(*plan.stages, *back), schedule=Schedule("chimera", 4, {"f": 1, "form": "direct"}))
    assert why_not(plan, model.graph) is None
    _alike(_ran(pools, Course(model.task(plan), steps)), _one_process(steps, "mini-batch"), steps[-1])


def test_channels_that_are_cut_keep_their_own(pools: Pools, tmp_path: Path) -> None:
    """And checkpoints, which load under any plan, and exported files hold them whole."""
    model, steps = _model()[0], _batches(4, 2)
    plan, folder = _plan(2, [_line(0, 1)], _channels("data")), str(tmp_path / "saved")
    found = _ran(pools, Course(model.task(plan), steps[:2], folder=folder))
    truth = _one_process(steps[:2], "mini-batch").state_dict()
    for rank, one in enumerate(found):
        torch.testing.assert_close(one.statistics["first.running_var"], truth["first.running_var"].chunk(2)[rank])
    file = load_file(folder + ".safetensors")
    assert {n: tuple(x.shape) for n, x in file.items()} == {n: tuple(x.shape) for n, x in truth.items()}
    for name, x in file.items():
        torch.testing.assert_close(x, truth[name], rtol=1e-4, atol=1e-5)
    other = _plan(2, [_line(0), _line(1)])
    _alike(
        _ran(pools, Course(model.task(other), steps[2:], resume=folder)), _one_process(steps, "mini-batch"), steps[-1]
    )


def test_without_a_flush_each_update_renews_them_with_its_own_micro_batches(pools: Pools) -> None:
    """2BW of a stage: update v takes the micro-batches 2 v and 2 v + 1, which read the weights of version v − 1."""
    model, steps = _model()[0], _batches(3, 2)
    weights = Weights(flush=False, update_every=2, reads="previous")
    plan = replace(_plan(2, [_line(0), _line(1)]), schedule=Schedule("2bw", 2, {}, (), weights))
    assert why_not(plan, model.graph) is None
    found = _ran(pools, Course(model.task(plan), steps))
    module = copy.deepcopy(_model()[1])
    assert isinstance(module, Normed)
    truth = {norm: copy.deepcopy(norm) for norm in (module.first, module.second)}
    versions = [{n: p.detach().clone() for n, p in module.named_parameters()}]
    for v, batches in enumerate(steps):
        seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in truth}
        hooks = [_watched(norm, inputs) for norm, inputs in seen.items()]
        module.load_state_dict({**module.state_dict(), **versions[max(0, v - 1)]})
        module.zero_grad()
        for one in batches:
            (module(**one) / len(batches)).backward()
        versions.append({n: versions[-1][n] - RATE * p.grad for n, p in module.named_parameters()})
        for norm, twin in truth.items():
            twin(torch.cat(seen[norm]))
        for hook in hooks:
            hook.remove()
    for name, norm in (("first", module.first), ("second", module.second)):
        for s in STATISTICS:
            (x,) = {id(x): x for one in found for n, x in one.statistics.items() if n == f"{name}.{s}"}.values()
            torch.testing.assert_close(x, truth[norm].state_dict()[s], rtol=1e-4, atol=1e-5)


def test_a_job_evaluates_with_them_and_hands_them_out() -> None:
    steps = _batches(3, 1)
    module = copy.deepcopy(_model()[1])
    answer = mw.plan(lambda: module, inputs=steps[0][0], cluster="localx1", batch=SAMPLES, precision="fp32")
    job = mw.parallelize(module, answer, optimizer=SGD(RATE))
    for (one,) in steps:
        job.train_step(one)
    truth = _one_process(steps, "mini-batch")
    state = job.state_dict()
    assert state.keys() == truth.state_dict().keys()
    for name, x in truth.state_dict().items():
        torch.testing.assert_close(state[name], x, rtol=1e-4, atol=1e-5)
    truth.eval()
    assert job.eval_step(steps[0][0]) == pytest.approx(truth(**steps[0][0]).item(), rel=1e-4)
    fresh = mw.parallelize(module, answer, optimizer=SGD(RATE))
    fresh.load_state_dict(truth.state_dict())
    assert fresh.eval_step(steps[1][0]) == pytest.approx(truth(**steps[1][0]).item(), rel=1e-5)
    with pytest.raises(InputError, match='no batch_norm "step": use one of mini-batch, micro-batch'):
        mw.parallelize(module, answer, optimizer=SGD(RATE), batch_norm="step")  # type: ignore[arg-type]


def test_a_norm_that_two_stages_run_is_refused() -> None:
    class Twice(Normed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            x = torch.relu(self.second(self.outer(self.first(self.inner(x)))))
            return (self.second(x) - t).square().mean()

    graph = with_runs(capture(Twice(), _batches(1, 1)[0][0], SAMPLES))
    names = [op.name for op in graph.ops]
    border = next(k for k, op in enumerate(graph.ops) if op.kind == "relu")
    stages = (Stage(tuple(names[:border]), _line(0)), Stage(tuple(names[border:]), _line(1)))
    plan = Plan(graph.digest, SAMPLES, stages, Schedule("1f1b", 1))
    assert why_not(plan, graph) == (
        "stages 0 and 1 both renew the running statistics second.running_mean: put the ops of this norm into one stage"
    )
    together = replace(plan, stages=(Stage(tuple(names), _line(0)),))
    assert why_not(together, graph) is None
