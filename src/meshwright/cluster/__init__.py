"""Where a model is trained: devices, levels, links, the mesh; presets with sources; cluster files."""

from .model import Cluster, DeviceType, Level, Link, Mesh
from .names import describe, is_local, resolve
from .presets import Preset, local, presets
from .topology import GroupShape, group_shape

__all__ = [
    "Cluster", "DeviceType", "GroupShape", "Level", "Link", "Mesh", "Preset", "describe", "group_shape", "is_local", "local",
    "presets", "resolve",
]  # fmt: skip
