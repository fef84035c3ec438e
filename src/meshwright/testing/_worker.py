"""Plans small problems in a process of its own: `python -m meshwright.testing._worker`, request and answer as JSON."""

from __future__ import annotations

import importlib
import json
import sys

from ..errors import Unsupported
from ..plan.serial import dumps
from ..planners import Budget, Planner, load
from .tiny import tiny_problems


def planner_of(spec: str) -> Planner:
    """A planner by "module:Class", or as `meshwright.planners.load` takes it."""
    module, colon, name = spec.partition(":")
    if colon and not module.endswith(".py"):
        found = getattr(importlib.import_module(module), name)()
        if not isinstance(found, Planner):
            raise TypeError(f"{spec} is no planner")
        return found
    return load(spec)


def answers(planner: Planner, seed: int, evaluations: int) -> dict[str, str]:
    """Problem -> status and plan as text, of all feasible problems that suit the planner's tags."""
    found = {}
    for tiny in tiny_problems():
        if tiny.feasible:
            try:
                result = planner.plan(tiny.problem, budget=Budget(evaluations=evaluations), seed=seed)
            except Unsupported:
                continue
            found[tiny.name] = result.status + "\n" + (dumps(result.plan) if result.plan is not None else "")
    return found


def main() -> None:
    request = json.load(sys.stdin)
    sys.path[:0] = [path for path in request["path"] if path not in sys.path]
    found = answers(planner_of(request["spec"]), request["seed"], request["evaluations"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
