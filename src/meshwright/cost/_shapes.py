"""What an op's rule says about its cost, worked out once per rule: index lists that turn local sizes into shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.ir import Dims, Floats, Op, Rule

MATMULS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "_grouped_mm", "grouped_mm"})
CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
ATTENTION = frozenset({"scaled_dot_product_attention", "_scaled_dot_product_flash_attention"})
LOOKUPS = frozenset({"embedding", "embedding_bag", "index", "gather", "index_select", "take_along_dim"})
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "native_layer_norm", "instance_norm"})
VIEWS = frozenset(
    {
        "view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "alias",
        "split", "split_with_sizes", "chunk", "unbind", "flatten", "unflatten", "narrow", "detach", "contiguous", "to",
    }
)  # fmt: skip
"""Not kernels of their own: no launch, no traffic beyond that of the op that reads them."""


@dataclass(frozen=True, slots=True)
class Product:
    """Which factors (by index) make batch, rows, columns and depth of a matrix product."""

    batch: tuple[int, ...]
    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpShape:
    """One op's rule as index lists."""

    rule: Rule
    full: Floats
    """Sizes of the factors of the whole op."""
    product: Product | None
    left: int
    """Operands of the product: positions among `rule.operands`."""
    right: int
    operands: tuple[tuple[int, ...], ...]
    """Per operand: its factors."""
    results: tuple[tuple[int, ...], ...]
    head: tuple[int, ...]
    """Attention: factors of one head's width (in queries and keys, not in the result)."""
    scores: tuple[int, ...]
    """Attention: factors of the score matrix."""
    queries: tuple[int, ...]
    """Attention: factors of its rows."""
    keys: tuple[int, ...]
    """Attention: factors of its columns."""


class Shapes:
    """`OpShape` of rules by identity; keeps the rules alive."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], OpShape] = {}

    def of(self, op: Op) -> OpShape:
        key = (id(op.rule), op.kind)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _shape(op)
        return found


def _indices(dims: Dims, index: dict[str, int]) -> tuple[int, ...]:
    return tuple(index[name] for dim in dims for name in dim)


def _shape(op: Op) -> OpShape:
    rule = op.rule
    index = {f.name: i for i, f in enumerate(rule.factors)}
    operands = tuple(_indices(d, index) for d in rule.operands)
    results = tuple(_indices(d, index) for d in rule.results)
    full = np.array([max(f.size, 1) for f in rule.factors], dtype=np.float64)
    product: Product | None = None
    left, right = 0, 1
    head: tuple[int, ...] = ()
    scores: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    if op.kind in MATMULS and len(operands) >= 2:
        # addmm and baddbmm have the addend first.
        left, right = (1, 2) if op.kind in ("addmm", "baddbmm") and len(operands) > 2 else (0, 1)
        product = _product(operands[left], operands[right], results[0])
    elif op.kind in CONVOLUTIONS and len(operands) >= 2:
        # Batch = groups of channels; columns = channels out of a group; rows = samples and positions. The depth follows
        # from the FLOPs, since positions before and after need not be the same factors.
        groups = tuple(i for i in results[0] if i in operands[0] and i in operands[1])
        columns = tuple(i for i in results[0] if i in operands[1] and i not in groups)
        product = Product(groups, tuple(i for i in results[0] if i not in (*groups, *columns)), columns, ())
    elif op.kind in ATTENTION and len(operands) >= 3:
        query, key = operands[0], operands[1]
        head = tuple(i for i in query if i in key and i not in results[0])
        value_width = tuple(i for i in results[0] if i not in query)
        scores = tuple(i for i in sorted({*query, *key, *results[0]}) if i not in head and i not in value_width)
        rows, columns = (tuple(index[name] for name in rule.operands[k][-2]) for k in (0, 1))
    return OpShape(rule, full, product, left, right, operands, results, head, scores, rows, columns)


def _product(left: Sequence[int], right: Sequence[int], result: Sequence[int]) -> Product:
    a, b, c = set(left), set(right), set(result)
    return Product(
        batch=tuple(sorted(a & b & c)),
        m=tuple(sorted((a & c) - b)),
        n=tuple(sorted((b & c) - a)),
        k=tuple(sorted((a | b) - c)),
    )


def volume(sizes: Floats, factors: Sequence[int]) -> Floats:
    """Product of the local sizes of some factors, per row of sizes[n, factors]."""
    if not factors:
        return np.ones(len(sizes))
    found: Floats = sizes[:, factors[0]]
    for i in factors[1:]:
        found = found * sizes[:, i]
    return found
