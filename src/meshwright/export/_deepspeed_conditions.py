"""What DeepSpeed demands of degrees, batch and model (its own checks; files of 0.19.8)."""

from __future__ import annotations

from .._words import count
from ._deepspeed_stages import method_for
from ._sides import sides_of
from ._words import divisors_near, neighbours
from .said import Condition
from .setup import Setup


def expert_ranks(setup: Setup) -> int:
    """Members over which AutoEP deals experts: with autotp its groups span the tensor-parallel ranks too."""
    p = setup.point
    return p.ep * (p.tp if p.whole_experts else 1)


def _batch(setup: Setup) -> str:
    """runtime/config.py: train_batch_size = micro-batch × accumulation × world."""
    p, samples = setup.point, setup.layout.samples
    each = setup.replicas * p.micro_batch
    if samples % each == 0 and samples:
        return ""
    return (
        f"a batch that splits over {setup.replicas} replicas × micro-batch {p.micro_batch}: {count(samples)} does not; use "
        f"{neighbours(samples, each)}"
    )


def _pipeline_zero(setup: Setup) -> str:
    """runtime/pipe/engine.py asserts it."""
    p = setup.point
    return f"ZeRO stage 0 or 1 in a pipeline: it is {p.zero}" if p.pp > 1 and p.zero > 1 else ""


def _pipeline_alone(setup: Setup) -> str:
    """Groups of autotp and Ulysses span all ranks (utils/groups.py, sequence_parallel/parallel_state_sp.py), and a
    `PipelineModule` brings a grid of its own (__init__.py: "mpu must be None with pipeline parallelism")."""
    p = setup.point
    if p.pp == 1 or (p.tp == 1 and p.cp == 1):
        return ""
    other = f"autotp_size {p.tp}" if p.tp > 1 else f"sequence_parallel_size {p.cp}"
    return f"a pipeline without {other}: its groups span all stages; use pp 1, or {'tp' if p.tp > 1 else 'cp'} 1"


def _one_kind(setup: Setup) -> str:
    """autotp replaces the groups that Ulysses registers (runtime/engine.py; auto_ep_folding.py refuses both)."""
    p = setup.point
    both = p.tp > 1 and p.cp > 1
    return f"autotp or Ulysses, not both: it is tp {p.tp} with cp {p.cp}; use tp 1 or cp 1" if both else ""


def _ulysses_heads(setup: Setup) -> str:
    """sequence_parallel/ulysses_sp.py."""
    cp, heads, kv = setup.point.cp, setup.model.heads, setup.model.kv_heads
    if cp == 1 or (heads % cp == 0 and (kv % cp == 0 or cp % kv == 0)):
        return ""
    if heads % cp:
        return f"heads that split over sequence_parallel_size {cp}: {heads} do not; use {divisors_near(heads, cp)}"
    return f"key-value heads that sequence_parallel_size {cp} divides or that divide it: {kv} do neither; use {divisors_near(kv, cp)}"


def _ulysses_positions(setup: Setup) -> str:
    cp, seq = setup.point.cp, setup.model.seq
    if cp == 1 or seq % cp == 0:
        return ""
    return f"a sequence that splits over sequence_parallel_size {cp}: {count(seq)} does not; use {neighbours(seq, cp)}"


def _kv_heads(setup: Setup) -> str:
    """runtime/engine.py warns: ranks beyond the key-value heads hold no attention, which is not what the plan is."""
    tp, kv = setup.point.tp, setup.model.kv_heads
    if tp == 1 or not kv or kv % tp == 0:
        return ""
    return f"key-value heads that split over autotp_size {tp}, or ranks have none: {kv} do not; use {divisors_near(kv, tp)}"


def _fused(setup: Setup) -> str:
    """module_inject/auto_tp.py: sub-parameters are cut for `Linear` only."""
    if setup.point.tp == 1:
        return ""
    odd = next((s for s in sides_of(setup) if s.transposed and s.parts > 1), None)
    if odd is None:
        return ""
    return (
        f"a Linear where {odd.parts} matrices are fused into one: {odd.module} holds input × output (Conv1D); use tp 1"
    )


def _experts(setup: Setup) -> str:
    """module_inject/auto_ep_config.py."""
    ranks, experts = expert_ranks(setup), setup.model.experts
    if ranks == 1 or experts % ranks == 0:
        return ""
    return f"experts that split over autoep_size {ranks}: {experts} do not; use {divisors_near(experts, ranks)}"


def _experts_zero_3(setup: Setup) -> str:
    """runtime/engine.py: AutoEP with ZeRO 3."""
    p = setup.point
    if p.zero < 3 or expert_ranks(setup) == 1 or p.cp == 1:
        return ""
    return f"ZeRO stage 2 or less where AutoEP meets Ulysses: it is 3 with sequence_parallel_size {p.cp}"


def _stages(setup: Setup) -> str:
    """runtime/pipe/module.py: three methods, no list of cuts."""
    p = setup.point
    if p.pp == 1 or p.chunks > 1 or method_for(setup):
        return ""
    held = "-".join(str(len(s.layers)) for s in setup.shares)
    return f"stages that one of its partition methods makes (type, parameters, uniform): none makes {held} layers"


CONDITIONS = (
    Condition("batch splits", _batch, unevenly=True),
    Condition("ZeRO in a pipeline", _pipeline_zero),
    Condition("pipeline alone", _pipeline_alone),
    Condition("autotp or Ulysses", _one_kind),
    Condition("Ulysses heads", _ulysses_heads),
    Condition("Ulysses positions", _ulysses_positions),
    Condition("autotp key-value heads", _kv_heads),
    Condition("autotp fused matrices", _fused),
    Condition("experts split", _experts),
    Condition("AutoEP with ZeRO 3", _experts_zero_3),
    Condition("stages of a method", _stages),
)
