"""From annotations to the shardings that propagation starts from; which runs of blocks are annotated alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import gcd, prod

from .._spelling import nearest
from ..cluster.model import Mesh
from ..errors import InputError
from ..graph.ir import Graph
from ..lower.atoms import FIXED, Atoms, Node, strides
from ..lower.halo import major
from ..plan.layout import explicit
from ..plan.model import Layout
from ..plan.problem import Annotation
from ._axes import Axes, Axis, merged, read_axis
from ._propagate import Dim, Sharding


def annotated(graph: Graph, mesh: Mesh, annotations: Sequence[Annotation]) -> dict[str, Annotation]:
    """Tensor -> the annotation that speaks of it; of an op's name, of its first result.

    Raises:
        InputError: a target that nothing matches, a layout that its tensor cannot have, two that say different things of one
            tensor (names both places).
    """
    sizes = {a: mesh.size(a) for a in mesh.axes}
    found: dict[str, Annotation] = {}
    first = {op.name: op.outputs[0] for op in graph.ops if op.outputs}
    for annotation in annotations:
        names = _matching(graph, first, annotation)
        for name in names:
            _check(graph.tensor[name].shape, name, annotation, sizes)
            known = found.setdefault(name, annotation)
            if known is not annotation and _said(known) != _said(annotation):
                raise InputError(
                    f'"{name}" is annotated twice, as {_words(known)} by {place(known)} and as {_words(annotation)} by '
                    f"{place(annotation)}: leave one of them out",
                    where=annotation.where,
                )
    return found


def place(annotation: Annotation) -> str:
    return annotation.where or f'the annotation of "{annotation.target}"'


def _said(a: Annotation) -> tuple[object, ...]:
    return a.layout, frozenset(a.open_dims), frozenset(a.never), a.priority


def _words(a: Annotation) -> str:
    """ "[x, y+z, _?]"."""
    if a.layout is None:
        return f"never over {', '.join(a.never)}"
    dims = []
    for d, subs in enumerate(a.layout.dims):
        cuts = "·".join("+".join(c.axis for c in cuts) or "_" for _, cuts in subs)
        dims.append(cuts + ("?" if d in a.open_dims else ""))
    return f"[{', '.join(dims)}]"


def _matching(graph: Graph, first: Mapping[str, str], annotation: Annotation) -> list[str]:
    target = graph.aliases.get(annotation.target, annotation.target)
    if target in graph.tensor:
        return [target]
    if target in first:
        return [first[target]]
    if any(c in target for c in "*?["):
        found = [t.name for t in graph.tensors if fnmatchcase(t.name, target)]
        found += [t for op, t in first.items() if fnmatchcase(op, target)]
        found += [name for alias, name in graph.aliases.items() if fnmatchcase(alias, target)]
        if found:
            return list(dict.fromkeys(found))
    near = nearest(target, [*graph.tensor, *first])
    hint = f'did you mean "{near}"?' if near else "name a tensor or an op, or a pattern such as *.mlp.up_proj.weight"
    raise InputError(f'{place(annotation)}: no tensor "{target}" in this model: {hint}', where=annotation.where)


def _check(shape: tuple[int, ...], name: str, annotation: Annotation, sizes: Mapping[str, int]) -> None:
    """Raises InputError unless `annotation` is a sharding of a tensor of `shape`."""
    at, layout = place(annotation), annotation.layout
    try:
        never = [read_axis(text, sizes) for text in annotation.never]
        if layout is None:
            return
        explicit(layout, shape)
        used = [read_axis(cut.axis, sizes) for dim in layout.dims for _, cuts in dim for cut in cuts]
    except InputError as error:
        raise InputError(f'{at}: "{name}": {error.message}', where=annotation.where) from error
    if layout.partial:
        raise InputError(f'{at}: "{name}": sums are completed by the op that makes them: leave partial axes out')
    if any(cut.weights for dim in layout.dims for _, cuts in dim for cut in cuts):
        raise InputError(f'{at}: "{name}": propagation knows equal cuts only: leave the weights out')
    for k, axis in enumerate(used):
        if any(axis.overlaps(other) for other in used[k + 1 :]):
            raise InputError(f'{at}: "{name}": axis "{axis.name}" is used twice: each axis cuts one dim of a tensor')
        if any(axis.overlaps(other) for other in never):
            raise InputError(f'{at}: "{name}": axis "{axis.name}" cuts it and never may: leave one of them out')
    for what, dims in (("open_dims", annotation.open_dims), ("priority", range(len(annotation.priority)))):
        if any(not 0 <= d < len(shape) for d in dims):
            raise InputError(f'{at}: "{name}": {what} names a dim that a tensor of {len(shape)} dims has not')
    if any(p < 0 for p in annotation.priority):
        raise InputError(f'{at}: "{name}": priority {list(annotation.priority)} has one below 0')


def of_dims(shape: tuple[int, ...], annotation: Annotation, sizes: Mapping[str, int]) -> Sharding:
    """The sharding of a tensor whose dims are not split."""
    layout = annotation.layout
    axes = [
        tuple(read_axis(cut.axis, sizes) for _, cuts in dim for cut in cuts)
        for dim in (layout.dims if layout else [()] * len(shape))
    ]
    return _sharding(annotation, [(d, own) for d, own in enumerate(axes)], sizes)


def of_atoms(atoms: Atoms, tensor: str, annotation: Annotation, sizes: Mapping[str, int]) -> Sharding:
    """The sharding of a tensor of a captured model, atom by atom.

    The axes of a dim go to the first of its atoms that they divide, of a fused weight not to the number of its parts.
    """
    shape = atoms.folded.graph.tensor[tensor].shape
    own, counts = atoms.size[tensor], atoms.dims[tensor]
    awkward = _awkward(atoms, tensor)
    layout = annotation.layout or Layout(tuple(((n, ()),) for n in shape))
    found: list[tuple[int, Axes]] = []
    at = 0
    for d, (subs, count) in enumerate(zip(explicit(layout, shape).dims, counts, strict=True)):
        mine = list(own[at : at + count])
        laid: list[Axes] = [()] * count
        steps = strides(mine)
        for (size, cuts), low in zip(subs, strides([n for n, _ in subs])):
            inside = [k for k, s in enumerate(steps) if low <= s < low * size and mine[k] > 1] if cuts else []
            if cuts and prod(mine[k] for k in inside) != size:
                raise InputError(
                    f'{place(annotation)}: "{tensor}" is cut on {size} of dim {d}, but its ops see that dim as '
                    f"{' · '.join(map(str, mine))}: cut at one of these"
                )
            axes = [read_axis(cut.axis, sizes) for cut in cuts]
            for k, got in zip(inside, _laid(axes, [mine[k] for k in inside], [awkward[at + k] for k in inside])):
                laid[k] = got
        found += [(d, x) for x in laid]
        at += count
    return _sharding(annotation, found, sizes)


def _sharding(annotation: Annotation, found: Iterable[tuple[int, Axes]], sizes: Mapping[str, int]) -> Sharding:
    """(dim of the tensor, axes) of each dim that propagation sees."""
    priority, free = annotation.priority, annotation.layout is None
    dims = tuple(
        Dim(axes, free or d in annotation.open_dims, priority[d] if d < len(priority) else 0) for d, axes in found
    )
    return Sharding(dims, tuple(read_axis(text, sizes) for text in annotation.never))


def _awkward(atoms: Atoms, tensor: str) -> list[int]:
    """Per atom of a tensor: 0, 1 where an op that it leads to cannot see it cut, 2 where its own maker or reader cannot."""
    found = [0] * len(atoms.size[tensor])

    def look(node: Node, mapping: Sequence[int]) -> None:
        for k, a in enumerate(mapping):
            found[k] = max(found[k], 2 if a == FIXED or not _seen(node, a) else int(a in node.awkward))

    maker = atoms.producer.get(tensor)
    if maker is not None:
        look(atoms.nodes[maker], atoms.nodes[maker].results[atoms.nodes[maker].outputs.index(tensor)])
    for n, k in atoms.users.get(tensor, ()):
        look(atoms.nodes[n], atoms.nodes[n].operands[k])
    return found


def _seen(node: Node, atom: int) -> bool:
    """Whether the op can be cut there; of a window on its major atom only."""
    kind = node.kind[atom]
    return kind in ("free", "stat") or (kind == "halo" and major(node, node.factor[atom]) == atom)


def _laid(axes: Sequence[Axis], sizes: list[int], awkward: Sequence[int]) -> list[Axes]:
    """Axes of one dim on its atoms: each on the first that it divides, else split over several, else on the largest.

    Args:
        awkward: only the least awkward atoms are cut.
    """
    order = [k for k in range(len(sizes)) if awkward[k] == min(awkward, default=0)]
    found: list[list[Axis]] = [[] for _ in sizes]
    waiting = list(axes)
    while waiting:
        axis = waiting.pop(0)
        k = next((k for k in order if sizes[k] % axis.size == 0), -1)
        if k < 0:
            k = next((k for k in order if gcd(sizes[k], axis.size) > 1), -1)
            share = gcd(sizes[k], axis.size) if k >= 0 else 1
            if share > 1:
                waiting.insert(0, axis.after(share))
                axis = axis.first(share)
            else:
                k = max(order, key=lambda j: sizes[j])
        found[k].append(axis)
        sizes[k] = -(-sizes[k] // axis.size)
    return [merged(x) for x in found]


def unequal_runs(graph: Graph, found: Mapping[str, Annotation]) -> frozenset[str]:
    """Runs of blocks that are annotated differently, which must be planned block by block."""
    unequal: set[str] = set()
    for run in graph.runs:
        for k in range(run.length):
            ops = [graph.ops[run.first + b * run.length + k] for b in range(run.count)]
            columns = [[op.outputs[j] for op in ops] for j in range(len(ops[0].outputs))]
            columns += [
                [op.inputs[j] for op in ops]
                for j, t in enumerate(ops[0].inputs)
                if graph.tensor[t].role in ("param", "buffer")
            ]
            for column in columns:
                said = {_said(found[t]) if t in found else None for t in column}
                if len(said) > 1:
                    unequal.add(run.name)
    return frozenset(unequal)


def renamed(annotation: Annotation, names: Mapping[str, str]) -> Annotation:
    """The same over other axes."""
    layout = annotation.layout
    if layout is not None:
        layout = Layout(
            tuple(
                tuple((n, tuple(replace(c, axis=names.get(c.axis, c.axis)) for c in cuts)) for n, cuts in dim)
                for dim in layout.dims
            )
        )
    return replace(annotation, layout=layout, never=tuple(names.get(a, a) for a in annotation.never))
