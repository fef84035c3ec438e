"""What the conformance suite asks a cost model about: its ops, its cluster, and random questions about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..cluster import resolve
from ..cluster.model import Cluster, DeviceType, Mesh
from ..cost.base import Collective, CostModel, Group
from ..graph.ir import Factor, Ints, Op, Phase, Rule

KINDS: tuple[Collective, ...] = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "permute",
)  # fmt: skip
PHASES: tuple[Phase, ...] = ("forward", "backward", "input_grad", "weight_grad", "update")
MOST_DIGITS = 11.0
"""Bytes are drawn evenly over their logarithm, up to 100 GB."""


def everyday_ops() -> tuple[Op, ...]:
    """Products of three sizes, attention, an embedding, a normalisation, an activation, a loss."""
    lead = (("batch",), ("heads",))
    scores = (
        Factor("batch", 4, samples=True), Factor("heads", 32), Factor("queries", 2048, "fixed"),
        Factor("keys", 2048, "fixed"), Factor("width", 128, "fixed"), Factor("value_width", 128, "fixed"),
    )  # fmt: skip
    attention = Rule(
        scores,
        ((*lead, ("queries",), ("width",)), (*lead, ("keys",), ("width",)), (*lead, ("keys",), ("value_width",))),
        ((*lead, ("queries",), ("value_width",)),),
    )
    tokens, width, words = Factor("tokens", 8192, samples=True), Factor("width", 4096), Factor("words", 32000, "stat")
    row = (("tokens",), ("width",))
    return (
        *(_product(name, *sizes) for name, sizes in (("small", (96, 80, 64)), ("deep", (512, 512, 16384)))),
        _product("large", 16384, 12288, 8192),
        Op(
            "attention", "scaled_dot_product_attention", ("q", "k", "v"), ("y",), attention,
            flops=4.0 * 4 * 32 * 2048 * 2048 * 128, saved=("q", "k", "v", "y"), kwargs=(("is_causal", True),),
        ),
        Op("embedding", "embedding", ("w", "i"), ("y",), Rule((tokens, words, width), ((("words",), ("width",)), (("tokens",),)), (row,))),
        Op("norm", "layer_norm", ("x",), ("y",), Rule((tokens, width), (row,), (row,)), saved=("x",)),
        Op("gelu", "gelu", ("x",), ("y",), Rule((tokens, width), (row,), (row,)), saved=("x",)),
        Op("loss", "cross_entropy_loss", ("x", "i"), ("y",), Rule((tokens, words), ((("tokens",), ("words",)), (("tokens",),)), ((),)), saved=("x",)),
    )  # fmt: skip


def _product(name: str, m: int, n: int, k: int) -> Op:
    rule = Rule(
        (Factor("m", m, samples=True), Factor("n", n), Factor("k", k)),
        ((("m",), ("k",)), (("n",), ("k",))),
        ((("m",), ("n",)),),
    )
    return Op(name, "linear", ("x", "w"), ("y",), rule, flops=2.0 * m * n * k, saved=("x", "w"))


@dataclass(frozen=True)
class Priced:
    """A cost model under test, with what it can price.

    make: makes the model, always the same one; called several times, so that a model's memory of earlier questions shows.
    """

    make: Callable[[], CostModel]
    ops: tuple[Op, ...] = field(default_factory=everyday_ops)
    cluster: Cluster = field(default_factory=lambda: resolve("a100x32"))
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Factor -> numbers of parts it may be cut into, where not every size is allowed (opaque factors: 1 if not here)."""

    def faster(self, device: DeviceType, peak: float, bandwidth: float) -> DeviceType:
        """`device` with its rates multiplied; its name, as its family, stays."""
        return replace(
            device, peak={k: v * peak for k, v in device.peak.items()}, bandwidth=device.bandwidth * bandwidth
        )

    def faster_links(self, factor: float, level: int) -> Cluster:
        """The cluster with one of its levels and what leads out of it faster; all explicit links, too."""
        levels = [
            replace(lv, bandwidth=lv.bandwidth * factor, uplink=lv.uplink * factor, pair=lv.pair * factor)
            if k == level
            else lv
            for k, lv in enumerate(self.cluster.levels)
        ]
        links = tuple(replace(link, bandwidth=link.bandwidth * factor) for link in self.cluster.links)
        return replace(self.cluster, levels=tuple(levels), links=links)


_FINE = 1 << 20
"""Steps of what is drawn between two real numbers."""


class Draw:
    """Random questions, drawn by hypothesis so that a failing one is shrunk to the smallest that fails.

    All of them are made of booleans: hypothesis mixes integers and floats that it finds in the source of all modules that
    are loaded into those that it draws, so that the questions would depend on what else ran in the process.
    """

    def __init__(self, subject: Priced, data: Any) -> None:
        """`data`: what `hypothesis.strategies.data()` draws."""
        from hypothesis import strategies as st

        self._subject, self._data, self._st = subject, data, st

    def one_of(self, *values: Any) -> Any:
        return values[self.whole(0, len(values) - 1)]

    def factor(self) -> float:
        """At least 1."""
        return float(10.0 ** self._real(2.0))

    def nbytes(self) -> float:
        return float(10.0 ** self._real(MOST_DIGITS))

    def whole(self, least: int, most: int) -> int:
        # So many bits more that what is left over makes no number much more likely than another.
        bits = (most - least).bit_length()
        drawn = self._data.draw(self._st.tuples(*[self._st.booleans()] * (bits + 4 if bits else 0)))
        return least + int(sum(bit << k for k, bit in enumerate(drawn)) % (most - least + 1))

    def _real(self, most: float) -> float:
        return most * self.whole(0, _FINE) / _FINE

    def op(self) -> Op:
        found: Op = self.one_of(*self._subject.ops)
        return found

    def phase(self) -> Phase:
        found: Phase = self.one_of(*PHASES)
        return found

    def variant(self, model: CostModel, op: Op, sizes: Ints) -> str:
        found: str = self.one_of(*model.variants(op, sizes))
        return found

    def device(self) -> DeviceType:
        found: DeviceType = self.one_of(*self._subject.cluster.types)
        return found

    def sizes(self, op: Op, rows: int = 1) -> Ints:
        """Local sizes [rows, factors]: any size of a factor that may be cut anyhow, the same part of another in all rows."""
        parts = [1 if self._free(f) else self.one_of(*self._subject.parts.get(f.name, (1,))) for f in op.rule.factors]
        found = [
            [
                self.whole(1, f.size) if self._free(f) else f.size // p
                for f, p in zip(op.rule.factors, parts, strict=True)
            ]
            for _ in range(rows)
        ]
        return np.array(found, dtype=np.int64)

    def larger(self, op: Op, sizes: Ints) -> Ints:
        """Sizes of which one factor that may be cut anyhow is no smaller: samples by one or by any number, another by a
        whole factor that makes it no more even, since a width of no whole vectors of eight is legally slower than the
        next that is.
        """
        found = sizes[:1].copy()
        free = [i for i, f in enumerate(op.rule.factors) if self._free(f)]
        if free:
            i = self.one_of(*free)
            factor, n = op.rule.factors[i], int(found[0, i])
            if factor.samples:
                found[0, i] = min(n + 1, factor.size) if self.one_of(True, False) else self.whole(n, factor.size)
            else:
                times = self.whole(1, factor.size // n)
                found[0, i] = n * (times if n % 8 == 0 else times - 1 + times % 2)
        return found

    def group(self) -> Group:
        """Groups of a mesh that covers the cluster from its first device on."""
        count = self._subject.cluster.count
        total = self.one_of(*(n for n in range(1, count + 1) if count % n == 0))
        minor = self.one_of(*(n for n in range(1, total + 1) if total % n == 0))
        axes = self.one_of(("a",), ("b",), ("a", "b"))
        return Group(self._subject.cluster, Mesh(range(total), ("a", "b"), (total // minor, minor)), axes)

    def pair(self) -> tuple[int, int]:
        last = self._subject.cluster.count - 1
        return self.whole(0, last), self.whole(0, last)

    def _free(self, factor: Factor) -> bool:
        return factor.name not in self._subject.parts and factor.kind not in ("opaque", "fixed")
