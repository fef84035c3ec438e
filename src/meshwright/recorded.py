"""Problems that come with their prices: a profile file of a public format, planned and compared like any other.

The file says what is trained and what each part costs; settings (KEY=VALUE) override its devices, memory (bytes), bandwidth
(bytes/s) and micro-batches. What is not the reader's is a parameter of the planner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings as words
from .errors import InputError, MeshwrightError
from .formats.detect import FORMATS, format_of, planner_of, reader
from .plan.schedules.asynchronous import warm_up
from .report.recorded import Answered, Profiled
from .request import Request

if TYPE_CHECKING:
    from .plan.model import Plan
    from .planners.base import Planner
    from .planners.types import Result

Progress = Callable[[str, int, int, float], None]
_CODE = (".py", ".toml")


def is_recorded(model: str) -> bool:
    """Does this name a file that should be a profile? A JSON file that no format knows is left to be a configuration.

    Raises:
        InputError: the file cannot be read, or a path that leads nowhere.
    """
    path = Path(model)
    if path.suffix in (".txt", ".json", ".xz", ".gz", ".npz") and not path.exists():
        raise InputError(f"{model}: no such file", where="MODEL")
    if path.suffix in _CODE or not path.is_file():
        return False
    return path.suffix != ".json" or bool(format_of(path))


def stated(request: Request, planner: type[Planner]) -> tuple[Profiled, dict[str, Any]]:
    """(the problem of the file that a request names, parameters of the planner).

    Args:
        planner: what will search; it takes the settings that the reader has none for.

    Raises:
        InputError: no such format, a setting that neither takes or that has no such value, what the reader refuses.
    """
    path = Path(request.model)
    name = format_of(path)
    if not name:
        raise InputError(
            f"{path} is in none of the formats {', '.join(FORMATS)}, by its content",
            where=str(path),
        )
    read = reader(name)
    of_reader, of_planner = words.parameters(read), words.parameters(planner)
    words.check_known(request.settings, {f"format {name}": of_reader, f"planner {planner.info.name}": of_planner})
    mine, theirs = _divided(request.settings, of_reader, of_planner)
    options = words.typed(mine, of_reader)
    if request.batch is not None:
        options.setdefault("batch" if "batch" in of_reader else "micro_batches", request.batch)
    problem = read(path, **options)
    return Profiled(request.model, name, problem, options), words.typed(theirs, of_planner)


def _divided(
    given: Mapping[str, str], of_reader: Mapping[str, Any], of_planner: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """(the reader's, the planner's): a key of both is the reader's, unless only the planner has such values."""
    mine, theirs = {}, {}
    for key, text in given.items():
        if key in of_reader and (key not in of_planner or words.fits(text, of_reader[key])):
            mine[key] = text
        else:
            theirs[key] = text
    return mine, theirs


def planner_kind(request: Request, given: str | None) -> tuple[str, type[Planner]]:
    """(name, class) of the planner that is asked for, else of the one that a file's format was made for.

    Raises:
        InputError: no such planner.
    """
    from .planners import registry

    name = given or planner_of(format_of(request.model)) or request.planner
    return name, type(registry.load(name))


def searched(profiled: Profiled, planner: Planner, request: Request, progress: Progress | None = None) -> Result:
    """What a planner finds within the request's budget.

    Raises:
        Unsupported: the planner does not take such problems.
    """
    from .planners.types import Budget

    budget = Budget(seconds=request.budget)
    return planner.plan(profiled.problem, budget=budget, seed=request.seed, progress=progress)


def judged(
    profiled: Profiled, planner: Planner, result: Result, parameters: Mapping[str, Any], *, detail: bool = False
) -> Answered:
    """A result with its stages, their loads, and its plan simulated; with `detail` event by event, for pictures."""
    found = Answered(
        profiled, planner.info, dict(parameters), result.status, result.reason, result.objective, result.unit, result.bound,
        result.seconds, result.evaluations, result.seed, result.carry, result.plan,
        frontier=tuple((c.memory, c.objective, c.plan) for c in result.frontier),
    )  # fmt: skip
    plan = result.plan
    if plan is None:
        return found
    from .cost.accpar_elements import AccParElements
    from .cost.tables import Tables
    from .cost.untimed import UNKNOWN, Untimed
    from .simulate import simulate

    if isinstance(profiled.problem.cost, Untimed):
        return replace(found, staleness=staleness(plan), not_simulated=UNKNOWN)
    found = replace(found, loads=planner.loads(profiled.problem, plan), staleness=staleness(plan))
    if profiled.problem.cost.unit != "s" or isinstance(profiled.problem.cost, Tables | AccParElements):
        return replace(found, not_simulated="its prices are of whole choices, not of pieces of work in seconds")
    try:
        simulation = simulate(profiled.problem, plan, detail=detail)
    except MeshwrightError as error:
        return replace(found, not_simulated=error.message)
    return replace(found, simulation=simulation, staleness=max(found.staleness, simulation.staleness))


def compared(
    request: Request,
    names: Sequence[str],
    *,
    progress: Progress | None = None,
    told: Callable[[str, int, int], None] = lambda name, k, n: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Answered]:
    """Every planner on one profile, within its own budget; one that refuses or fails is a row that says why.

    A setting goes to the planners that take it; each must be taken by the reader or by one of them.

    Raises:
        InputError: what `stated` raises for the file itself.
    """
    from .planners import registry

    of_reader = words.parameters(reader(format_of(request.model))) if format_of(request.model) else {}
    kinds = {name: type(registry.load(name)) for name in names}
    takers = {f"planner {name}": words.parameters(kind) for name, kind in kinds.items()}
    words.check_taken(request.settings, {"the file": of_reader, **takers})
    found: list[Answered] = []
    for k, (name, kind) in enumerate(kinds.items()):
        if stopped():
            break
        told(name, k, len(names))
        mine = {key: x for key, x in request.settings.items() if key in of_reader}
        own = replace(request, settings=mine | words.taken(request.settings, words.parameters(kind)))
        profiled, parameters = stated(own, kind)
        began = time.monotonic()
        try:
            planner = made(kind, parameters)
            found.append(judged(profiled, planner, searched(profiled, planner, own, progress), parameters))
        except MeshwrightError as error:
            found.append(_without(profiled, kind, parameters, "refused", error.message, time.monotonic() - began))
        except Exception as error:  # a planner of someone else may raise anything; the others still answer
            reason = f"{type(error).__name__} in its search: {' '.join(str(error).split())}"
            found.append(_without(profiled, kind, parameters, "failed", reason, time.monotonic() - began))
    return sorted(found, key=Answered.order)


def made(kind: type[Planner], parameters: Mapping[str, Any]) -> Planner:
    """A planner with its parameters.

    Raises:
        InputError: a value that it refuses.
    """
    try:
        return kind(**parameters)
    except (TypeError, ValueError) as error:  # of planners from elsewhere
        given = ", ".join(f"{key}={value}" for key, value in parameters.items())
        raise InputError(f"planner {kind.info.name} refuses {given}: {error}", where="--set") from error


def _without(
    profiled: Profiled, kind: type[Planner], parameters: Mapping[str, Any], status: str, reason: str, seconds: float
) -> Answered:
    return Answered(profiled, kind.info, dict(parameters), status, reason, inf, "", None, seconds, 0, 0, None, None)


def staleness(plan: Plan) -> int:
    """Updates by which the weights that a gradient was made with are older than those that it changes, at most; 0 = none."""
    weights = plan.schedule.weights
    if weights.flush:
        return 0
    if weights.reads == "previous":
        return 1
    replicas = [len(stage.mesh.devices) for stage in plan.stages]
    return max(warm_up(replicas, s) for s in range(len(replicas)))
