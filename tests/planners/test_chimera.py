"""Chimera: counts of the critical path, the model by hand, the greedy search, and its plans."""

from __future__ import annotations

import pytest

from meshwright.errors import InputError, Unsupported
from meshwright.graph.ir import ITEM_BYTES
from meshwright.graph.source import resolve
from meshwright.plan.schedules import rows
from meshwright.planners._blocks import equal_parts
from meshwright.planners._chimera_model import all_reduce, play, step_seconds
from meshwright.planners._profile import profile_of
from meshwright.planners.chimera import Chimera
from meshwright.testing.conformance import CHECKS, run_check
from meshwright.testing.tiny import chain, mlp, problem_of
from reference_cases import reference_cases

CRITICAL = reference_cases(
    "chimera",
    "Critical path of D micro-batches",
    source="C_f = D and C_b = D + D / f − 2; six stages are the paper's worked example",
    columns=("depth D", "f", "forwards", "backwards"),
    rows=[(4, 1, 4, 6), (6, 1, 6, 10), (8, 1, 8, 14), (8, 2, 8, 10), (16, 2, 16, 22)],
)


@pytest.mark.parametrize(("depth", "f", "forwards", "backwards"), CRITICAL)
def test_critical_path_counts(depth: int, f: int, forwards: int, backwards: int) -> None:
    """C_f = D and C_b = D + D / f − 2 for N = D; six stages are the paper's worked example."""
    timing = play(depth, depth, f, "direct", 1.0, 2.0)
    assert (timing.forwards, timing.backwards) == (forwards, backwards)
    assert timing.seconds == forwards + 2 * backwards


@pytest.mark.parametrize(
    ("depth", "m", "form"), [(4, 8, "direct"), (4, 8, "doubling"), (8, 16, "doubling"), (4, 2, "direct")]
)
def test_counts_add_up_to_the_makespan_of_the_table(depth: int, m: int, form: str) -> None:
    timing = play(depth, m, 1, form, 1.0, 2.0)
    assert timing.forwards + 2 * timing.backwards == timing.seconds


def test_model_by_hand() -> None:
    """D = 4, N = 4, F = 1, B = 2: worker 0 works 12 of 16, waits 1 before its up pipe begins and 3 after that is done."""
    timing = play(4, 4, 1, "direct", 1.0, 2.0)
    assert timing.seconds == 16
    idle = {(w, stage): seconds for w, stage, seconds in timing.idle}
    assert idle[0, 0] == idle[3, 4] == 0
    assert idle[0, 7] == idle[3, 3] == 3
    # A sum of the last stage hides in those 3, of the first stage nowhere.
    assert step_seconds(timing, timing, 1.0, 2.0, [0.0, 0.0, 0.0, 2.5]) == 16
    assert step_seconds(timing, timing, 1.0, 2.0, [0.0, 0.0, 0.0, 4.5]) == 17.5
    assert step_seconds(timing, timing, 1.0, 2.0, [1.5, 0.0, 0.0, 0.0]) == 17.5


def test_all_reduce_of_rabenseifner() -> None:
    assert all_reduce(8, 1e-5, 1e9, 4e8) == pytest.approx(2 * 3 * 1e-5 + 2 * 7 / 8 * 0.4)
    assert all_reduce(1, 1e-5, 1e9, 4e8) == 0.0


def test_peaks_are_those_of_the_published_table() -> None:
    assert [p for p, _ in play(4, 4, 1, "direct", 1.0, 2.0).peaks] == [3, 4, 4, 3]
    assert [p for p, _ in play(8, 16, 1, "doubling", 1.0, 2.0).peaks] == [13, 14, 15, 16, 16, 15, 14, 13]


@pytest.mark.parametrize(("cluster", "samples"), [("a100x4", 64), ("a100x8", 128)])
def test_search_takes_the_largest_micro_batch_and_then_the_fastest_shape(cluster: str, samples: int) -> None:
    problem = problem_of(mlp(8, width=512, samples=samples), cluster, samples=samples)
    planner = Chimera()
    result = planner.plan(problem)
    assert result.plan is not None and isinstance(result.carry, dict)
    best = []
    for width, depth in planner._grids(problem):
        for shapes in planner._largest_first(problem, width, depth, False):
            best += [planner._value(problem, shape, parts) for shape, parts in shapes]
            break  # memory is ample: the first size fits
    assert result.objective == min(best)
    assert planner.objective(problem, result.plan) == result.objective
    assert result.carry["recompute"] is False


def test_plan_has_both_directions_on_every_worker() -> None:
    problem = problem_of(mlp(8, width=512, samples=64), "a100x8", samples=64)
    for f in (1, 2):
        plan = Chimera(f=f).plan(problem).plan
        assert plan is not None
        depth = len(plan.stages) // (2 * f)
        assert len({stage.pipe for stage in plan.stages}) == 2 * f
        for r, row in enumerate(rows(plan)):
            held = {a.on for a in row.actions}  # type: ignore[union-attr]
            assert len(held) == 2 * f
            assert {tuple(plan.stages[s].mesh.devices) for s in held} == {tuple(plan.stages[r].mesh.devices)}  # type: ignore[index]
        for s in range(depth):
            assert len({plan.stages[i * depth + s].ops for i in range(2 * f)}) == 1


def test_less_memory_takes_smaller_micro_batches_then_recomputes_then_gives_up() -> None:
    graph = mlp(8, width=256, samples=512)
    seen = []
    for memory in (1e9, 1e7, 8e6, 1e5):
        result = Chimera().plan(problem_of(graph, "a100x2", samples=512, memory=memory, keep_free=0.0))
        carry = result.carry
        seen.append((carry["recompute"], -int(carry["micro_batch"])) if isinstance(carry, dict) else None)  # type: ignore[call-overload, arg-type]
    fitting = [s for s in seen if s is not None]
    assert seen[-1] is None and len(fitting) >= 1
    assert fitting[0][0] is False
    reason = Chimera().plan(problem_of(graph, "a100x2", samples=512, memory=1e5, keep_free=0.0)).reason
    assert "copies of a stage and its activations, over the usable" in reason


def test_weights_count_once_a_pipe() -> None:
    problem = problem_of(mlp(8, width=512, samples=64), "a100x4", samples=64)
    parts = equal_parts(profile_of(problem, 1), 4)
    assert parts is not None
    over = {}
    for f in (1, 2):
        planner = Chimera(f=f)
        shape, own = next(iter(planner._largest_first(problem, 1, 4, False)))[0]
        over[f] = planner._over(problem, shape, own)[0]
    assert over[2] - over[1] >= 4 * 2 * min(p.params for p in parts) * 0.9


def test_devices_that_suit_no_even_depth_are_infeasible_with_the_reason() -> None:
    problem = problem_of(chain([1e9] * 4), "a100x2")
    result = Chimera(f=2).plan(problem)
    assert result.status == "infeasible"
    assert result.reason.startswith("no width and depth of 2 devices suit chimera: the depth must be a multiple of 4")


def test_wrong_options_and_plans_are_refused() -> None:
    with pytest.raises(InputError, match="f is 0, it must be at least 1"):
        Chimera(f=0)
    with pytest.raises(InputError, match='chimera has no form "x"'):
        Chimera(form="x")  # type: ignore[arg-type]
    problem = problem_of(mlp(4), "a100x2")
    plan = Chimera().plan(problem).plan
    assert plan is not None
    with pytest.raises(Unsupported, match="chimera prices plans under the chimera schedule with f = 2"):
        Chimera(f=2).objective(problem, plan)


@pytest.mark.parametrize("name", [n for n in CHECKS if "new process" not in n and "brute force" not in n])
def test_it_keeps_the_promises_of_every_planner(name: str) -> None:
    """Not against brute force: none of the plans tried there has two directions."""
    check = run_check(Chimera(), name)
    assert check.passed, check.fault


# Elements of the first stage's gradient sum in the authors' benchmark, by layers in that stage: BERT of 48 layers, hidden 1,024,
# and GPT-2 of 64, hidden 1,280. The zoo's models have such layers and embeddings, only fewer or more of them.
FIRST_STAGE = reference_cases(
    "chimera",
    "Elements of the first stage's gradient sum",
    source="the authors' benchmark",
    columns=("model", "blocks", "elements by blocks of the stage"),
    rows=[
        ("bert-large", 24, {12: 182937600, 6: 107360256, 3: 69571584}),
        pytest.param("gpt2-large", 36, {4: 144349440, 2: 104994560, 1: 85317120}, marks=pytest.mark.slow),
    ],
)


@pytest.mark.parametrize(("name", "layers", "elements"), FIRST_STAGE)
def test_first_stages_have_the_parameters_that_the_authors_sum(
    name: str, layers: int, elements: dict[int, int]
) -> None:
    graph = resolve(name).graph(2, cache=False)
    item = ITEM_BYTES[next(t.dtype for t in graph.tensors if t.role == "param")]
    profile = profile_of(problem_of(graph, "a100x8", samples=64), 1)
    for inside, want in elements.items():
        parts = equal_parts(profile, layers // inside)
        assert parts is not None and parts[0].params / item == want
