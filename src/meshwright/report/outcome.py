"""One answered problem, as the table, the JSON, and the report all show it. Facts only: wording is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Literal

from .._views import Viewed
from .._words import GIB, memory_unit, percent
from ..cluster.model import Cluster
from ..cost.constants import Predicted
from ..graph.ir import Graph
from ..plan.model import Plan
from ..plan.problem import Goal, Recipe
from ..simulate.result import Simulation
from .candidates import Candidate, ties
from .cut_words import legend
from .error_model import ErrorModel, error_model
from .training import Size, Training, training
from .why import Why, explain

if TYPE_CHECKING:
    from .answers import CandidateAnswer

Status = Literal["ok", "stopped", "infeasible"]


@dataclass(frozen=True)
class Question:
    """What was asked, in the words of the command line."""

    model: str
    graph: Graph
    cluster: Cluster
    batch: int
    seq: int
    """0 for models without sequences."""
    precision: str
    optimizer: str
    defaults: frozenset[str] = frozenset()
    """Names of the settings that the user left out."""
    command: str = ""
    """The model as it is typed: a name, a config file, "model.py:build"."""
    cluster_spec: str = ""
    installed: float = 0.0
    """Bytes a device has."""
    usable: float = 0.0
    """Bytes a device may be filled with."""
    attention_share: float = 1.0
    routing_skew: float = 1.0
    tokens: float = 0.0
    """To be trained on in all; 0 = not said."""
    profile: str = ""
    """Name of the one that it is priced by; "" = by none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the model and the data have that every answer rests on, in sentences."""
        said = []
        if self.attention_share != 1.0:
            said.append(f"packed documents leave {percent(self.attention_share)} of the work of attention")
        if self.routing_skew != 1.0:
            said.append(
                f"the busiest device along an axis that cuts experts gets {self.routing_skew:g} times the mean tokens"
            )
        return (*self.graph.notes, *said)

    @property
    def device_word(self) -> str:
        """What one device is called in headings: GPU, CPU, TPU."""
        kind = self.cluster.types[0].kind if self.cluster.types else "xpu"
        return {"gpu": "GPU", "tpu": "TPU", "cpu": "CPU"}.get(kind, "device")

    @property
    def item_word(self) -> str:
        """What is counted a second: tokens where there are sequences."""
        return "tok" if self.seq else "sample"

    @property
    def items(self) -> int:
        """Tokens (or samples) of one step."""
        return self.batch * (self.seq or 1)

    @cached_property
    def parameter_count(self) -> float:
        total = 0.0
        for t in self.graph.params():
            n = 1
            for size in t.shape:
                n *= size
            total += n
        return total

    @cached_property
    def blocks(self) -> str:
        """ "32 equal blocks", "24 + 12 equal blocks", "" without repeats."""
        counts = [run.count for run in self.graph.runs]
        return f"{' + '.join(map(str, counts))} equal blocks" if counts else ""


@dataclass(frozen=True)
class Outcome(Viewed):
    question: Question
    status: Status
    planner: str
    result_status: str
    """The planner's own: optimal, feasible, budget, infeasible."""
    reason: str = ""
    evaluated: int = 0
    refused: int = 0
    """Layouts that do not fit."""
    seconds: float = 0.0
    seed: int = 0
    bound: float | None = None
    claim: float = nan
    """The planner's own objective of its plan."""
    claim_unit: str = "s"
    candidates: tuple[Candidate, ...] = ()
    """That fit, fastest first; the first is the plan."""
    misses: tuple[Candidate, ...] = ()
    """That do not fit, nearest first."""
    plan: Plan | None = None
    simulations: tuple[Simulation, ...] = ()
    """Of some candidates, the plan's first."""
    simulated: tuple[int, ...] = ()
    """Whose: indices of candidates; () = the first ones, in order."""
    points: int = 0
    """Layouts that the search space has; 0 = not known."""
    details: Any = None
    """What the planner says besides; sentences under "notes" are shown."""
    hints: tuple[str, ...] = ()
    """Infeasible: the smallest changes that fit."""
    top: int = 5
    """Rows shown."""
    family: str = ""
    """Of the devices, as measured steps are told apart."""
    kind: str = ""
    """Of the problem, likewise: a key of `error_model.KINDS`, or "" for what was never measured."""
    others: Mapping[Predicted, str] = field(default_factory=dict)
    """What is predicted by other constants than those that ship -> whose they are."""
    trainer: str = ""
    """NAME or NAME@VERSION, if only what this trainer runs was searched."""
    recipe: Recipe | None = None
    """What the plan was priced for, where it can be lowered again."""
    told: tuple[str, ...] = ()
    """Sentences on why, where they were made earlier."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Name -> bytes, relative to `folder`."""
    folder: str = ""
    goal: Goal = "time"
    """What is least."""
    sizes: tuple[Size, ...] = ()
    """Goal "price": the clusters that were searched."""

    @property
    def gap(self) -> float | None:
        """Relative distance of the planner's claim from its own proven bound; None without a bound."""
        if self.bound is None or not isfinite(self.claim) or self.claim == 0:
            return None
        return abs(self.claim - self.bound) / abs(self.claim)

    @property
    def simulation(self) -> Simulation | None:
        return self.simulations[0] if self.simulations else None

    @cached_property
    def training(self) -> Training | None:
        """How long, and for how much, where a number of tokens was asked for."""
        if not self.question.tokens or self.simulation is None:
            return None
        step = self.simulation.step_seconds
        return training(self.question.tokens, self.question.items, step, self.interval(step), self.question.cluster)

    @cached_property
    def error(self) -> ErrorModel:
        """What is known of the error of these predictions."""
        return error_model().by_others(self.others)

    def interval(self, seconds: float) -> tuple[float, float] | None:
        """Seconds between which most measured steps lie where `seconds` are predicted; None: too little was measured."""
        return self.error.interval(self.family, self.kind, seconds)

    def memory_interval(self, nbytes: float) -> tuple[float, float] | None:
        """Likewise, of a predicted peak."""
        return self.error.memory_interval(self.kind, nbytes)

    @cached_property
    def tied_with(self) -> list[int]:
        """Per candidate: row that it cannot be told from, or -1."""
        if self.goal == "memory":  # its order is not that of steps
            return [-1] * len(self.candidates)
        return ties([c.step_s for c in self.candidates], self.error.pairs_within)

    @cached_property
    def why(self) -> Why:
        return explain(self.candidates, self.misses, self.simulations, self.simulated, self.top)

    @cached_property
    def unit(self) -> tuple[float, str]:
        """(bytes, name) of the unit that memory is shown in."""
        return memory_unit(max((c.memory_bytes for c in (*self.shown(), *self.misses[:3])), default=GIB))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the model, and of how it was planned."""
        own = self.details.get("notes", ()) if isinstance(self.details, dict) else ()
        words = legend([c.layout for c in self.shown()])
        return (*self.question.notes, *map(str, own), *([words] if words else []))

    def sentences(self) -> list[str]:
        """Why; for one layout that was given there is nothing to compare with."""
        return list(self.told) or (self.why.sentences() if len(self.candidates) > 1 or self.misses else [])

    def records(self) -> list[CandidateAnswer]:
        """One record a candidate, those that fit first; units in the keys."""
        from .payload import candidate_object

        ties_ = [*self.tied_with, *[-1] * len(self.misses)]
        rows = zip((*self.candidates, *self.misses), ties_, strict=True)
        return [candidate_object(c, t, self.interval(c.step_s), self.memory_interval(c.memory_bytes)) for c, t in rows]

    def shown(self) -> tuple[Candidate, ...]:
        return self.candidates[: self.top]
