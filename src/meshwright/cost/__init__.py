"""What one piece of work costs: compute, collective, transfer and memory, as arrays."""

from .analytic import Analytic
from .base import Collective, CostModel, Group, OpMemory
from .recorded import OpRecord, Recorded, TransferRecord

__all__ = ["Analytic", "Collective", "CostModel", "Group", "OpMemory", "OpRecord", "Recorded", "TransferRecord"]
