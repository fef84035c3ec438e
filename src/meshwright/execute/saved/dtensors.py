"""The masters, and running statistics of norms, as DTensors under the names of the user's module: the face that torch.distributed.checkpoint sees.

A dim is a number whose digits are its cuts, major first, and what is left. Mesh axes take their digit in the mesh's order:
the major one left is a `Shard`; one with P values in front of it a `_StridedShard` of P pieces.

    64 over dp, then tp, mesh (dp, tp)      Shard(0), Shard(0)
    64 over tp, then dp, mesh (dp, tp)      _StridedShard(0, split_factor=tp), Shard(0)

There is no form for a part that is no single box, such as ((3), (64 over tp)) of a fused weight: DTensor could say it, but
torch.distributed.checkpoint takes a local tensor for one box. Nor is there one for cuts with weights or for some uneven ones.
Those tensors are gathered and appear whole, as `Replicate`; `load` brings them back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ...cluster.model import Mesh
from ...errors import InputError
from ...plan.layout import axes_of, canonical, explicit
from ...plan.model import Layout
from ..ops.site import own_part
from ..ranks.mesh_groups import MeshView
from ..step.runtime import Runtime
from ..torch_compat import strided_shard
from .parts import Part


def placements_of(layout: Layout, shape: tuple[int, ...], mesh: Mesh) -> tuple[Placement, ...] | None:
    """One placement per axis of the mesh that is longer than 1, in its order; None where DTensor has no such layout."""
    found: dict[str, Placement] = {}
    for dim, atoms in enumerate(canonical(explicit(layout, shape), mesh).dims):
        digits: list[tuple[str, int]] = []  # (axis, its values); "" for what stays together
        for k, (n, cuts) in enumerate(atoms):
            cuts = tuple(c for c in cuts if mesh.size(c.axis) > 1)
            rest = n
            for c in cuts:
                if any(axis == "" for axis, _ in digits):
                    return None
                parts = mesh.size(c.axis)
                even = rest % parts == 0
                if (c.weights and len(set(c.weights)) > 1) or (not even and (digits or k < len(atoms) - 1)):
                    return None
                if not even and len(cuts) > 1 and c is not cuts[-1]:
                    return None
                digits.append((c.axis, parts))
                rest //= parts
            if rest > 1:
                digits.append(("", rest))
        for axis in mesh.axes:
            at = next((i for i, (a, _) in enumerate(digits) if a == axis), None)
            if at is None:
                continue
            before = 1
            for _, n in digits[:at]:
                before *= n
            found[axis] = Shard(dim) if before == 1 else strided_shard(dim, before)
            del digits[at]
    return tuple(found.get(axis, Replicate()) for axis in _long(mesh))


def _long(mesh: Mesh) -> list[str]:
    """Axes that a device mesh has for it; at least one."""
    return [a for a in mesh.axes if mesh.size(a) > 1] or ["one"]


class StateDict:
    """Masters of one runtime as DTensors. Making one is collective: every rank makes the meshes of all stages."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._meshes: dict[int, DeviceMesh] = {}
        self._whole: dict[int, dist.ProcessGroup] = {}
        if not dist.is_initialized():
            return
        for code in runtime.program.stages:
            ranks = tuple(runtime.ranks[d] for d in code.mesh.devices)
            axes = {a: code.mesh.size(a) for a in _long(code.mesh)}
            self._meshes[code.stage] = runtime.groups.device_mesh(runtime.hardware.device.type, ranks, axes)
            if len(ranks) > 1:
                runtime.groups.prepare([ranks])
                self._whole[code.stage] = runtime.groups.of(ranks)

    def tensors(self) -> dict[str, Tensor]:
        """Name in the user's module (every name of a tied parameter) -> its DTensor, on this rank's stages; a plain tensor in
        a single process without a group. Values that have a form share the masters' memory. Collective."""
        self._runtime.settle()
        found: dict[str, Tensor] = {}
        for (stage, name), master in self._runtime.masters.items():
            if not self._meshes:
                found.setdefault(name, master.detach())
                continue
            shape = self._runtime.graph.tensor[name].shape
            layout, view = self._runtime.param(stage, name).state, self._runtime.locals[stage].view
            found.setdefault(name, self._dtensor(master.detach(), stage, shape, layout, view))
        for h in self._runtime.statistics.held():
            x = self._dtensor(h.tensor, h.stage, h.shape, h.layout, h.view) if self._meshes else h.tensor
            found.setdefault(h.name, x)
        for alias, name in self._runtime.graph.aliases.items():
            if name in found:
                found[alias] = found[name]
        return found

    def _dtensor(self, part: Tensor, stage: int, shape: tuple[int, ...], layout: Layout, view: MeshView) -> DTensor:
        placed = placements_of(layout, shape, view.mesh)
        if placed is None:
            part, placed = self._gathered(part, stage, shape, layout, view), self._copies(view)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            part, self._meshes[stage], placed, run_check=False, shape=torch.Size(shape), stride=stride
        )

    def _copies(self, view: MeshView) -> tuple[Placement, ...]:
        return (Replicate(),) * len(_long(view.mesh))

    def _gathered(self, part: Tensor, stage: int, shape: tuple[int, ...], layout: Layout, view: MeshView) -> Tensor:
        whole = torch.zeros(shape, dtype=part.dtype, device=part.device)
        cut = set(axes_of(layout))
        if all(index == 0 for axis, index in view.coords.items() if axis not in cut):
            for box in Part.of(part, shape, layout, view).boxes:
                whole[box.slices].copy_(box.view)
        if stage in self._whole:
            dist.all_reduce(whole, group=self._whole[stage])
        return whole

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts values under the same names back into the masters, and from there into the parameters. Collective.

        Raises:
            InputError: a name is missing, or a value has another shape or placement than `tensors` gave it.
        """
        for (stage, name), master in self._runtime.masters.items():
            names = [name, *(a for a, n in self._runtime.graph.aliases.items() if n == name)]
            value = next((values[n] for n in names if n in values), None)
            layout, view = self._runtime.param(stage, name).state, self._runtime.locals[stage].view
            self._bring(name, value, master, self._runtime.graph.tensor[name].shape, layout, view)
        for h in self._runtime.statistics.held():
            self._bring(h.name, values.get(h.name), h.tensor, h.shape, h.layout, h.view)
        self._runtime.spread()

    def _bring(
        self, name: str, value: Tensor | None, into: Tensor, shape: tuple[int, ...], layout: Layout, view: MeshView
    ) -> None:
        if value is None or tuple(value.shape) != shape:
            what = "is missing" if value is None else f"has shape {tuple(value.shape)}"
            raise InputError(f"{name} {what} in the state that is to be loaded: the model has it as {shape}")
        if isinstance(value, DTensor):
            placed = placements_of(layout, shape, view.mesh)
            wanted = placed if placed is not None else self._copies(view)
            if tuple(value.placements) != wanted:
                raise InputError(f"{name} is placed {value.placements}, this plan has it as {wanted}")
            local = value.to_local()
            part = local if placed is not None else own_part(local, layout, view)
        else:
            part = own_part(value, layout, view)
        if part.data_ptr() != into.data_ptr():
            with torch.no_grad():
                into.copy_(part.reshape(into.shape))
