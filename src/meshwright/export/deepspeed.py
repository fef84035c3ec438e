"""DeepSpeed: a JSON file, and the calls that the user's code must make (a pipeline's modules, Ulysses, checkpointing)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..layouts.again import FIRST
from ..plan.problem import Recipe
from ._deepspeed_code import code_of, launch_of
from ._deepspeed_conditions import CONDITIONS, expert_ranks
from ._deepspeed_read import read, recognises
from ._deepspeed_stages import LAYERS_ONLY, counts, method_for, methods, weights_of
from ._sides import Side, sides_of
from ._words import nested
from .base import Exporter, Read
from .model import Model, parts_of
from .said import Condition, Said
from .setup import Setup

CONFIG, CODE = "ds_config.json", "deepspeed_model.py"
SHORT: Mapping[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class DeepSpeed(Exporter):
    """ZeRO, autotp, Ulysses, AutoEP, 1F1B pipelines."""

    name: ClassVar[str] = "deepspeed"
    title: ClassVar[str] = "DeepSpeed"
    package: ClassVar[str] = "deepspeed"
    versions: ClassVar[tuple[str, ...]] = ("0.19.8",)
    source: ClassVar[str] = (
        "deepspeed 0.19.8: runtime/{config,engine}.py, runtime/{zero,tensor_parallel,pipe,sequence_parallel}, "
        "module_inject/auto_tp.py, auto_ep*.py"
    )
    order: ClassVar[tuple[str, ...]] = ("pp", "dpr", "dp", "ep", "cp", "tp")
    takes: ClassVar[str] = "a JSON file"
    left_out: ClassVar[str] = "model, data set, optimizer and learning rate, checkpoint folder"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return recognises(text)

    def said(self, setup: Setup) -> Iterator[Said]:
        p, layout = setup.point, setup.layout
        yield Said("model", why="the user's own module; in a pipeline a list of modules")
        yield _devices(setup)
        yield Said("dp", why="the ranks that the other degrees leave")
        yield _replicate(setup)
        yield _zero(setup)
        yield _reshard(setup)
        yield from _tensor(setup)
        yield from _context(setup)
        yield from _experts(setup)
        yield from _pipeline(setup)
        yield Said("micro_batch", {"train_micro_batch_size_per_gpu": p.micro_batch})
        yield Said("micro_batches", {"gradient_accumulation_steps": layout.micro_batches})
        yield Said("samples", {"train_batch_size": layout.samples})
        yield _recompute(setup)
        yield _precision(setup.problem.recipe, p.zero)
        untested = setup.problem.recipe.optimizer == "sgd" and p.zero > 0
        yield Said("optimizer", {"zero_allow_untested_optimizer": True} if untested else {}, why="in the user's code")

    def conditions(self) -> Sequence[Condition]:
        return CONDITIONS

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {key: value for s in self.said(setup) for key, value in s.options.items()}
        code = code_of(setup, self.called, CONFIG)
        return {
            CONFIG: json.dumps(nested(options), indent=2) + "\n",
            **({CODE: code} if code else {}),
            "launch.sh": launch_of(setup, self.called, CONFIG, CODE if code else ""),
        }

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        return read(self.called, files, world)


def _devices(setup: Setup) -> Said:
    if setup.in_order(DeepSpeed.order):
        return Said("devices", why="ranks in order along pipe, data, model")
    return Said(
        "devices", level="refused", why="DeepSpeed counts ranks along pipe, data, model; the plan has another order"
    )


# ---- ZeRO


def _zero(setup: Setup) -> Said:
    p = setup.point
    stage = min(p.zero, 1) if p.pp > 1 else p.zero
    options: dict[str, Any] = {"stage": stage}
    if stage:
        bucket = int(setup.problem.recipe.bucket) or max(weights_of(setup))
        options |= {"overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True}
        options |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    written = _under("zero_optimization", options)
    if stage == p.zero:
        return Said("zero", written)
    why = f"DeepSpeed takes ZeRO stage 0 and 1 in a pipeline, not {p.zero}; use stage 1, or pp 1"
    return Said("zero", written, "refused", why, {"zero": 1, "reshard": True})


def _replicate(setup: Setup) -> Said:
    p = setup.point
    whole = {"zero_optimization.zero_hpz_partition_size": 1} if p.zero == 3 and p.pp == 1 else {}
    if p.replicate == 1 or not p.zero:
        return Said("replicate", whole)
    group = p.dp // p.replicate
    if p.zero < 3:
        why = f"DeepSpeed cuts ZeRO {p.zero} over all {p.dp} replicas, not within groups of {group}"
        return Said("replicate", level="refused", why=why, runs_as={"replicate": 1})
    why = (
        f"DeepSpeed cuts ZeRO 3 over all {p.dp} replicas, not within groups of {group} (zero_hpz_partition_size {group} would "
        "keep a second copy of the weights in each group for the backward)"
    )
    return Said("replicate", whole, "close", why, {"replicate": 1})


def _reshard(setup: Setup) -> Said:
    p = setup.point
    if p.zero < 3 or p.pp > 1:
        return Said("reshard", why="weights rest whole")
    weights = weights_of(setup)
    options = {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": max(weights),
        "stage3_max_live_parameters": 2 * (max(weights) if p.reshard else sum(weights)),
        "stage3_max_reuse_distance": 0 if p.reshard else 2 * sum(weights),
    }
    return Said("reshard", _under("zero_optimization", options))


# ---- tensor parallelism, context, experts


def _tensor(setup: Setup) -> Iterator[Said]:
    p = setup.point
    if p.tp == 1:
        yield Said("tp", {"tensor_parallel.autotp_size": 0})
        yield Said("sequence", why="no tensor parallelism")
        return
    options = {
        "autotp_size": p.tp,
        "vocab_parallel_lm_head": False,
        "partition_config": {"use_default_specs": False, "layer_specs": [_spec(s) for s in sides_of(setup)]},
    }
    why = (
        f"DeepSpeed's autotp keeps the embedding whole on each of the {p.tp} ranks and gathers the logits; the plan cuts both "
        "on the vocabulary"
    )
    yield Said("tp", _under("tensor_parallel", options), "close", why)
    if p.sequence:
        why = f"DeepSpeed's autotp leaves what is between its products whole (no sp); use tp {p.tp} without sp"
        yield Said("sequence", level="refused", why=why, runs_as={"sequence": False})
    else:
        yield Said("sequence", why="autotp sums with all-reduces")


def _spec(side: Side) -> dict[str, Any]:
    pattern = "^" + side.module.replace(".", r"\.").replace("*", r"\d+") + r"\.weight$"
    found: dict[str, Any] = {"patterns": [pattern], "partition_type": "row" if side.row else "column"}
    if side.parts > 1:
        found |= {"shape": [side.parts, -1], "partition_dim": 0}
    elif not side.row and "*" not in side.module:
        found["gather_output"] = True
    return found


def _context(setup: Setup) -> Iterator[Said]:
    p = setup.point
    if p.cp == 1:
        yield Said("cp", why="not in the file: 1")
        yield Said("context", why="no context parallelism")
        return
    if p.context == "halo":
        why = f"DeepSpeed cuts sequences (Ulysses), not rows of images; use cp 1 with dp {p.dp * p.cp}"
        yield Said("cp", level="refused", why=why, runs_as={"cp": 1, "dp": p.dp * p.cp})
        yield Said("context", why="see cp")
        return
    yield Said("cp", {"sequence_parallel_size": p.cp}, why="and registered in the user's code")
    if p.context == "ulysses":
        yield Said("context", why="Ulysses is the only kind")
    else:
        why = "DeepSpeed has Ulysses, which exchanges heads, not keys and values gathered over cp; use context ulysses"
        yield Said("context", level="refused", why=why, runs_as={"context": "ulysses"})


def _experts(setup: Setup) -> Iterator[Said]:
    p = setup.point
    ranks = expert_ranks(setup)
    if setup.model.experts and p.tp > 1 and not p.whole_experts:
        ranks = p.ep * p.tp
        why = (
            f"DeepSpeed's AutoEP deals whole experts over {ranks} ranks (expert_tensor_parallel_size can only be 1), where the "
            f"plan cuts each over tp {p.tp}"
        )
        yield Said("whole_experts", {}, "close", why, {"whole_experts": True})
    else:
        yield Said("whole_experts", why="AutoEP deals whole experts")
    options: dict[str, Any] = {"enabled": ranks > 1}
    if ranks > 1:
        options |= {"autoep_size": ranks, "expert_tensor_parallel_size": 1}
    yield Said("ep", _under("expert_parallel", options) if setup.model.experts else {})


# ---- pipeline


def _pipeline(setup: Setup) -> Iterator[Said]:
    p = setup.point
    if p.pp == 1:
        yield Said("pp", why="no pipeline")
        yield Said("stages", why="one stage")
        yield Said("chunks", why="one stage")
    elif not setup.model.layers:
        why = "DeepSpeed deals a list of layers to stages, and this model has no equal ones; use pp 1"
        yield Said(
            "pp",
            level="refused",
            why=why,
            runs_as={"pp": 1, "dp": p.dp * p.pp, "chunks": 1, "parts": (sum(setup.layout.parts),)},
        )
        yield Said("stages", why="see pp")
        yield Said("chunks", why="see pp")
    else:
        yield Said("pp", {"pipeline.stages": p.pp}, why="read by the user's code")
        even = methods(setup, p.pp)[LAYERS_ONLY]
        if p.chunks > 1:
            why = f"DeepSpeed's 1F1B has one stage a rank, not {p.chunks}; use one chunk"
            dealt = counts(even, len(setup.model.layers))
            yield Said("chunks", _partition(LAYERS_ONLY, dealt), "refused", why, _dealt(setup, even))
            yield Said("stages", why="see chunks")
        else:
            yield Said("chunks", why="one stage a rank")
            yield _stages(setup, even)
    if p.schedule == "1f1b":
        yield Said("schedule", why="1F1B is what it runs")
    else:
        why = f"DeepSpeed runs 1F1B, not {p.schedule}"
        if p.schedule == "dualpipev":
            why += " (its DualPipeVModule keeps the gradients of weights inside of each backward, another order)"
        yield Said("schedule", level="refused", why=why, runs_as={"schedule": "1f1b"})


def _stages(setup: Setup, even: tuple[int, ...]) -> Said:
    method = method_for(setup)
    if method:
        return Said("stages", _partition(method, [len(s.layers) for s in setup.shares]), why="read by the user's code")
    dealt = counts(even, len(setup.model.layers))
    held, near = ("-".join(map(str, c)) for c in ([len(s.layers) for s in setup.shares], dealt))
    why = f"no partition method of DeepSpeed's PipelineModule makes stages of {held} layers; the nearest is {near}"
    return Said("stages", _partition(LAYERS_ONLY, dealt), "refused", why, _dealt(setup, even))


def _partition(method: str, layers: Sequence[int]) -> dict[str, Any]:
    return {"pipeline.partition": method, "pipeline.layers": list(layers)}


def _dealt(setup: Setup, ends: tuple[int, ...]) -> dict[str, Any]:
    """The words that change where stages end there, one a rank."""
    try:
        parts = parts_of(setup.expert, counts(ends, len(setup.model.layers)))
    except ValueError:  # a stage would end inside of what the plan keeps together: a condition says so
        return {"chunks": 1, "schedule": "1f1b"}
    return {"chunks": 1, "schedule": "1f1b", "parts": parts}


# ---- recompute, precision


def _recompute(setup: Setup) -> Said:
    p = setup.point
    again = p.recompute
    most = max(len(s.layers) for s in setup.shares)
    every = again.startswith(FIRST) and int(again.removeprefix(FIRST)) >= most
    interval = {"pipeline.activation_checkpoint_interval": int(again != "none")} if p.pp > 1 else {}
    if again in ("none", "full"):
        return Said(
            "recompute", interval, why="" if p.pp > 1 else "in the user's code: checkpointing of every layer, or none"
        )
    if every:
        return Said("recompute", interval, runs_as={"recompute": "full"}, why="every layer of every stage")
    why = f'DeepSpeed checkpoints whole layers, all of them or none, not "{again}"; use full or none'
    return Said("recompute", interval, "refused", why, {"recompute": "full"})


def _precision(recipe: Recipe, zero: int) -> Said:
    half = SHORT[recipe.compute_dtype]
    # without ZeRO its half-precision modes sum gradients in half precision (engine.py refuses another type): autocast instead
    autocast = zero == 0 and recipe.grad_dtype != recipe.compute_dtype
    options: dict[str, Any] = {f"{kind}.enabled": kind == half and not autocast for kind in ("bf16", "fp16")}
    if autocast:
        options |= {"torch_autocast.enabled": True, "torch_autocast.dtype": recipe.compute_dtype}
    options["data_types.grad_accum_dtype"] = SHORT[recipe.grad_dtype]
    if recipe.matmul_dtype or recipe.kept_dtype or recipe.param_dtype != "float32":
        what = (
            f"products in {recipe.matmul_dtype}"
            if recipe.matmul_dtype
            else f"operands kept in {recipe.kept_dtype}"
            if recipe.kept_dtype
            else f"weights kept in {recipe.param_dtype}"
        )
        return Said("precision", options, "refused", f"DeepSpeed's file does not ask for {what}; the user's code may")
    return Said("precision", options)


def _under(folder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{folder}.{key}": value for key, value in options.items()}
