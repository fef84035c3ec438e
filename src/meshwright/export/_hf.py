"""What accelerate and transformers say alike: neither has pipelines, schedules or recomputation of parts; both step on batches that
a script brings, on modules that transformers builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from math import gcd, prod
from typing import Any

from .._words import count
from ..graph.zoo import by_name, own
from ..layouts.point import Point
from ..layouts.recognise import AXES
from ._hf_modules import tensor_rules
from ._words import divisors_near, neighbours
from .reading import in_order
from .said import Condition, Said
from .setup import Setup

RANKS = ("pp", *AXES)
"""Both count ranks along these, outer first: replicas of what is sharded, shards (experts inside), context, tensor."""
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
KEPT = {"zero": 3, "reshard": False}
"""As z2 runs on FSDP2: weights rest cut and are gathered once a micro-batch."""


def groups(setup: Setup) -> int:
    """Members over which weights, gradients and state could be cut."""
    p = setup.point
    return p.dp // p.replicate * p.ep * p.cp


def is_ours(setup: Setup) -> bool:
    """Whether the model is a module of ours, which transformers cannot build."""
    entry = by_name().get(setup.name)
    return entry is not None and str(entry.config["model_type"]) in own()


def devices(setup: Setup, called: str, axes: str, nearest: Mapping[str, Any]) -> Said:
    """`nearest`: degrees as they are run."""
    if setup.in_order(RANKS):
        return Said("devices", why=f"ranks are counted over {axes}, outer first")
    own = {f.name for f in fields(Point)}
    runs = replace(setup.point, **{key: value for key, value in nearest.items() if key in own})
    return Said(
        "devices", level="refused", runs_as={"devices": in_order(runs)},
        why=f"{called} counts ranks over {axes}, outer first; the plan has its devices in another order",
    )  # fmt: skip


def pipeline(setup: Setup, called: str, instead: str, nearest: dict[str, Any]) -> Iterator[Said]:
    """pp, chunks, stages, schedule."""
    p, m = setup.point, setup.layout.micro_batches
    if setup.stages > 1:
        have = f"pp {p.pp}" + (f" × {p.chunks} chunks" if p.chunks > 1 else "")
        layers = "-".join(str(len(share.layers)) for share in setup.shares)
        order = "a table of its own" if setup.layout.schedule.rows else f"schedule {p.schedule}"
        why = f"{called} has no pipeline to train with{instead}: the plan has {have} ({layers} layers, {order})"
        for word in ("pp", "chunks", "stages", "schedule"):
            yield Said(word, level="refused", why=why, runs_as=nearest)
        return
    for word in ("pp", "chunks", "stages"):
        yield Said(word, why="one stage")
    if setup.layout.schedule.rows:
        yield Said(
            "schedule", level="refused", runs_as={"schedule": "1f1b"},
            why=f"{called} runs micro-batches one after the other; the plan has a table of its own",
        )  # fmt: skip
    elif m > 1 and p.schedule != "1f1b":
        yield Said(
            "schedule", level="close", runs_as={"schedule": "1f1b"},
            why=f"micro-batches run one after the other, each forward and backward, not as {p.schedule} has them",
        )  # fmt: skip
    else:
        yield Said(
            "schedule", why="micro-batches one after the other, which is 1f1b on one stage", runs_as=_plain(setup)
        )


def _plain(setup: Setup) -> dict[str, Any]:
    return {} if setup.point.schedule == "1f1b" else {"schedule": "1f1b"}


def folded(setup: Setup, *axes: str) -> dict[str, Any]:
    """Devices of some of "pp", "ep" and "cp" as more replicas, with micro-batches that still split the batch if any do."""
    p, samples = setup.point, setup.layout.samples
    words: dict[str, Any] = {}
    if "pp" in axes and setup.stages > 1:
        words |= {"pp": 1, "chunks": 1, "schedule": "1f1b", "parts": (sum(setup.layout.parts),)}
    if "ep" in axes:
        words |= {"ep": 1, "whole_experts": False}
    if "cp" in axes:
        words["cp"] = 1
    words["dp"] = p.dp * prod(getattr(p, a) for a in axes)
    each, odd = divmod(samples, words["dp"] * words.get("ep", p.ep))
    return words | {"micro_batch": gcd(p.micro_batch, each) if each and not odd else p.micro_batch}


def recompute(setup: Setup, called: str, none: dict[str, Any], full: dict[str, Any]) -> Said:
    again = setup.point.recompute
    if again in ("none", "full"):
        return Said("recompute", none if again == "none" else full)
    return Said(
        "recompute", level="refused", runs_as={"recompute": "full"},
        why=f'{called} recomputes every layer whole or none: the plan has recompute "{again}"',
    )  # fmt: skip


def sequence(setup: Setup, called: str) -> Said:
    if not setup.point.sequence:
        return Said("sequence", why="off: transformers reserves enable_sequence_parallel and does nothing with it")
    return Said(
        "sequence", level="refused", runs_as={"sequence": False},
        why=f"{called} has no sequence parallelism beside tp (sp): transformers reserves enable_sequence_parallel and does nothing with it",
    )  # fmt: skip


def conditions() -> tuple[Condition, ...]:
    return (
        Condition("batch splits", _batch, unevenly=True),
        Condition("heads over tensor", _heads),
        Condition("key-value heads over tensor", _kv_heads),
        Condition("modules with rules", _modules),
    )


def _batch(s: Setup) -> str:
    each, samples = s.replicas * s.point.micro_batch, s.layout.samples
    if samples % each == 0:
        return ""
    return (
        f"a batch that splits over dp {s.replicas} × micro-batch {s.point.micro_batch}: {count(samples)} does not; use "
        f"{neighbours(samples, each)}"
    )


def _heads(s: Setup) -> str:
    n, tp = s.model.heads, s.point.tp
    return f"tp to divide the {n} heads: {tp} does not; use {divisors_near(n, tp)}" if n % tp else ""


def _kv_heads(s: Setup) -> str:
    """Not refused by transformers, which leaves keys cut inside of a head."""
    n, tp = s.model.kv_heads, s.point.tp
    return f"tp to divide the {n} key-value heads: {tp} does not; use {divisors_near(n, tp)}" if n % tp else ""


def _modules(s: Setup) -> str:
    if s.point.tp == 1 or s.model.heads % s.point.tp or s.model.kv_heads % s.point.tp:
        return ""
    if is_ours(s):
        return f"tp 1: {s.name} is no model of transformers, which alone has tensor parallelism here"
    why = tensor_rules(s).why_not
    return f"rules of transformers for what tp {s.point.tp} cuts, or tp 1: {why}" if why else ""
