"""Is a plan for this model? Names and shapes, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import InputError
from ..graph.ir import Graph
from .layout import explicit
from .lookup import entry_range
from .model import Layout, Plan


def check_match(plan: Plan, graph: Graph, model: str, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
    """Compares what a plan names with a model's graph.

    Args:
        model: what to call the model.
        shapes: of the parameters of the model that the plan was made for, where they are known.

    Raises:
        InputError: parameters, ops or shapes differ; names the first.
    """
    if shapes and (text := other_parameters(shapes, graph)):
        raise InputError(f"the plan is for another model than {model}: {text}")
    held: set[int] = set()
    lacking = []
    for stage in plan.stages:
        for entry in stage.ops:
            try:
                held.update(entry_range(graph, entry))
            except InputError:
                lacking.append(entry)
    if lacking:
        raise InputError(
            f"the plan is for another model than {model}: {len(lacking):,} of its entries name ops that are not there, first "
            f'"{lacking[0]}"'
        )
    free = [op.name for k, op in enumerate(graph.ops) if k not in held]
    if free:
        raise InputError(
            f"the plan is for another model than {model}: it says nothing of {len(free):,} of {len(graph.ops):,} ops, first "
            f'"{free[0]}"'
        )
    for stage in plan.stages:
        laid = {**stage.layouts, **{n: s.param for n, s in stage.storage.items() if s.param is not None}}
        for name, layout in laid.items():
            _check_shape(graph, name, layout, model)


def _check_shape(graph: Graph, name: str, layout: Layout, model: str) -> None:
    described = graph.tensor.get(name)
    if described is None or described.role != "param":
        return
    try:
        explicit(layout, described.shape)
    except InputError as error:
        raise InputError(
            f"the plan is for another model than {model}: {name} has shape {times(described.shape)} there ({error.message})"
        ) from error


def other_parameters(shapes: Mapping[str, Sequence[int]], graph: Graph) -> str:
    """ "2 of 9 parameters differ, first head.weight (64×8, not 65×8)"; empty if all of `shapes` are the graph's."""
    own = {t.name: tuple(t.shape) for t in graph.params()}
    differ = [name for name, shape in shapes.items() if own.get(name) != tuple(shape)]
    if not differ:
        return ""
    first = differ[0]
    there = f"not {times(own[first])}" if first in own else "not there"
    return f"{len(differ):,} of {len(shapes):,} parameters differ, first {first} ({times(shapes[first])}, {there})"


def times(shape: Sequence[int]) -> str:
    """ "128256×4096"; a scalar has no dims."""
    return "×".join(map(str, shape)) or "scalar"
