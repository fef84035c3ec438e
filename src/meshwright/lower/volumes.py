"""Elements that ranks receive under a program: the collectives that lowering wrote, counted as rings carry them out.

What a layout scheme is said to cost (cost/volumes.py) is what its program asks for: a test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from math import prod

from ..cost.volumes import ring_share
from ..graph.ir import ITEM_BYTES, Graph
from ..plan.model import Layout
from .program import GRAD, Instr, Program, StageCode


def received(program: Program, graph: Graph, micro_batches: int = 1, on: Container[str] | None = None) -> float:
    """Elements that one rank receives in a step of so many micro-batches: the mean over the ranks of a stage, added up over
    stages; of parts that are not equal, the largest. Transfers between stages are no collectives.

    `on`: only of these ops and tensors.
    """
    return sum(
        times * _of(i, graph, program, stage)
        for stage in program.stages
        for times, i in _in_a_step(stage, micro_batches)
        if i.communicates and (on is None or i.on in on)
    )


def _in_a_step(stage: StageCode, micro_batches: int) -> Iterator[tuple[int, Instr]]:
    counts = {p.name: p.count for p in stage.params}
    for s in stage.segments:
        for i in (*s.forward, *s.rerun, *s.backward):
            yield s.count * micro_batches, i
    for i in stage.grads:
        yield counts.get(i.on, 1) * micro_batches, i
    for i in stage.update:
        yield counts.get(i.on, 1), i


def resting(program: Program, tensor: str) -> float:
    """Elements of a parameter over all ranks of the stages that hold it."""
    return sum(
        p.elements[0] * len(stage.mesh.devices) for stage in program.stages for p in stage.params if p.name == tensor
    )


def _of(i: Instr, graph: Graph, program: Program, stage: StageCode) -> float:
    members = prod(stage.mesh.size(a) for a in i.axes)
    if members == 1:
        return 0.0
    kind = i.collective or "all_reduce"
    local = 1 if i.samples is None else program.local_samples(stage.mesh, i.samples)
    return ring_share(kind, members) * i.nbytes * local / _item(i, graph, stage)


def _item(i: Instr, graph: Graph, stage: StageCode) -> float:
    """Bytes of an element as the instruction counts them."""
    if i.kind == "stat":
        return 8.0 if i.op == "count" else float(ITEM_BYTES["float32"])
    name = i.on
    if i.kind == "panel":
        name = graph.ops[graph.position[i.on]].inputs[i.dim2]
    tensor = graph.tensor[name]
    own = tensor.nbytes / max(1, prod(tensor.shape))
    if tensor.role != "param" or i.kind == "panel" or not i.inputs or not i.inputs[0].startswith(GRAD):
        return own
    # Gradients of parameters are as wide as the recipe has them: their bytes over the elements that their layout names.
    layout = i.after if i.collective == "all_gather" else i.before
    return i.nbytes / _elements(layout, stage) if layout is not None else own


def _elements(layout: Layout, stage: StageCode) -> float:
    """Of the largest part; every size is written out in a program."""
    found = 1.0
    for dim in layout.dims:
        for size, cuts in dim:
            for cut in cuts:
                size = -(-size // stage.mesh.size(cut.axis))
            found *= size
    return found
