"""Steps of small models that this machine runs by itself, one rank through our own runtime: what kernels alone do not tell.

Thin models say what the host takes for a layer, wider ones what a chain of light ops takes: both are learnt as those of any
other stack are (`stack.learn_stack`), around the constants of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph.source import ConfigSource
from ..graph.zoo.gpt import config
from ..plan.problem import Problem, Recipe
from ..planners.grid import Grid
from .profile import Profile
from .stack import Step
from .timing import summary

WARM_UP, ROUNDS = 2, 7
VOCABULARY = 1024


@dataclass(frozen=True, slots=True)
class Small:
    """A small GPT and its step."""

    layers: int
    width: int
    heads: int
    tokens: int
    micro_batch: int
    micro_batches: int

    @property
    def name(self) -> str:
        return (
            f"own step: {self.layers} layers of {self.width}, {self.micro_batch} x {self.tokens} tokens, "
            f"{self.micro_batches} times"
        )

    def source(self) -> ConfigSource:
        sizes = config(self.layers, self.width, self.heads, self.tokens, VOCABULARY)
        return ConfigSource("own", "own", "config", sizes, self.micro_batch, self.tokens)


STEPS = (
    Small(2, 64, 2, 64, 2, 1),
    Small(8, 64, 2, 64, 2, 1),
    Small(8, 64, 2, 64, 2, 4),
    Small(2, 384, 6, 128, 4, 1),
    Small(6, 384, 6, 128, 4, 1),
    Small(2, 384, 6, 128, 2, 4),
)
"""Few and many layers, once and four times, thin and wide: host, light ops, products and what is done once a step apart."""


def own_steps(profile: Profile, say: Callable[[str, int, int], None]) -> list[Step]:
    """Runs every small step on one rank of this machine.

    Raises:
        ExecutionError: the rank died.
    """
    from ..execute.ranks.pool import Pool
    from ..execute.training.training import prepare

    assert profile.local is not None
    cluster = profile.local.cluster(1)
    found = []
    say("own steps", 0, len(STEPS))
    with Pool(1, timeout=600) as pool:
        for k, small in enumerate(STEPS):
            source, samples = small.source(), small.micro_batch * small.micro_batches
            recipe = Recipe(samples, compute_dtype="float32", fused=False)
            graph = source.graph(2, small.tokens, "float32")
            problem = Problem(graph, cluster, profile.cost("float32"), recipe)
            fix = {"dp": 1, "micro_batch": small.micro_batch, "recompute": "none"}
            plan = Grid(fix=fix, top=1).plan(problem).plan
            assert plan is not None
            setup, data, _ = prepare(plan, source, seq=small.tokens)
            pool.run("meshwright.execute.training.trainer:start", setup)
            times = []
            for round_ in range(WARM_UP + ROUNDS):
                (stepped,) = pool.run("meshwright.execute.training.trainer:step", data.batch(round_))
                times.append(stepped.seconds)
            timing = summary(times[WARM_UP:])
            found.append(Step(small.name, problem, plan, timing.seconds, timing=timing))
            say("own steps", k + 1, len(STEPS))
    return found
