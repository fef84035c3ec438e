"""Plans how to train a model on many accelerators, predicts step time and memory, proves the plan, runs it.

>>> import meshwright as mw
>>> answer = mw.plan("gpt2", cluster="a100x8")      # doctest: +SKIP
>>> answer.plan, answer.simulation.step_seconds     # doctest: +SKIP

Everything here is imported at its first use: `import meshwright` loads neither torch nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import plan as plan
    from . import simulate as simulate
    from .api import compare as compare
    from .api import load as load
    from .api import run as run
    from .api import verify as verify
    from .cluster.model import Cluster as Cluster
    from .errors import MeshwrightError as MeshwrightError
    from .graph.ir import Graph as Graph
    from .job import Job as Job
    from .job import Metrics as Metrics
    from .parallelizing import parallelize as parallelize
    from .plan.model import Plan as Plan
    from .plan.problem import Problem as Problem
    from .simulate.result import Simulation as Simulation

_WHERE = {
    "plan": "plan", "simulate": "simulate",
    "compare": "api:compare", "load": "api:load", "run": "api:run", "verify": "api:verify",
    "Job": "job:Job", "Metrics": "job:Metrics", "parallelize": "parallelizing:parallelize",
    "Cluster": "cluster.model:Cluster", "Graph": "graph.ir:Graph", "MeshwrightError": "errors:MeshwrightError",
    "Plan": "plan.model:Plan", "Problem": "plan.problem:Problem", "Simulation": "simulate.result:Simulation",
}  # fmt: skip
__all__ = [
    "Cluster", "Graph", "Job", "MeshwrightError", "Metrics", "Plan", "Problem", "Simulation", "compare", "load",
    "parallelize", "plan", "run", "simulate", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    loaded = import_module(f"{__name__}.{module}")
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted(__all__)
