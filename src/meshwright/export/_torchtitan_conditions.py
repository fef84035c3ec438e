"""What torchtitan demands of a layout, each a sentence when broken.

Sources: 0.3.0 trainer.py, models/common/decoder.py, distributed/parallel_dims.py; main config/validation.py at 0276e6e.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._words import count
from .model import parts_of
from .said import Condition
from .setup import Setup


def conditions_of(later: bool) -> Sequence[Condition]:
    """Of 0.3.0, or of the later main."""
    found: list[tuple[str, Callable[[Setup], str]]] = [
        ("batch splits", _batch_splits),
        ("sequence splits", _sequence_splits),
        ("heads over tp", _heads_over_tp),
        ("experts split", _experts_split),
        ("tied embeddings", _tied_embeddings),
        ("layers for stages", _layers_for_stages),
        ("whole nodes", _whole_nodes),
    ]
    if later:
        found += [("heads over cp", _heads_over_cp), ("experts over tp", _experts_over_tp), ("tokens", _tokens)]
    return tuple(Condition(name, broken) for name, broken in found)


def _either(n: int, unit: int) -> str:
    """The multiples of `unit` below and above `n`: "960 or 1,024"."""
    below = n // unit * unit
    return f"{count(below)} or {count(below + unit)}" if below else count(unit)


def _batch_splits(setup: Setup) -> str:
    p, m, samples = setup.point, setup.layout.micro_batches, setup.layout.samples
    unit = setup.replicas * p.micro_batch * m
    if samples == unit:
        return ""
    each = setup.replicas * p.micro_batch
    return (
        f"a batch that splits over dp {setup.replicas} × micro-batch {p.micro_batch}: {count(samples)} does not; use "
        f"{_either(samples, each)} (our own runner takes it, unevenly)"
    )


def _sequence_splits(setup: Setup) -> str:
    p, seq = setup.point, setup.model.seq
    unit = (p.tp if p.sequence else 1) * (2 * p.cp if p.cp > 1 else 1)
    if not seq or seq % unit == 0:
        return ""
    parts = [f"tp {p.tp}"] * p.sequence + [f"2 × cp {p.cp}"] * (p.cp > 1)
    return f"sequences in a multiple of {unit} ({' × '.join(parts)}): {count(seq)} is not; use {_either(seq, unit)}"


def _heads_over_tp(setup: Setup) -> str:
    tp, model = setup.point.tp, setup.model
    for what, n in (("heads", model.heads), ("key-value heads", model.kv_heads)):
        if n and n % tp:
            return f"{what} that tp {tp} divides: {n} are not; use tp {_divisor(n, tp)}"
    return ""


def _heads_over_cp(setup: Setup) -> str:
    p, model = setup.point, setup.model
    if p.cp == 1 or p.context != "ulysses":
        return ""
    for what, n in (("heads", model.heads), ("key-value heads", model.kv_heads)):
        if n and n % (p.tp * p.cp):
            return f"{what} that tp {p.tp} × cp {p.cp} divides for Ulysses: {n} are not; use a cp whose product with tp divides {n}"
    return ""


def _experts_split(setup: Setup) -> str:
    p, experts = setup.point, setup.model.experts
    degree = p.ep * p.tp if p.whole_experts or p.ep > 1 else 1
    if not experts or experts % degree == 0:
        return ""
    return f"experts that ep {degree} divides (ep {p.ep} × tp {p.tp}): {experts} are not; use ep × tp {_divisor(experts, degree)}"


def _experts_over_tp(setup: Setup) -> str:
    p = setup.point
    if not setup.model.experts or p.tp == 1 or p.ep > 1 or p.whole_experts:
        return ""
    return f"expert_parallel_degree of at least tp {p.tp} where a model has experts: it is 1; use whole experts on the ranks of tp"


def _tied_embeddings(setup: Setup) -> str:
    if not setup.model.tied or setup.point.pp == 1:
        return ""
    return f"pp 1 for a model whose embedding and head share weights, or a head of its own: the plan has pp {setup.point.pp}"


def _layers_for_stages(setup: Setup) -> str:
    if setup.point.pp == 1:
        return ""
    if setup.model.layers:
        try:
            parts_of(setup.expert, tuple(len(share.layers) for share in setup.shares))
        except ValueError as error:
            return f"stages of whole layers: {error}"
        return ""
    return f"a stack of layers to cut into stages: the model has none, the plan has pp {setup.point.pp}; use pp 1"


def _whole_nodes(setup: Setup) -> str:
    node, world = setup.problem.cluster.node_size, setup.world
    if world <= node or world % node == 0:
        return ""
    return f"whole nodes of {node} devices (torchrun): {count(world)} are not; use {_either(world, node)}"


def _tokens(setup: Setup) -> str:
    return "" if setup.model.seq else "a model that takes tokens: it counts its batch in them"


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`."""
    return max(d for d in range(1, most + 1) if n % d == 0)
