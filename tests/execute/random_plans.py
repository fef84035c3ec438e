"""Random legal plans: each op and each axis a random legal cut."""

from __future__ import annotations

import random
from dataclasses import replace
from math import prod

from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph, Op
from meshwright.graph.saved import needs_grad
from meshwright.lower.apart import alone
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.plan.schedules import conditions

LEGAL = ("free", "stat")


def random_sharding(op: Op, mesh: Mesh, rng: random.Random, uneven: bool, legal: tuple[str, ...] = LEGAL) -> OpSharding:
    left = {f.name: f.size for f in op.rule.factors if f.kind in legal}
    cuts: dict[str, tuple[Cut, ...]] = {}
    for axis in rng.sample(mesh.axes, len(mesh.axes)):
        n = mesh.size(axis)
        fit = [name for name, size in left.items() if (size >= n if uneven else size % n == 0)]
        if fit and rng.random() < 0.8:
            name = rng.choice(fit)
            left[name] = -(-left[name] // n)
            cuts[name] = (*cuts.get(name, ()), Cut(axis))
    return OpSharding(cuts)


def random_plan(
    graph: Graph,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    micro_batches: int,
    seed: int,
    *,
    uneven: bool = False,
    legal: tuple[str, ...] = LEGAL,
) -> Plan:
    rng = random.Random(seed)
    mesh = Mesh(range(prod(shape)), axes, shape)
    shardings = {op.name: random_sharding(op, mesh, rng, uneven, legal) for op in graph.ops}
    stage = Stage(tuple(op.name for op in graph.ops), mesh, shardings)
    return Plan(graph.digest, graph.samples * micro_batches, (stage,), Schedule("gpipe", micro_batches))


def weighted_plan(graph: Graph, shape: tuple[int, ...], micro_batches: int, seed: int, *, rest: bool = True) -> Plan:
    """`random_plan` whose cuts are of random unequal parts, some of them empty; with `rest` also of parameters and activations
    at rest. Windows take equal parts."""
    rng = random.Random(f"weighted {seed}")
    plan = random_plan(graph, shape, ("x", "y", "z")[: len(shape)], micro_batches, seed, uneven=True)
    (stage,) = plan.stages
    sizes = dict(zip(stage.mesh.axes, stage.mesh.shape, strict=True))

    def some(cuts: tuple[Cut, ...]) -> tuple[Cut, ...]:
        return tuple(Cut(c.axis, unequal(rng, sizes[c.axis])) if rng.random() < 0.7 else c for c in cuts)

    windows = {f"{op.name}:{f.name}" for op in graph.ops for f in op.rule.factors if f.kind == "halo"}
    shardings = {
        op: OpSharding({f: cuts if f"{op}:{f}" in windows else some(cuts) for f, cuts in own.cuts.items()})
        for op, own in stage.shardings.items()
    }
    own = [t for t in graph.tensors if t.role == "param" or t.name in graph.producer]
    storage, layouts = {}, {}
    for t in own if rest else []:
        dims = [d for d, n in enumerate(t.shape) if n >= 2]
        if not dims or "float" not in t.dtype or rng.random() < 0.6:
            continue
        at = rng.choice(dims)
        held = Layout(
            tuple(((0, some((Cut(rng.choice(stage.mesh.axes)),)) if d == at else ()),) for d in range(len(t.shape)))
        )
        if t.role == "param":
            storage[t.name] = Storage(held)
        elif t.name != graph.loss:
            layouts[t.name] = held
    return replace(plan, stages=(replace(stage, shardings=shardings, storage=storage, layouts=layouts),))


def unequal(rng: random.Random, n: int) -> tuple[int, ...]:
    """Weights of n parts, not all of them nothing."""
    found = [rng.choice((0, 1, 1, 2, 3, 5)) for _ in range(n)]
    return tuple(found) if any(found) else unequal(rng, n)


MESHES: tuple[tuple[int, ...], ...] = ((2,), (2, 2), (4,), (2, 2, 2))
RANKS = (2, 4, 8)


def wild_plan(graph: Graph, ranks: int, micro_batches: int, seed: int) -> Plan:
    """Everything at random: stages cut at any op, schedule, cuts of each op, rest of activations and parameters,
    gradients and optimizer state, what runs again; evenly or not."""
    rng = random.Random(f"{seed}/{ranks}")
    uneven = rng.random() < 0.3
    depth = rng.choice([d for d in (1, 1, 2, 4) if d <= ranks])
    shape = rng.choice([m for m in ((1,), *MESHES) if prod(m) == ranks // depth])
    axes = ("x", "y", "z")[: len(shape)]
    schedule, chunks = _schedule(depth, micro_batches, rng)
    count = depth * chunks
    borders = [0, *sorted(rng.sample(range(1, len(graph.ops)), count - 1)), len(graph.ops)]
    first = Mesh(range(prod(shape)), axes, shape)
    shardings = {op.name: random_sharding(op, first, rng, uneven) for op in graph.ops}
    layouts = {
        t.name: random_rest(t.shape, first, rng, uneven)
        for t in graph.tensors
        if t.role == "activation" and t.shape and rng.random() < 0.1
    }
    storage = {t.name: random_storage(t.shape, first, rng, uneven) for t in graph.params() if rng.random() < 0.5}
    again = rng.choice((0.0, 0.0, 0.3, 1.0))
    stages = []
    for s in range(count):
        rank, ops = s % depth, [op.name for op in graph.ops[borders[s] : borders[s + 1]]]
        mesh = Mesh(range(rank * prod(shape), (rank + 1) * prod(shape)), axes, shape)
        recompute = frozenset(name for name in ops if rng.random() < again)
        stages.append(Stage(tuple(ops), mesh, shardings, layouts, storage, recompute))
    args = {"v": chunks} if chunks > 1 else {}
    return Plan(graph.digest, graph.samples * micro_batches, tuple(stages), Schedule(schedule, micro_batches, args))


def _schedule(depth: int, micro_batches: int, rng: random.Random) -> tuple[str, int]:
    """(name, chunks a rank) of a table that exists for so many ranks."""
    known = [("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("interleaved", 2), ("bfs", 2)]
    return rng.choice([(name, v) for name, v in known if not conditions(name, depth, micro_batches, v)])


def _grown(cuts: list[tuple[Cut, ...]], shape: tuple[int, ...], mesh: Mesh, rng: random.Random, uneven: bool) -> None:
    """Cuts one dim further over an axis that cuts none yet, if there is one."""
    used = {c.axis for dim in cuts for c in dim}
    axis = rng.choice([a for a in mesh.axes if a not in used] or [""])
    left = list(shape)
    for d, dim in enumerate(cuts):
        for c in dim:
            left[d] = -(-left[d] // mesh.size(c.axis))
    n = mesh.size(axis) if axis else 1
    fit = [d for d, size in enumerate(left) if (size >= n if uneven else size % n == 0)]
    if n > 1 and fit:
        d = rng.choice(fit)
        cuts[d] = (*cuts[d], Cut(axis))


def _layout(shape: tuple[int, ...], cuts: list[tuple[Cut, ...]]) -> Layout:
    return Layout(tuple(((n, own),) for n, own in zip(shape, cuts, strict=True)))


def random_rest(shape: tuple[int, ...], mesh: Mesh, rng: random.Random, uneven: bool) -> Layout:
    cuts: list[tuple[Cut, ...]] = [()] * len(shape)
    for _ in range(rng.randrange(len(mesh.axes) + 1)):
        _grown(cuts, shape, mesh, rng, uneven)
    return _layout(shape, cuts)


def random_storage(shape: tuple[int, ...], mesh: Mesh, rng: random.Random, uneven: bool) -> Storage:
    """At rest, as gradient and as state: each cut as the one before, perhaps further."""
    cuts: list[tuple[Cut, ...]] = [()] * len(shape)
    found = []
    for _ in range(3):
        if rng.random() < 0.5:
            _grown(cuts, shape, mesh, rng, uneven)
        found.append(_layout(shape, cuts))
    return Storage(*found)


def with_gradients(
    plan: Plan,
    graph: Graph,
    seed: int,
    *,
    uneven: bool = False,
    share: float = 0.7,
    legal: tuple[str, ...] = LEGAL,
    rest: float = 0.0,
) -> Plan:
    """`plan` with random cuts of this share of the gradients: of products each alone, of other ops all alike. `rest`: share
    of activations whose gradients rest at random."""
    rng = random.Random(f"gradients {seed}")

    weights = {t.name for t in graph.tensors if t.role in ("param", "buffer")}
    for op in graph.ops:
        if all(t in weights for t in op.inputs):
            weights.update(op.outputs)

    def gradients(op: Op, own: OpSharding, mesh: Mesh) -> OpSharding:
        if all(t in weights for t in op.inputs):
            return own
        every = range(len(op.inputs))
        if alone(op):
            found = {k: random_sharding(op, mesh, rng, uneven, legal).cuts for k in every if rng.random() < share}
        else:
            found = dict.fromkeys(
                every if rng.random() < share else (), random_sharding(op, mesh, rng, uneven, legal).cuts
            )
        return replace(own, backward=found)

    learned = needs_grad(graph)
    wanted = [
        t for t in graph.tensors
        if t.role == "activation" and t.shape and t.name in learned and t.name in graph.consumers and t.name != graph.loss
        and t.name not in weights
    ]  # fmt: skip
    resting = {t.name: t for t in wanted if rng.random() < rest}

    stages = []
    for stage in plan.stages:
        first = {graph.ops[k].name for k in graph.representative}
        shardings = {
            op.name: gradients(op, stage.shardings.get(op.name, OpSharding()), stage.mesh)
            for op in graph.ops
            if op.name in stage.shardings or op.name in first
        }
        own = {name: random_rest(t.shape, stage.mesh, rng, uneven) for name, t in resting.items()}
        stages.append(replace(stage, shardings=shardings, gradients=own))
    return replace(plan, stages=tuple(stages))
