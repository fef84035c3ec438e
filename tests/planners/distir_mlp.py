"""The multi-layer perceptrons of DistIR's experiments, as its public code writes them, and a program of theirs run by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from meshwright.cluster.model import Cluster, DeviceType, Level
from meshwright.cost.distir import GIGABIT, DistIR
from meshwright.graph.ir import ITEM_BYTES, Factor, Graph, Op, Rule, Slot, Tensor
from meshwright.graph.serial import digest_of
from meshwright.lower import lower, unrolled
from meshwright.plan.model import Layout, Plan
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.simulate.explicit import Call, StageCalls, stage_calls

Array = NDArray[np.float64]


def mlp(layers: int, width: int, batch: int, dtype: str = "float32") -> Graph:
    """x → (product, relu) · layers → (a − z)² / n, not reduced; its data are x, the targets z and the number n."""
    tensors: list[Tensor] = []
    ops: list[Op] = []
    samples, square = Factor("b", batch, samples=True), (("b",), ("d",))

    def tensor(name: str, shape: tuple[int, ...], role: str, kind: str = dtype) -> str:
        tensors.append(Tensor(name, float(prod(shape) * ITEM_BYTES[kind]), shape, kind, role))  # type: ignore[arg-type]
        return name

    a = tensor("x", (batch, width), "input")
    z, n = tensor("z", (batch, width), "input"), tensor("n", (), "input", "int32")
    product = Rule(
        (samples, Factor("n", width), Factor("k", width)), ((("b",), ("k",)), (("n",), ("k",))), ((("b",), ("n",)),)
    )
    alike = Rule((samples, Factor("d", width)), (square,), (square,))
    for i in range(layers):
        w, y = tensor(f"{i}.weight", (width, width), "param"), tensor(f"y{i}", (batch, width), "activation")
        ops.append(
            Op(
                f"{i}/linear", "linear", (a, w), (y,), product, 2.0 * batch * width**2, (a, w),
                module=str(i), call="aten.linear.default", args=(Slot(0), Slot(1)),
            )
        )  # fmt: skip
        a = tensor(f"a{i}", (batch, width), "activation")
        ops.append(
            Op(f"{i}/relu", "relu", (y,), (a,), alike, 0.0, (y,), module=str(i), call="aten.relu.default", args=(Slot(0),))
        )  # fmt: skip
    loss = tensor("l", (batch, width), "activation")
    error = Rule((samples, Factor("d", width)), (square, square, ()), (square,))
    ops.append(
        Op(
            "loss", "mse_loss", (a, z, n), (loss,), error, 0.0, (a, z, n),
            module=str(layers - 1), call="aten.mse_loss.default", args=(Slot(0), Slot(1)),
        )
    )  # fmt: skip
    graph = Graph(tuple(ops), tuple(tensors), batch, inputs=("x", "z", "n"), outputs=("l",), loss="l")
    return replace(graph, digest=digest_of(graph))


def flat(
    graph: Graph,
    devices: int,
    dtype: str = "float32",
    *,
    rate: float = 1.4e13,
    memory: float = 9e11,
    gigabits: float = 25,
) -> Problem:
    """On equal devices with equal links between all of them, plain SGD."""
    gpu = DeviceType("v100", "gpu", 28e9, {dtype: rate}, memory)
    cluster = Cluster(f"v100x{devices}", (gpu,), devices, levels=(Level("switch", devices, gigabits * GIGABIT),))
    recipe = Recipe(graph.samples, "sgd", 0.0, dtype, dtype, dtype)
    return Problem(graph, cluster, DistIR(precision=dtype), recipe, limits=Limits(keep_free=0.0))


def sequential(weights: list[Array], x: Array, z: Array) -> tuple[Array, Array, list[Array]]:
    """(loss of each element, gradient of x, gradients of the weights), without any program."""
    ys, values = [], [x]
    for w in weights:
        ys.append(values[-1] @ w.T)
        values.append(np.maximum(ys[-1], 0))
    error = values[-1] - z
    grad, found = 2 * error / len(x), []
    for k in reversed(range(len(weights))):
        grad = grad * (ys[k] > 0)
        found.append(grad.T @ values[k])
        grad = grad @ weights[k]
    return error**2 / len(x), grad, found[::-1]


class Interpreter:
    """Runs the explicit program of a plan on arrays: every call on every device."""

    def __init__(self, problem: Problem, plan: Plan, weights: list[Array], x: Array, z: Array) -> None:
        self.graph, self.m = problem.graph, plan.schedule.micro_batches
        program = unrolled(lower(problem.graph, plan, problem.recipe), problem.graph)
        self.stages = [stage_calls(program, problem.graph, problem.recipe, s) for s in range(len(program.stages))]
        self.weights = {f"{k}.weight": w for k, w in enumerate(weights)}
        self.data = {"x": x, "z": z, "n": np.array(float(len(x)))}
        self.values: dict[tuple[int, int, int, int], Array] = {}
        self.results: dict[tuple[int, int, str], list[Array]] = {}

    def run(self) -> tuple[Array, Array, list[Array]]:
        order = range(len(self.stages))
        for j in range(self.m):
            for s in order:
                self._play(s, j, [*self.stages[s].forward, *self.stages[s].sends])
            for s in reversed(order):
                self._play(s, j, [*self.stages[s].backward, *self.stages[s].returns])
        gradients = {}
        for s, calls in enumerate(self.stages):
            for p in calls.code.params:
                parts = {d: sum(self.results[s, d, "∂" + p.name]) for d in range(self._size(s))}
                gradients[p.name] = self._whole(s, p.name, parts, p.rest, p.deferred)
        return self._rows("l"), self._rows("∂x"), [gradients[f"{k}.weight"] for k in range(len(self.weights))]

    def _size(self, s: int) -> int:
        return len(self.stages[s].code.mesh.devices)

    def _coordinates(self, s: int, d: int) -> dict[str, int]:
        mesh = self.stages[s].code.mesh
        return dict(zip(mesh.axes, map(int, np.unravel_index(d, mesh.shape)), strict=True))

    def _part(self, s: int, d: int, whole: Array, layout: Layout) -> Array:
        for dim, atoms in enumerate(layout.dims):
            for axis in (c.axis for _, cuts in atoms for c in cuts):
                n = self.stages[s].code.mesh.size(axis)
                whole = np.split(whole, n, axis=dim)[self._coordinates(s, d)[axis]]
        return whole

    def _whole(self, s: int, name: str, parts: dict[int, Array], layout: Layout, summed: tuple[str, ...]) -> Array:
        out = np.zeros_like(self.weights[name])
        for d, part in parts.items():
            at = self._coordinates(s, d)
            if any(at[a] for a in at if a not in summed and not _cuts(layout, a)):
                continue  # a copy
            index = [slice(None)] * out.ndim
            for dim, atoms in enumerate(layout.dims):
                for axis in (c.axis for _, cuts in atoms for c in cuts):
                    index[dim] = slice(at[axis] * part.shape[dim], (at[axis] + 1) * part.shape[dim])
            out[tuple(index)] += part
        return out

    def _rows(self, name: str) -> Array:
        """A result per sample: replicas first, then micro-batches."""
        s = next(s for s, d, n in self.results if n == name)
        own = [d for d in range(self._size(s)) if self._coordinates(s, d)["tp"] == 0]
        return np.concatenate([np.concatenate(self.results[s, d, name]) for d in own])

    def _read(self, s: int, d: int, j: int, name: str) -> Array:
        if name in self.weights:
            return self._part(
                s, d, self.weights[name], next(p.rest for p in self.stages[s].code.params if p.name == name)
            )
        if not self.data[name].ndim:
            return self.data[name]
        layout = dict(self.stages[s].code.inputs)[name]
        return np.split(self._part(s, d, self.data[name], layout), self.m)[j]

    def _play(self, s: int, j: int, calls: list[Call]) -> None:
        for call in calls:
            for d in range(self._size(s)):
                for number, value in zip(call.outputs, list(self._call(s, d, j, call)), strict=True):
                    self.values[s, d, j, number] = value

    def _call(self, s: int, d: int, j: int, call: Call) -> Iterator[Array]:
        given = [self.values[s, d, j, k] for k in call.inputs]
        if call.kind == "gather":
            self.results.setdefault((s, d, call.on), []).append(given[0])
        elif call.kind == "send":
            peer = self.stages[call.peer]
            self.values[call.peer, d, j, peer.arrivals[call.on]] = given[0]
        elif call.kind == "add":
            yield given[0] + given[1]
        elif call.kind == "collective":
            assert call.collective == "all_reduce"
            own = self._coordinates(s, d)
            alike = [
                k for k in range(self._size(s))
                if all(v == own[a] for a, v in self._coordinates(s, k).items() if a not in call.axes)
            ]  # fmt: skip
            yield sum((self.values[s, k, j, call.inputs[0]] for k in alike), np.zeros(()))
        else:
            yield from self._compute(s, d, j, call, given)

    def _compute(self, s: int, d: int, j: int, call: Call, given: list[Array]) -> Iterator[Array]:
        op = self.graph.ops[self.graph.position[call.on]]
        outside = [n for n in op.inputs if n in self.weights or n in self.data]
        fixed = {n: self._read(s, d, j, n) for n in outside}
        waiting = iter(given)
        if call.kind == "forward":
            a, *rest = [fixed[n] if n in fixed else next(waiting) for n in op.inputs]
            yield _FORWARD[op.kind](a, *rest)
            return
        grad = next(waiting) if op.kind != "mse_loss" else None
        a = fixed[op.inputs[0]] if op.inputs[0] in fixed else next(waiting)
        if op.kind == "relu":
            yield grad * (a > 0)
        elif op.kind == "mse_loss":
            yield 2 * (a - fixed["z"]) / fixed["n"]
        else:
            assert grad is not None and call.instr is not None
            both = {"weight": grad.T @ a, "input": grad @ fixed[op.inputs[1]]}
            for name in call.instr.outputs:
                yield both["weight" if name.endswith("weight") else "input"]
            if op.inputs[0] in self.data:
                yield both["input"]


_FORWARD = {
    "linear": lambda a, w: a @ w.T,
    "relu": lambda a: np.maximum(a, 0),
    "mse_loss": lambda a, z, n: (a - z) ** 2 / n,
}


def _cuts(layout: Layout, axis: str) -> bool:
    return any(c.axis == axis for dim in layout.dims for _, cuts in dim for c in cuts)


__all__ = ["Interpreter", "StageCalls", "flat", "mlp", "sequential"]
