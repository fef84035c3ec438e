"""Prices of all stages of a chain of layers, the input of Alpa's inter-operator programme.

Arrays of one .npz file: compute_cost [layers, layers, submeshes, configurations] in seconds of layers i … k (inf =
impossible), max_n_succ_stages of the same shape (how many stages may follow; −1 = does not fit), submesh_choices
[submeshes, 2] (hosts, devices of each), num_devices, num_microbatches.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

from ..cluster.model import Cluster, DeviceType, Level
from ..cost.stage_tables import StageTables
from ..errors import InputError
from ..graph.ir import Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe
from ._arrays import Arrays, names
from ._fields import MOST, overrides_checked

PLANNER = "alpa"


def recognises(document: object) -> bool:
    """Are these the arrays of this format?"""
    return names(document) >= {"compute_cost", "submesh_choices"}


def read(path: Path | str, *, devices: int | None = None, micro_batches: int | None = None) -> Problem:
    """The problem of one file; arguments override what it says.

    Raises:
        InputError: names file and array.
    """
    arrays = Arrays(path)
    overrides_checked(arrays.file, devices=devices, micro_batches=micro_batches)
    seconds = arrays.floats("compute_cost", None, None, None, None)
    layers, others, meshes, _ = seconds.shape
    if layers != others or not seconds.size:
        raise arrays.wrong(
            "compute_cost", f"shape {seconds.shape}", "as many last layers as first ones, and at least one"
        )
    if (seconds < 0).any():
        raise arrays.wrong("compute_cost", "a number below 0", "seconds, or inf where a stage is impossible")
    following = arrays.ints("max_n_succ_stages", *seconds.shape)
    shapes = arrays.ints("submesh_choices", meshes, 2)
    if (shapes < 1).any():
        raise arrays.wrong("submesh_choices", "a size below 1", "hosts and devices of each")
    count = int(arrays.ints("num_devices")) if devices is None else devices
    samples = int(arrays.ints("num_microbatches")) if micro_batches is None else micro_batches
    for name, stated in (("num_devices", count), ("num_microbatches", samples)):
        if not 1 <= stated <= MOST:
            raise InputError(f"{arrays.file}: {name} is {stated}, wanted 1 to {MOST:,}", where=f"{arrays.file}: {name}")
    ops = tuple(
        Op(str(i), "recorded", (f"{i - 1}:out",) if i else (), (f"{i}:out",), Rule((), ((),) if i else (), ((),)))
        for i in range(layers)
    )
    tensors = tuple(Tensor(f"{i}:out", 0.0) for i in range(layers))
    graph = Graph(ops, tensors, 1, outputs=(tensors[-1].name,), loss=tensors[-1].name)
    host = max((int(m) for n, m in shapes if m <= count), default=1)
    cluster = Cluster(
        "recorded", (DeviceType("device", "gpu", inf, {}, 0.0),), count,
        levels=(Level("host", min(host, count), 1.0), Level("all", count, 1.0)),
    )  # fmt: skip
    return Problem(
        replace(graph, digest=digest_of(graph)),
        cluster,
        StageTables(seconds, following, tuple((int(n), int(m)) for n, m in shapes)),
        Recipe(samples, "none", 0.0, "float32", "float32"),
        limits=Limits(keep_free=0.0),
    )
