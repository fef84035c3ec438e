"""Predicted against measured: published training steps as plans, through the same lowering and simulator as planners."""

from .columns import Refused
from .rows import Row, Table, read
from .score import Report, SourceScore, validate

__all__ = ["Refused", "Report", "Row", "SourceScore", "Table", "read", "validate"]
