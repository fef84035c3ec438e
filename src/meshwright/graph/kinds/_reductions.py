"""Reductions over dims: sums are partial when cut, extrema and scans need the dim whole."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import FactorKind, Rule
from .call import Call, Kind, Saved, keeps_nothing, no_flops
from .space import Names, Space, broadcast


def _dims_of(call: Call) -> tuple[int, ...]:
    """The reduced dims; all when none is named. Norms have their order before the dims."""
    rank = len(call.shape(0))
    place = 2 if "norm" in call.kind else 1
    value = call.get(place, "dim")
    if value is None or value == () or len(call.out) == 0:
        return tuple(range(rank))
    return tuple(d % rank for d in call.integers(place, "dim"))


def _reduce(call: Call, kind: FactorKind) -> Rule:
    space = Space()
    shape = call.shape(0)
    gone = _dims_of(call) if shape else ()
    dims = [space.factor(f"d{i}", n, kind if i in gone else "free") for i, n in enumerate(shape)]
    keep = len(call.out) == len(shape)
    out: list[Names] = [() if i in gone else dims[i] for i in range(len(shape)) if keep or i not in gone]
    return space.rule([dims, *([] for _ in call.operands[1:])], [out for _ in call.results])


def _summed(call: Call) -> Rule:
    """sum, mean: a reduced factor is in no result, so cutting it leaves partial sums."""
    return _reduce(call, "free")


def _whole(call: Call) -> Rule:
    """Extrema, norms, products: the reduced dims cannot be cut."""
    if len(call.operands) == 2:  # max(a, b) is element-wise
        from ._pointwise import pointwise

        return pointwise(call)
    return _reduce(call, "fixed")


def _along(position: int, name: str, default: int) -> Callable[[Call], Rule]:
    """Scans, sorts: results have the operand's dims (topk: another size along the one dim), and that dim is fixed."""

    def rule(call: Call) -> Rule:
        space = Space()
        shape = call.shape(0)
        if not shape:
            return space.rule([()], [() for _ in call.results])
        dim = call.integer(position, name, default) % len(shape)
        dims = space.dims(shape, fixed=(dim,))
        out = list(dims)
        if call.out[dim] != shape[dim]:
            out[dim] = space.fixed("chosen", call.out[dim])
        return space.rule([dims], [out for _ in call.results])

    return rule


def _similarity(call: Call) -> Rule:
    """cosine_similarity, pairwise_distance, cdist's rows: operands broadcast against each other, one dim is reduced."""
    space = Space()
    rank = max(len(spec.shape) for spec in call.operands)
    sizes = [
        max(spec.shape[i - rank] if len(spec.shape) >= rank - i else 1 for spec in call.operands) for i in range(rank)
    ]
    dim = (call.integer(2, "dim", 1) if call.kind == "cosine_similarity" else rank - 1) % rank
    dims = space.dims(sizes, fixed=(dim,))
    out = dims[:dim] + ([()] if len(call.out) == rank else []) + dims[dim + 1 :]
    return space.rule([broadcast(dims, spec.shape) for spec in call.operands], [out])


def _cdist(call: Call) -> Rule:
    """x[…, m, k], y[…, n, k] -> […, m, n]."""
    space = Space()
    x, y = call.shape(0), call.shape(1)
    batch = space.dims(call.out[:-2], "batch")
    m, n, k = space.factor("m", x[-2]), space.factor("n", y[-2]), space.fixed("k", x[-1])
    return space.rule([[*broadcast(batch, x[:-2]), m, k], [*broadcast(batch, y[:-2]), n, k]], [[*batch, m, n]])


def _both(call: Call) -> Saved:
    return Saved(operands=(0, 1))


def _input(call: Call) -> Saved:
    return Saved(operands=(0,))


def _input_and_result(call: Call) -> Saved:
    return Saved(operands=(0,), results=(0,))


def _indices(call: Call) -> Saved:
    return Saved(results=(1,)) if len(call.results) > 1 else Saved(operands=(0,), results=(0,))


def _moments(call: Call) -> Saved:
    return Saved(operands=(0,), results=(0,)) if call.kind.startswith("std") else Saved(operands=(0,))


KINDS = (
    Kind("sum", _summed, no_flops, keeps_nothing),
    Kind("mean", _summed, no_flops, keeps_nothing),
    *(Kind(name, _whole, no_flops, _input_and_result) for name in ("amax", "amin", "logsumexp", "prod", "norm")),
    Kind("linalg_vector_norm", _whole, no_flops, _input_and_result),
    *(Kind(name, _similarity, no_flops, _both) for name in ("cosine_similarity", "pairwise_distance")),
    Kind("cdist", _cdist, no_flops, _both, light=False),
    *(Kind(name, _whole, no_flops, _indices) for name in ("max", "min")),
    *(Kind(name, _whole, no_flops, _moments) for name in ("var", "std", "var_mean", "std_mean")),
    *(Kind(name, _whole, no_flops, keeps_nothing, differentiable=False) for name in ("any", "all", "argmax", "argmin")),
    Kind("logcumsumexp", _along(1, "dim", 0), no_flops, _input_and_result, light=False),
    Kind("cumsum", _along(1, "dim", 0), no_flops, keeps_nothing, light=False),
    Kind("cumprod", _along(1, "dim", 0), no_flops, _input_and_result, light=False),
    Kind("topk", _along(2, "dim", -1), no_flops, _indices, light=False),
    Kind("sort", _along(1, "dim", -1), no_flops, _indices, light=False),
    Kind("argsort", _along(1, "dim", -1), no_flops, keeps_nothing, light=False, differentiable=False),
)
