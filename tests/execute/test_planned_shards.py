"""Plans of planners that search one cost graph, found on a captured transformer and run on four ranks."""

from __future__ import annotations

import pytest

from execute.conftest import Pools
from execute.tiny import tiny_source
from meshwright.execute import verify
from meshwright.planners.base import Planner
from meshwright.planners.pase import PaSE
from meshwright.planners.tensoropt import TensorOpt
from meshwright.testing.tiny import problem_of

SEQ, SAMPLES, RANKS = 32, 12, 4


@pytest.mark.parametrize(
    "planner", [PaSE(), PaSE(axes=(2, 2)), TensorOpt(objective="memory")], ids=["pase", "pase 2×2", "tensoropt memory"]
)
def test_what_is_found_trains_as_one_process_does(
    planner: Planner, tmp_path_factory: pytest.TempPathFactory, pools: Pools
) -> None:
    source = tiny_source(tmp_path_factory.mktemp("tiny"))
    graph = source.graph(SAMPLES, SEQ, "float32", cache=False)
    result = planner.plan(problem_of(graph, f"a100x{RANKS}", samples=SAMPLES))
    assert result.plan is not None
    shown = verify(result.plan, graph, source, seq=SEQ, ranks=RANKS, whole=True, pool=pools(RANKS))
    assert shown.equal, shown.problems[:5]
    assert shown.gradients == len(list(graph.params()))
