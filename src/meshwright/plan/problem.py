"""The question: what is to be trained, where, by which recipe, under which limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..cluster.model import Cluster, Mesh
from ..cost.base import CostModel
from ..graph.ir import Graph
from .model import Layout, Plan


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one optimizer step trains. Bytes are per parameter."""

    samples: int
    """Sequences (or images) a step, over all devices."""
    optimizer: str = "adamw"
    state_bytes: float = 8.0
    """Optimizer state per parameter (two float32 moments), besides the float32 master copy."""
    param_dtype: str = "float32"
    """Of the copy that the optimizer updates (master weights)."""
    compute_dtype: str = "bfloat16"
    grad_dtype: str = "float32"
    matmul_dtype: str = ""
    kept_dtype: str = ""
    """Of activations that products alone read, between forward and backward ("" = as they are): libraries that compute in 8
    bits may keep their operands so (TransformerEngine does, torchao does not)."""
    attention_share: float = 1.0
    """Packed documents that do not see each other: sum of their squared lengths over the squared length of the sequence."""
    routing_skew: float = 1.0
    """Where experts are cut over devices: tokens that come to the busiest of these devices, over the mean of all."""
    bucket: float = 0.0
    """Elements at most of the buffers through which gradients and updated weights pass, made once and kept (DeepSpeed's
    reduce and all-gather buckets: 5e8); 0 = none."""
    fused: bool = True
    """Light ops run together as fused kernels (a compiler's, or hand-written ones); False: one by one, as eager torch."""


CONTEXT = 1e9
"""Bytes of a device that contexts of CUDA and NCCL take: 0.5 to 1.5 GB."""
FRAGMENTS = 0.085
"""Share of memory that an allocator has reserved and cannot use. 120 stages of runs that Mist published: median 10 %, a tenth
of them below 5, a tenth above 13."""
LEAST = 8e9
"""Bytes of the smallest device that has contexts; smaller ones are made up."""


@dataclass(frozen=True, slots=True)
class Limits:
    memory: float = float("inf")
    """Bytes a device, if below its type's."""
    keep_free: float = -1.0
    """Bytes a device held back; below 0 = a tenth of its memory, on small devices more (`usable`)."""
    samples_per_second: float = 0.0
    devices: int = 0

    def usable(self, installed: float) -> float:
        """Bytes of a device of `installed` bytes that a plan may fill.

        Unless told what to hold back: the contexts of the driver and of collectives take `CONTEXT` whatever the device has,
        and the allocator cannot use `FRAGMENTS` of the rest; a tenth of 80 GB is both.
        """
        memory = min(self.memory, installed)
        if self.keep_free >= 0:
            return memory - self.keep_free
        context = CONTEXT if memory > LEAST else 0.0
        return min(0.9 * memory, (1.0 - FRAGMENTS) * (memory - context))


@dataclass(frozen=True, slots=True)
class Annotation:
    """A user's wish for one tensor on `Problem.mesh`, or for one op's devices."""

    target: str
    """A tensor, or a pattern of names: "*.mlp.up_proj.weight"."""
    layout: Layout | None = None
    """Cuts name axes of the mesh, or parts of them as "x:(1)2"."""
    open_dims: tuple[int, ...] = ()
    """More axes may be added here."""
    never: tuple[str, ...] = ()
    """Axes that may not cut it anywhere."""
    priority: tuple[int, ...] = ()
    """Per dim, 0 first: dims of a later one wait until all before them are propagated."""
    devices: tuple[int, ...] = ()
    where: str = field(default="", compare=False)
    """The place that says so, for errors: "shardings.toml: annotate[2]"."""


Goal = Literal["time", "memory", "price", "devices"]


@dataclass(frozen=True)
class Problem:
    graph: Graph
    cluster: Cluster
    cost: CostModel
    recipe: Recipe
    goal: Goal = "time"
    limits: Limits = Limits()
    mesh: Mesh | None = None
    annotations: tuple[Annotation, ...] = ()
    start: tuple[Plan, ...] = ()
