"""What Megatron makes of each word of a plan, in fields of its configurations; megatron and megatron_bridge spell them.

Read in megatron-core 0.19.2: training/arguments.py, core/{model_parallel_config,parallel_state}.py,
core/transformer/transformer_config.py, core/pipeline_parallel/schedules.py, core/distributed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._words import count
from ..errors import InputError
from ..layouts.again import FIRST
from ..plan.model import Schedule
from ..plan.schedules import rows_of
from . import _megatron_layout as layout
from .reading import in_order
from .said import Said
from .setup import Setup

OWN = ("pp", "dpr", "dp", "ep", "cp", "tp")
"""Order of ranks, outer first: "tp-cp-ep-dp-pp" in its own words, which begin inside."""
TURNED = ("dpr", "dp", "pp", "ep", "cp", "tp")
"""With use_tp_pp_dp_mapping: "tp-cp-ep-pp-dp"."""
COMPUTE = {"bfloat16": "bf16", "float16": "fp16", "float32": ""}


@dataclass(frozen=True, slots=True)
class Voice:
    """How a trainer on Megatron-Core is called in sentences, and what it has."""

    title: str
    fsdp_dtypes: bool = True
    """Megatron-FSDP can be told the types of its gradients."""
    torch_fsdp2: bool = True
    """torch FSDP2 can be told to keep gathered weights for the backward."""


def data_parallel(setup: Setup, voice: Voice) -> str:
    """Which of its four ways keeps what ZeRO cuts: "ddp", "distributed optimizer", "megatron fsdp", "torch fsdp2"."""
    p = setup.point
    if p.zero < 2:
        return "distributed optimizer" if p.zero else "ddp"
    alone = p.pp == p.ep == p.replicate == 1 and not setup.model.tied and not p.whole_experts
    if p.zero == 3 and not p.reshard and alone and voice.torch_fsdp2:
        return "torch fsdp2"
    return "megatron fsdp"


def said(setup: Setup, voice: Voice) -> Iterator[Said]:
    """An answer to every word."""
    yield _model(setup)
    yield _devices(setup, voice)
    yield from _degrees(setup, voice)
    yield from _stored(setup, voice)
    yield _stages(setup)
    yield from _schedule(setup, voice)
    yield Said("micro_batch", {"micro_batch_size": setup.point.micro_batch})
    yield Said("samples", {"global_batch_size": setup.layout.samples})
    yield Said("micro_batches", why="global batch / (micro-batch × replicas)")
    yield _recompute(setup, voice)
    yield _precision(setup, voice)
    yield _optimizer(setup, voice)


def _model(setup: Setup) -> Said:
    m = setup.model
    fields: dict[str, Any] = {"num_layers": len(m.layers), "num_attention_heads": m.heads}
    if width := _width(setup):
        fields["hidden_size"] = width
    if m.kv_heads < m.heads:
        fields |= {"group_query_attention": True, "num_query_groups": m.kv_heads}
    fields |= {"seq_length": m.seq, "max_position_embeddings": m.seq}
    if not m.tied:
        fields["untie_embeddings_and_output_weights"] = True
    if m.experts:
        fields["num_experts"] = m.experts
    return Said("model", fields, why="its other sizes, activation, norms and positions are the user's")


def _width(setup: Setup) -> int:
    """Features of the embedding; 0 where there is none."""
    graph, m = setup.problem.graph, setup.model
    tables = (
        graph.tensor[t].shape for op in graph.ops if op.kind == "embedding" for t in op.inputs if graph.tensor[t].role == "param"
    )  # fmt: skip
    return next((shape[1] for shape in tables if len(shape) == 2 and shape[0] == m.vocabulary), 0)


def _devices(setup: Setup, voice: Voice) -> Said:
    p = setup.point
    if setup.in_order(OWN):
        return Said("devices", why=f"{voice.title}'s own order of ranks: stages, replicas, context, tensor")
    if setup.in_order(TURNED) and p.ep == p.cp == 1:
        return Said("devices", {"use_tp_pp_dp_mapping": True})
    inside = " (the latter only without context and expert parallelism)"
    return Said(
        "devices", level="refused", runs_as={"devices": in_order(p)},
        why=f"{voice.title} counts ranks over stages, replicas, context, tensor or over replicas, stages, tensor{inside}; this plan "
        f"has its devices in another order",
    )  # fmt: skip


def _degrees(setup: Setup, voice: Voice) -> Iterator[Said]:
    p, m = setup.point, setup.model
    yield Said("dp", why="devices / (tensor × pipeline × context)")
    yield Said("tp", {"tensor_model_parallel_size": p.tp})
    yield Said("sequence", {"sequence_parallel": True} if p.sequence else {}, why=f"off is {voice.title}'s default")
    yield Said("pp", {"pipeline_model_parallel_size": p.pp})
    yield Said("cp", {"context_parallel_size": p.cp})
    if p.cp == 1:
        yield Said("context", why="nothing is cut on the context")
    elif p.context == "halo":
        yield Said(
            "context", level="refused", why=f"{voice.title} has no exchange of borders, only attention over a context"
        )
    else:
        yield Said("context", {"cp_comm_type": {"ulysses": "a2a", "gather": "all_gather"}[p.context]})
    if not m.experts:
        yield Said("ep", why="no experts")
        yield Said("whole_experts", why="no experts")
        return
    sent = any(op.kind == "moe_dispatch" for op in setup.problem.graph.ops)
    size = p.ep * (p.tp if p.whole_experts else 1)
    fields = {"expert_model_parallel_size": size, "moe_token_dispatcher_type": "alltoall" if sent else "allgather"}
    if p.ep > 1 and p.cp > 1:
        yield Said(
            "ep", fields, "close", f"{voice.title}'s groups of experts take members of the context first, then replicas: as much "
            f"goes to nearer devices than it is priced for",
        )  # fmt: skip
    else:
        yield Said("ep", fields)
    yield Said("whole_experts", {"expert_tensor_parallel_size": 1 if p.whole_experts else p.tp})


def _stored(setup: Setup, voice: Voice) -> Iterator[Said]:
    """What ZeRO cuts, and over which replicas."""
    p, way = setup.point, data_parallel(setup, voice)
    copies = {"num_distributed_optimizer_instances": p.replicate} if p.replicate > 1 else {}
    if p.zero:
        yield Said("replicate", copies, why="one group")
    else:
        yield Said("replicate", why="nothing is cut over replicas", runs_as={"replicate": 1} if copies else {})
    overlap = {"overlap_grad_reduce": True} if setup.replicas * p.cp > 1 else {}
    if way == "ddp":
        yield Said("zero", overlap, why=f"whole weights, gradients and moments are {voice.title}'s default")
    elif way == "distributed optimizer":
        yield Said(
            "zero", {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
        )
    elif way == "megatron fsdp":
        yield Said(
            "zero",
            {
                "use_megatron_fsdp": True, "use_distributed_optimizer": True,
                "data_parallel_sharding_strategy": "optim_grads" if p.zero == 2 else "optim_grads_params",
                **({"outer_dp_sharding_strategy": "no_shard"} if copies else {}),
                "overlap_grad_reduce": True, "overlap_param_gather": True, "ckpt_format": "fsdp_dtensor",
            },
        )  # fmt: skip
    else:
        yield Said(
            "zero", {"use_torch_fsdp2": True, "gradient_accumulation_fusion": False, "ckpt_format": "torch_dist"}, "close",
            f"torch FSDP2 in {voice.title} sums gradients in the type of the weights, not in {setup.problem.recipe.grad_dtype}",
        )  # fmt: skip
    if p.reshard or p.zero < 3:
        yield Said("reshard", why="weights are gathered again for the backward")
    elif way == "torch fsdp2":
        yield Said("reshard", {"torch_fsdp2_reshard_after_forward": False})
    else:
        yield Said("reshard", level="close", why=_gathered_again(setup, voice), runs_as={"reshard": True})


def _gathered_again(setup: Setup, voice: Voice) -> str:
    p = setup.point
    if not voice.torch_fsdp2:
        return f"{voice.title} does not keep gathered weights for the backward: it gathers them again"
    why = (
        "with stages" if p.pp > 1 else "with experts over devices" if p.ep > 1 or p.whole_experts
        else "in groups of replicas" if p.replicate > 1 else "with tied embeddings"
    )  # fmt: skip
    return (
        f"{voice.title} keeps gathered weights for the backward by torch FSDP2 only, which it does not take {why}: it gathers them "
        f"again"
    )


def _stages(setup: Setup) -> Said:
    if setup.stages == 1:
        return Said("stages", why="one stage")
    return Said("stages", {"pipeline_model_parallel_layout": layout.written(setup.shares)})


def _schedule(setup: Setup, voice: Voice) -> Iterator[Said]:
    """pp 1: accumulation; one stage a rank: 1F1B; more: interleaved 1F1B, whose warm-up is never all of a step."""
    p, own = setup.point, setup.layout.schedule
    target = target_schedule(p.chunks, own.micro_batches, p.pp)
    name = target.name
    why = f"{name} is what it runs with {p.chunks} stages a rank" if p.pp > 1 else "one forward, one backward"
    runs = {"schedule": name, "plan_schedule": target}
    yield Said("chunks", why="stages of the layout / pipeline ranks")
    if own == target:
        yield Said("schedule", why=why)
    elif _same(own, target, setup.stages):
        yield Said("schedule", why=f"the same as {name}", runs_as=runs)
    elif own.name == name:
        yield Said(
            "schedule", level="close", runs_as=runs,
            why=f"{voice.title} begins with backwards before all {count(own.micro_batches)} micro-batches are forward",
        )  # fmt: skip
    else:
        yield Said(
            "schedule", level="refused", runs_as=runs,
            why=f"{voice.title} has no schedule {own.name}, only 1F1B and, with several stages a rank, interleaved 1F1B",
        )  # fmt: skip


def target_schedule(chunks: int, m: int, pp: int) -> Schedule:
    """The schedule that Megatron runs."""
    if chunks == 1:
        return Schedule("1f1b", m)
    return Schedule("interleaved", m, {"v": chunks, "short": 1} if m == pp else {"v": chunks})


def _same(own: Schedule, target: Schedule, stages: int) -> bool:
    """Whether all ranks do the same in the same order."""
    rows = ([tuple(row.actions) for row in rows_of(schedule, stages)] for schedule in (own, target))
    try:
        return next(rows) == next(rows)
    except InputError:  # the target's does not exist for these numbers: a condition says so
        return False


def _recompute(setup: Setup, voice: Voice) -> Said:
    how, experts = setup.point.recompute, bool(setup.model.experts)
    if how in ("none", FIRST + "0"):
        return Said("recompute", why=f"nothing is {voice.title}'s default")
    if how == "full":
        fields = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        return Said("recompute", fields)
    if how.startswith(FIRST):
        k = int(how.removeprefix(FIRST))
        return Said(
            "recompute", {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": k}
        )
    if how == "attention" or how.endswith("+"):
        return Said("recompute", _selective(how))
    nearest = {"light": "layernorm+", "mlp": "moe_act+" if experts else "mlp+"}.get(how, "full")
    return Said(
        "recompute", _selective(nearest) if nearest != "full" else {}, "refused", runs_as={"recompute": nearest},
        why=f'{voice.title} recomputes whole layers, the first k of each stage, or parts that it names (recompute_modules); "{how}" is '
        f"none of them: the nearest is {_plain(nearest)}",
    )  # fmt: skip


def _selective(how: str) -> dict[str, Any]:
    modules = ["core_attn"] if how == "attention" else sorted(how.split("+")[:-1])
    more = {"moe_grouped_gemm": True} if "moe_act" in modules else {}
    more |= {"multi_latent_attention": True} if "mla_up_proj" in modules else {}
    return {"recompute_granularity": "selective", "recompute_modules": modules, **more}


def _plain(how: str) -> str:
    return "whole layers" if how == "full" else how.rstrip("+").replace("+", " and ")


def _precision(setup: Setup, voice: Voice) -> Said:
    r = setup.problem.recipe
    if r.compute_dtype not in COMPUTE:
        return Said("precision", level="refused", why=f"{voice.title} does not compute in {r.compute_dtype}")
    fields: dict[str, Any] = {COMPUTE[r.compute_dtype]: True} if COMPUTE[r.compute_dtype] else {}
    if r.compute_dtype != "float32" and r.param_dtype != "float32":
        return Said("precision", fields, "refused", f"{voice.title} updates weights in float32, not in {r.param_dtype}")
    if data_parallel(setup, voice) == "megatron fsdp" and voice.fsdp_dtypes:
        short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(r.grad_dtype, r.grad_dtype)
        fields |= {"megatron_fsdp_main_grads_dtype": short, "megatron_fsdp_grad_comm_dtype": short}
    if r.compute_dtype != "float32":
        fields |= {"accumulate_allreduce_grads_in_fp32" if r.grad_dtype == "float32" else "grad_reduce_in_bf16": True}
    if r.matmul_dtype not in ("", r.compute_dtype):
        fields["fp8"] = "e4m3" if "e4m3" in r.matmul_dtype else "hybrid"
        return Said("precision", fields, "close", "how 8-bit products are scaled (fp8_recipe) is not in a plan")
    return Said("precision", fields, why="float32 is the default")


def _optimizer(setup: Setup, voice: Voice) -> Said:
    r = setup.problem.recipe
    if r.optimizer in ("adam", "adamw"):
        if r.state_bytes == 8:
            return Said("optimizer", {"optimizer": "adam"})
        if r.state_bytes == 4 and setup.point.zero:
            halved = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
            return Said("optimizer", {"optimizer": "adam", **halved})
    elif r.optimizer == "sgd" and r.state_bytes in (0, 4):
        return Said("optimizer", {"optimizer": "sgd", "sgd_momentum": 0.9 if r.state_bytes else 0.0})
    return Said(
        "optimizer", level="refused",
        why=f"{voice.title} has no {r.optimizer} that keeps {r.state_bytes:g} bytes a weight: adam keeps 8, or 4 with the distributed "
        f"optimizer, sgd 4 or none",
    )  # fmt: skip
