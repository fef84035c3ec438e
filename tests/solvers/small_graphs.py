"""Random small cost graphs and their optimum by trying everything."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
from hypothesis import strategies as st

from meshwright.solvers.cost_graph import CostGraph


@st.composite
def cost_graphs(draw: st.DrawFn, variables: int = 6, options: int = 4, *, forbidden: bool = True) -> CostGraph:
    """Any shape, parallel edges and edges from a variable to itself among them; some prices inf, some below 0, some equal.

    Memory is 0 to 19 an option.
    """
    n = draw(st.integers(1, variables))
    sizes = [draw(st.integers(1, options)) for _ in range(n)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    edges = draw(st.lists(ends, max_size=2 * n))
    share = draw(st.sampled_from((0.0, 0.2, 0.5))) if forbidden else 0.0
    spread = draw(st.sampled_from((1, 5, 1000)))

    def prices(*shape: int) -> np.typing.NDArray[np.float64]:
        found = rng.integers(-spread, spread + 1, shape).astype(np.float64)
        found[rng.random(shape) < share] = inf
        return found

    return CostGraph(
        tuple(prices(k) for k in sizes),
        tuple(edges),
        tuple(prices(sizes[u], sizes[v]) for u, v in edges),
        tuple(rng.integers(0, 20, k).astype(np.float64) for k in sizes),
    )


def optimum(graph: CostGraph) -> float:
    return min(map(graph.cost, product(*(range(len(u)) for u in graph.unary))))
