"""Looking up and writing by index: the indexed dim stays whole, except for the vocabulary of an embedding."""

from __future__ import annotations

from ..ir import Rule, Slot
from .call import Call, Kind, Saved, keeps_nothing, no_flops
from .space import Names, Space


def _embedding(call: Call) -> Rule:
    """W[vocabulary, width] looked up by ids[…]: a rank that has a part of the vocabulary gives zeros for other ids."""
    space = Space()
    vocabulary, width = space.factor("vocabulary", call.shape(0)[0]), space.factor("width", call.shape(0)[1])
    ids = space.dims(call.shape(1), "ids")
    return space.rule([[vocabulary, width], ids], [[*ids, width]])


def _embedding_bag(call: Call) -> Rule:
    """Bags are ranges of one list of ids, so ids and bags stay whole; a vocabulary can be cut when rows are summed."""
    space = Space()
    mode = call.integer(4, "mode", 0)
    vocabulary = space.factor("vocabulary", call.shape(0)[0], "free" if mode == 0 else "fixed")
    width = space.factor("width", call.shape(0)[1])
    ids = space.dims(call.shape(1), "ids", range(len(call.shape(1))))
    bags = space.fixed("bags", call.out[0])
    offsets = [bags if call.shape(2)[0] == call.out[0] else space.fixed("offsets", call.shape(2)[0])]
    out = [bags, width]
    operands = [[vocabulary, width], ids, offsets, *([ids[-1]] for _ in call.operands[3:])]
    others = [
        [bags] if spec.shape == call.out[:1] else space.dims(spec.shape, f"r{i}_", range(len(spec.shape)))
        for i, spec in enumerate(call.results[1:])
    ]
    return space.rule(operands, [out, *others])


def _index(call: Call) -> Rule:
    """x[:, i, j, :]: indexed dims of x are fixed; the dims of the indices and all other dims are free.

    The dims of the indices stand where the first index was, or in front when a whole dim lies between two indices.
    """
    space = Space()
    shape = call.shape(0)
    picked = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    where: list[tuple[int, int]] = [(d, a.index) for d, a in enumerate(picked) if isinstance(a, Slot)]
    masks = any(call.operands[i].dtype == "bool" for _, i in where)
    indexed = [d for d, _ in where]
    kept = {d: space.factor(f"d{d}", n) for d, n in enumerate(shape) if d not in indexed}
    rank = max(len(call.shape(i)) for _, i in where)
    sizes = [1] * rank
    for _, i in where:
        for place, n in enumerate(reversed(call.shape(i))):
            sizes[rank - 1 - place] = max(sizes[rank - 1 - place], n)
    index = [
        space.factor("index" if rank == 1 else f"index{j}", n, "fixed" if masks else "free")
        for j, n in enumerate(sizes)
    ]
    source = [kept[d] if d in kept else space.fixed(f"from{d}", n) for d, n in enumerate(shape)]
    together = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    out: list[Names] = [] if together else list(index)
    for d in range(len(shape)):
        if together and d == indexed[0]:
            out += index
        if d in kept:
            out.append(kept[d])
    operands: list[list[Names]] = [source]
    for _, i in sorted(where, key=lambda pair: pair[1]):
        own = call.shape(i)
        operands.append([index[rank - len(own) + j] if n != 1 else () for j, n in enumerate(own)])
    return space.rule(operands, [out])


def _index_select(call: Call) -> Rule:
    space = Space()
    dim = call.integer(1, "dim") % len(call.shape(0))
    source = space.dims(call.shape(0), fixed=(dim,))
    index = space.factor("index", call.out[dim])
    return space.rule([source, [index]], [[*source[:dim], index, *source[dim + 1 :]]])


def _gather(call: Call) -> Rule:
    """Along `dim` the source is fixed and the index free; other dims are shared where the sizes agree."""
    space = Space()
    dim = call.integer(1, "dim") % max(len(call.shape(0)), 1)
    out = space.dims(call.out, "index")
    source = [
        out[i] if i != dim and n == call.out[i] else space.fixed(f"from{i}", n) for i, n in enumerate(call.shape(0))
    ]
    for i, n in enumerate(call.shape(0)):
        if i != dim and n != call.out[i]:
            out[i] = space.fixed(f"to{i}", call.out[i])
    return space.rule([source, out], [out])


def _scatter(call: Call) -> Rule:
    """scatter, scatter_add, scatter_reduce: `dim` is fixed in the result and in the index."""
    space = Space()
    dim = call.integer(1, "dim") % max(len(call.out), 1)
    index_shape = call.shape(1)
    out = [
        space.factor(f"d{i}", n, "free" if i != dim and index_shape[i] == n else "fixed")
        for i, n in enumerate(call.out)
    ]
    index = [
        out[i] if i != dim and m == call.out[i] else space.fixed(f"index{i}", m) for i, m in enumerate(index_shape)
    ]
    operands = [out, index]
    for spec in call.operands[2:]:
        operands.append(
            [index[i] if m == index_shape[i] else space.fixed(f"source{i}", m) for i, m in enumerate(spec.shape)]
        )
    return space.rule(operands, [out])


def _index_write(call: Call) -> Rule:
    """index_add, index_copy: rows of the source go to rows of the result; both dims stay whole."""
    space = Space()
    dim = call.integer(1, "dim") % len(call.out)
    out = space.dims(call.out, fixed=(dim,))
    rows = space.fixed("rows", call.operands[1].elements)
    return space.rule([out, [rows], [*out[:dim], rows, *out[dim + 1 :]]], [out])


def _index_put(call: Call) -> Rule:
    """x[i, j] = values: written dims and indices are fixed, the dims in between free."""
    space = Space()
    picked = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    indexed = [d for d, a in enumerate(picked) if isinstance(a, Slot)]
    out = space.dims(call.out, fixed=indexed)
    operands: list[list[Names]] = [out]
    for i, spec in enumerate(call.operands[1:-1], 1):
        operands.append(space.dims(spec.shape, f"index{i}_", range(len(spec.shape))))
    values = call.operands[-1].shape
    free = [out[d] for d in range(len(out)) if d not in indexed and d > max(indexed)]
    tail = len(free)
    head = values[: len(values) - tail]
    aligned = [
        free[j] if n != 1 else () for j, n in enumerate(values[len(values) - tail :], tail - len(values[len(head) :]))
    ]
    operands.append([*space.dims(head, "value", range(len(head))), *aligned])
    return space.rule(operands, [out])


def _one_hot(call: Call) -> Rule:
    space = Space()
    ids = space.dims(call.shape(0), "ids")
    return space.rule([ids], [[*ids, space.fixed("classes", call.out[-1])]])


def _ids(call: Call) -> Saved:
    return Saved(operands=(1,))


def _indices(call: Call) -> Saved:
    return Saved(operands=tuple(i for i in range(1, len(call.operands))))


def _bag_saved(call: Call) -> Saved:
    return Saved(operands=(1, 2), results=tuple(range(1, len(call.results))))


def _scatter_saved(call: Call) -> Saved:
    return Saved(operands=(1,))


def _index_write_saved(call: Call) -> Saved:
    """torch keeps the source as well as the index."""
    return Saved(operands=(1, 2)) if call.need(2) else Saved(operands=(1,))


def _put_saved(call: Call) -> Saved:
    return Saved(operands=tuple(range(1, len(call.operands) - 1)))


KINDS = (
    Kind("embedding", _embedding, no_flops, _ids, light=False),
    Kind("embedding_bag", _embedding_bag, no_flops, _bag_saved, light=False),
    Kind("_embedding_bag", _embedding_bag, no_flops, _bag_saved, light=False),
    Kind("index", _index, no_flops, _indices, light=False),
    Kind("_unsafe_index", _index, no_flops, _indices, light=False),
    Kind("index_select", _index_select, no_flops, _ids, light=False),
    Kind("gather", _gather, no_flops, _ids, light=False),
    *(Kind(name, _scatter, no_flops, _scatter_saved, light=False) for name in ("scatter", "scatter_add")),
    *(Kind(name, _index_write, no_flops, _index_write_saved, light=False) for name in ("index_add", "index_copy")),
    Kind("index_put", _index_put, no_flops, _put_saved, light=False),
    Kind("one_hot", _one_hot, no_flops, keeps_nothing, light=False, differentiable=False),
)
