"""Small MLPs as MindSpore's recursive planner was run on them: JSON lists of devices, batch and dims.

    {"public": [{"devices": 8, "batch": 64, "dims": [4096, 16384, 4096], "matmul_strategies": …}, …], "inputs_only": […]}

A case is a chain of bias-free products dims[i] × dims[i + 1] with ReLU between, on the whole batch. What the original found is
not read. One case alone, {"devices": …, "batch": …, "dims": […]}, is of this format, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.untimed import Untimed
from ..errors import InputError
from ..graph.ir import Factor, Graph, Op, Rule, Slot, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._fields import Fields, load, overrides_checked

_LISTS = ("public", "inputs_only")
_CASE = ("devices", "batch", "dims")
ITEM = 4
PLANNER = "double_recursive"


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    if not isinstance(document, Mapping):
        return False
    if all(name in document for name in _CASE):
        return True
    lists = [document[name] for name in _LISTS if name in document]
    cases = [case for rows in lists if isinstance(rows, list) for case in rows]
    return any(isinstance(case, Mapping) and "dims" in case for case in cases)


def read(path: Path | str, *, case: int = 0, devices: int | None = None, batch: int | None = None) -> Problem:
    """The problem of one case of a file; arguments override what it says.

    Args:
        case: its place, from 0, among the public ones and those of inputs only after them.

    Raises:
        InputError: names file and field.
    """
    return parse(load(Path(path)), str(path), case=case, devices=devices, batch=batch)


def parse(document: Any, file: str, *, case: int = 0, devices: int | None = None, batch: int | None = None) -> Problem:
    """`read`, of a parsed document."""
    overrides_checked(file, devices=devices)
    if batch is not None and batch < 1:
        raise InputError(f"{file}: batch is {batch}, wanted 1 sample or more", where="batch")
    top = Fields(document, file)
    if all(name in top.value for name in _CASE):
        cases = [top]
    else:
        cases = [row for name in _LISTS if name in top.value for row in top.rows(name)]
    if not 0 <= case < len(cases):
        raise InputError(f"{file}: case is {case}, there are 0 to {len(cases) - 1}", where="case")
    fields = cases[case]
    dims = fields.value.get("dims")
    sound = isinstance(dims, list) and len(dims) > 1
    if not sound or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in dims):  # type: ignore[union-attr]
        raise fields.wrong("dims", dims, "a list of two or more whole numbers of 1 or more")
    count = devices or fields.whole("devices", 1)
    samples = batch or fields.whole("batch", 1)
    graph = mlp(samples, [int(n) for n in dims])  # type: ignore[union-attr]
    device = DeviceType("device", "gpu", inf, {}, 0.0)
    return Problem(
        graph,
        Cluster("simulated", (device,), count, (), (Level("all", count, inf),)),
        Untimed(),
        Recipe(samples, "sgd", 0.0, "float32", "float32"),
        limits=Limits(keep_free=0.0),
    )


def mlp(samples: int, dims: list[int]) -> Graph:
    """The graph of a case: matmul0, relu0, matmul1, …."""
    ops: list[Op] = []
    tensors = [Tensor("x", float(ITEM * samples * dims[0]), (samples, dims[0]), role="input")]
    x = "x"
    for layer, (k, j) in enumerate(pairwise(dims)):
        weight, out = f"matmul{layer}.weight", f"matmul{layer}:out"
        tensors.append(Tensor(weight, float(ITEM * k * j), (k, j), role="param"))
        tensors.append(Tensor(out, float(ITEM * samples * j), (samples, j)))
        factors = (Factor("i", samples, samples=True), Factor("k", k), Factor("j", j))
        rule = Rule(factors, ((("i",), ("k",)), (("k",), ("j",))), ((("i",), ("j",)),))
        ops.append(
            Op(
                f"matmul{layer}", "matmul", (x, weight), (out,), rule, 2.0 * samples * k * j, (x, weight),
                call="aten.matmul.default", args=(Slot(0), Slot(1)),
            )
        )  # fmt: skip
        x = out
        if layer + 2 < len(dims):
            out = f"relu{layer}:out"
            tensors.append(Tensor(out, float(ITEM * samples * j), (samples, j)))
            same = (("i",), ("j",))
            rule = Rule((Factor("i", samples, samples=True), Factor("j", j)), (same,), (same,))
            ops.append(
                Op(f"relu{layer}", "relu", (x,), (out,), rule, saved=(out,), call="aten.relu.default", args=(Slot(0),))
            )
            x = out
    graph = Graph(tuple(ops), tuple(tensors), samples, inputs=("x",), outputs=(x,), loss=x)
    return replace(graph, digest=digest_of(graph))
