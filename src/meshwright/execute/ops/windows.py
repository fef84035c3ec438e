"""Convolutions, pools and rolls on parts: a cut window gets its neighbours' rows from the program, so it pads nothing there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...graph.ir import Arg
from ...graph.kinds import shifts_of
from .site import Local, Moment, Recorded, Site

GROUPS = 6


def convolution(site: Site) -> Local:
    """Groups are cut with their channels; a bias of a convolution whose channels are summed apart is added once."""
    groups = int(site.arg(GROUPS, "groups", 1) or 1)  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    if groups > 1:
        channels = site.local_result()[1] if "transpose" in site.op.kind else site.local_operand(0)[1]
        local = channels // max(1, site.local_operand(1)[1])
        changed["_6" if len(site.op.args) > GROUPS else "groups"] = local
    if not all(prod(site.local_operand(k)) for k in (0, 1)):  # torch refuses to convolve no channels
        return _nothing(site)
    call = _unpadded(site, 4, changed)
    partial = [a for a in site.instr.results[0].partial if site.view.mesh.size(a) > 1]
    if not partial or len(site.op.inputs) < 3:
        return call
    first = all(site.view.coords[a] == 0 for a in partial)

    def once(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        x, weight, bias, *rest = operands
        return call([x, weight, bias if first else bias * 0, *rest], moment)

    return once


def _nothing(site: Site) -> Local:
    shape = site.local_result()

    def zeros(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        nought = sum((x.flatten()[:0].sum() for x in operands), operands[0].new_zeros(()))
        return (operands[0].new_zeros(shape) + nought,)

    return zeros


def pool(site: Site) -> Local:
    shapes = [site.local_result(k) for k in range(len(site.op.outputs))]
    if prod(shapes[0]):
        return _unpadded(site, 3, {})

    def nothing(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        """torch pools no empty part; its gradient is zero."""
        return tuple(operands[0].flatten()[:0].reshape(shape) for shape in shapes)

    return nothing


def rolled(site: Site) -> Local:
    """Along a cut dim the own part of what it and the rows of one neighbour hold; along the others as captured."""
    shape = site.shape(0)
    given, dims = (_integers(site.arg(k, name, ())) for k, name in ((1, "shifts"), (2, "dims")))
    shifts = shifts_of(shape, given, dims)
    cut = {d: by for d, by in shifts.items() if by and site.operand_cut(0, d)}
    if not cut:
        return site.plain()
    rest, sizes = {d: by for d, by in shifts.items() if d not in cut}, site.local_result()

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        x = operands[0]
        for d, by in cut.items():
            x = x.narrow(d, max(0, -by), sizes[d])
        return (torch.roll(x, tuple(rest.values()), tuple(rest)) if rest else x,)

    return call


def _integers(value: Arg) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)  # type: ignore[arg-type]


def _unpadded(site: Site, position: int, changed: dict[str, Any]) -> Recorded:
    """The call as captured, with `changed` arguments, and no padding of the dims whose windows are cut.

    position: of the padding among the arguments.
    """
    rule = site.op.rule
    cut = {name for name, cuts in site.instr.cuts if any(site.view.mesh.size(c.axis) > 1 for c in cuts)}
    wide = [any(f in cut and rule.factor(f).kind == "halo" for f in dim) for dim in rule.operands[0]]
    if not any(wide):
        return site.plain(**changed)
    rank = int(next(c for c in site.op.kind if c.isdigit()))
    padding = _padding(site, position, rank)
    own = [0 if w else p for w, p in zip(wide[-rank:], padding, strict=True)]
    changed["_" + str(position) if len(site.op.args) > position else "padding"] = own
    call = site.plain(**changed)
    words = isinstance(site.arg(position, "padding", 0), str)  # "same" and "valid" are an overload of their own
    return replace(call, target=getattr(torch.ops.aten, site.op.kind).default) if words else call


def _padding(site: Site, position: int, rank: int) -> tuple[int, ...]:
    given = site.arg(position, "padding", 0)
    if isinstance(given, str):
        kernel, spread = site.shape(1)[2:], _each(site.arg(5, "dilation", 1), rank)
        return tuple(d * (k - 1) // 2 if given == "same" else 0 for k, d in zip(kernel, spread, strict=True))
    return _each(given, rank)


def _each(value: Arg, rank: int) -> tuple[int, ...]:
    found = tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value or 0),)  # type: ignore[arg-type]
    return found if len(found) == rank else found * rank
