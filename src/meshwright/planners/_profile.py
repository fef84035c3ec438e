"""What the pipeline planners see of a graph: nodes with seconds and bytes of one micro-batch, and the edges between them.

Nodes of an imported profile are its ops. Nodes of a captured graph are its layers, ended by places where one value goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import Infeasible
from ..graph.ir import Floats, Graph, Phase
from ..plan.lookup import span_entry, stage_ops
from ..plan.model import Cut, OpSharding, Plan
from ..plan.problem import Problem
from ._layers import layers_of


@dataclass(frozen=True)
class Profile:
    """Nodes in topological order; seconds and bytes of `samples` samples on one device of the first type."""

    graph: Graph
    ops: tuple[tuple[int, ...], ...]
    """Per node its ops."""
    forward: Floats
    backward: Floats
    activation: Floats
    """Bytes that leave each node."""
    params: Floats
    edges: tuple[tuple[int, int], ...]
    samples: int

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def seconds(self) -> Floats:
        """Forward and backward."""
        return self.forward + self.backward

    @cached_property
    def node_of(self) -> dict[int, int]:
        """Op -> node."""
        return {op: v for v, ops in enumerate(self.ops) for op in ops}

    def entries(self, nodes: Sequence[int]) -> tuple[str, ...]:
        """The nodes as entries of `Stage.ops`, whole blocks of a run by number."""
        own = sorted(op for v in nodes for op in self.ops[v])
        found: list[str] = []
        have = set(own)
        starts = {}
        for run in self.graph.runs:
            for b in range(run.count):
                first = run.first + b * run.length
                if all(op in have for op in range(first, first + run.length)):
                    starts[first] = (run, b)
        done = -1
        for op in own:
            if op <= done:
                continue
            if op not in starts:
                found.append(self.graph.ops[op].name)
                continue
            run, first = starts[op]
            last = first
            while starts.get(run.first + (last + 1) * run.length, (None, 0))[0] is run:
                last += 1
            found.append(span_entry(run, first, last + 1))
            done = run.first + (last + 1) * run.length - 1
        return tuple(found)

    def parts(self, plan: Plan) -> tuple[frozenset[int], ...]:
        """The nodes of each stage of any plan of this graph; a node belongs to the stage of its last op."""
        found: list[set[int]] = [set() for _ in plan.stages]
        last = {ops[-1]: v for v, ops in enumerate(self.ops)}
        for s, stage in enumerate(plan.stages):
            found[s].update(last[op] for op in stage_ops(self.graph, stage) if op in last)
        return tuple(frozenset(nodes) for nodes in found)


def profile_of(problem: Problem, samples: int, *, borders: bool = True) -> Profile:
    """The profile of `samples` samples; without `borders` layers of captured graphs end wherever the module changes."""
    graph = problem.graph
    if all(not op.call for op in graph.ops):
        groups: list[tuple[int, ...]] = [(i,) for i in range(len(graph.ops))]
    else:
        ends = layers_of(graph).ends if borders else _modules(graph)
        groups = [tuple(range(a, b)) for a, b in zip((0, *ends), ends)]
    node = {op: v for v, ops in enumerate(groups) for op in ops}
    seconds = np.array([[_seconds(problem, op, samples, phase) for op in range(len(graph.ops))] for phase in _PHASES])
    scale = samples / graph.samples
    edges: dict[tuple[int, int], None] = {}
    activation, params = np.zeros(len(groups)), np.zeros(len(groups))
    counted: set[str] = set()
    for v, ops in enumerate(groups):
        for op in ops:
            for name in graph.ops[op].inputs:
                if graph.tensor[name].role == "param" and name not in counted:
                    counted.add(name)
                    params[v] += graph.tensor[name].nbytes
            for name in graph.ops[op].outputs:
                readers = {node[use] for use, _ in graph.consumers.get(name, ())} - {v}
                edges.update(dict.fromkeys((v, w) for w in sorted(readers)))
                if readers or len(ops) == 1:
                    activation[v] += graph.tensor[name].nbytes * scale
    per_node = [np.array([seconds[k, list(ops)].sum() for ops in groups]) for k in (0, 1)]
    return Profile(graph, tuple(groups), per_node[0], per_node[1], activation, params, tuple(edges), samples)


def _modules(graph: Graph) -> tuple[int, ...]:
    n = len(graph.ops)
    return (*(i for i in range(1, n) if graph.ops[i].module != graph.ops[i - 1].module), n)


_PHASES: tuple[Phase, Phase] = ("forward", "backward")


def _seconds(problem: Problem, index: int, samples: int, phase: Phase) -> float:
    graph = problem.graph
    op = graph.ops[index]
    scale = samples / graph.samples
    sizes = [max(1, round(f.size * scale)) if f.samples else f.size for f in op.rule.factors]
    device = problem.cluster.type_of(0)
    found = float(problem.cost.compute(op, np.array([sizes], np.int64), device, phase)[0])
    # Of profiles whose ops have no factor of samples the price is proportional to them.
    return found * scale if not any(f.samples for f in op.rule.factors) and not op.call else found


def kept_nodes(profile: Profile) -> list[int]:
    """Nodes that count: no inputs (their time is data loading), no unused parts of tuples."""
    read = {a for a, _ in profile.edges}
    found = []
    for v, ops in enumerate(profile.ops):
        first = profile.graph.ops[ops[0]]
        unused = v not in read and str(dict(first.kwargs).get("description", "")).startswith("__getitem__")
        if first.kind != "input" and not unused:
            found.append(v)
    return found


def with_the_rest(profile: Profile, parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Stages of kept nodes completed: inputs go to their first reader, unused parts of tuples to their maker."""
    home = {v: s for s, own in enumerate(parts) for v in own}
    for v in reversed(range(len(profile))):
        readers = [home[b] for a, b in profile.edges if a == v and b in home]
        if v not in home and readers:
            home[v] = min(readers)
    for v in range(len(profile)):
        if v not in home:
            home[v] = max((home[a] for a, b in profile.edges if b == v and a in home), default=0)
    return [[v for v in range(len(profile)) if home[v] == s] for s in range(len(parts))]


def by_samples(graph: Graph, axis: str) -> dict[str, OpSharding]:
    """Every op that has samples cuts them over `axis`."""
    found = {}
    for op in graph.ops:
        factor = next((f.name for f in op.rule.factors if f.samples), None)
        if factor is not None:
            found[op.name] = OpSharding({factor: (Cut(axis),)})
    return found


def enough(nodes: int, stages: int, planner: str) -> None:
    """Raises Infeasible if there are more stages than nodes to fill them."""
    if nodes < stages:
        raise Infeasible(
            f"{nodes} layers cannot fill {stages} stages: {planner} gives each stage at least one layer, so it takes at most "
            f"{nodes} here"
        )
