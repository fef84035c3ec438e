"""AccPar's native costs (HPCA 2020, section 4): elements that the two halves of an array exchange for one layer.

A layer of training is three products over B samples, Di inputs and Do outputs:

    forward F' = F · W        backward E = E' · Wᵀ        gradient dW = Fᵀ · E'

    type   cut dim   F, E         W         F', E'       summed over both halves
    I      B         rows         whole     rows         dW, as large as W
    II     Di        columns      rows      whole        F'
    III    Do        whole        columns   columns      E, as large as F

A convolution is the same with |W| times the area of the kernel, |F| times that of the input map, |F'| times that of the
output map. What the types need and give of F and E decides what passes between two layers (`between`), so an addition of
several results, which cuts its operands like its result, is a layer of no product and of types of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

import numpy as np

from ..cluster.model import Cluster, DeviceType
from ..errors import Unsupported
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory

TYPE_I, TYPE_II, TYPE_III, ROWS, COLUMNS, COPIES = range(6)
"""Types of a layer (the first three) and of what only joins results; COPIES: both halves compute all of it."""
TYPES = 6
_ROWS, _COLUMNS, _WHOLE = range(3)
_NEEDS = np.array([_ROWS, _COLUMNS, _WHOLE, _ROWS, _COLUMNS, _WHOLE])
"""Per type how it reads F."""
_GIVES = np.array([_ROWS, _WHOLE, _COLUMNS, _ROWS, _COLUMNS, _WHOLE])
"""Per type how F' is left."""
_BACK_NEEDS = np.array([_ROWS, _WHOLE, _COLUMNS, _ROWS, _COLUMNS, _WHOLE])
"""Per type how it reads E'."""
_BACK_GIVES = np.array([_ROWS, _COLUMNS, _WHOLE, _ROWS, _COLUMNS, _WHOLE])
"""Per type how E is left."""
_CROSSED = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
"""[from, to]: rows to columns or back, of which a half lacks its own share of what the other holds."""
_MISSING = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]])
"""[from, to]: a part to the whole, of which a half lacks all that the other holds."""


def _between(table: Floats | Ints) -> Floats:
    forward = table[_GIVES[:, None], _NEEDS[None, :]]
    backward = table[_BACK_GIVES[None, :], _BACK_NEEDS[:, None]]
    return np.asarray(forward + backward, dtype=np.float64)


CROSSED: Floats = _between(_CROSSED)
"""[type before, type]: times that own · other · |F| elements pass, F and E together."""
MISSING: Floats = _between(_MISSING)
"""[type before, type]: times that other · |F| elements pass."""


def inside(weights: Floats, inputs: Floats, outputs: Floats) -> Floats:
    """Elements that the sums of one layer exchange, for each type: float64[…, TYPES] from |W|, |F| and |F'|."""
    none = np.zeros_like(weights)
    return np.stack([weights, outputs, inputs, none, none, none], axis=-1)


def between(inputs: float, own: float = 0.5) -> Floats:
    """Elements that a half with the share `own` receives of the tensors F and E between two layers.

    Args:
        inputs: |F| of the layer that reads, which is |E|, too.

    Returns:
        float64[type of the layer before, type of the layer].
    """
    other = 1.0 - own
    return np.asarray(inputs * (CROSSED * own * other + MISSING * other))


class AccParElements(CostModel):
    """What AccPar knows of an array: nothing (its unit is the element), or FLOP/s and bytes/s of each kind of accelerator.

    A description of a network has sizes of layers and no operations between them, so nothing of it can be simulated: the
    planner's own objective is all there is.
    """

    name: ClassVar[str] = "accpar"

    def __init__(self, rates: Mapping[str, tuple[float, float]] | None = None, *, element_bytes: float = 2.0) -> None:
        """rates: name of a device type -> (FLOP/s, bytes/s to others) of one accelerator; none = count elements."""
        self.rates = dict(rates or {})
        self.element_bytes = element_bytes
        self.unit = "s" if rates else "element"  # type: ignore[misc]

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        self._refuse()

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        self._refuse()

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        self._refuse()

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        self._refuse()

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Unsupported(
            "AccPar's description of a network gives the sizes of its layers, not the ops between them: only planners that "
            "price layers by these can say what a plan costs"
        )
