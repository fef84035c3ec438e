"""The promises of a cost model, each about one random question. A check raises `Broken` with what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..cluster.model import DeviceType, Mesh
from ..cost.base import CostModel, Group
from ..graph.ir import Floats, Ints, Op, Phase
from ._priced import KINDS, PHASES, Draw, Priced

SAME = 1e-9
"""Relative difference of two sums of the same numbers in another order."""
LEAST, MOST = 0.3, 100.0
"""A price in seconds is within these multiples of the nominal one: part of a transfer may hide, a rate may be missed."""
RUNGS = 100
"""Sizes that a check of growing bytes compares."""
LARGE_FLOPS, LARGE_BYTES = 1e11, 1e9
"""Work from which latencies do not count, so that nominal rates tell seconds from other units."""


class Broken(AssertionError):
    """A promise that does not hold."""


def _is(holds: bool, fault: str) -> None:
    if not holds:
        raise Broken(fault)


def _no_more(a: float, b: float, fault: str) -> None:
    """a ≤ b up to rounding."""
    _is(a <= b * (1 + SAME), f"{fault}: {a:.6g} after {b:.6g}")


def _asked(op: Op, phase: Phase, sizes: Ints) -> str:
    local = ", ".join(f"{f.name} {n}" for f, n in zip(op.rule.factors, sizes[0].tolist(), strict=True))
    return f"{phase} of {op.name} at {local}"


def _one(model: CostModel, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> float:
    return float(model.compute(op, sizes, device, phase, variant)[0])


def _collective(model: CostModel, kind: str, nbytes: float, group: Group) -> float:
    return float(model.collective(kind, np.array([nbytes]), group)[0])  # type: ignore[arg-type]


def _transfer(model: CostModel, nbytes: float, pair: Sequence[int], subject: Priced) -> float:
    return float(model.transfer(np.array([nbytes]), pair[0], pair[1], subject.cluster)[0])


def sound(subject: Priced, draw: Draw) -> None:
    """Every price is a finite number of the right shape that is not negative."""
    model, op, rows = subject.make(), draw.op(), draw.whole(1, 8)
    sizes, device, phase = draw.sizes(op, rows), draw.device(), draw.phase()
    variant = draw.variant(model, op, sizes)
    memory = model.memory(op, sizes, variant)
    moved = np.array([draw.nbytes() for _ in range(rows)])
    a, b = draw.pair()
    kind = draw.one_of(*KINDS)
    prices = {
        _asked(op, phase, sizes): model.compute(op, sizes, device, phase, variant),
        f"static memory of {op.name}": memory.static,
        f"kept memory of {op.name}": memory.kept,
        f"transient memory of {op.name}": memory.transient,
        "traffic": model.traffic(moved, device),
        f"{kind} of {moved[0]:g} bytes": model.collective(kind, moved, draw.group()),
        f"transfer from {a} to {b}": model.transfer(moved, a, b, subject.cluster),
    }
    for what, price in prices.items():
        found = np.asarray(price)
        _is(found.shape == (rows,), f"{what} has shape {found.shape} for {rows} questions: return one price for each")
        _is(bool(np.isfinite(found).all()), f"{what} is not finite: {found}")
        _is(bool((found >= 0).all()), f"{what} is below zero: {found}")


def arrays(subject: Priced, draw: Draw) -> None:
    """n questions at once are priced as one by one."""
    model, op, rows = subject.make(), draw.op(), draw.whole(2, 20)
    sizes, device, phase = draw.sizes(op, rows), draw.device(), draw.phase()
    moved = np.array([draw.nbytes() for _ in range(rows)])
    (a, b), kind, group = draw.pair(), draw.one_of(*KINDS), draw.group()
    asks: dict[str, Callable[[slice], Floats]] = {
        f"{phase} of {op.name}": lambda at: model.compute(op, sizes[at], device, phase),
        f"kept memory of {op.name}": lambda at: model.memory(op, sizes[at]).kept,
        f"transient memory of {op.name}": lambda at: model.memory(op, sizes[at]).transient,
        "traffic": lambda at: model.traffic(moved[at], device),
        kind: lambda at: model.collective(kind, moved[at], group),
        "transfer": lambda at: model.transfer(moved[at], a, b, subject.cluster),
    }
    for what, ask in asks.items():
        together = np.asarray(ask(slice(0, rows)))
        single = np.array([float(ask(slice(i, i + 1))[0]) for i in range(rows)])
        equal = np.allclose(together, single, rtol=SAME, atol=0.0)
        _is(equal, f"{what} as an array gives {together.tolist()}, one by one {single.tolist()}")


def repeatable(subject: Priced, draw: Draw) -> None:
    """A price depends on the question alone: not on earlier ones, not on a device's name; nor are arguments changed."""
    used, fresh = subject.make(), subject.make()
    op, device, phase = draw.op(), draw.device(), draw.phase()
    other = subject.faster(device, draw.factor(), draw.factor())
    sizes = draw.sizes(op)
    before = sizes.copy()
    used.compute(op, sizes, device, phase)
    _is(bool((sizes == before).all()), f"compute changed the sizes that it was given: {before} to {sizes}")
    again, new = (_one(m, op, sizes, other, phase) for m in (used, fresh))
    _is(
        abs(again - new) <= SAME * new,
        f"{_asked(op, phase, sizes)} on another {device.name} costs {again:.6g} once it was priced on the first, "
        f"else {new:.6g}: remember prices by the device's figures, not by its name",
    )
    kind, group, moved = draw.one_of(*KINDS), draw.group(), draw.nbytes()
    cluster = subject.faster_links(draw.factor(), 0)
    _collective(used, kind, moved, group)
    again, new = (_collective(m, kind, moved, replace(group, cluster=cluster)) for m in (used, fresh))
    _is(abs(again - new) <= SAME * new, f"{kind} costs {again:.6g} or {new:.6g}, by what was asked before")


def more_work(subject: Priced, draw: Draw) -> None:
    """A larger shard, and more traffic, take no less time; nor does a whole backward take less than one of its gradients."""
    model, op, device, phase = subject.make(), draw.op(), draw.device(), draw.phase()
    sizes = draw.sizes(op)
    variant, larger = draw.variant(model, op, sizes), draw.larger(op, sizes)
    a, b = (_one(model, op, s, device, phase, variant) for s in (sizes, larger))
    _no_more(a, b, f"{_asked(op, phase, larger)} is faster than at {sizes[0].tolist()}")
    whole, *halves = (_one(model, op, sizes, device, p) for p in ("backward", "input_grad", "weight_grad"))
    _no_more(max(halves), whole, f"{_asked(op, 'backward', sizes)} is faster than one gradient of it")
    moved = draw.nbytes()
    little, much = model.traffic(np.array([moved, moved * draw.factor()]), device)
    _no_more(float(little), float(much), "more traffic is faster")


def faster_device(subject: Priced, draw: Draw) -> None:
    """More FLOP/s or more memory bandwidth."""
    op, device, phase = draw.op(), draw.device(), draw.phase()
    sizes, peak, bandwidth, moved = draw.sizes(op), draw.factor(), draw.factor(), draw.nbytes()
    better = subject.faster(device, peak, bandwidth)
    model = subject.make()
    now, then = (_one(model, op, sizes, d, phase) for d in (device, better))
    what = f"with {peak:g} times the peak and {bandwidth:g} times the bandwidth"
    _no_more(then, now, f"{_asked(op, phase, sizes)} is slower {what}")
    slow, fast = (float(model.traffic(np.array([moved]), d)[0]) for d in (device, better))
    _no_more(fast, slow, f"traffic is slower {what}")


def memory(subject: Priced, draw: Draw) -> None:
    model, op = subject.make(), draw.op()
    sizes = draw.sizes(op)
    variant = draw.variant(model, op, sizes)
    small, large = (model.memory(op, s, variant) for s in (sizes, draw.larger(op, sizes)))
    for what in ("static", "kept", "transient"):
        a, b = (float(getattr(m, what)[0]) for m in (small, large))
        _no_more(a, b, f"{what} memory of {op.name} falls as its shard grows")


def seconds(subject: Priced, draw: Draw) -> None:
    """Large amounts of work take about as long as the nominal rates say, where the cluster states them."""
    model = subject.make()
    if model.unit != "s":
        return
    op, device = draw.op(), draw.device()
    if op.flops >= LARGE_FLOPS and device.peak:
        full = np.array([[f.size for f in op.rule.factors]])
        rates = op.flops / np.array(list(device.peak.values()))
        _near(_one(model, op, full, device, "forward"), rates.min(), rates.max(), f"forward of {op.name}")
    if device.bandwidth:
        nominal = LARGE_BYTES / device.bandwidth
        _near(float(model.traffic(np.array([LARGE_BYTES]), device)[0]), nominal, nominal, "1 GB of traffic")
    if subject.cluster.links or not subject.cluster.levels:
        return
    level = subject.cluster.levels[0]
    members = min(level.size, subject.cluster.count)
    if members > 1:
        nominal = LARGE_BYTES * (members - 1) / members / level.bandwidth
        group = Group(subject.cluster, Mesh(range(members), ("a",), (members,)), ("a",))
        _near(
            _collective(model, "all_gather", LARGE_BYTES, group), nominal, nominal, f"all_gather of 1 GB by {members}"
        )
        nominal = LARGE_BYTES / (level.pair or level.bandwidth)
        _near(_transfer(model, LARGE_BYTES, (0, 1), subject), nominal, nominal, "a transfer of 1 GB")


def _near(price: float, least: float, most: float, what: str) -> None:
    _is(
        LEAST * least <= price <= MOST * most,
        f"{what} costs {price:.4g} where nominal rates say {least:.4g} s to {most:.4g} s: return seconds",
    )


def more_bytes(subject: Priced, draw: Draw) -> None:
    """Along a ladder of sizes, from a few bytes to many."""
    model, kind, group, (a, b) = subject.make(), draw.one_of(*KINDS), draw.group(), draw.pair()
    ladder = draw.factor() * np.geomspace(1.0, draw.nbytes(), RUNGS)
    for what, price in (
        (kind, model.collective(kind, ladder, group)),
        ("a transfer", model.transfer(ladder, a, b, subject.cluster)),
    ):
        falls = np.flatnonzero(price[1:] < price[:-1] * (1 - SAME))
        if len(falls):
            k = int(falls[0])
            _no_more(
                float(price[k]), float(price[k + 1]), f"{what} of {ladder[k + 1]:g} bytes is faster than {ladder[k]:g}"
            )


def more_members(subject: Priced, draw: Draw) -> None:
    """Of one switched node; pairwise wires and NICs of whole nodes legally give more members more bandwidth."""
    levels = subject.cluster.levels
    if subject.cluster.links or not levels or levels[0].pair or not levels[0].size:
        return
    most = min(levels[0].size, subject.cluster.count, 64)
    few = draw.whole(1, most)
    more = draw.whole(few, most)
    kind, moved, model = draw.one_of(*KINDS), draw.nbytes(), subject.make()
    groups = (Group(subject.cluster, Mesh(range(n), ("a",), (n,)), ("a",)) for n in (few, more))
    a, b = (_collective(model, kind, moved, group) for group in groups)
    _no_more(a, b, f"{kind} of {moved:g} bytes by {more} members of a node is faster than by {few}")


def faster_links(subject: Priced, draw: Draw) -> None:
    model, moved, factor = subject.make(), draw.nbytes(), draw.factor()
    kind, group, (a, b) = draw.one_of(*KINDS), draw.group(), draw.pair()
    better = subject.faster_links(factor, draw.whole(0, max(0, len(subject.cluster.levels) - 1)))
    slow, fast = (_collective(model, kind, moved, replace(group, cluster=c)) for c in (subject.cluster, better))
    _no_more(fast, slow, f"{kind} is slower with {factor:g} times the bandwidth")
    slow, fast = (float(model.transfer(np.array([moved]), a, b, c)[0]) for c in (subject.cluster, better))
    _no_more(fast, slow, f"a transfer is slower with {factor:g} times the bandwidth")


def nothing_moves(subject: Priced, draw: Draw) -> None:
    """No bytes, a group of one, one and the same device."""
    model, kind, group, (a, b) = subject.make(), draw.one_of(*KINDS), draw.group(), draw.pair()
    free = {
        f"{kind} of no bytes": _collective(model, kind, 0.0, group),
        f"{kind} of a group of one": _collective(
            model, kind, draw.nbytes(), Group(subject.cluster, Mesh((a,), ("a",), (1,)), ("a",))
        ),
        "a transfer of no bytes": _transfer(model, 0.0, (a, b), subject),
        "a transfer to the same device": _transfer(model, draw.nbytes(), (a, a), subject),
    }
    for what, price in free.items():
        _is(price == 0.0, f"{what} costs {price:g}, not 0")


def both_ways(subject: Priced, draw: Draw) -> None:
    a, b = draw.pair()
    one, other = (subject.cluster.link_between.get(pair) for pair in ((a, b), (b, a)))
    alike = subject.cluster.type_of(a).family == subject.cluster.type_of(b).family
    if (one and one.bandwidth) != (other and other.bandwidth) or not alike:
        return
    model, moved = subject.make(), draw.nbytes()
    there, back = (_transfer(model, moved, pair, subject) for pair in ((a, b), (b, a)))
    _is(abs(there - back) <= SAME * there, f"{moved:g} bytes from {a} to {b} cost {there:.6g}, back {back:.6g}")


def step_terms(subject: Priced, draw: Draw) -> None:
    """Overlaps lie in 0…1; overheads and floors are not negative and do not fall with devices and ops; so does `packed`."""
    model, device = subject.make(), draw.device()
    for kind in ("data", "tensor", "sharded"):
        share = model.overlap(kind)
        _is(0.0 <= share <= 1.0, f"overlap({kind!r}) is {share:g}, no share")
    few = draw.whole(1, 1 << 14)
    more = draw.whole(few, 1 << 14)
    (factor, fixed), (larger, longer) = model.step_overhead(few), model.step_overhead(more)
    _is(factor >= 1.0 and fixed >= 0.0, f"step_overhead({few}) is {factor:g}, {fixed:g}: a factor ≥ 1 and seconds ≥ 0")
    _no_more(factor, larger, f"step_overhead falls from {few} to {more} devices")
    _no_more(fixed, longer, f"step_overhead falls from {few} to {more} devices")
    for phase in PHASES[:2]:
        one, all_ = (model.launch_floor(ops, device, phase) for ops in (subject.ops[:1], subject.ops))
        _is(one >= 0.0, f"launch_floor is below zero: {one:g}")
        _no_more(one, all_, "launch_floor falls with more ops")
    op = draw.op()
    sizes, share = draw.sizes(op), draw.whole(1, 100) / 100.0
    left = float(np.max(model.packed(op, sizes, share)))
    _is(0.0 < left <= 1.0 + SAME, f"packed({op.name}, share {share:g}) is {left:g}, no share")


CHECKS: dict[str, Callable[[Priced, Draw], None]] = {
    "finite, never below zero": sound,
    "arrays equal single prices": arrays,
    "same question, same answer": repeatable,
    "more work never faster": more_work,
    "faster device never slower": faster_device,
    "larger shard, no less memory": memory,
    "seconds are seconds": seconds,
    "more bytes never faster": more_bytes,
    "more members never faster": more_members,
    "faster links never slower": faster_links,
    "nothing to move is free": nothing_moves,
    "the same there and back": both_ways,
    "shares are shares": step_terms,
}
