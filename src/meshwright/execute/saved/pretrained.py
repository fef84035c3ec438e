"""First values for a user's module: those it holds, those of safetensors files, or seeded ones; each rank its own parts.

parameter of the module is real          its values on rank 0
on meta, weights given                   the own slices of the files
on meta                                  seeded (`params.seeded_part`)
buffer on meta                           the files; else made again by the module that holds it
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import InputError
from ...graph.ir import Graph
from ...graph.ir import Tensor as Described
from ...graph.user_model import is_transformers
from ...plan.model import Layout
from ..ops.params import Values, dtype_of, master_dtype
from ..ranks.device import hardware
from ..ranks.mesh_groups import MeshView
from .weights import Weights


class Given(Values):
    """The values of a module, or of files under the names that they have there."""

    def __init__(
        self,
        seed: int,
        given: Mapping[str, Tensor],
        weights: Weights | None = None,
        stored: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(seed, given=given)
        self.weights, self.stored = weights, dict(stored or {})

    def part(self, described: Described, layout: Layout, view: MeshView) -> Tensor:
        """[local shape], of `master_dtype`."""
        if self.weights is not None and (name := self.stored.get(described.name)):
            return self.weights.part(name, layout, view, described.shape).to(master_dtype(described))
        return super().part(described, layout, view)

    def whole(self, described: Described) -> Tensor:
        if self.weights is not None and (name := self.stored.get(described.name)):
            return self.weights.whole(name).to(master_dtype(described))
        return super().whole(described)


def first_values(
    graph: Graph, module: nn.Module, weights: Weights | None, seed: int
) -> tuple[Values, dict[str, Tensor]]:
    """(values of the parameters, buffers and constants by the graph's names). The module is only read.

    Raises:
        InputError: the files lack a parameter or have it in another shape; a buffer on meta that nothing can make.
    """
    held = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    stored: dict[str, str] = {}
    if weights is not None:
        stored = _matched(graph, module, weights)
    given = {t.name: held[t.name].detach() for t in graph.params() if t.name not in stored and not held[t.name].is_meta}
    wanted = {t.name: dtype_of(t) for t in graph.tensors if t.role == "buffer"}
    running = (name for r in graph.running.values() for name in (r.mean, r.var, r.count) if name)
    wanted |= {name: held[name].dtype for name in running}
    constants: dict[str, Tensor] = {}
    for buffer, dtype in wanted.items():
        if buffer in graph.values:
            constants[buffer] = torch.as_tensor(graph.values[buffer]).to(dtype)
        elif buffer in held and not held[buffer].is_meta:
            constants[buffer] = held[buffer].detach().to(dtype)
        elif weights is not None and (name := _name_in(weights, buffer, _prefixes(module), ())):
            constants[buffer] = weights.whole(name).to(dtype)
        else:
            constants[buffer] = made_again(module, buffer).to(dtype)
    return Given(seed, given, weights, stored), constants


def from_rank_0(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that rank 0 holds, under its names. Collective; nothing is written to.

    One tensor is under way at a time, and a rank whose own is the same bits keeps that one: it holds no copy.
    """
    told: list[Any] = [[(name, tuple(x.shape), x.dtype) for name, x in held.items()]]
    dist.broadcast_object_list(told, src=0, device=hardware().device)
    found = {}
    for name, shape, dtype in told[0]:
        own = held.get(name)
        alike = own is not None and own.shape == shape and own.dtype == dtype
        sent = own.reshape(-1) if own is not None and alike else torch.zeros(shape, dtype=dtype).reshape(-1)
        raw = sent.to(hardware().device).contiguous().view(torch.uint8)  # of any type: not every backend knows bfloat16
        if dist.get_rank():
            raw = raw.clone()
        dist.broadcast(raw, src=0)
        theirs = raw.view(dtype).reshape(shape)
        if own is not None and alike and (not dist.get_rank() or _same_bits(own, raw)):
            found[name] = own
        else:
            found[name] = theirs.to(own.device if own is not None else "cpu")
    return found


def _same_bits(own: Tensor, raw: Tensor) -> bool:
    return torch.equal(own.reshape(-1).contiguous().view(torch.uint8), raw.to(own.device))


def _prefixes(module: nn.Module) -> tuple[str, ...]:
    """What names in files may have more or less in front: transformers saves bodies with and without their head."""
    own = str(getattr(module, "base_model_prefix", "") or "")
    return (f"{own}.",) if own else ()


def _name_in(weights: Weights, name: str, prefixes: Sequence[str], aliases: Sequence[str]) -> str:
    for own in (name, *aliases):
        for candidate in (own, *(own.removeprefix(p) for p in prefixes), *(p + own for p in prefixes)):
            if candidate in weights.files:
                return candidate
    return ""


def _matched(graph: Graph, module: nn.Module, weights: Weights) -> dict[str, str]:
    """Parameter -> its name in the files."""
    aliases: dict[str, list[str]] = {}
    for alias, name in graph.aliases.items():
        aliases.setdefault(name, []).append(alias)
    found, missing = {}, []
    for t in graph.params():
        name = _name_in(weights, t.name, _prefixes(module), aliases.get(t.name, ()))
        if not name:
            missing.append(t.name)
            continue
        if weights.shapes[name] != t.shape:
            raise InputError(
                f"{weights.source}: {name} has shape {weights.shapes[name]} there, {t.name} of the model has {t.shape}"
            )
        found[t.name] = name
    if missing:
        example = next(iter(weights.files), "nothing")
        raise InputError(
            f"{weights.source}: {len(missing)} of {len(missing) + len(found)} parameters of the model are not there, first "
            f"{missing[0]}; the names there are like {example}"
        )
    return found


def made_again(module: nn.Module, name: str) -> Tensor:
    """The value that the module itself gives to a buffer of its own, without touching it.

    Raises:
        InputError: the module has no way to make it.
    """
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
        described = owner._buffers[leaf]
        assert described is not None
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"{name} is on the meta device and no buffer of the model: give weights=, or a real model"
        ) from error
    twin: Any = copy.copy(owner)
    twin.__dict__["_parameters"] = {}
    twin.__dict__["_buffers"] = {
        key: None if b is None else torch.zeros(b.shape, dtype=b.dtype) for key, b in owner._buffers.items()
    }
    untouched = {key: b._version for key, b in twin._buffers.items() if b is not None}
    if hasattr(twin, "reset_running_stats"):
        twin.reset_running_stats()
    elif is_transformers(module):
        library: Any = module
        library._init_weights(twin)
    made: Tensor | None = twin._buffers[leaf]
    if made is None or (leaf in untouched and made._version == untouched[leaf]):
        raise InputError(
            f"the buffer {name} is on the meta device, so it has no values: build the model outside of "
            'torch.device("meta"), or give weights= that hold it'
        )
    return made
