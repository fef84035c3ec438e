"""What MaxText demands of degrees, batch and model (configs/types.py, layers/attention_op.py of 0.2.5; JAX cuts weights evenly)."""

from __future__ import annotations

from .._words import count
from ._needs import decoder
from ._words import divisors_near, neighbours
from .said import Condition
from .setup import Setup


def hardware(setup: Setup) -> str:
    """gpu, tpu or cpu."""
    kind = setup.problem.cluster.types[0].kind
    return kind if kind in ("gpu", "tpu", "cpu") else "gpu"


def _batch(setup: Setup) -> str:
    """global batch = devices × per_device_batch_size × gradient_accumulation_steps, in whole samples a replica."""
    p, samples = setup.point, setup.layout.samples
    each = setup.replicas * p.micro_batch
    if samples and samples % each == 0:
        return ""
    return (
        f"a batch that splits over {setup.replicas} replicas × micro-batch {p.micro_batch}: {count(samples)} does not; use "
        f"{neighbours(samples, each)}"
    )


def _layers(setup: Setup) -> str:
    """stages × repeats × layers per stage = pipeline_parallel_layers."""
    p, layers = setup.point, len(setup.model.layers)
    if p.pp == 1 or layers % (p.pp * p.chunks) == 0:
        return ""
    return (
        f"layers that split over {p.pp} stages × {p.chunks} repeats: {layers} do not; use {divisors_near(layers, p.pp * p.chunks)} "
        "stages in all"
    )


def _pipeline_micro_batches(setup: Setup) -> str:
    p, m = setup.point, setup.layout.micro_batches
    if p.pp == 1 or m % p.pp == 0:
        return ""
    return f"micro-batches of a step that split over {p.pp} stages: {m} do not; use {neighbours(m, p.pp)}"


def _heads(setup: Setup) -> str:
    """Weights of heads are cut evenly or not at all."""
    tp, heads, kv = setup.point.tp, setup.model.heads, setup.model.kv_heads
    if tp == 1 or (heads % tp == 0 and kv % tp == 0):
        return ""
    n, what = (heads, "heads") if heads % tp else (kv, "key-value heads")
    return f"{what} that split over tensor parallelism {tp}: {n} do not; use {divisors_near(n, tp)}"


def _vocabulary(setup: Setup) -> str:
    tp, rows = setup.point.tp, setup.model.vocabulary
    if tp == 1 or rows % tp == 0:
        return ""
    return f"a vocabulary that splits over tensor parallelism {tp}: {count(rows)} does not; use {neighbours(rows, tp)}"


def _positions(setup: Setup) -> str:
    p, seq = setup.point, setup.model.seq
    each = p.cp * (p.tp if p.sequence else 1)
    if each == 1 or seq % each == 0:
        return ""
    return f"a sequence that splits over {each} ranks (context, sequence): {count(seq)} does not; use {neighbours(seq, each)}"


def _ulysses_heads(setup: Setup) -> str:
    """kernels/attention/ulysses_attention.py: heads and key-value heads of a tensor-parallel rank, and more than one of these."""
    p, heads, kv = setup.point, setup.model.heads, setup.model.kv_heads
    if p.cp == 1 or p.context != "ulysses":
        return ""
    if kv == 1:
        return "more than one key-value head for context_parallel_strategy=ulysses: use all_gather (context gather)"
    each = p.cp * p.tp
    if heads % each == 0 and kv % each == 0:
        return ""
    n, what = (heads, "heads") if heads % each else (kv, "key-value heads")
    return f"{what} that split over context {p.cp} × tensor {p.tp} (ulysses): {n} do not; use {divisors_near(n, each)} in all"


def _ulysses_hardware(setup: Setup) -> str:
    """layers/attention_op.py: "only supported on TPU"."""
    p = setup.point
    if p.cp == 1 or p.context != "ulysses" or hardware(setup) == "tpu":
        return ""
    return f"TPUs for context_parallel_strategy=ulysses: {setup.problem.cluster.name} has none; use all_gather (context gather)"


def _experts(setup: Setup) -> str:
    ep, experts = setup.point.ep, setup.model.experts
    if ep == 1 or experts % ep == 0:
        return ""
    return f"experts that split over expert parallelism {ep}: {experts} do not; use {divisors_near(experts, ep)}"


CONDITIONS = (
    Condition("decoder", decoder),
    Condition("batch splits", _batch),
    Condition("layers split", _layers),
    Condition("pipeline micro-batches", _pipeline_micro_batches),
    Condition("heads split", _heads),
    Condition("vocabulary splits", _vocabulary),
    Condition("positions split", _positions),
    Condition("Ulysses heads", _ulysses_heads),
    Condition("Ulysses on TPU", _ulysses_hardware),
    Condition("experts split", _experts),
)
