"""What a stage holds of each parameter, and what happens to its gradient after a micro-batch and at the end of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Literal, TypeAlias

from ..errors import Unsupported
from ..plan.model import Storage
from .assign import layout_axes
from .atoms import item_bytes
from .convert import Axes, Do, axes_of, local_size
from .emit import Emitter
from .parts import axis_of
from .program import GRAD, Instr, Param

STAGES = "stages"
"""Axis name of the sum of a tied parameter's gradient over the stages that hold a copy (same position in each)."""
Over: TypeAlias = Literal["", "alike", "unlike"]
"""Whether several stages hold a copy of a parameter, and whether they hold it alike: same mesh, same layouts."""


def elements(emit: Emitter, t: str, axes: Axes, mesh: Mapping[str, int]) -> float:
    return float(prod(local_size(s, a, mesh) for s, a in zip(emit.atoms.size[t], axes)))


class ParameterPlan:
    """Layouts of one parameter through a step: at rest, gradient, optimizer state."""

    def __init__(self, emit: Emitter, name: str, stored: Storage | None) -> None:
        self.emit, self.name = emit, name
        self.rest = emit.done.rest[name]
        self.grad = layout_axes(emit.atoms, name, stored.grad, emit.mesh) if stored and stored.grad else self.rest
        self.state = layout_axes(emit.atoms, name, stored.state, emit.mesh) if stored and stored.state else self.grad
        self.deferred = emit.sums.deferred[name]
        self._learns = not emit.graph.tensor[name].frozen
        for what, inner, outer in (("gradient", self.rest, self.grad), ("state", self.grad, self.state)):
            if any(wide[: len(held)] != held for held, wide in zip(inner, outer)):
                raise Unsupported(
                    f'the {what} of "{name}" rests cut otherwise than what it follows from: give it the same cuts, and '
                    "further ones behind them",
                    reason="storage",
                )
        self._mesh = emit.mesh
        self._params: dict[tuple[tuple[str, int], ...], Param] = {}

    def _bytes(self, axes: Axes, item: float = 0.0) -> float:
        return elements(self.emit, self.name, axes, self._mesh) * (item or item_bytes(self.emit.atoms, self.name))

    def param(self, count: int, shared: tuple[int, ...], mesh: Mapping[str, int]) -> Param:
        key = tuple(mesh.items())
        if key not in self._params:
            emit, t = self.emit, self.name
            held = [elements(emit, t, x, mesh) for x in (self.rest, self.grad, self.state)]
            if not self._learns:
                held[1:] = [0.0, 0.0]
            left = self.deferred - (axes_of(self.grad) - axes_of(self.rest))
            self._params[key] = Param(
                t, 1, emit.layout(t, self.rest), emit.layout(t, self.grad), emit.layout(t, self.state),
                tuple(sorted(left)), tuple(held),  # type: ignore[arg-type]
            )  # fmt: skip
        return replace(self._params[key], count=count, shared=shared)

    def instructions(self, over: Over, mesh: Mapping[str, int]) -> tuple[list[Instr], list[Instr]]:
        """(after each micro-batch, once a step). Bytes of what rests cut over replicas need the mesh's own lengths."""
        if not self._learns:
            return [], []
        self._mesh = mesh
        t = self.name
        every, value, unsummed = self._to([], GRAD + t, self.rest, self.grad, self.deferred, "backward")
        update: list[Instr] = []
        if over == "alike":
            nbytes = self._bytes(self.grad, self.emit.grad_bytes)
            here = self.emit.layout(t, self.grad)
            name = GRAD + t + "@stages"
            update.append(
                Instr(
                    "collective",
                    t,
                    "update",
                    (value,),
                    (name,),
                    "all_reduce",
                    (STAGES,),
                    -1,
                    -1,
                    here,
                    here,
                    nbytes=nbytes,
                )
            )
            value = name
        update, value, unsummed = self._to(update, value, self.grad, self.state, unsummed, "update")
        for axis in sorted(unsummed):
            nbytes = self._bytes(self.state, self.emit.grad_bytes)
            here = self.emit.layout(t, self.state)
            name = f"{GRAD}{t}@sum.{axis}"
            update.append(
                Instr(
                    "collective",
                    t,
                    "update",
                    (value,),
                    (name,),
                    "all_reduce",
                    (axis,),
                    -1,
                    -1,
                    here,
                    here,
                    nbytes=nbytes,
                )
            )
            value = name
        if over == "unlike":  # their parts differ, so each must be complete first
            here, name = self.emit.layout(t, self.state), GRAD + t + "@stages"
            nbytes = self._bytes(self.state, self.emit.grad_bytes)
            update.append(
                Instr(
                    "exchange", t, "update", (value,), (name,), None, (STAGES,), before=here, after=here, nbytes=nbytes
                )
            )  # fmt: skip
            value = name
        updated = t if self.state == self.rest else t + "@new"
        state = self.emit.layout(t, self.state)
        update.append(Instr("update", t, "update", (value,), (updated,), before=state, after=state))
        now, source = [list(a) for a in self.state], updated
        for k, (own, rest) in enumerate(zip(self.state, self.rest)):
            for axis in map(axis_of, reversed(own[len(rest) :])):
                before = tuple(map(tuple, now))
                now[k].pop()
                after = tuple(map(tuple, now))
                target = t if after == self.rest else f"{t}@new.{axis}"
                update.append(
                    Instr(
                        "collective", t, "update", (source,), (target,), "all_gather", (axis,), k, -1,
                        self.emit.layout(t, before), self.emit.layout(t, after), nbytes=self._bytes(after),
                    )
                )  # fmt: skip
                source = target
        return every, update

    def _to(
        self, out: list[Instr], value: str, src: Axes, dst: Axes, unsummed: frozenset[str], phase: str
    ) -> tuple[list[Instr], str, frozenset[str]]:
        """Cut a gradient further: reduce-scatter where it is a partial sum, own part where copies are equal."""
        t, now = self.name, [list(a) for a in src]
        for k, (have, want) in enumerate(zip(src, dst)):
            for cut in want[len(have) :]:
                axis, before = axis_of(cut), tuple(map(tuple, now))
                now[k].append(cut)
                after = tuple(map(tuple, now))
                do: Do = "reduce_scatter" if axis in unsummed else "slice"
                name = f"{GRAD}{t}@{phase}.{axis}"
                out.append(
                    Instr(
                        "collective" if do == "reduce_scatter" else "slice", t,
                        "backward" if phase == "backward" else "update", (value,), (name,),
                        "reduce_scatter" if do == "reduce_scatter" else None, (axis,), k, -1,
                        self.emit.layout(t, before), self.emit.layout(t, after),
                        nbytes=self._bytes(before, self.emit.grad_bytes) if do == "reduce_scatter" else 0.0,
                    )
                )  # fmt: skip
                value, unsummed = name, unsummed - {axis}
        return out, value, unsummed
