"""Planners: methods that find a plan. Loading this loads neither torch nor numba."""

from .base import Learned, Planner, Stop
from .registry import load, names, planners, register
from .types import Budget, Choice, Considered, Event, Info, Json, Result, Run

__all__ = [
    "Budget",
    "Choice",
    "Considered",
    "Event",
    "Info",
    "Json",
    "Learned",
    "Planner",
    "Result",
    "Run",
    "Stop",
    "load",
    "names",
    "planners",
    "register",
]
