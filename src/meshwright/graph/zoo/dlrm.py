"""DLRM: embedding tables of categories, their pairwise products with the dense features, and a small network on top."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ._entry import Config, Entry, Inputs
from ._own import number, numbers, scaled
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import nn

# Naumov et al. 2019 (Deep Learning Recommendation Model), with the layers, the width and the tables of the MLPerf training
# benchmark on Criteo's terabyte of clicks: 13 numbers and 26 categories a sample, no table longer than 40 M rows, and
# 65,536 samples a step.
CRITEO = (
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10, 2_209, 11_938,
    155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
)  # fmt: skip
# Most real tables are short and every one is different. "dlrm" has as many of them, all but five of one size (our choice).
EVEN = (40_000_000, 1_000_000, 1_000_000, 100_000, 10_000, *(1_000_000,) * 21)
DENSE, WIDTH, BOTTOM, TOP, BATCH = 13, 128, (512, 256), (1024, 1024, 512, 256), 65536
SIZES = {
    "dlrm": (EVEN, "Naumov et al. 2019; layers of MLPerf Training, tables of our choice"),
    "dlrm-criteo": (CRITEO, "Naumov et al. 2019; MLPerf Training, Criteo 1TB"),
}


def config(rows: tuple[int, ...]) -> Config:
    return {
        "model_type": "dlrm",
        "rows": list(rows),
        "dense": DENSE,
        "width": WIDTH,
        "bottom": list(BOTTOM),
        "top": list(TOP),
    }


def parameters(rows: tuple[int, ...]) -> int:
    """Tables; two stacks of layers with biases, the upper on the dense features and one product for each pair."""
    pairs = (len(rows) + 1) * len(rows) // 2
    layers = ((DENSE, *BOTTOM, WIDTH), (WIDTH + pairs, *TOP, 1))
    return sum(rows) * WIDTH + sum((a + 1) * b for stack in layers for a, b in pairwise(stack))


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._dlrm_net import Dlrm

    rows, dense, width = numbers(config, "rows"), number(config, "dense"), number(config, "width")
    bottom, top = numbers(config, "bottom"), numbers(config, "top")
    if shrink is not None:
        rows = [min(n, shrink.vocab or n) for n in rows]
        bottom, top = scaled(bottom, shrink.ffn), scaled(top, shrink.ffn)
        width = shrink.width or width
    with torch.device(device):
        module = Dlrm(rows=rows, dense=dense, width=width, bottom=bottom, top=top).to(getattr(torch, dtype)).train()
        return module, {
            "dense": torch.zeros(batch, dense, dtype=getattr(torch, dtype)),
            "sparse": torch.zeros(batch, len(rows), dtype=torch.int64),
            "labels": torch.zeros(batch, dtype=torch.int64),
        }


def values(module: nn.Module, name: str) -> int:
    """Clicked or not; a category that the shortest table has."""
    return 2 if name == "labels" else min(table.num_embeddings for table in module.tables)  # type: ignore[union-attr]


ENTRIES = tuple(
    Entry(name, "dlrm", parameters(rows), BATCH, 1, source, config(rows)) for name, (rows, source) in SIZES.items()
)
