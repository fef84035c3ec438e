"""The decision and the question: plans, problems, layout algebra, validation, moves, JSON, schedules."""

from .._callable import make_callable

make_callable(__name__, "meshwright.api:plan")
