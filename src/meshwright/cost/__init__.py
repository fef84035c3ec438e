"""What one piece of work costs: compute, collective, transfer and memory, as arrays."""

from ._shapes import VIEWS
from .analytic import Analytic
from .base import Collective, CostModel, Group, OpMemory
from .distir import DistIR
from .recorded import OpRecord, Recorded, TransferRecord

__all__ = [
    "VIEWS",
    "Analytic",
    "Collective",
    "CostModel",
    "DistIR",
    "Group",
    "OpMemory",
    "OpRecord",
    "Recorded",
    "TransferRecord",
]
