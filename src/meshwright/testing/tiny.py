"""Small problems made by hand, without torch: what the conformance suite asks every planner.

The model `mlp(blocks=2)`, its two blocks being a run:

    x ─ linear ─ linear ─ relu ─ linear ─ relu ─ linear ─ mean → loss
        └ stem ┘ └  layers.0  ┘  └  layers.1  ┘  └ head ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..cluster import resolve
from ..cost.analytic import Analytic
from ..graph.ir import ITEM_BYTES, Factor, Graph, Op, Rule, Run, Slot, Tensor
from ..graph.serial import digest_of
from ..plan.problem import Limits, Problem, Recipe

GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Tiny:
    """A named problem and whether any plan can satisfy its limits."""

    name: str
    problem: Problem
    feasible: bool = True


class Builder:
    """Collects ops and tensors of a sequential model on `samples` vectors."""

    def __init__(self, samples: int, dtype: str = "float32") -> None:
        self.samples, self.dtype = samples, dtype
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = []

    def tensor(self, name: str, shape: tuple[int, ...], role: str) -> str:
        elements = 1
        for n in shape:
            elements *= n
        self.tensors.append(Tensor(name, float(elements * ITEM_BYTES[self.dtype]), shape, self.dtype, role))  # type: ignore[arg-type]
        return name

    def linear(self, module: str, x: str, width: int, wide: int, flops: float | None = None) -> str:
        weight = self.tensor(f"{module}.weight", (wide, width), "param")
        out = self.tensor(f"{module}.out", (self.samples, wide), "activation")
        rule = Rule(
            (Factor("b", self.samples, samples=True), Factor("n", wide), Factor("k", width)),
            ((("b",), ("k",)), (("n",), ("k",))),
            ((("b",), ("n",)),),
        )
        work = 2.0 * self.samples * width * wide if flops is None else flops
        self.op(f"{module}/linear", "linear", (x, weight), out, rule, module, work, saved=(x, weight))
        return out

    def relu(self, module: str, x: str, width: int) -> str:
        out = self.tensor(f"{module}.out", (self.samples, width), "activation")
        dims = (("b",), ("d",))
        rule = Rule((Factor("b", self.samples, samples=True), Factor("d", width)), (dims,), (dims,))
        self.op(f"{module}/relu", "relu", (x,), out, rule, module, 0.0, saved=(out,))
        return out

    def mean(self, module: str, x: str, width: int) -> str:
        out = self.tensor(f"{module}.mean", (), "activation")
        rule = Rule((Factor("b", self.samples, samples=True), Factor("d", width)), ((("b",), ("d",)),), ((),))
        self.op(f"{module}/mean", "mean", (x,), out, rule, module, 0.0)
        return out

    def op(
        self,
        name: str,
        kind: str,
        inputs: tuple[str, ...],
        out: str,
        rule: Rule,
        module: str,
        flops: float,
        saved: tuple[str, ...] = (),
        overload: str = "default",
    ) -> None:
        args = tuple(Slot(i) for i in range(len(inputs)))
        self.ops.append(
            Op(name, kind, inputs, (out,), rule, flops, saved, module=module, call=f"aten.{kind}.{overload}", args=args)
        )

    def graph(self, loss: str, runs: tuple[Run, ...] = ()) -> Graph:
        made = Graph(
            tuple(self.ops), tuple(self.tensors), self.samples, inputs=("x",), outputs=(loss,), loss=loss, runs=runs
        )
        return replace(made, digest=digest_of(made))


def mlp(blocks: int = 2, width: int = 64, samples: int = 8) -> Graph:
    """`blocks` equal blocks of linear and relu between a stem and a head, and a mean as loss; the blocks are one run."""
    build = Builder(samples)
    # Without a stem the first block would read data, the others a result with a gradient: no equal blocks.
    x = build.linear("stem", build.tensor("x", (samples, width), "input"), width, width)
    for i in range(blocks):
        x = build.linear(f"layers.{i}.fc", x, width, width)
        x = build.relu(f"layers.{i}.act", x, width)
    x = build.linear("head", x, width, width)
    loss = build.mean("loss", x, width)
    return build.graph(loss, (Run("layers", 1, 2, blocks),) if blocks > 1 else ())


def chain(flops: Sequence[float], width: int = 8, samples: int = 8) -> Graph:
    """One linear layer per entry, named "0", "1", …, of that many forward FLOPs; the mean belongs to the last layer."""
    build = Builder(samples)
    x = build.tensor("x", (samples, width), "input")
    for i, work in enumerate(flops):
        x = build.linear(str(i), x, width, width, work)
    loss = build.mean(f"{len(flops) - 1}", x, width)
    return build.graph(loss)


def problem_of(graph: Graph, cluster: str = "a100x2", samples: int = 8, **limits: float) -> Problem:
    """`graph` on a preset cluster, in float32, priced analytically."""
    recipe = Recipe(samples=samples, compute_dtype="float32")
    return Problem(graph, resolve(cluster), Analytic(), recipe, limits=Limits(**limits))  # type: ignore[arg-type]


def tiny_problems() -> tuple[Tiny, ...]:
    """The problems of the conformance suite; those named "tiny-oom" have no plan that fits."""
    return (
        Tiny("tiny-mlp-2", problem_of(mlp(2), "a100x2")),
        Tiny("tiny-mlp-4", problem_of(mlp(4), "a100x4")),
        Tiny("tiny-wide-2", problem_of(mlp(3, width=1024), "h100x2")),
        Tiny("tiny-uneven-2", problem_of(chain([3e9, 1e9, 4e9, 1e9, 5e9, 9e9]), "a100x2")),
        Tiny("tiny-tight-2", problem_of(mlp(6, width=1024), "a100x2", memory=2.0 * GIB, keep_free=0.0)),
        Tiny("tiny-oom-2", problem_of(mlp(4, width=1024), "a100x2", memory=1e6, keep_free=0.0), feasible=False),
    )
