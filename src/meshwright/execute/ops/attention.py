"""Attention on local parts: heads and queries may be cut, keys are whole; a causal mask knows where the own queries stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph.ir import Slot
from ...plan.model import Layout
from .randomness import global_index, keep_mask
from .site import Local, Moment, Site, own_part

ROWS = -2
"""The dim of the queries in the first operand, of the keys in the second and third."""


def attention(site: Site) -> Local:
    """As captured; with dropout the probabilities are written out, so that their mask does not depend on the plan."""
    rate = float(site.arg(4, "dropout_p", 0.0) or 0.0)  # type: ignore[arg-type]
    causal = bool(site.arg(5, "is_causal", False))
    if rate and site.dropout:
        return _with_dropout(site, rate, causal)
    silent = _argument(site, 4, "dropout_p", 0.0) if rate else {}
    if causal and site.operand_cut(0, ROWS):
        return _some_queries(site, silent)
    return site.plain(**silent)


def _argument(site: Site, position: int, name: str, value: object) -> dict[str, object]:
    return {f"_{position}": value} if len(site.op.args) > position else {name: value}


def _places(site: Site) -> Tensor:
    """Global indices of the own queries."""
    layout = Layout((site.instr.operands[0].dims[ROWS],))
    return own_part(torch.arange(site.shape(0)[ROWS], device=site.device), layout, site.view)


def _some_queries(site: Site, silent: dict[str, object]) -> Local:
    """Query i sees keys 0 … i, as in torch. Keys that no own query sees are left out, not only masked."""
    places = _places(site)
    seen = min(site.shape(1)[ROWS], int(places.max()) + 1) if len(places) else 1
    masked = {**silent, **_argument(site, 3, "attn_mask", Slot(3)), **_argument(site, 5, "is_causal", False)}
    call = site.plain(**masked)

    def part(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        query, key, value = operands
        allowed = torch.arange(seen, device=site.device) <= places.unsqueeze(1)
        return call([query, key[..., :seen, :], value[..., :seen, :], allowed], moment)

    return part


def _with_dropout(site: Site, rate: float, causal: bool) -> Local:
    scale = site.arg(6, "scale", None)
    q, keys = site.shape(0), site.shape(1)[ROWS]
    whole = (*q[:-1], keys)
    layout = site.instr.results[0]
    probabilities = Layout((*layout.dims[:-1], ((keys, ()),)))
    places = _places(site)

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        query, key, value, *mask = operands
        if key.shape[-3] != query.shape[-3]:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        factor = q[-1] ** -0.5 if scale is None else float(scale)  # type: ignore[arg-type]
        scores = query @ key.transpose(-1, -2) * factor
        if causal:
            allowed = torch.arange(keys, device=site.device) <= places.unsqueeze(1)
            scores = scores.masked_fill(~allowed, float("-inf"))
        for m in mask:
            scores = scores.masked_fill(~m, float("-inf")) if m.dtype == torch.bool else scores + m
        number = site.key(moment)
        keep = keep_mask(rate, number, global_index(whole, probabilities, site.view, site.device))
        return (F.softmax(scores, -1) * keep.to(scores.dtype) / (1.0 - rate) @ value,)

    return call
