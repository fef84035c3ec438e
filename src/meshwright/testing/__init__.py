"""The public conformance suite: what every planner promises, checked on small problems.

report = conformance("./my_planner.py")        # or a name, or a Planner
print(report.text())

class TestMine(PlannerConformance):            # the same, one pytest test a promise
    planner = "mine"
"""

from .conformance import Check, PlannerConformance, Report, conformance
from .tiny import Tiny, chain, mlp, problem_of, tiny_problems

__all__ = [
    "Check",
    "PlannerConformance",
    "Report",
    "Tiny",
    "chain",
    "conformance",
    "mlp",
    "problem_of",
    "tiny_problems",
]
