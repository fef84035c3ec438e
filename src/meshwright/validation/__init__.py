"""Predicted against measured: published training steps as plans, through the same lowering and simulator as planners."""

from .rows import Refused, Row, read
from .score import Report, SourceScore, validate

__all__ = ["Refused", "Report", "Row", "SourceScore", "read", "validate"]
