"""Plan -> program: the one place where collectives come from."""

from .lowering import lower
from .parameters import STAGES
from .program import Instr, Kept, Kernel, Param, Program, Segment, StageCode, Transfer, instructions, unrolled

__all__ = [
    "STAGES",
    "Instr",
    "Kept",
    "Kernel",
    "Param",
    "Program",
    "Segment",
    "StageCode",
    "Transfer",
    "instructions",
    "lower",
    "unrolled",
]
