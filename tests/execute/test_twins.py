"""Every op kind has a rule for running on parts, and awkward kinds give the gradients of one process however they are cut."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of, zoo_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan
from meshwright.execute.ops.calls import Place, sites_of
from meshwright.execute.ops.site import Moment, Site
from meshwright.execute.ops.twins import TWINS, localise
from meshwright.execute.ranks.mesh_groups import Groups, MeshView, ranks_of
from meshwright.execute.torch_compat import traced
from meshwright.graph.kinds import KINDS


def test_every_kind_of_the_table_has_a_twin_and_no_twin_is_without_a_kind() -> None:
    assert set(TWINS) == set(KINDS)


class Statistics(nn.Module):
    """Norms, softmaxes and reductions whose dims random plans cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8, padding_idx=0)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.mix = nn.Linear(8, 8)
        self.batch = nn.BatchNorm1d(8)
        self.groups = nn.GroupNorm(2, 8)

    def forward(self, tokens: Tensor, goal: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.norm(x) * torch.softmax(self.mix(x), -1)
        x = x + torch.log_softmax(self.rms(x), 1) * x.mean(-1, keepdim=True)
        y = self.batch(x.transpose(1, 2)) + self.groups(x.transpose(1, 2))
        y = torch.cat([y.roll(1, 2), y.repeat(1, 1, 1).flip(1)], 2).unflatten(2, (2, 4)).sum(2)
        return F.mse_loss(y.transpose(1, 2), goal) + y.square().mean() + F.smooth_l1_loss(y.mean(2), goal.mean(1))


class Pictures(nn.Module):
    """Convolutions, pools, a class loss with weights and smoothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 6)
        self.register_buffer("weight", torch.linspace(0.5, 1.5, 6))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.first(images)))
        x = F.max_pool2d(x + self.grouped(x), 2)
        scores = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        likelihood = F.nll_loss(torch.log_softmax(scores, 1), labels)
        return {"loss": F.cross_entropy(scores, labels, weight=self.weight, label_smoothing=0.1) + likelihood}


class Maps(nn.Module):
    """Losses of every pixel: their mean without those that are ignored, their sum, and each for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores = self.first(images)
        each = F.cross_entropy(scores, labels, reduction="none")
        summed = F.cross_entropy(scores.flatten(2), labels.flatten(1), reduction="sum")
        return F.cross_entropy(scores, labels, ignore_index=0) + 0.01 * summed + each.square().mean()


def trained(kind: type[nn.Module], inputs: list[Mapping[str, Tensor]]) -> Model:
    with torch.device("meta"):
        module = kind().train()
    torch.manual_seed(0)
    return model_of(module, inputs[0], inputs, kind().train())


def text_batch() -> list[Mapping[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        {"tokens": torch.randint(0, 12, (4, 4), generator=g), "goal": torch.randn(4, 4, 8, generator=g)}
        for _ in range(2)
    ]


def image_batch() -> list[Mapping[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        {"images": torch.randn(4, 4, 8, 8, generator=g), "labels": torch.randint(0, 6, (4,), generator=g)}
        for _ in range(2)
    ]


def test_losses_of_pixels_whose_classes_are_cut_are_those_of_one_process(pools: Pools) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [
        {"images": torch.randn(4, 4, 4, 4, generator=g), "labels": torch.randint(0, 6, (4, 4, 4), generator=g)}
        for _ in range(2)
    ]
    model = trained(Maps, inputs)
    cut: set[str] = set()
    for seed in range(12):
        plan = random_plan(model.graph, (2,), ("x",), 2, seed)
        losses = {op.name for op in model.graph.ops if op.kind.startswith("cross_entropy")}
        cut |= {n for s in plan.stages for n in losses & set(s.shardings) if s.shardings[n].cuts.get("classes")}
        result = model.check(plan, pools(2))
        assert result.equal, (seed, result.problems[:5])
    assert len(cut) == 3, cut


@pytest.mark.parametrize("seeds", (range(3), pytest.param(range(3, 16), marks=pytest.mark.slow)), ids=str)
@pytest.mark.parametrize("kind", (Statistics, Pictures))
def test_awkward_kinds_cut_at_random_give_the_gradients_of_one_process(
    kind: type[nn.Module], seeds: range, pools: Pools
) -> None:
    model = trained(kind, text_batch() if kind is Statistics else image_batch())
    for seed in seeds:
        plan = random_plan(model.graph, (2, 2), ("x", "y"), 2, seed)
        result = model.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])


def _cut_site(kind: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An op of a cut vocabulary or of cut classes on one of two ranks; what others would add is left out."""
    model = zoo_model("gpt2")
    program = model.program(plan_of(model.graph, Layout(tp=2), len(model.batch)))
    (code,) = program.stages
    view = MeshView(code.mesh, rank, ranks_of(program), Groups())
    sites = [s for segment in code.segments for s in sites_of(segment, Place(model.graph, view, torch.device("cpu")))]
    monkeypatch.setattr(Site, "complete", lambda self, x, *given: x)
    return next(s for s in sites if s.op.kind == kind and s.operand_cut(0, 1 if kind != "embedding" else 0))


@pytest.mark.parametrize("rank", (0, 1))
@pytest.mark.parametrize("kind", ("embedding", "cross_entropy_loss"))
def test_numbers_out_of_range_are_an_error_on_every_rank_of_a_cut_vocabulary(
    kind: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = _cut_site(kind, rank, monkeypatch)
    whole = site.shape(0)[0 if kind == "embedding" else 1]
    first = torch.randn(site.local_operand(0))
    legal = torch.arange(site.shape(1)[0] if len(site.shape(1)) == 1 else 6) % whole
    first = first if kind == "embedding" else first[: len(legal)]
    call = localise(site)

    def flat(*operands: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(list(operands), Moment(0, 0)))

    graph = traced(flat, [(tuple(x.shape), x.dtype, x.device) for x in (first, legal)])
    for run in (flat, graph):
        run(first, legal)
        for wrong in (whole, -1):
            with pytest.raises(RuntimeError, match=f"{site.op.name}: (ids|labels) out of range: .* 0 to {whole - 1}"):
                run(first, legal.clone().index_fill(0, torch.tensor(2), wrong))
    ignored = legal.clone().index_fill(0, torch.tensor(2), -100)
    if kind == "embedding":
        with pytest.raises(RuntimeError, match="ids out of range"):
            flat(first, ignored)
    else:
        assert flat(first, ignored)[0].isfinite()
