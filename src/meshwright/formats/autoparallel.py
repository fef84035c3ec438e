"""Cost graphs of meta-pytorch/autoparallel: nodes of a joint forward and backward graph, placements as options, µs.

Arrays of one .npz file; node i in topological order has nopt[i] options:

    name, op                          of node i
    table                             number t of its tables, which equal nodes share
    unary, unary_ptr                  prices of the options of tables t
    in_idx, in_ptr                    producers of its operands
    edge, edge_ptr, edge_tab_ptr      operand a: matrix edge_tab_ptr[t] + a, [options of i, options of the producer]
    placement, place_id, place_ptr    text of each option
    pairs                             nodes whose placements must be equal: a weight and its gradient or new value
    fixed_node, fixed_opt             forced options: inputs and outputs
    param_node, ratio, ratio_ptr      share of a parameter that a device holds, per option
    mem_frac                          a parameter may rest as this share at most, or as its least share

inf = forbidden. Public inputs: the exporter's README in the folder of reference data.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from ..cost.tables import Options
from ..errors import InputError
from ..graph.ir import Floats
from ..plan.problem import Problem
from ._arrays import Arrays, names
from ._tables import table_problem

PLANNER = "alpa"
_HAS = frozenset({"nopt", "table", "in_idx", "edge_tab_ptr", "place_id"})
_TENSOR = re.compile(r"([a-z]+)(\d+)\[([\d, ]*)\]")


def recognises(document: object) -> bool:
    """Are these the arrays of this format?"""
    return names(document) >= _HAS


def read(path: Path | str, *, memory_share: float | None = None) -> Problem:
    """The problem of one file: what is forced or does not fit is forbidden, equal placements are tables of pairs.

    Args:
        memory_share: of a parameter that a device may hold, in place of the file's.

    Raises:
        InputError: names file and array.
    """
    arrays = Arrays(path)
    file = arrays.file
    count = arrays.ints("nopt", None)
    n = len(count)
    name = arrays.texts("name", n)
    if len(set(name)) < n:
        twice = next(x for i, x in enumerate(name) if x in name[:i])
        raise arrays.wrong("name", f'"{twice}" twice', "a name of its own for each node")
    share = float(arrays.floats("mem_frac")) if memory_share is None else memory_share
    if not 0 < share <= 1:
        raise InputError(
            f"{file}: memory_share is {share:g}, wanted a share above 0 and at most 1", where="memory_share"
        )
    placements = _placements(arrays, count)
    prices = _prices(arrays, count)
    allowed = [np.ones(k, bool) for k in count]
    fixed = arrays.indices("fixed_node", n, None)
    for i, option in zip(fixed, arrays.ints("fixed_opt", len(fixed)), strict=True):
        if not 0 <= option < count[i]:
            raise arrays.wrong("fixed_opt", str(option), f"one of the {count[i]} options of {name[i]}")
        allowed[i] &= np.arange(count[i]) == option
    held = [np.zeros(k) for k in count]
    params = arrays.indices("param_node", n, None)
    ratio = arrays.floats("ratio", None)
    starts = arrays.starts("ratio_ptr", len(params), len(ratio))
    forced = set(fixed.tolist())
    for k, i in enumerate(params):
        own = ratio[starts[k] : starts[k + 1]]
        if len(own) != count[i]:
            raise arrays.wrong(
                "ratio_ptr", f"{len(own)} shares for {name[i]}", f"one for each of its {count[i]} options"
            )
        held[i] = own * _nbytes(placements[i][0])
        if int(i) not in forced:
            allowed[i] &= own <= max(own.min(), share)
    options = {}
    for i in range(n):
        # Tables stay shared between nodes that have all of their options.
        own = prices[i] if allowed[i].all() else np.where(allowed[i], prices[i], np.inf)
        options[name[i]] = Options(tuple(map(str, range(count[i]))), own, held[i])
    return table_problem(
        file, options, _pairs(arrays, name, count, placements), devices=max(1, round(1 / share)), unit="us"
    )


def placement_of(path: Path | str) -> dict[str, tuple[str, ...]]:
    """Node -> the text of each of its options."""
    arrays = Arrays(path)
    count = arrays.ints("nopt", None)
    return dict(zip(arrays.texts("name", len(count)), map(tuple, _placements(arrays, count)), strict=True))


def _placements(arrays: Arrays, count: np.typing.NDArray[np.int64]) -> list[list[str]]:
    texts = arrays.texts("placement", None)
    ids = arrays.indices("place_id", len(texts), None)
    starts = arrays.starts("place_ptr", len(count), len(ids))
    if (np.diff(starts) != count).any():
        raise arrays.wrong("place_ptr", "another number of placements than options", "one placement for each option")
    return [[texts[p] for p in ids[a:b]] for a, b in pairwise(starts)]


def _prices(arrays: Arrays, count: np.typing.NDArray[np.int64]) -> list[Floats]:
    unary = arrays.floats("unary", None)
    tables = int(arrays.ints("unary_ptr", None).size) - 1
    starts = arrays.starts("unary_ptr", tables, len(unary))
    of = arrays.indices("table", tables, len(count))
    pieces = [unary[a:b] for a, b in pairwise(starts)]
    for i, t in enumerate(of):
        if len(pieces[t]) != count[i]:
            raise arrays.wrong(
                "table", f"{len(pieces[t])} prices for node {i}", f"one for each of its {count[i]} options"
            )
    return [pieces[t] for t in of]


def _pairs(
    arrays: Arrays, name: list[str], count: np.typing.NDArray[np.int64], placements: list[list[str]]
) -> list[tuple[str, str, Floats]]:
    """A table per operand, from producer to reader, and one per pair that rests alike. Equal ones are one array."""
    n = len(count)
    edge = arrays.floats("edge", None)
    starts = arrays.starts("edge_ptr", int(arrays.ints("edge_ptr", None).size) - 1, len(edge))
    of, first = arrays.ints("table", n), arrays.ints("edge_tab_ptr", None)
    reads = arrays.indices("in_idx", n, None)
    where = arrays.starts("in_ptr", n, len(reads))
    found: list[tuple[str, str, Floats]] = []
    made: dict[tuple[int, int], Floats] = {}
    for i in range(n):
        for a, u in enumerate(reads[where[i] : where[i + 1]]):
            e = int(first[of[i]]) + a
            key = e, int(count[u])
            if key not in made:
                if e + 1 >= len(starts) or starts[e + 1] - starts[e] != count[i] * count[u]:
                    raise arrays.wrong(
                        "edge_ptr", f"no table {e} of {count[i]} × {count[u]}", f"one for operand {a} of {name[i]}"
                    )
                made[key] = np.ascontiguousarray(edge[starts[e] : starts[e + 1]].reshape(count[i], count[u]).T)
            found.append((name[u], name[i], made[key]))
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], Floats] = {}
    for u, v in arrays.indices("pairs", n, None, 2):
        texts = tuple(placements[u]), tuple(placements[v])
        if texts not in alike:
            alike[texts] = np.where(np.array(texts[0])[:, None] == np.array(texts[1])[None, :], 0.0, np.inf)
        found.append((name[u], name[v], alike[texts]))
    return found


def _nbytes(placement: str) -> float:
    """Bytes of the whole tensors that a placement speaks of."""
    return float(
        sum(
            int(bits) / 8 * prod(int(x) for x in dims.split(",") if x.strip())
            for _, bits, dims in _TENSOR.findall(placement)
        )
    )
