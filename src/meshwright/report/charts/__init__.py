"""The charts of the report, one a file: each has a Bokeh figure and the same figures as a plain table."""

from .base import Chart
from .memory import memory_chart
from .mesh import mesh_chart
from .plans import plans_chart
from .timeline import timeline_chart
from .where import where_chart

__all__ = ["Chart", "memory_chart", "mesh_chart", "plans_chart", "timeline_chart", "where_chart"]
