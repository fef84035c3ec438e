"""OptCNN: configurations, the three terms against counting by hand, the optimum against brute force, VGG-16 on four GPUs."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest

from meshwright.cluster import resolve
from meshwright.cluster.model import Cluster
from meshwright.cost.analytic import Analytic
from meshwright.cost.base import Collective, Group
from meshwright.errors import InputError, Unsupported
from meshwright.formats.detect import read
from meshwright.graph.ir import Floats, Slot
from meshwright.plan.lookup import sharding_of, stage_ops
from meshwright.plan.model import Plan, Schedule
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners import load
from meshwright.planners._optcnn_layers import Layer, layers_of
from meshwright.planners._optcnn_prices import Prices, cost_graph, edges_of
from meshwright.planners.optcnn import OptCNN
from meshwright.simulate import simulate
from meshwright.solvers.node_edge import node_edge
from meshwright.testing import PlannerConformance
from meshwright.testing.tiny import mlp, problem_of
from reference_cases import reference_cases

from .conv_nets import Net, small_net, vgg16


class TestConformance(PlannerConformance):
    planner = "optcnn"


class Bandwidth(Analytic):
    """Transfers and sums of bytes / bandwidth alone: no latency, all devices joined alike."""

    def __init__(self, bandwidth: float) -> None:
        super().__init__(precision="float32")
        self.bandwidth = bandwidth

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        return np.asarray(nbytes, float) / self.bandwidth * (src != dst)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        n = prod(group.mesh.size(axis) for axis in group.axes)
        return 2 * (n - 1) / n * np.asarray(nbytes, float) / self.bandwidth


def problem(devices: int = 4, samples: int = 8, bandwidth: float = 1e10) -> Problem:
    graph = small_net(samples)
    return Problem(graph, resolve(f"a100x{devices}"), Bandwidth(bandwidth), Recipe(samples, compute_dtype="float32"))


def layer(graph_layers: list[Layer], name: str) -> Layer:
    return next(x for x in graph_layers if x.op.module == name)


def names(of: Layer) -> list[str]:
    return [of.op.rule.factors[f].name for f in of.dims]


def configuration(of: Layer, **degrees: int) -> int:
    wanted = [degrees.get(name, 1) for name in names(of)]
    return int(np.flatnonzero((of.degrees == wanted).all(axis=1))[0])


def test_output_dims_and_degrees() -> None:
    layers = layers_of(small_net(), 8, 4)
    conv, linear, loss = (layer(layers, name) for name in ("first", "head", "loss"))
    assert names(conv) == ["batch", "out", "s0", "s1"]  # the channels that are read are no output
    assert names(linear) == ["m", "n"]
    assert len(loss.dims) == 1 and sorted(loss.devices.tolist()) == [1, 2, 4]  # samples of a loss
    assert {tuple(c) for c in conv.degrees.tolist()} == {
        c for c in product((1, 2, 4), repeat=4) if prod(c) in (1, 2, 4)
    }
    assert conv.degrees[0].tolist() == [1, 1, 1, 1]
    every = layer(layers_of(small_net(6), 6, 4, every=True), "first")
    assert 3 in every.devices


def brute_tile(of: Layer, c: int, device: int, dims: tuple[tuple[str, ...], ...], widen: bool) -> set[tuple[int, ...]]:
    """Every element of a tensor that a device's tile touches, from the definition of a tile."""
    degrees = of.degrees[c]
    if device >= prod(degrees.tolist()):
        return set()
    place = np.unravel_index(device, tuple(degrees.tolist()))
    cut = {of.op.rule.factors[f].name: (int(g), int(q)) for f, g, q in zip(of.dims, degrees, place, strict=True)}
    size = {f.name: int(n) for f, n in zip(of.op.rule.factors, of.sizes, strict=True)}
    halo = {f.name: f.halo for f in of.op.rule.factors if f.kind == "halo"}
    per_dim = []
    for own in dims:
        shape = [size[n] for n in own]
        found = set()
        for flat in range(prod(shape)):
            at = np.unravel_index(flat, shape) if shape else ()
            if all(int(i) * cut[n][0] // size[n] == cut[n][1] for n, i in zip(own, at, strict=True) if n in cut):
                found.add(flat)
        for n in own:
            if widen and n in halo and n in cut and cut[n][0] > 1:
                lower, upper = halo[n]
                found |= {i + k for i in found for k in range(-lower, upper + 1) if 0 <= i + k < prod(shape)}
        per_dim.append(sorted(found))
    return set(product(*per_dim))


def test_transfers_are_what_tiles_need_less_what_they_have() -> None:
    """Sampled pairs of configurations of every edge, element by element: windows, strides, flattened and pooled dims."""
    rng = random.Random(1)
    asked = problem(4, samples=4)
    layers = layers_of(asked.graph, 4, 4)
    prices = Prices(asked, 4, "all_reduce")
    for a, result, b, operand in edges_of(asked.graph, layers):
        one, two = layers[a], layers[b]
        volumes = np.concatenate(prices.volumes(one, result, two, operand))
        seconds = prices.edge(one, result, two, operand)
        for _ in range(6):
            i, k = rng.randrange(len(one.degrees)), rng.randrange(len(two.degrees))
            held = [brute_tile(one, i, d, one.op.rule.results[result], False) for d in range(4)]
            need = [brute_tile(two, k, d, two.op.rule.operands[operand], True) for d in range(4)]
            missing = [len(need[d] - held[d]) for d in range(4)]
            assert volumes[i, k].sum(axis=1).tolist() == missing, (one.op.name, two.op.name)
            back = [sum(len(held[e] & need[d]) for d in range(4) if d != e) for e in range(4)]
            assert seconds[i, k] == pytest.approx(4 * (max(missing) + max(back)) / 1e10)


def test_a_window_gets_the_rows_of_its_neighbours() -> None:
    """Two halves of 8 rows under a 3 × 3 kernel: one row of 8 × 8 channels and columns each way, both directions."""
    asked = problem(2)
    layers = layers_of(asked.graph, 8, 2)
    prices = Prices(asked, 2, "all_reduce")
    act, conv = layer(layers, "act"), layer(layers, "second")
    table = prices.edge(act, 0, conv, 0)
    rows = names(act)[2]
    assert table[configuration(act, **{rows: 2}), configuration(conv, s0=2)] == pytest.approx(2 * 4 * 8 * 8 * 8 / 1e10)
    assert table[configuration(act, **{names(act)[0]: 2}), configuration(conv, batch=2)] == 0


def test_channel_cuts_gather_all_that_is_read() -> None:
    asked = problem(2)
    layers = layers_of(asked.graph, 8, 2)
    prices = Prices(asked, 2, "all_reduce")
    act, conv = layer(layers, "act"), layer(layers, "second")
    moved = prices.edge(act, 0, conv, 0)[configuration(act, **{names(act)[1]: 2}), configuration(conv, out=2)]
    whole = 4 * 8 * 8 * 8 * 8
    assert moved == pytest.approx((whole / 2 + whole / 2) / 1e10)  # each lacks a half; each gets a gradient of its half


def test_parameters_are_summed_shard_by_shard_over_their_own_replicas() -> None:
    asked = problem(4)
    layers = layers_of(asked.graph, 8, 4)
    head = layer(layers, "head")
    weight = 4 * prod(asked.graph.tensor["head.weight"].shape)
    for sync, one in (
        ("all_reduce", lambda nbytes, r: 2 * (r - 1) / r * nbytes),
        ("server", lambda nbytes, r: 2 * (r - 1) * nbytes),
    ):
        found = Prices(asked, 4, sync).parameters(head)  # type: ignore[arg-type]
        assert found[configuration(head, m=4)] == pytest.approx(one(weight, 4) / 1e10)
        assert found[configuration(head, m=2, n=2)] == pytest.approx(one(weight / 2, 2) / 1e10)
        assert found[configuration(head, n=4)] == found[0] == 0


def test_what_comes_from_another_node_is_charged_what_it_costs() -> None:
    """Two nodes of two: the half that a device lacks comes from its neighbour, from the other node, or from both."""
    big = resolve("a100x16")
    inner, outer = big.levels[0], big.levels[-1]
    cluster = replace(big, count=4, levels=(replace(inner, size=2), replace(outer, size=4)))
    asked = replace(problem(4), cluster=cluster, cost=Analytic(precision="float32"))
    layers = layers_of(asked.graph, 8, 4)
    prices = Prices(asked, 4, "all_reduce")
    act, conv = layer(layers, "act"), layer(layers, "second")
    table = prices.edge(act, 0, conv, 0)
    channels = names(act)[1]
    whole = 4.0 * 8 * 8 * 8 * 8

    def seconds(nbytes: float, src: int, dst: int) -> float:
        return float(asked.cost.transfer(np.array([nbytes]), src, dst, cluster)[0])

    inside = table[configuration(act, **{channels: 2}), configuration(conv, out=2)]
    assert inside == pytest.approx(2 * seconds(whole / 2, 1, 0))
    across = table[configuration(act, **{channels: 4}), configuration(conv, out=4)]
    # Forward each lacks three quarters; backward each gets a gradient of its quarter from the three others.
    assert across == pytest.approx(2 * (seconds(whole / 4, 1, 0) + seconds(whole / 2, 2, 0)))
    assert across > inside


def test_length_and_depth_are_dims_too() -> None:
    net = Net(4)
    one = net.tensor("one", (4, 2, 16), "input")
    weight = net.tensor("w1", (6, 2, 3), "param")
    net.call("line", "conv1d", (one, weight), (Slot(0), Slot(1), None, (1,), (1,), (1,), 1), (4, 6, 16))
    cube = net.tensor("cube", (4, 2, 8, 8, 8), "input")
    weight = net.tensor("w3", (6, 2, 3, 3, 3), "param")
    made = net.call(
        "solid", "conv3d", (cube, weight), (Slot(0), Slot(1), None, (1,) * 3, (1,) * 3, (1,) * 3, 1), (4, 6, 8, 8, 8)
    )
    layers = layers_of(net.graph(net.mean("loss", made)), 4, 4)
    assert names(layer(layers, "line")) == ["batch", "out", "s0"]
    assert names(layer(layers, "solid")) == ["batch", "out", "s0", "s1", "s2"]


def test_a_batch_norm_cut_along_samples_sums_its_statistics() -> None:
    net = Net(8)
    x = net.conv("conv", net.images(4, 8), 8)
    per_channel = [
        net.tensor(n, (8,), role) for n, role in (("w", "param"), ("b", "param"), ("m", "buffer"), ("v", "buffer"))
    ]  # type: ignore[arg-type]
    args = (*(Slot(k) for k in range(5)), True)
    graph = net.graph(net.mean("loss", net.call("norm", "batch_norm", (x, *per_channel), args, (8, 8, 8, 8))))
    asked = Problem(graph, resolve("a100x2"), Bandwidth(1e10), Recipe(8, compute_dtype="float32"))
    layers = layers_of(graph, 8, 2)
    norm = layer(layers, "norm")
    sums = Prices(asked, 2, "all_reduce").statistics(norm)
    stat = next(f for f in norm.op.rule.factors if f.kind == "stat")
    each = 2 * (1 / 2) * 4 * 8 / 1e10
    assert sums[configuration(norm, batch=2)] == pytest.approx(sum(stat.sums) * each)
    assert sums[configuration(norm, channels=2)] == sums[0] == 0


def test_the_first_wide_layer_of_vgg16_moves_less_cut_by_channels() -> None:
    """On two GPUs its parameters are 411 MB, summed over samples; its input is 25,088 values a sample."""
    asked = Problem(vgg16(64), resolve("p100x2"), Bandwidth(1e9), Recipe(64, compute_dtype="float32"))
    layers = layers_of(asked.graph, 64, 2)
    prices = Prices(asked, 2, "server")
    wide, before = layer(layers, "fc6"), layer(layers, "flatten")
    by_samples = prices.parameters(wide)[configuration(wide, m=2)]
    assert by_samples == pytest.approx(2 * 25088 * 4096 * 4 / 1e9)
    channels = prices.edge(before, 0, wide, 0)[configuration(before, **{names(before)[0]: 2}), configuration(wide, n=2)]
    assert channels == pytest.approx((32 * 25088 * 4 + 32 * 25088 * 4) / 1e9)
    assert by_samples > 12 * channels


def test_small_tiles_lose_efficiency() -> None:
    """tc is the cost model on local shapes, not work divided by devices."""
    asked = replace(problem(4), cost=Analytic(precision="float32"))
    layers = layers_of(asked.graph, 8, 4)
    head = layer(layers, "head")
    seconds = Prices(asked, 4, "all_reduce").compute(head)
    assert seconds[configuration(head, m=4)] > seconds[0] / 4


def test_the_result_is_the_optimum_and_its_own_objective() -> None:
    """Against all joint choices of a chain small enough to try them."""
    net = Net(4)
    x = net.relu("act", net.conv("conv", net.images(2, 4), 4))
    graph = net.graph(net.mean("loss", x))
    asked = Problem(graph, resolve("a100x2"), Bandwidth(1e9), Recipe(4, compute_dtype="float32"))
    planner = OptCNN()
    result = planner.plan(asked)
    assert result.plan is not None and result.status == "optimal"
    layers = layers_of(graph, 4, 2)
    table = cost_graph(layers, Prices(asked, 2, "all_reduce"), lambda done, total: None)
    every = min(table.cost(c) for c in product(*(range(len(u)) for u in table.unary)))
    assert result.objective == pytest.approx(every, rel=1e-12)
    assert planner.objective(asked, result.plan) == pytest.approx(result.objective, rel=1e-12)


def test_no_uniform_plan_is_better_and_more_devices_never_hurt() -> None:
    """Data, model and one-weird-trick parallelism under the same tables; configurations of 2 devices are among those of 4."""
    values = []
    for devices in (1, 2, 4):
        asked = problem(devices)
        layers = layers_of(asked.graph, 8, devices)
        table = cost_graph(layers, Prices(asked, devices, "all_reduce"), lambda done, total: None)
        found, _ = node_edge(table)
        values.append(found.value)
        batch = [int(np.flatnonzero(x.degrees[:, 0] == devices)[0]) for x in layers]
        channels = [
            int(np.flatnonzero(x.degrees[:, 1] == devices)[0]) if len(x.dims) > 1 else c
            for x, c in zip(layers, batch, strict=True)
        ]
        weird = [m if x.op.kind == "linear" else d for x, d, m in zip(layers, batch, channels, strict=True)]
        assert found.value <= min(table.cost(c) for c in (batch, channels, weird))
    assert values[0] >= values[1] >= values[2]


def test_free_transfers_leave_the_least_compute_and_dear_ones_no_transfer_at_all() -> None:
    asked = problem(4, bandwidth=1e30)
    layers = layers_of(asked.graph, 8, 4)
    prices = Prices(asked, 4, "all_reduce")
    result = OptCNN().plan(asked)
    assert result.objective == pytest.approx(sum(float(prices.compute(x).min()) for x in layers))
    dear = problem(4, bandwidth=1e-3)
    plan = OptCNN().plan(dear)
    assert plan.objective == pytest.approx(sum(float(Prices(dear, 4, "all_reduce").compute(x)[0]) for x in layers))
    assert plan.plan is not None and [len(s.mesh.devices) for s in plan.plan.stages] == [1]


def test_one_device_is_no_choice() -> None:
    result = OptCNN().plan(problem(1))
    assert result.plan is not None and len(result.plan.stages) == 1
    assert isinstance(result.carry, dict) and result.carry["configurations"] == 1


def degrees_of(asked: Problem, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Module -> degrees of its output dims."""
    found = {}
    for stage in plan.stages:
        for i in stage_ops(asked.graph, stage):
            op = asked.graph.ops[i]
            own = next(x for x in layers_of(asked.graph, asked.recipe.samples, 4) if x.index == i)
            sharding = sharding_of(asked.graph, stage, i)
            cuts = sharding.cuts if sharding else {}
            found[op.module] = tuple(
                prod(stage.mesh.size(c.axis) for c in cuts.get(own.op.rule.factors[f].name, ())) for f in own.dims
            )
    return found


def test_vgg16_on_one_node_of_four_gpus_is_cut_as_the_paper_says() -> None:
    """Table 5: early convolutions by samples, fully connected layers by channels, the last on no more devices than the others."""
    graph = vgg16(128)
    cluster = resolve("p100x4")
    asked = Problem(
        graph, cluster, Analytic(precision="float32", software="unfused"), Recipe(128, compute_dtype="float32")
    )
    planner = OptCNN()
    result = planner.plan(asked)
    assert result.plan is not None and result.status == "optimal"
    degrees = degrees_of(asked, result.plan)
    assert degrees["conv1_1"] == (4, 1, 1, 1)
    assert degrees["fc6"][0] == 1 and degrees["fc6"][1] > 1
    assert degrees["fc7"][0] == 1 and degrees["fc7"][1] > 1
    assert prod(degrees["softmax"]) <= prod(degrees["fc8"]) <= prod(degrees["fc6"])
    assert isinstance(result.carry, dict) and result.carry["kernel"] == 2
    assert planner.objective(asked, result.plan) == pytest.approx(result.objective, rel=1e-12)


def test_a_plan_has_one_stage_for_each_shape_and_is_simulated() -> None:
    asked = replace(problem(4), cost=Analytic(precision="float32"))
    layers = layers_of(asked.graph, 8, 4)
    rng = random.Random(5)
    choice = tuple(rng.randrange(len(x.degrees)) for x in layers)
    planner = OptCNN()
    plan = planner._plan(asked, layers, choice)
    shapes = [s.mesh.shape for s in plan.stages]
    assert len(set(shapes)) == len(shapes) > 1 and all(s.mesh.devices[0] == 0 for s in plan.stages)
    table = cost_graph(layers, Prices(asked, 4, "all_reduce"), lambda done, total: None)
    assert planner.objective(asked, plan) == pytest.approx(table.cost(choice), rel=1e-12)
    assert simulate(asked, plan, detail=False).step_seconds > 0


def test_plans_outside_of_its_space_are_refused() -> None:
    asked = problem(2)
    plan = OptCNN().plan(asked).plan
    assert plan is not None
    with pytest.raises(Unsupported, match="one micro-batch"):
        OptCNN().objective(asked, replace(plan, schedule=Schedule("dataflow", 2)))
    with pytest.raises(Unsupported, match="128 are too many, plan on at most 64"):
        OptCNN().plan(replace(asked, cluster=resolve("a100x128")))
    with pytest.raises(InputError, match='optcnn has no sync "ring": there are all_reduce and server'):
        OptCNN(sync="ring")  # type: ignore[arg-type]


def test_layers_that_do_not_reduce_are_refused_or_given_to_the_common_elimination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(8)
    x = net.tensor("x", (8, 16), "input")
    made = [net.linear(f"in{k}", x, 16) for k in range(4)]
    for k in range(4):
        for j in range(k):
            made[k] = net.add(f"mix{k}{j}", made[k], made[j])
    graph = net.graph(net.mean("loss", made[3]))
    asked = Problem(graph, resolve("a100x4"), Bandwidth(1e9), Recipe(8, compute_dtype="float32"))
    whole = OptCNN().plan(asked)
    assert isinstance(whole.carry, dict) and whole.carry["kernel"] > 2
    monkeypatch.setattr("meshwright.solvers.node_edge.ENTRIES", 10)
    with pytest.raises(Unsupported, match="set rest=elimination"):
        OptCNN().plan(asked)
    common = OptCNN(rest="elimination").plan(asked)
    assert common.objective == pytest.approx(whole.objective, rel=1e-12) and common.status == "optimal"
    assert isinstance(common.carry, dict) and "nodes solved by elimination" in str(common.carry["rest"])


# What the eliminations find in recorded cost graphs, by the door that files come through.
RECORDED = reference_cases(
    "optcnn",
    "Recorded cost graphs",
    source="PaSE's original program, and enumeration of all choices",
    columns=("file", "settings", "least"),
    rows=[
        ("pase/alexnet_8_costs.npz", {}, 97098296512.0),
        ("pase/inception3_4_costs.npz", {}, 986757044608.0),
        ("intra-op-instances/small-factor-graphs.json", {"graph": "two-diamonds"}, 150.0),
    ],
)


@pytest.mark.parametrize(("file", "settings", "least"), RECORDED, ids=lambda x: x if isinstance(x, str) else "")
def test_recorded_cost_graphs(data_folder: Path, file: str, settings: dict[str, str], least: float) -> None:
    asked = read(data_folder / file, **settings)
    planner = OptCNN()
    result = planner.plan(asked)
    assert (result.objective, result.status) == (least, "optimal")
    assert result.plan is not None and planner.objective(asked, result.plan) == least
    assert isinstance(result.carry, dict) and result.carry["left"] == 1


@pytest.mark.parametrize("planner", ["optcnn", "tofu"])
@pytest.mark.parametrize("file", ["pipedream/vgg16.graph.txt", "piper/bert32a100.json", "accpar/Alexnet.txt"])
def test_profiles_without_shapes_are_refused(data_folder: Path, file: str, planner: str) -> None:
    with pytest.raises(Unsupported, match=f"planner {planner} cuts tensors along their dims, and a recorded profile"):
        load(planner).plan(read(data_folder / file))


def test_it_is_part_of_the_catalogue() -> None:
    assert isinstance(load("optcnn"), OptCNN)
    assert OptCNN().plan(problem_of(mlp(3), "a100x4")).plan is not None
