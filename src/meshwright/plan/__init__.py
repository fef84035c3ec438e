"""The decision and the question: plans, problems, layout algebra, validation, moves, JSON, schedules."""

from .._callable import make_callable
from .model import (
    Action,
    Cut,
    Layout,
    Move,
    OpSharding,
    Plan,
    Row,
    Schedule,
    Stage,
    Storage,
    SumProgram,
    SumStep,
    Weights,
)
from .moves import moves
from .problem import Annotation, Goal, Limits, Problem, Recipe
from .serial import from_json, load, save, to_json
from .validate import validate

__all__ = [
    "Action",
    "Annotation",
    "Cut",
    "Goal",
    "Layout",
    "Limits",
    "Move",
    "OpSharding",
    "Plan",
    "Problem",
    "Recipe",
    "Row",
    "Schedule",
    "Stage",
    "Storage",
    "SumProgram",
    "SumStep",
    "Weights",
    "from_json",
    "load",
    "moves",
    "save",
    "to_json",
    "validate",
]

# `meshwright.plan("gpt2", cluster="a100x8")` is the first thing that people call.
make_callable(__name__, "meshwright.api:plan")
