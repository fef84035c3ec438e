"""Cost models that price no message, or nothing at all: what they answer keeps the promises, what they refuse they say."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import meshwright
from meshwright.cluster import Mesh, resolve
from meshwright.cost import Analytic, CostModel, DistIR, Group, Recorded
from meshwright.cost.accpar_elements import AccParElements
from meshwright.cost.choices import Profile
from meshwright.cost.pase_flops import CUTOFF, PaSEFlops
from meshwright.cost.stage_tables import StageTables
from meshwright.cost.tables import Options, Tables
from meshwright.cost.untimed import Untimed
from meshwright.errors import Unsupported
from meshwright.graph.ir import Factor, Floats, Ints, Op, Rule

CLUSTER = resolve("h100x4")
DEVICE = CLUSTER.types[0]
GROUP = Group(CLUSTER, Mesh(range(4), ("x",), (4,)), ("x",))
ROWS, COLUMNS, SUMMED = Factor("b", 64, samples=True), Factor("n", 32), Factor("k", 16)
LAYER = Op(
    "layer", "FC", ("x", "w"), ("y",), Rule((ROWS, COLUMNS, SUMMED), ((("b",), ("k",)), (("n",), ("k",))), ((("b",), ("n",)),)),
    flops=2.0 * 64 * 32 * 16, kwargs=((CUTOFF, 1),),
)  # fmt: skip
PARTS = np.array([[64, 32, 16], [32, 32, 16], [16, 32, 8], [64, 8, 16]], np.int64)
TRIED = (Analytic, DistIR, Recorded, Profile)
"""In test_cost_models.py, by the whole suite."""


def tables() -> Tables:
    names = ("whole", "cut")
    return Tables({"layer": Options(names, np.array([3.0, 2.0]), np.array([8.0, 4.0]))}, [])


def stages() -> StageTables:
    return StageTables(np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1), np.int64), ((1, 1),))


REFUSING: dict[type[CostModel], tuple[Callable[[], CostModel], frozenset[str]]] = {
    Tables: (tables, frozenset({"compute", "memory"})),
    PaSEFlops: (PaSEFlops, frozenset({"compute", "memory"})),
    StageTables: (stages, frozenset()),
    Untimed: (Untimed, frozenset()),
    AccParElements: (AccParElements, frozenset()),
}
"""Model -> how it is made, the questions that it answers."""


def questions(model: CostModel) -> Iterator[tuple[str, Callable[[Ints], Floats]]]:
    """(question, its answer of [shards], or of [bytes])."""
    variant = "cut" if isinstance(model, Tables) else ""
    nbytes = np.array([0.0, 1.0, 1e3, 1e6])
    yield "compute", lambda rows: model.compute(LAYER, PARTS[rows], DEVICE, "forward", variant)
    yield (
        "memory",
        lambda rows: np.stack(
            [x for m in (model.memory(LAYER, PARTS[rows], variant),) for x in (m.static, m.kept, m.transient)], axis=1
        ),
    )
    yield "traffic", lambda rows: model.traffic(nbytes[rows], DEVICE)
    yield "collective", lambda rows: model.collective("all_reduce", nbytes[rows], GROUP)
    yield "transfer", lambda rows: model.transfer(nbytes[rows], 0, 1, CLUSTER)


@pytest.mark.parametrize("kind", REFUSING, ids=lambda kind: kind.__name__)
def test_what_is_answered_is_finite_the_same_again_and_alike_in_arrays(kind: type[CostModel]) -> None:
    make, answered = REFUSING[kind]
    model, found = make(), set()
    for name, ask in questions(model):
        try:
            every = ask(np.arange(4))
        except Unsupported as refused:
            assert refused.message and "\n" not in refused.message and not refused.message.endswith("."), name
            continue
        found.add(name)
        assert np.isfinite(every).all() and (every >= 0.0).all(), name
        np.testing.assert_array_equal(every, ask(np.arange(4)))
        np.testing.assert_array_equal(every, np.concatenate([ask(np.array([k])) for k in range(4)]))
    assert found == answered


def test_no_cost_model_of_ours_is_left_out() -> None:
    for module in pkgutil.walk_packages(meshwright.__path__, "meshwright."):
        if not module.name.endswith("__main__") and ".cli.skeleton" not in module.name:
            importlib.import_module(module.name)
    ours: set[type[CostModel]] = set()
    todo: list[type[CostModel]] = [CostModel]
    while todo:
        kinds = [k for k in todo.pop().__subclasses__() if k.__module__.startswith("meshwright.")]
        ours.update(kinds)
        todo += kinds
    assert ours == {*TRIED, *REFUSING}
