"""What ONE piece of work costs. Arrays in, arrays out; knows no plans. Nobody else divides bytes by a bandwidth."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..cluster.model import Cluster, DeviceType, Mesh
from ..graph.ir import Floats, Ints, Op, Phase
from .constants import Predicted

Traffic = Literal["data", "sharded", "tensor", "gradient"]
"""What can hide: gradients of replicas at the end of a step, gathers and scatters of sharded parameters, activations between
members in forward and recomputation, their gradients in backward."""
Dependent = Literal["traffic", "collective", "transfer", "host"]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "permute"]


@dataclass(frozen=True, slots=True)
class Group:
    """Who takes part in a collective: all groups along `axes` of `mesh` at once, so that shared uplinks can be priced."""

    cluster: Cluster
    mesh: Mesh
    axes: tuple[str, ...]
    at_zero: tuple[str, ...] = ()
    copies: int = 1
    """All-to-all: as many of the parts that a member sends are copies of one (a token for each of its experts), so that
    one may cross to a node for all members there."""


@dataclass(frozen=True, slots=True)
class OpMemory:
    """Bytes of n shards of one op."""

    static: Floats
    """Parameters, gradients, optimizer state, where the model counts them per op; zeros if counted from tensors."""
    kept: Floats
    """Per micro-batch in flight, until the op's backward."""
    transient: Floats
    """Workspace while it runs."""


class CostModel(abc.ABC):
    """Prices n shards of one op per call. `unit` is "s" except for native models of some papers."""

    name: ClassVar[str]
    unit: ClassVar[str] = "s"

    @abc.abstractmethod
    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """Seconds of `phase` of n shards of `op`; sizes[n, factors] are LOCAL sizes in the order of `op.rule.factors`."""

    def depends(self, what: Op | Dependent, device: DeviceType, phase: Phase = "forward") -> Hashable:
        """What a price depends on besides sizes and bytes: of `compute` of an op, of `traffic`, of collectives of such devices,
        of transfers from them, of launch floors. Models of one kind in which it is equal price alike. Here: the model itself."""
        return id(self)

    @abc.abstractmethod
    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        """Seconds of fused element-wise kernels that move `nbytes` through the device's memory."""

    @abc.abstractmethod
    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory: ...

    @abc.abstractmethod
    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        """Seconds; nbytes held per member before it starts (all_gather: after it)."""

    @abc.abstractmethod
    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats: ...

    def packed(self, op: Op, sizes: Ints, share: float) -> Floats | float:
        """Factor on `compute` of n shards of an attention where documents that are packed into one sequence do not see
        each other, so that `share` of its work is left; 1 where that saves nothing.
        """
        return 1.0

    def launch_floor(self, ops: Sequence[Op], device: DeviceType, phase: Phase) -> float:
        """Seconds below which the host cannot issue `phase` of one block of these ops; 0 where the model has no such term.

        On a CPU, which is its own host, they come on top of the ops.
        """
        return 0.0

    def loss(self, op: Op, sizes: Ints) -> OpMemory | None:
        """Bytes that n shards of a loss hold with all casts of their logits, where the model knows how its software does
        that; None of other ops, and where a loss holds what torch's would."""
        return None

    def workspace(self, device: DeviceType, grouped: bool = False) -> float:
        """Bytes of a device that libraries hold all the time, whatever is computed; `grouped`: products by experts, too."""
        return 0.0

    def step_overhead(self, devices: int) -> tuple[float, float]:
        """(factor on the step time, seconds added once a step): stragglers and fixed work."""
        return 1.0, 0.0

    def overlap(self, kind: Traffic) -> float:
        """Share of the concurrent compute under which communication of this kind can hide."""
        return 0.0

    def ships(self, what: Predicted, devices: Sequence[DeviceType]) -> bool:
        """Is this predicted for such devices by the constants that ship? What is known of the error of predictions was found
        with these, and says nothing of any others."""
        return False

    @property
    def holds_all(self) -> bool:
        """Does `memory` say all that an op holds, its weights and what it keeps for the backward? Then nothing else is counted."""
        return False

    def gradients(self, op: Op, sizes: Ints) -> Floats:
        """Bytes [n] of gradients of parameters that are not tensors of the graph: copies of the op sum them once a step.
        Asked of models that hold all only."""
        return np.zeros(len(sizes))

    def variants(self, op: Op, sizes: Ints) -> tuple[str, ...]:
        """Implementations of an op that this model knows."""
        return ("",)
