"""Matrix products: the kinds that hold nearly all FLOPs. Rows m, columns n, the summed factor k."""

from __future__ import annotations

from math import prod

from ..ir import FactorKind, Rule
from .call import Call, Kind, Saved
from .space import Names, Space, broadcast


def _rows(space: Space, shape: tuple[int, ...]) -> list[Names]:
    return [space.factor("m" if len(shape) == 1 else f"m{i}", n) for i, n in enumerate(shape)]


def _linear(call: Call) -> Rule:
    """x[…, k] · W[n, k]."""
    space = Space()
    m = _rows(space, call.shape(0)[:-1])
    weight = call.shape(1)
    n = space.factor("n", weight[0]) if len(weight) == 2 else ()
    k = space.factor("k", weight[-1], "fixed" if len(call.operands) > 2 else "free")
    out = [*m, n] if len(weight) == 2 else m
    operands = [[*m, k], [n, k] if len(weight) == 2 else [k]]
    operands += [[n] if len(weight) == 2 else []] * (len(call.operands) - 2)
    return space.rule(operands, [out])


def _matmul(call: Call) -> Rule:
    """matmul, mm, bmm, mv, dot with broadcast batch dims."""
    space = Space()
    x, y = call.shape(0), call.shape(1)
    batch_x, batch_y = x[:-2], y[:-2]
    rank = max(len(batch_x), len(batch_y))
    batch = [
        space.factor("batch" if rank == 1 else f"batch{i}", max(_at(batch_x, rank, i), _at(batch_y, rank, i)))
        for i in range(rank)
    ]
    m = space.factor("m", x[-2]) if len(x) > 1 else ()
    k = space.factor("k", x[-1])
    n = space.factor("n", y[-1]) if len(y) > 1 else ()
    left = [*broadcast(batch, batch_x), m, k] if len(x) > 1 else [k]
    right = [*broadcast(batch, batch_y), k, n] if len(y) > 1 else [k]
    out = [*batch, *([m] if len(x) > 1 else []), *([n] if len(y) > 1 else [])]
    return space.rule([left, right], [out])


def _at(shape: tuple[int, ...], rank: int, i: int) -> int:
    place = i - (rank - len(shape))
    return shape[place] if place >= 0 else 1


def _added(call: Call) -> Rule:
    """addmm, baddbmm: self + x · y. k is fixed: a partial product would add self more than once."""
    space = Space()
    x, y = call.shape(1), call.shape(2)
    batch = [space.factor("batch", x[0])] if len(x) == 3 else []
    m, k, n = space.factor("m", x[-2]), space.fixed("k", x[-1]), space.factor("n", y[-1])
    out = [*batch, m, n]
    return space.rule([broadcast(out, call.shape(0)), [*batch, m, k], [*batch, k, n]], [out])


def _bilinear(call: Call) -> Rule:
    """x[…, a] · W[n, a, b] · y[…, b]; a bias operand fixes a and b."""
    space = Space()
    kind: FactorKind = "fixed" if len(call.operands) > 3 else "free"
    m = _rows(space, call.shape(0)[:-1])
    n = space.factor("n", call.shape(2)[0])
    a, b = space.factor("a", call.shape(0)[-1], kind), space.factor("b", call.shape(1)[-1], kind)
    return space.rule([[*m, a], [*m, b], [n, a, b], *([n] for _ in call.operands[3:])], [[*m, n]])


def _outer(call: Call) -> Rule:
    space = Space()
    m, n = space.factor("m", call.out[0]), space.factor("n", call.out[1])
    return space.rule([[m], [n]], [[m, n]])


def labels_of(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The labels of each operand's and the result's dims; dims under an ellipsis are called "…0", "…1", … from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = [_expand_label(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    every = [label for term in operands for label in term]
    wide = max((sum(label.startswith("…") for label in term) for term in operands), default=0)
    ellipsis = [f"…{i}" for i in reversed(range(wide))]
    if not arrow:
        once = sorted({label for label in every if every.count(label) == 1 and not label.startswith("…")})
        return operands, ellipsis + once
    result: list[str] = []
    for letter in right.replace("...", "…"):
        result += ellipsis if letter == "…" else [letter]
    return operands, result


def _expand_label(term: str, rank: int) -> list[str]:
    letters = list(term.replace("...", "…"))
    if "…" not in letters:
        return letters
    place, hidden = letters.index("…"), rank - len(letters) + 1
    return letters[:place] + [f"…{i}" for i in reversed(range(hidden))] + letters[place + 1 :]


def _labels(call: Call) -> tuple[list[list[str]], list[str], dict[str, int]]:
    operands, result = labels_of(str(call.args[0]), [len(spec.shape) for spec in call.operands])
    sizes: dict[str, int] = {}
    for labels, spec in zip(operands, call.operands, strict=True):
        for label, n in zip(labels, spec.shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), n)
    return operands, result, sizes


def _einsum(call: Call) -> Rule:
    """One factor per label; a label that occurs twice in one operand (a diagonal) is fixed."""
    space = Space()
    operands, result, sizes = _labels(call)
    twice = {label for labels in operands for label in labels if labels.count(label) > 1}
    names = {
        label: space.factor(label if label.isalpha() else f"batch{label[1:]}", n, "fixed" if label in twice else "free")
        for label, n in sizes.items()
    }
    ins = [
        [names[label] if n != 1 else () for label, n in zip(labels, spec.shape, strict=True)]
        for labels, spec in zip(operands, call.operands, strict=True)
    ]
    return space.rule(ins, [[names[label] for label in result]])


def _linear_flops(call: Call) -> float:
    return 2.0 * call.operands[0].elements * (call.shape(1)[0] if len(call.shape(1)) == 2 else 1)


def _matmul_flops(call: Call) -> float:
    """2 · elements of the result · k."""
    return 2.0 * prod(call.out) * call.shape(0)[-1]


def _uncounted(call: Call) -> float:
    """torch counts no FLOPs for dot, mv, outer and bilinear."""
    return 0.0


def _added_flops(call: Call) -> float:
    return 2.0 * prod(call.out) * call.shape(1)[-1]


def _einsum_flops(call: Call) -> float:
    """Of two operands: one batched product over all labels. More operands are contracted from the left."""
    operands, result, sizes = _labels(call)
    total, left = 0.0, list(operands[0])
    for i, right in enumerate(operands[1:], 1):
        total += 2.0 * prod(sizes[label] for label in {*left, *right})
        later = {label for labels in operands[i + 1 :] for label in labels} | set(result)
        left = [label for label in dict.fromkeys([*left, *right]) if label in later]
    return total


def _both(call: Call) -> Saved:
    """Each factor of a product is kept for the gradient of the other."""
    return Saved(operands=tuple(i for i in (0, 1) if call.need(1 - i)))


def _added_saved(call: Call) -> Saved:
    return Saved(operands=tuple(i for i in (1, 2) if call.need(3 - i)))


def _all(call: Call) -> Saved:
    return Saved(operands=tuple(range(min(3, len(call.operands)))))


def _einsum_saved(call: Call) -> Saved:
    n = len(call.operands)
    return Saved(operands=tuple(i for i in range(n) if any(call.need(j) for j in range(n) if j != i)))


KINDS = (
    Kind("linear", _linear, _linear_flops, _both, light=False),
    *(Kind(name, _matmul, _matmul_flops, _both, light=False) for name in ("matmul", "mm", "bmm")),
    *(Kind(name, _matmul, _uncounted, _both, light=False) for name in ("mv", "dot")),
    *(Kind(name, _added, _added_flops, _added_saved, light=False) for name in ("addmm", "baddbmm")),
    *(Kind(name, _outer, _uncounted, _both) for name in ("outer", "ger")),
    Kind("bilinear", _bilinear, _uncounted, _all, light=False),
    Kind("einsum", _einsum, _einsum_flops, _einsum_saved, light=False),
)
