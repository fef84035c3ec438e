"""AccPar: the partitions of the original program, the worked example of unequal halves, and each level against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError, Unsupported
from meshwright.formats.accpar import parse, read, resnet
from meshwright.formats.detect import format_of
from meshwright.graph.validate import validate_graph
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem
from meshwright.plan.serial import from_json, to_json
from meshwright.planners._accpar_code import code_level
from meshwright.planners._accpar_levels import Elements, Seconds, best, cost
from meshwright.planners._accpar_net import Net
from meshwright.planners._accpar_problem import net_of
from meshwright.planners.accpar import AccPar, Method
from meshwright.planners.types import Result
from reference_cases import reference_cases

ALEXNET = reference_cases(
    "accpar", "AlexNet, batch 512, 128 accelerators", source="the original program",
    columns=("method", "level", "types of the eight layers (0 = I, 1 = II, 2 = III)", "elements"),
    rows=[
        ("accpar", 0, "00000121", 10811424),
        ("accpar", 1, "00000211", 9369632),
        ("accpar", 2, "00000121", 7534624),
        ("accpar", 3, "00000212", 6301728),
        ("accpar", 4, "00000121", 5640224),
        ("accpar", 5, "00021212", 4221984),
        ("accpar", 6, "00001121", 3551776),
        ("hypar", 0, "00000111", 12908576),
        ("hypar", 1, "00000111", 10680352),
        ("hypar", 2, "00000111", 9566240),
        ("hypar", 3, "00000100", 8878112),
        ("hypar", 4, "00000111", 7426080),
        ("hypar", 5, "00001000", 6085664),
        ("hypar", 6, "00011111", 4490272),
        ("owt", 0, "00000111", 12908576),
        ("owt", 1, "00000111", 10680352),
        ("owt", 2, "00000111", 9566240),
        ("owt", 3, "00000111", 9009184),
        ("owt", 4, "00000111", 8730656),
        ("owt", 5, "00000111", 8591392),
        ("owt", 6, "00000111", 8521760),
        ("data", 0, "00000000", 62367776),
        ("data", 1, "00000000", 62367776),
        ("data", 2, "00000000", 62367776),
        ("data", 3, "00000000", 62367776),
        ("data", 4, "00000000", 62367776),
        ("data", 5, "00000000", 62367776),
        ("data", 6, "00000000", 62367776),
    ],
)  # fmt: skip
RESNET_18 = [
    *["000000000000000001"] * 2, "000000000000000002", "000000000000021211", "0" * 18, "000000000000012122",
    "000000000212121211",
]  # fmt: skip
CLAIMED = reference_cases(
    "accpar",
    "ResNets: what method accpar-code claims for each level",
    source="the original program",
    columns=("depth", "elements"),
    rows=[
        (18, [13579456, 13317312, 12936384, 11521216, 7952576, 5612736, 4857536]),
        (34, [23680192, 23418048, 23037120, 20917440, 15694016, 12199104, 10538688]),
    ],
)
THREE_LAYERS = """\
num_layers 3
fc1 FC
in_ch 9216
out_ch 4096
fc2 FC
in_ch 4096
out_ch 4096
fc3 FC
in_ch 4096
out_ch 1000
"""


def levels(result: Result) -> list[dict[str, Any]]:
    assert isinstance(result.carry, dict)
    found: Any = result.carry["levels"]
    return list(found)


@pytest.mark.parametrize("method", dict.fromkeys(row[0] for row in ALEXNET))
def test_alexnet_is_cut_as_the_original_program_cuts_it(method: Method, data_folder: Path) -> None:
    file = data_folder / "accpar" / "Alexnet.txt"
    assert format_of(file) == "accpar"
    result = AccPar(method=method).plan(read(file))
    wanted = [(types, value) for name, _, types, value in ALEXNET if name == method]
    assert [(level["types"], level["value"]) for level in levels(result)] == wanted
    assert result.unit == "element"
    assert result.objective == sum(value for _, value in wanted)
    assert isinstance(result.carry, dict)
    assert result.carry["sum_of_all_pairs"] == sum(2**h * value for h, (_, value) in enumerate(wanted))


@pytest.mark.parametrize(("depth", "claimed"), CLAIMED)
def test_resnets_of_the_original_program(depth: int, claimed: list[int]) -> None:
    result = AccPar(method="accpar-code").plan(parse(resnet(depth), "resnet"))
    assert [level["claimed"] for level in levels(result)] == claimed
    if depth == 18:
        assert [level["types"] for level in levels(result)] == RESNET_18


def test_the_original_program_and_the_exact_level_agree_on_a_chain(data_folder: Path) -> None:
    problem = read(data_folder / "accpar" / "Vgg11.txt")
    exact, code = (AccPar(method=m).plan(problem) for m in ("accpar", "accpar-code"))
    assert [level["types"] for level in levels(exact)] == [level["types"] for level in levels(code)]
    assert all(level["claimed"] == level["value"] for level in levels(code))


def test_shortcuts_as_edges_find_what_tracing_back_misses() -> None:
    net = net_of(parse(resnet(18), "resnet"))
    found = []
    for _ in range(7):
        types, _ = code_level(net)
        price = Elements(net.sizes)
        found.append((cost(net, price, types), best(net, price, [(0, 1, 2)] * len(net))[1].value))
        net = replace(net, sizes=net.sizes.shrunk(types))
    assert found[1] == (13579456, 13567168)
    assert found[3] == (12324032, 12274880)
    assert found[5][0] == found[5][1]
    assert all(exact <= code for code, exact in found)


def unequal(flops: tuple[float, ...], bandwidth: tuple[float, ...], text: str = THREE_LAYERS, **more: Any) -> Problem:
    return parse(text, "layers", devices=(1, 1), flops=flops, bandwidth=bandwidth, **more)


def test_worked_example_of_unequal_halves() -> None:
    problem = unequal((180e12, 420e12), (1e9,))
    result = AccPar().plan(problem)
    (level,) = levels(result)
    assert result.unit == "s" and result.status == "optimal"
    assert level["types"] == "121"
    assert result.objective == pytest.approx(9.71263199e-3, rel=1e-8)
    assert level["shares"] == pytest.approx([0.3] * 3, abs=1e-9)
    assert result.plan is not None
    cuts = [c for s in result.plan.stages[0].shardings.values() for cs in s.cuts.values() for c in cs]
    assert [(cut.axis, cut.weights) for cut in cuts] == [("h0", (3, 7))] * 3
    rows = AccPar(method="data").plan(problem)
    assert rows.objective == pytest.approx(117.543928e-3, rel=1e-8)
    net = net_of(problem)
    price = Seconds(net.sizes, (180e12, 1e9), (420e12, 1e9), 2.0)
    assert cost(net, price, (1, 1, 1)) == pytest.approx(13.928170e-3, rel=1e-6)
    assert price.alone(0)[:3] == pytest.approx([75.690671e-3, 4.387503e-3, 9.630383e-3], rel=1e-6)
    shares = [price.shares(v, float(v > 0))[1, 1] for v in range(3)]
    assert shares == pytest.approx([0.3, 0.5102, 0.5024], abs=1e-4)


def test_one_ratio_for_the_group_is_that_of_the_speeds() -> None:
    problem = unequal((180e12, 420e12), (1e9,))
    own, group = AccPar().plan(problem), AccPar(ratio="group").plan(problem)
    assert levels(group)[0]["shares"] == [0.3] * 3
    assert group.objective >= own.objective * (1 - 1e-12)


def test_equal_halves_share_equally_and_free_links_by_speed() -> None:
    equal = unequal((100e12, 100e12), (1e9, 1e9))
    assert levels(AccPar().plan(equal))[0]["shares"] == pytest.approx([0.5] * 3)
    fast = unequal((100e12, 300e12), (1e30, 1e30))
    assert levels(AccPar().plan(fast))[0]["shares"] == pytest.approx([0.25] * 3)


def test_a_layer_that_no_ratio_balances_is_clipped_and_named() -> None:
    result = AccPar(method="data").plan(unequal((180e12, 420e12), (8e9, 32e9)))
    (level,) = levels(result)
    assert level["clipped"] == ["fc1", "fc2", "fc3"]
    assert set(level["shares"]) <= {0.0, 1.0}
    assert levels(AccPar().plan(unequal((180e12, 420e12), (1e9,))))[0]["clipped"] == []


def test_two_kinds_are_the_two_halves_of_the_first_level_and_halve_equally_below(data_folder: Path) -> None:
    file = data_folder / "accpar" / "Alexnet.txt"
    problem = read(file, devices=(4, 4), flops=(180e12, 420e12), bandwidth=(1e9, 1e9))
    result = AccPar().plan(problem)
    assert result.plan is not None
    of = [{problem.cluster.type_of(d).name for d in s.mesh.devices} for s in result.plan.stages]
    assert of in ([{"kind0", "kind1"}], [{"kind0"}, {"kind1"}])
    assert [bool(level.get("shares")) for level in levels(result)] == [True, False, False]
    assert result.objective == pytest.approx(sum(level["value"] for level in levels(result)), rel=1e-6)


def test_halves_that_decide_otherwise_are_written_apart() -> None:
    """A twentieth of the samples is fewer than the weights, the rest are more; each half brute-forced alone on its part."""
    text = THREE_LAYERS.replace("9216", "400").replace("4096", "400").replace("1000", "400")
    problem = parse(text, "layers", devices=(2, 2), flops=(1e12, 19e12), bandwidth=1e13, batch=2000)
    result = AccPar().plan(problem)
    first, second = levels(result)
    net = net_of(problem)
    own = tuple(map(int, first["types"]))
    share = np.array(first["shares"])
    values = []
    for part, speed in ((share, (1e12, 1e13)), (1 - share, (19e12, 1e13))):
        half = replace(net, sizes=net.sizes.shrunk(own, part))
        values.append(brute_force(half, Seconds(half.sizes, speed, speed, 2.0, 0.5)))
    assert second["value"] == pytest.approx(max(values), rel=1e-6)
    assert first["types"] == "000" and second["types"][1] == "000" and second["types"][0] != "000"
    plan = result.plan
    assert plan is not None and plan.rewritten is not None
    validate_graph(plan.rewritten)
    assert [len(s.ops) for s in plan.stages] == [3, 3]
    assert result.objective == pytest.approx(first["value"] + second["value"], rel=1e-6)
    assert from_json(to_json(plan)) == plan


def brute_force(net: Net, price: Elements | Seconds) -> float:
    return min(cost(net, price, types) for types in product((0, 1, 2), repeat=len(net)))


PAPER = [["0", "a*o*(F+E)", "o*F"], ["o*E", "o*E", "0"], ["a*o*(F+E)", "0", "o*F"]]
"""[type before, type]: the paper's table of what passes between two layers."""


def by_hand(net: Net, types: tuple[int, ...]) -> float:
    """Elements by the paper's two tables, written out."""
    s, total = net.sizes, 0.0
    for v, own in enumerate(types):
        total += (s.weights[v], s.outputs[v], s.inputs[v])[own]
    for u, v in net.edges:
        names = {"a": 0.5, "o": 0.5, "F": s.inputs[v], "E": s.inputs[v]}
        total += eval(PAPER[types[u]][types[v]], {}, names)
    return float(total)


WIDTHS = st.integers(1, 64).map(lambda n: 2 * n)


@st.composite
def networks(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(1, 6))
    lines = [f"num_layers {count}"]
    for v in range(count):
        if draw(st.booleans()):
            fields = ["in_ch", "in_fmap_h", "in_fmap_w", "kernel", "out_ch", "out_fmap_h", "out_fmap_w", "pool"]
            lines.append(f"l{v} CONV")
            lines += [f"{name} {draw(st.integers(1, 9))}" for name in fields]
        else:
            lines += [f"l{v} FC", f"in_ch {draw(WIDTHS)}", f"out_ch {draw(WIDTHS)}"]
        if v > 1 and draw(st.booleans()):
            others = draw(st.sets(st.integers(0, v - 1), min_size=1, max_size=2))
            lines.append(" ".join(["reads", *(f"l{u}" for u in sorted(others))]))
    return parse("\n".join(lines), "drawn", devices=2, batch=draw(WIDTHS))


@settings(max_examples=40, deadline=None)
@given(networks())
def test_a_level_is_the_best_of_all_types_by_the_papers_tables(problem: Problem) -> None:
    net = net_of(problem)
    every = {types: by_hand(net, types) for types in product((0, 1, 2), repeat=len(net))}
    result = AccPar().plan(problem)
    assert result.status == "optimal"
    assert result.objective == pytest.approx(min(every.values()), rel=1e-12)
    (level,) = levels(result)
    assert every[tuple(map(int, level["types"]))] == pytest.approx(result.objective, rel=1e-12)
    others = [AccPar(method=m).plan(problem).objective for m in ("hypar", "owt", "data")]
    assert result.objective <= others[0] * (1 + 1e-12)
    assert others[0] <= min(others[1:]) * (1 + 1e-12)


@settings(max_examples=25, deadline=None)
@given(networks(), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(1e-3, 1e3))
def test_unequal_halves_take_equally_long_and_cost_least(
    problem: Problem, speed: float, wire: float, slow: float
) -> None:
    net = net_of(problem)
    price = Seconds(net.sizes, (1e12, 1e9 * slow), (1e12 * speed, 1e9 * slow * wire), 2.0)
    _, found = best(net, price, [(0, 1, 2)] * len(net))
    assert found.value == pytest.approx(brute_force(net, price), rel=1e-12)
    for v in range(len(net)):
        share, none = price.balance(v)
        assert ((share >= 0) & (share <= 1)).all()
        mine, theirs = _both(net, price, v, share)
        even = ~none[:3, :3]
        np.testing.assert_allclose(mine[even], theirs[even], rtol=1e-6, atol=1e-12)


def _both(
    net: Net, price: Seconds, v: int, share: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Seconds of each half, written out."""
    s = net.sizes
    sums = np.array([s.weights[v], s.outputs[v], s.inputs[v], 0, 0, 0])[None, :]
    found = []
    for a, (speed, link) in ((share, price.first), (1 - share, price.second)):
        passed = np.zeros((6, 6))
        for u, row in enumerate(PAPER):
            for t, text in enumerate(row):
                passed[u, t] = eval(text, {}, {"a": a[u, t], "o": 1 - a[u, t], "F": s.inputs[v], "E": s.inputs[v]})
        found.append(a * s.flops[v] / speed + 2.0 * (sums + passed) / link)
    return found[0][:3, :3], found[1][:3, :3]


def test_flops_are_those_of_three_products() -> None:
    net = net_of(parse(THREE_LAYERS, "layers"))
    b, k, n = 512, 9216, 4096
    assert net.sizes.flops[0] == b * n * (2 * k - 1) + b * k * (2 * n - 1) + k * n * (2 * b - 1)


def test_plans_of_another_kind_are_refused() -> None:
    problem = parse(THREE_LAYERS, "layers", devices=4)
    result = AccPar().plan(problem)
    assert result.plan is not None
    stage = result.plan.stages[0]
    whole = replace(stage, shardings={})
    with pytest.raises(Unsupported, match="layer fc1 is not cut over some axis"):
        AccPar().objective(problem, Plan(problem.graph.digest, 512, (whole,)))
    with pytest.raises(Unsupported, match="give it 4"):
        AccPar().plan(parse(THREE_LAYERS, "layers", devices=6))
    with pytest.raises(Unsupported, match="no such halves"):
        AccPar().plan(parse(THREE_LAYERS, "layers", devices=(2, 6), flops=(1e12, 2e12), bandwidth=1e9))
    with pytest.raises(InputError, match='no method "best"'):
        AccPar(method="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal accelerators only"):
        AccPar(method="accpar-code").plan(unequal((1e12, 2e12), (1e9,)))
