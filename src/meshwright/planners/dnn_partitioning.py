"""Device placement of DNN graph operators (Tarnawski, Phanishayee, Devanur, Mahajan, Nina Paravecino, NeurIPS 2020).

Puts each node on one of k equal accelerators, which hang on one host memory, or on a CPU. Two objectives, in milliseconds
at `Graph.samples`:

    throughput   least maximal load of a device; a value that changes device is paid once by each accelerator it touches
    latency      least time of one sample, an accelerator running its nodes as at most `blocks` calls: of a forward pass

Three search spaces, which differ: "chain" (exact, over downsets; values flow forwards through the devices), "contiguous"
(no path leaves a device and comes back, but two devices may feed each other; integer programme), "noncontiguous" (any).
Memory counts once per node: the method knows nothing of samples in flight. A captured model's nodes are its ops, each with
its backward; what the simulator finds too large is planned again with less memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from .._words import size
from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.fits import fits
from ..solvers import latency as calls
from ..solvers import max_load as max_loads
from ..solvers.graph_partition import balanced_parts
from ..solvers.mixed_integer import End
from ..solvers.placement import Placement, items_of, strong_components
from ..solvers.placement_ip import chain_programme, split_programme
from ._checked import above, whole
from ._placement_nodes import devices_of, placement_of, split_of
from ._run import Stop
from .base import Planner
from .registry import register
from .types import Info, Json, Run

CHAIN_GAP = 1e-6
"""The order form searches at least this far: its space is the one that is otherwise solved exactly."""
DOWNSETS = 4_000_000
"""Of which the exact search over chains holds all; above them the order form is solved."""
START_DOWNSETS = 100_000
"""The same where a chain is only what an integer programme begins with."""
SHRINK = 8
"""Times that memory is lowered for a captured model whose plan the simulator finds too large."""
Method = Literal[
    "chain", "order", "contiguous", "noncontiguous", "linear", "pipedream", "local_search", "partition", "one_device",
    "given", "programme", "greedy", "max_load",
]  # fmt: skip
THROUGHPUT: tuple[Method, ...] = (
    "chain", "order", "contiguous", "noncontiguous", "linear", "pipedream", "local_search", "partition", "one_device",
    "given",
)  # fmt: skip
LATENCY: tuple[Method, ...] = ("programme", "greedy", "max_load", "given")
SKIPPED = {32: (4, 37), 64: (4, 37), 96: (2, 100, 40, 137, 46, 142), 192: (2, 100, 40, 137, 46, 142)}
"""Nodes of a graph -> names of those whose outgoing edges the study's PipeDream baseline leaves out (picked by hand there)."""


@register
class DnnPartitioning(Planner):
    """Least maximal load, or least latency.

    Args:
        objective: "throughput" or "latency".
        method: throughput: "chain" (default), "order" (the chain space as an integer programme), "contiguous",
            "noncontiguous", or a baseline: "linear" (DPL), "pipedream", "local_search", "partition" (for Scotch),
            "one_device", "given" (the first plan of `Problem.start`, such as an expert's). latency: "programme" (default),
            "greedy", "max_load" (the split of the chain optimum), "given".
        blocks: calls an accelerator may make, for latency.
        separate: throughput of a schedule that separates the passes: largest forward plus largest backward load
            (integer programmes and "given").
        gap, seconds: where an integer programme stops; its bound is reported.
    """

    info = Info(
        name="dnn_partitioning",
        title="Efficient Algorithms for Device Placement of DNN Graph Operators",
        year=2020,
        reference="NeurIPS 2020, arXiv 2006.16423",
        decides=frozenset({"placement", "stages"}),
        handles=frozenset({"dag", "explicit", "memory", "heterogeneous"}),
        goals=frozenset({"time"}),
        family="placement",
    )
    unit = "ms"

    def __init__(
        self,
        *,
        objective: Literal["throughput", "latency"] = "throughput",
        method: Method | None = None,
        blocks: int = 1,
        separate: bool = False,
        gap: float = 0.01,
        seconds: float = 1200.0,
    ) -> None:
        if objective not in ("throughput", "latency"):
            raise InputError(f'dnn_partitioning has no objective "{objective}": there are throughput and latency')
        known = THROUGHPUT if objective == "throughput" else LATENCY
        self.goal = objective
        self.method: Method = method or known[0]
        if self.method not in known:
            raise InputError(f'dnn_partitioning has no method "{method}" for {objective}: there are {", ".join(known)}')
        if separate and self.method not in ("contiguous", "noncontiguous", "given"):
            raise InputError("separate passes are an objective of the integer programmes: contiguous or noncontiguous")
        if not 0 <= gap < 1:
            raise InputError(f"dnn_partitioning: gap is {gap:g}, it must be a share of the value: 0 or more, below 1")
        above("dnn_partitioning", "seconds", seconds, endless=True)
        whole("dnn_partitioning", "blocks", blocks, what="call of an accelerator")
        self.blocks = blocks
        self.separate = separate
        self.gap = gap
        self.seconds = seconds

    def search(self, problem: Problem, run: Run) -> Json:
        """Offers splits as they are found; the bound is over the space of the method."""
        if self.goal == "latency" and problem.graph.training == "explicit":
            raise Unsupported(
                "latency is that of a forward pass: this graph has its backward written out, so choose throughput"
            )
        derived = problem.graph.training == "derived"
        memory: float | None = None
        fault: str | None = ""
        for _ in range(SHRINK if derived else 1):
            graph = self._nodes(problem, memory)
            if memory is None:
                run.bound(calls.critical_path(graph) if self.goal == "latency" else max_loads.lower_bound(graph))
            found, end = self._split(problem, run, graph, memory is None)
            if found is None:
                self._go_on(end, run)
                raise Infeasible(fault if fault else _why(graph))
            over = graph.overfull(found.split)
            if over > 0:
                raise Infeasible(
                    f"{self.method} ignores memory: its split takes {found.value:.6g} ms, but fills an accelerator "
                    f"{size(over)} over its {size(graph.memory)}"
                )
            plan = self._plan(problem, graph, found.split, found.blocks)
            fault = fits(problem, plan) if derived else None
            if fault is None:
                run.offer(self.objective(problem, plan), lambda plan=plan: plan)  # type: ignore[misc]
                self._go_on(end, run)
                run.tick(1, "done", 1, 1)
                return {"method": self.method, "loads": [float(x) for x in graph.loads(found.split)]}
            self._go_on(end, run)
            memory = 0.7 * min(graph.memory, _fullest(graph, found.split))
        raise Infeasible(fault or _why(graph))

    def _nodes(self, problem: Problem, memory: float | None = None) -> Placement:
        """Nodes with their prices; for latency those of a forward pass, of a model that trains, too."""
        if self.goal == "latency" and problem.graph.training == "derived":
            problem = replace(problem, graph=replace(problem.graph, training="none"))
        return placement_of(problem, memory)

    def _go_on(self, end: End | None, run: Run) -> None:
        """After an integer programme, what it found being offered: stops where the time is over, says what is not proven.

        Raises:
            Stop: the budget's seconds are over, or the programme's own.
            KeyboardInterrupt: Ctrl-C ended it.
        """
        if end == "interrupt":
            raise KeyboardInterrupt
        if end == "seconds":
            run.tick(0, self.method, 1, 1)  # stops if it was the budget
            raise Stop(f"stopped after {self.seconds:g} s of the integer programme, the setting seconds")
        if end == "gap":
            run.unproven(f"the integer programme searches until its bound is within gap={self.gap:g} of its value")

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Milliseconds: the largest load, or the latency of one sample.

        Raises:
            Unsupported: a stage on several devices.
        """
        graph, split = self._nodes(problem), split_of(problem, plan)
        if self.goal == "throughput":
            return graph.phase_load(split) if self.separate else graph.max_load(split)
        from ..plan.lookup import stage_ops

        accelerators, _ = devices_of(problem)
        blocks: list[list[tuple[int, ...]]] = [[] for _ in accelerators]
        for stage in plan.stages:
            device = stage.mesh.devices[0]
            if device in accelerators:
                blocks[accelerators.index(device)].append(tuple(stage_ops(problem.graph, stage)))
        return calls.makespan(graph, blocks)

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Milliseconds of each stage's device, both passes together; () where these are no maximum: latency, separate passes."""
        if self.goal == "latency" or self.separate:
            return ()
        graph, split = self._nodes(problem), split_of(problem, plan)
        of_device = graph.loads(split)
        first = [
            problem.graph.position[stage.ops[0]] for stage in plan.stages if stage.ops[0] in problem.graph.position
        ]
        return tuple(float(of_device[split[v]]) for v in first) if len(first) == len(plan.stages) else ()

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """Chains only, where the method is one over chains."""
        if self.goal == "latency" or self.method not in ("chain", "order", "linear", "pipedream"):
            return True
        graph, split = self._nodes(problem), split_of(problem, plan)
        items = items_of(graph)
        homes = [{split[v] for v in own} for own in items.groups]
        if any(len(h) > 1 for h in homes):
            return False
        place = [next(iter(h)) for h in homes]
        flows = sorted({(place[a], place[b]) for a, b in items.edges if place[a] != place[b]})
        return len(strong_components(graph.accelerators + graph.cpus, flows)) == graph.accelerators + graph.cpus

    def _split(self, problem: Problem, run: Run, graph: Placement, first: bool) -> tuple[_Found | None, End | None]:
        """(the best split, what ended the integer programme where there is one)."""
        offering = problem.graph.training != "derived"

        def watch(value: float, split: Sequence[int]) -> None:
            if offering and graph.overfull(split) <= 0:
                # The chain that an integer programme starts from has the joint load as its value.
                run.offer(
                    graph.phase_load(split) if self.separate else value, lambda: self._plan(problem, graph, split, ())
                )
            run.tick(1, self.method, 0, 1)

        if self.goal == "latency":
            call, end = self._latency(problem, run, graph)
            return (_Found(call.value, call.split, call.blocks) if call is not None else None), end
        answer, end = self._throughput(problem, run, graph, watch)
        if answer is None:
            return None, end
        if first and answer.bound > 0:
            run.bound(answer.bound)
        return _Found(answer.value, answer.split), end

    def _throughput(
        self, problem: Problem, run: Run, graph: Placement, watch: max_loads.Watch
    ) -> tuple[max_loads.Answer | None, End | None]:
        if self.method in ("chain", "order", "contiguous", "noncontiguous"):
            return self._exact(run, graph, watch)
        return self._baseline(problem, run, graph, watch), None

    def _exact(self, run: Run, graph: Placement, watch: max_loads.Watch) -> tuple[max_loads.Answer | None, End | None]:
        limit = DOWNSETS if self.method == "chain" else START_DOWNSETS
        chain = max_loads.chain_optimum(graph, watch, limit, tick=lambda: run.tick(0, self.method, 0, 1))
        if self.method == "chain" and (chain is None or chain.bound >= chain.value * (1 - 1e-9)):
            return chain, None
        seconds = min(self.seconds, run.left())
        if self.method in ("chain", "order"):
            return chain_programme(graph, gap=min(self.gap, CHAIN_GAP), seconds=seconds, start=chain)
        space: Literal["contiguous", "noncontiguous"] = "contiguous" if self.method == "contiguous" else "noncontiguous"
        start = chain
        if space == "noncontiguous" and graph.accelerators:
            moved = max_loads.local_search(graph, run.rng)
            if graph.overfull(moved.split) <= 0 and (chain is None or moved.value < chain.value):
                start = moved
                watch(moved.value, moved.split)
        return split_programme(graph, space, gap=self.gap, seconds=seconds, start=start, separate=self.separate)

    def _baseline(
        self, problem: Problem, run: Run, graph: Placement, watch: max_loads.Watch
    ) -> max_loads.Answer | None:
        if self.method == "given":
            split = self._given(problem)
            return max_loads.Answer(graph.phase_load(split) if self.separate else graph.max_load(split), split, 0.0)
        if self.method == "linear":
            return max_loads.linear_optimum(graph)
        if self.method == "pipedream":
            position = problem.graph.position
            names = SKIPPED.get(len(graph), ())
            return max_loads.branches_merged(graph, [position[str(name)] for name in names if str(name) in position])
        if self.method == "one_device":
            split = (0,) * len(graph)
            return max_loads.Answer(graph.max_load(split), split, 0.0)
        if self.method == "local_search":
            return max_loads.local_search(graph, run.rng, watch)
        split = balanced_parts(graph, run.rng)
        return max_loads.Answer(graph.max_load(split), split, 0.0)

    def _latency(self, problem: Problem, run: Run, graph: Placement) -> tuple[calls.Latency | None, End | None]:
        if self.method == "given":
            return calls.split_latency(graph, self._given(problem)), None
        if self.method == "max_load":
            chain = max_loads.chain_optimum(graph)
            return (calls.split_latency(graph, chain.split) if chain is not None else None), None
        start = calls.greedy(graph)
        if self.method == "greedy":
            return (start if start.value < inf else None), None
        starts = [start, calls.split_latency(graph, (graph.accelerators,) * len(graph))]
        self._offer_call(problem, run, graph, starts)
        chain = max_loads.chain_optimum(graph, None, START_DOWNSETS, lambda: run.tick(0, self.method, 0, 1))
        if chain is not None:
            starts.append(calls.split_latency(graph, chain.split))
        start = self._offer_call(problem, run, graph, starts)
        begin = start if start.value < inf else None
        seconds = min(self.seconds, run.left())
        found, end = calls.latency_programme(graph, self.blocks, gap=self.gap, seconds=seconds, start=begin)
        if found is not None:
            run.bound(found.bound)
        return found, end

    def _offer_call(
        self, problem: Problem, run: Run, graph: Placement, found: Sequence[calls.Latency]
    ) -> calls.Latency:
        """The best of those that make as few calls as allowed, offered; the last resort is that there is none (inf)."""
        allowed = [call for call in found if all(len(own) <= self.blocks for own in call.blocks)]
        best = min(allowed, key=lambda call: call.value)
        if best.value < inf:
            run.offer(best.value, lambda: self._plan(problem, graph, best.split, best.blocks))
            run.tick(1, "start", 0, 1)
        return best

    def _given(self, problem: Problem) -> tuple[int, ...]:
        if not problem.start:
            raise InputError('method "given" prices the first plan of Problem.start: this problem has none')
        return split_of(problem, problem.start[0])

    def _plan(
        self, problem: Problem, graph: Placement, split: Sequence[int], blocks: Sequence[Sequence[tuple[int, ...]]]
    ) -> Plan:
        accelerators, cpus = devices_of(problem)
        devices = [*accelerators, *cpus]
        ops = problem.graph.ops
        stages: list[tuple[int, Stage]] = []
        seen: set[int] = set()
        for i, own in enumerate(blocks):
            for block in own:
                stages.append((block[0], Stage(tuple(ops[v].name for v in block), Mesh((devices[i],)))))
                seen.update(block)
        for k in sorted({split[v] for v in range(len(graph)) if v not in seen}):
            mine = [v for v in range(len(graph)) if split[v] == k and v not in seen]
            stages.append((mine[0], Stage(tuple(ops[v].name for v in mine), Mesh((devices[k],)))))
        ordered = tuple(stage for _, stage in sorted(stages, key=lambda pair: pair[0]))
        plan = Plan(problem.graph.digest, problem.recipe.samples, ordered, Schedule("dataflow", 1))
        if problem.graph.training != "derived":
            return replace(plan, schedule=Schedule("dataflow", problem.recipe.samples))
        samples, count = problem.recipe.samples, len(ordered)
        m = next((m for m in range(min(4 * count, samples), samples) if samples % m == 0), samples)
        flows = self.contains(problem, plan) and self.method in ("chain", "order", "linear", "pipedream")
        return replace(plan, schedule=Schedule("1f1b" if flows else "dataflow", m))


@dataclass(frozen=True, slots=True)
class _Found:
    """A split: its value, the device of each node, and the calls of each accelerator where the objective is latency."""

    value: float
    split: tuple[int, ...]
    blocks: tuple[tuple[tuple[int, ...], ...], ...] = ()


def _fullest(graph: Placement, split: Sequence[int]) -> float:
    held = [0.0] * (graph.accelerators + graph.cpus)
    for v, device in enumerate(split):
        held[device] += float(graph.size[v])
    return max(held[: graph.accelerators], default=0.0)


def _why(graph: Placement) -> str:
    total, room = float(graph.size.sum()), graph.memory * graph.accelerators
    worst = max(sum(float(graph.size[v]) for v in own) for own in graph.groups)
    if not graph.cpus and total > room:
        return (
            f"all nodes take {size(total)}, the {graph.accelerators} accelerators have {size(room)} in all, and "
            "there is no CPU to take the rest"
        )
    if not graph.cpus and worst > graph.memory:
        return f"nodes that share a device take {size(worst)}, an accelerator has {size(graph.memory)}"
    return (
        f"no chain of stages fits {graph.accelerators} accelerators of {size(graph.memory)} and {graph.cpus} CPUs: "
        f"the nodes take {size(total)}"
    )
