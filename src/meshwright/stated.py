"""From names to objects: the graph, the cluster and the problem that a request speaks of, with its defaults filled in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from ._words import joined, number, parameters
from .cluster import describe, is_local, resolve
from .cluster.model import Cluster
from .errors import InputError, Unsupported
from .graph.ir import Graph
from .graph.samples import inputs_like
from .plan.model import Plan
from .plan.problem import Goal, Limits, Problem, Recipe
from .report.outcome import Question
from .request import PRECISIONS, Request

if TYPE_CHECKING:
    from .calibration.profile import Profile
    from .cost.base import CostModel
    from .graph.source import ModelSource

Say = Callable[[str, str, str], None]
"""(line, text, what stands at its end): progress in words."""
GOALS: Mapping[str, Goal] = {"step": "time", "cost": "time", "memory": "memory"}
CAPTURED_SAMPLES = 2
"""A graph is captured with two samples: a dim of size 1 has no factor, so one sample would hide the batch."""


def silent(line: str, text: str, done: str) -> None:
    """No progress wanted."""


@dataclass(frozen=True)
class Stated:
    request: Request
    source: ModelSource
    problem: Problem
    question: Question

    @property
    def folder(self) -> Path:
        """MODEL-CLUSTER, where nothing else is said."""
        # A cluster file may give any name.
        return Path(re.sub(r"[/\\\x00-\x1f]", "-", f"{self.source.name}-{self.problem.cluster.name}"))

    def described(self, plan: Plan) -> Plan:
        """The plan with what its model is fed, so that it can be run from the module alone."""
        return replace(plan, inputs=inputs_like(self.problem.graph), precision=self.problem.recipe.compute_dtype)


def state(
    request: Request, say: Say = silent, cost: CostModel | None = None, source: ModelSource | None = None
) -> Stated:
    """Resolve and capture; quick to fail: the cheap names are checked before the model is captured.

    Args:
        source: the model, where `request.model` is no name that could be looked up.

    Raises:
        InputError: an unknown name, file, precision or objective, or a number out of range. CaptureError: the model cannot be captured.
    """
    if request.recorded:
        raise Unsupported(
            f"{request.model} is a recorded profile, so its plan is neither simulated by degrees, verified nor run: plan it "
            "again with meshwright plan, or read result.json",
            where=request.model,
        )
    if request.precision not in PRECISIONS:
        raise InputError(f'no precision "{request.precision}": use one of {", ".join(PRECISIONS)}', where="--precision")
    if request.objective not in GOALS:
        raise InputError(f'no objective "{request.objective}": use one of {", ".join(GOALS)}', where="--objective")
    for name, asked in (("--batch", request.batch), ("--seq", request.seq)):
        if asked is not None and asked < 1:
            raise InputError(f"{name} {asked}: must be a whole number of at least 1", where=name)
    if not 0 < request.attention_share <= 1:
        raise InputError(
            f"--attention-share {request.attention_share:g}: must be a share of the work, above 0 and at most 1",
            where="--attention-share",
        )
    if not 1 <= request.routing_skew < inf:
        raise InputError(
            f"--routing-skew {request.routing_skew:g}: must be a number of at least 1, the busiest load over the mean",
            where="--routing-skew",
        )
    if request.tokens is not None and not 1 <= request.tokens < inf:
        raise InputError(f"--tokens {request.tokens:g}: must be a number of at least 1", where="--tokens")
    if request.budget is not None and not 0 < request.budget < inf:
        raise InputError(f"--budget {request.budget:g}: must be a number of seconds, above 0", where="--budget")
    profile = profile_of(request)
    cluster = cluster_of(request, profile)
    if cost is not None:
        profile = None  # it has no part in the prices
    elif profile is not None:
        cost = profile.cost(PRECISIONS[request.precision])
    if source is None:
        from .graph.source import resolve as resolve_model

        source = resolve_model(request.model)
    if request.tokens is not None and source.default_seq <= 1:
        raise InputError(
            f"--tokens: {source.name} is trained on samples, not on tokens: leave it out", where="--tokens"
        )
    defaults = {name for name in ("batch", "seq") if getattr(request, name) is None}
    batch, seq = request.batch or source.default_batch, request.seq or source.default_seq
    say("model", source.name, "")
    began = time.monotonic()
    dtype = PRECISIONS[request.precision]
    graph = source.graph(batch=CAPTURED_SAMPLES, seq=seq, dtype=dtype)
    spent = time.monotonic() - began
    problem = problem_of(request, graph, cluster, batch, cost)
    installed = min(t.memory for t in cluster.types)
    question = Question(
        source.name,
        graph,
        cluster,
        batch,
        seq if seq > 1 else 0,
        request.precision,
        request.optimizer,
        frozenset(defaults if seq > 1 else defaults - {"seq"}),
        request.model,
        request.cluster,
        installed,
        problem.limits.usable(installed),
        request.attention_share,
        request.routing_skew,
        tokens=request.tokens or 0.0,
        profile=profile.name if profile is not None else "",
    )
    size = f"{source.name:15}{parameters(question.parameter_count)} parameters"
    say("model", size + (f", {question.blocks}" if question.blocks else ""), f"captured {number(spent, 2)} s")
    say("cluster", f"{cluster.name:15}{describe(cluster)}", " ")
    return Stated(replace(request, batch=batch, seq=seq if seq > 1 else None), source, problem, question)


def profile_of(request: Request) -> Profile | None:
    """The constants that a request names; else those of this machine, where it is planned for and was measured.

    Raises:
        InputError: no such profile, or a damaged one.
    """
    if not request.profile and not is_local(request.cluster):
        return None
    from .calibration.folder import file_of
    from .calibration.profile import load

    if request.profile:
        return load(file_of(request.profile))
    file = file_of("local")
    return load(file) if file.exists() else None


def cluster_of(request: Request, profile: Profile | None = None) -> Cluster:
    """The cluster of a request; "local" as it was measured, if it was."""
    found = resolve(request.cluster)
    if profile is not None and profile.local is not None and is_local(request.cluster):
        found = profile.local.cluster(0 if request.cluster == "local" else found.count)
    if request.price is None:
        return found
    if not 0 < request.price < inf:
        raise InputError(f"--price {request.price:g}: must be money for a device and hour, above 0", where="--price")
    if not found.homogeneous:
        raise InputError(
            f"--price is for all devices alike, but {found.name} has {joined([t.name for t in found.types])}: write "
            "price_per_hour for each in its file",
            where="--price",
        )
    return found.priced(request.price)


def problem_of(request: Request, graph: Graph, cluster: Cluster, batch: int, cost: CostModel | None = None) -> Problem:
    """The planner's view of a request."""
    if cost is None:
        from .cost import Analytic

        cost = Analytic(precision=PRECISIONS[request.precision])
    compute = PRECISIONS[request.precision]
    state_bytes = {"adamw": 8.0, "adam": 8.0, "sgd": 0.0}[request.optimizer]
    recipe = Recipe(
        batch,
        request.optimizer,
        state_bytes,
        compute_dtype=compute,
        attention_share=request.attention_share,
        routing_skew=request.routing_skew,
    )
    keep_free = -1.0 if request.keep_free is None else request.keep_free
    # Of a cluster of one size the cheapest plan is the fastest: `cheapest` asks for each size.
    problem = Problem(graph, cluster, cost, recipe, GOALS[request.objective], Limits(keep_free=keep_free))
    return _annotated(request, problem) if request.mesh or request.annotations else problem


def _annotated(request: Request, problem: Problem) -> Problem:
    """With the mesh and the annotations that the request names.

    Raises:
        InputError: what `read` and `mesh_on` of `annotation_file` raise, or two meshes.
    """
    from .annotation_file import Wishes, axes_of, mesh_on, read

    wishes = read(Path(request.annotations)) if request.annotations else Wishes({}, ())
    axes = axes_of(request.mesh) if request.mesh else wishes.axes
    if wishes.axes and axes != wishes.axes:
        said = ",".join(f"{a}={n}" for a, n in wishes.axes.items())
        raise InputError(f"--mesh {request.mesh} and {request.annotations} (mesh {said}) differ: leave one out")
    mesh = mesh_on(problem.cluster, axes) if axes else None
    return replace(problem, mesh=mesh, annotations=wishes.annotations)
