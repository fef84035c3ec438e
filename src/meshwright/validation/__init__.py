"""Predicted against measured: published training steps as plans, through the same lowering and simulator as planners."""

from .columns import Refused
from .payload import validate_object
from .rows import Row, Table, read
from .score import Report, Score, report, validate
from .shipped import shipped

__all__ = ["Refused", "Report", "Row", "Score", "Table", "read", "report", "shipped", "validate", "validate_object"]
