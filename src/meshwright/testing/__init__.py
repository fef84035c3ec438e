"""The public conformance suites: what every planner and every cost model promises, checked on small problems.

report = conformance("./my_planner.py")        # or a name, or a Planner
print(report.text())

class TestMine(PlannerConformance):            # the same, one pytest test a promise
    planner = "mine"

Cost models: `cost_conformance(Priced(MyModel))` and `CostModelConformance`, see `cost_models.py`.
"""

from ._priced import Priced, everyday_ops
from .conformance import Check, PlannerConformance, Report, conformance
from .cost_models import CostModelConformance, cost_conformance
from .tiny import Tiny, chain, mlp, problem_of, tiny_problems

__all__ = [
    "Check",
    "CostModelConformance",
    "PlannerConformance",
    "Priced",
    "Report",
    "Tiny",
    "chain",
    "conformance",
    "cost_conformance",
    "everyday_ops",
    "mlp",
    "problem_of",
    "tiny_problems",
]
