"""Section 2: which device does what. A cell is a device; above 1,024 devices a cell is a node, then a rack of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d

from ...cluster.model import Cluster
from ...plan.model import Plan, Stage
from ..colors import BLACK, CYCLE
from .base import Chart, plot, table

CELLS = 1024
NODES_A_RACK = 16
TABLE_ROWS = 64


def mesh_chart(plan: Plan, cluster: Cluster) -> Chart:
    size = 1
    if cluster.count > CELLS:
        size = max(1, cluster.node_size)
    if cluster.count / size > CELLS:
        size *= NODES_A_RACK
    word = "device" if size == 1 else "node" if size == cluster.node_size else f"{size:,} devices"
    first = list(range(0, cluster.count, size))
    stages = _stages_by_device(plan)
    across, cells = _placed(first, cluster, size)
    columns = max(x for x, _ in cells) + 1
    rows = max(y for _, y in cells) + 1
    made = plot(
        int(min(620, max(120, 30 + 26 * rows))), x_range=Range1d(-0.6, columns - 0.4), y_range=Range1d(rows - 0.4, -0.6)
    )
    made.axis.visible = False
    made.grid.visible = False
    data: dict[str, object] = {
        "x": [x for x, _ in cells],
        "y": [y for _, y in cells],
        "device": [str(d) if size == 1 else f"{d}-{min(d + size, cluster.count) - 1}" for d in first],
        "stage": [_stage_text(stages.get(d, ())) for d in first],
        "fill": [_fill(stages.get(d, ())) for d in first],
        "stages": [", ".join(map(str, stages.get(d, ()))) for d in first],
        "where": [_coordinates(plan, stages.get(d, ()), d) for d in first],
        "groups": [_groups(plan, stages.get(d, ()), d) for d in first],
    }
    source = ColumnDataSource(data)
    made.rect("x", "y", 0.94, 0.9, source=source, fill_color="fill", line_color="#ffffff", hover_line_color=BLACK)
    _group_borders(made, plan, cells, first, size, across)
    if columns <= 40:
        made.text("x", "y", text="stage", source=source, text_align="center", text_baseline="middle", text_font_size="11px", text_color=BLACK)  # fmt: skip
    made.add_tools(
        HoverTool(
            tooltips=[(word, "@device"), ("stage", "@stages"), ("place", "@where"), ("shares", "@groups")],
        )
    )
    frames = " A frame is a tensor-parallel group." if _has_frames(plan) and size == 1 else ""
    a_cell = f"a {word}" if size <= cluster.node_size else word
    return Chart(made, _table(plan), f"A cell is {a_cell}; its number and colour are its first stage.{frames}")


def _stages_by_device(plan: Plan) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for k, stage in enumerate(plan.stages):
        for d in stage.mesh.devices:
            if k not in found.get(d, ()):
                found[d] = (*found.get(d, ()), k)
    return found


def _placed(first: Sequence[int], cluster: Cluster, size: int) -> tuple[int, list[tuple[float, float]]]:
    """(cells of one strip, (column, row) a cell): a strip is a node, strips stand side by side where there are many."""
    strip = max(1, cluster.node_size) if size == 1 else min(len(first), 16)
    strips = ceil(len(first) / strip)
    beside = max(1, min(4, round(sqrt(strips / strip)))) if strips > 16 else 1
    down = ceil(strips / beside)
    cells = []
    for i in range(len(first)):
        k, x = divmod(i, strip)
        column, y = divmod(k, down)
        cells.append((x + column * (strip + 0.6), float(y)))
    return strip, cells


def _stage_text(stages: tuple[int, ...]) -> str:
    """In a cell: the first stage, which for interleaved chunks is the rank in the pipeline."""
    return str(stages[0]) if stages else "–"


def _fill(stages: tuple[int, ...]) -> str:
    return CYCLE[stages[0] % 4] if stages else "#f2f2f2"


def _coordinates(plan: Plan, stages: tuple[int, ...], device: int) -> str:
    if not stages:
        return "unused"
    mesh = plan.stages[stages[0]].mesh
    place = mesh.coordinates(
        list(mesh.devices).index(device) if not isinstance(mesh.devices, range) else mesh.devices.index(device)
    )
    return ", ".join(f"{axis} {k}" for axis, k in reversed(place.items())) or "alone"


def _groups(plan: Plan, stages: tuple[int, ...], device: int) -> str:
    """Who shares its group along each axis: "tp 0-7"."""
    if not stages:
        return ""
    mesh = plan.stages[stages[0]].mesh
    position = mesh.devices.index(device)
    place = mesh.coordinates(position)
    words = []
    for axis in mesh.axes:
        stride, n = mesh.stride(axis), mesh.size(axis)
        start = position - place[axis] * stride
        if n > 1:
            words.append(f"{axis} {spans([mesh.devices[start + k * stride] for k in range(n)])}")
    return "; ".join(words)


def spans(devices: Sequence[int]) -> str:
    """[0, 1, 2, 3] -> "0-3", [0, 8, 16] -> "0, 8, … 16"."""
    steps = set(np.diff(devices).tolist())
    if len(devices) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{devices[0]}-{devices[-1]}" if step == 1 else f"{devices[0]}, {devices[1]} … {devices[-1]}"
    return ", ".join(map(str, devices))


def _has_frames(plan: Plan) -> bool:
    return any(a.startswith("tp") and s.mesh.size(a) > 1 for s in plan.stages for a in s.mesh.axes)


def _group_borders(
    made: object, plan: Plan, cells: list[tuple[float, float]], first: Sequence[int], size: int, across: int
) -> None:
    """A frame around the devices of one tensor-parallel group, where they stand in one row."""
    if size > 1:
        return
    x, y, width = [], [], []
    for stage in plan.stages:
        axis = next((a for a in reversed(stage.mesh.axes) if a.startswith("tp") and stage.mesh.size(a) > 1), "")
        n = stage.mesh.size(axis) if axis else 1
        if n <= 1 or stage.mesh.stride(axis) != 1:
            continue
        for start in range(0, len(stage.mesh.devices), n):
            group = [stage.mesh.devices[start + k] for k in range(n)]
            for lo in range(0, n, across):
                part = [cells[d] for d in group[lo : lo + across] if d < len(first)]
                if part and len({row for _, row in part}) == 1:
                    x.append((part[0][0] + part[-1][0]) / 2)
                    y.append(part[0][1])
                    width.append(part[-1][0] - part[0][0] + 0.98)
    if x:
        made.rect(x, y, width, 0.98, fill_color=None, line_color=BLACK, line_width=1.5)  # type: ignore[attr-defined]


def _table(plan: Plan) -> str:
    rows = []
    for k, stage in enumerate(plan.stages[:TABLE_ROWS]):
        rows.append([str(k), spans(stage.mesh.devices), mesh_words(stage)])
    if len(plan.stages) > TABLE_ROWS:
        rows.append(["…", f"{len(plan.stages) - TABLE_ROWS:,} more stages", ""])
    return table(["stage", "devices", "mesh"], rows, left=3)


def mesh_words(stage: Stage) -> str:
    """ "dp 16 × tp 8": axes of one device are left out."""
    pairs = zip(stage.mesh.axes, stage.mesh.shape, strict=True)
    return " × ".join(f"{a} {n}" for a, n in pairs if n > 1) or "one device"
