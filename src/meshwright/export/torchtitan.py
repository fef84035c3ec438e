"""torchtitan: a Python recipe, 0.3.0 and the later main that counts batches in tokens.

What its trainer does with parameters decides most levels (read in torchtitan 0.3.0 trainer.py, distributed/fsdp.py, and in torch
2.13.0 distributed/pipelining/stage.py; run in tests/export/proof/test_torchtitan.py):

no pipeline   FSDP2 sums gradients at every micro-batch, and so sums copies (replicas, hybrid groups) at every micro-batch too
a pipeline    a stage's weights are gathered once a step and its gradients are whole until the last backward, then cut: ZeRO-1
cp, ep        parameters are cut over all members that have the same: over cp always, over ep for all that is no expert
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from .._words import count
from ._torchtitan_conditions import conditions_of
from ._torchtitan_fields import MAIN, RELEASE
from ._torchtitan_files import TABLE, files_of, own_of, stage_modules
from ._torchtitan_schedules import TABLE as PLACED
from ._torchtitan_schedules import named, split, turned, why_not
from ._torchtitan_settings import is_ours, settings_of
from ._torchtitan_words import Words
from .base import Exporter, Read
from .model import Model, parts_of
from .reading import in_order
from .said import Condition, Said
from .setup import Setup

P, T = "parallelism.", "training."
NEAR_SELECTIVE = ("light", "attention", "alternate")
"""Words near SelectiveAC: light ops and every other product again."""


class Torchtitan(Exporter):
    name = "torchtitan"
    title = "torchtitan"
    package = "torchtitan"
    versions: ClassVar[tuple[str, ...]] = (RELEASE, MAIN)
    source = "the released package 0.3.0, and config/ of pytorch/torchtitan at 15e2431, f204eb6 and 0276e6e"
    order: ClassVar[tuple[str, ...]] = ("pp", "dpr", "dp", "ep", "cp", "tp")
    takes = "a Python recipe, --section.option flags, TOML"

    @property
    def later(self) -> bool:
        return self.version == MAIN

    @classmethod
    def recognises(cls, text: str) -> bool:
        return is_ours(text)

    def said(self, setup: Setup) -> Iterator[Said]:
        yield self._model(setup)
        yield self._devices(setup)
        yield from self._data(setup)
        yield from self._tensor(setup)
        yield from self._context(setup)
        yield from self._experts(setup)
        yield from self._pipeline(setup)
        yield from self._batch(setup)
        yield self._again(setup)
        yield from self._numbers(setup)

    def conditions(self) -> Sequence[Condition]:
        return conditions_of(self.later)

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {key: value for s in self.said(setup) for key, value in s.options.items()}
        return files_of(self.called, self.version, setup, options, bool(options[f"{P}pipeline_parallel_schedule_csv"]))

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        return Words(settings_of(files), files, model, world).read()

    def _model(self, setup: Setup) -> Said:
        own = own_of(setup)
        why = (
            f"{own.module}'s {own.flavor}"
            if own
            else "your own model, with its model_spec: the recipe starts from yours"
        )
        return Said("model", why=why)

    def _devices(self, setup: Setup) -> Said:
        # Of the three that 0.3.0 has; its later main has this one alone. What is said here was read in it: the others lay
        # tensors over other meshes, and take attention over cp that this one refuses.
        options = {} if self.later else {f"{P}spmd_backend": "spmd_types"}
        if setup.in_order(self.order):
            return Said("devices", options, why="its order: pp, dp_replicate, dp_shard, cp, tp")
        return Said(
            "devices", options, "refused",
            why=f"{self.called} counts devices along pp, replicas, cp and tp, tp innermost, and the plan counts them otherwise",
            runs_as={"devices": in_order(setup.point)},
        )  # fmt: skip

    def _data(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        groups, cut = _groups(setup)
        yield Said(
            "dp",
            {f"{P}data_parallel_replicate_degree": groups, f"{P}data_parallel_shard_degree": setup.replicas // groups},
        )
        yield Said("replicate", why="data_parallel_replicate_degree says it")
        keep = p.pp > 1 or p.zero != 3 or not p.reshard
        options: dict[str, Any] = {f"{P}fsdp_reshard_after_forward": "never" if keep else "always"}
        if self.later:
            options[f"{P}fsdp_defer_gradient_reduction"] = p.pp == 1 and p.zero in (0, 1)
        level, why, runs = self._zero(setup, cut)
        yield Said("zero", options, level, why, runs)
        yield Said("reshard", why="fsdp_reshard_after_forward says it")

    def _zero(self, setup: Setup, cut: int) -> tuple[Any, str, Mapping[str, Any]]:
        """Level, sentence, and what runs instead, of what ZeRO cuts over `cut` members."""
        p, m = setup.point, setup.layout.micro_batches
        who = self.called
        if p.zero and cut == 1:
            whole = {"zero": 0, "replicate": 1, "reshard": True}
            level, why, more = self._zero(setup.with_words(**whole), cut)
            return level, why, {**whole, **more}
        if p.pp > 1:
            if p.zero in (0, 1) and (p.zero == 1 or cut == 1):
                return "exact", "", {}
            runs = {"zero": 1, "replicate": _groups(setup)[0], "reshard": True}
            if p.zero == 0:
                return "close", _always_cut(who, p.ep > 1), runs
            return "close", (
                f"in a pipeline {who} gathers a stage's weights once a step and keeps its gradients whole until the last backward "
                f"(torch's PipelineStage): ZeRO-1, not ZeRO-{p.zero}"
            ), runs  # fmt: skip
        each = _groups(setup)[0] > 1 and m > 1
        runs = {"zero": 3, "replicate": _groups(setup)[0], "reshard": False, "sums_each": each}
        if p.zero == 0 and cut > 1:
            return "close", _always_cut(who, p.ep > 1), runs | {"reshard": True}
        if p.zero == 0 and (m == 1 or self.later or setup.replicas == 1):
            return "exact", "", {}
        if p.zero == 1 and self.later:
            return "exact", "", {}
        if p.zero == 1 and m > 1:
            return "refused", (
                f"{who} has no ZeRO-1 without a pipeline: it cuts gradients at every one of {count(m)} micro-batches; use ZeRO 3"
            ), runs  # fmt: skip
        if p.zero in (1, 2) and m == 1:
            return "exact" if p.zero == 2 else "close", "" if p.zero == 2 else (
                f"{who} cuts gradients as they are made, ZeRO-1 when all are there"
            ), runs  # fmt: skip
        if p.zero == 2:
            return "close", f"{who} gathers weights at every one of {count(m)} micro-batches, ZeRO-2 once a step", runs
        if each:
            return "close", (
                f"{who} sums copies of parameters at every one of {count(m)} micro-batches, the plan once a step"
            ), {"sums_each": True}  # fmt: skip
        return "exact", "", {}

    def _tensor(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        yield Said("tp", {f"{P}tensor_parallel_degree": p.tp})
        yield Said("sequence", {f"{P}enable_sequence_parallel": p.sequence})

    def _context(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        options: dict[str, Any] = {f"{P}context_parallel_degree": p.cp}
        yield Said("cp", options if self.later else options | {f"{P}context_parallel_load_balancer": "headtail"})
        if p.cp == 1 or p.context == "gather":
            yield Said("context", why="FlexAttention gathers keys and values")
        elif p.context == "ulysses" and self.later:
            yield Said("context", why="the model's attention says it: UlyssesCPInnerAttention")
        else:
            ways = {"ulysses": "cuts attention by heads (Ulysses)", "halo": "passes borders of windows"}
            which = (
                "all keys and values are gathered there, and its later main has Ulysses"
                if p.context == "ulysses"
                else "all keys and values are gathered there"
            )
            yield Said(
                "context",
                level="refused",
                why=f"{self.called} nowhere {ways[p.context]}: {which}",
                runs_as={"context": "gather"},
            )

    def _experts(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        degree = p.ep * p.tp if p.whole_experts or p.ep > 1 else 1
        options = {f"{P}expert_parallel_degree": degree}
        if p.ep > 1 and p.cp > 1:
            yield Said(
                "ep",
                options,
                "refused",
                f"{self.called} lays experts over the ranks of cp {p.cp} too, the plan over replicas alone; use cp 1",
            )
        else:
            yield Said("ep", options)
        if p.ep > 1 and p.tp > 1 and not p.whole_experts:
            yield Said(
                "whole_experts", level="close",
                why=f"{self.called} gives whole experts to the {p.tp} ranks of tp, the plan cuts each expert over them",
                runs_as={"whole_experts": True},
            )  # fmt: skip
        else:
            yield Said("whole_experts", why="expert_parallel_degree counts the ranks of tp in")

    def _pipeline(self, setup: Setup) -> Iterator[Said]:
        p, schedule, stages = setup.point, setup.layout.schedule, setup.stages
        yield Said("pp", {f"{P}pipeline_parallel_degree": p.pp})
        lists = f"{P}{'pipeline_parallel_' * self.later}module_fqns_per_model_part"
        if p.pp == 1:
            names = {f"{P}pipeline_parallel_schedule": "1F1B", f"{P}pipeline_parallel_schedule_csv": ""}
            plain = schedule.name == "1f1b" and not schedule.args and p.chunks == 1
            yield Said("chunks", why="one stage")
            yield Said("stages", {lists: None})
            if plain:
                yield Said("schedule", names)
            else:
                yield Said(
                    "schedule", names, "close" if stages == 1 and not why_not(schedule, 1, 1) else "refused",
                    f"without a pipeline {self.called} runs forward and backward of one micro-batch after the other, not {schedule.name}",
                    {"schedule": "1f1b", "plan_schedule": _plain(setup), **({} if stages == 1 else {"chunks": 1, "parts": (sum(setup.layout.parts),)})},
                )  # fmt: skip
            return
        yield Said("chunks", why="the lists of modules say it")
        whole = _whole_layers(setup)
        if whole in ((), setup.layout.parts):
            yield Said("stages", {lists: stage_modules(setup)})
        else:
            yield Said(
                "stages", {lists: stage_modules(setup)}, "refused",
                f"{self.called} starts its model before the first layer and ends it after the last: the plan has a stage that ends in between",
                {"parts": whole},
            )  # fmt: skip
        why = why_not(schedule, p.pp, stages)
        if why:
            near = (
                "interleaved"
                if p.chunks > 1 and setup.layout.micro_batches % p.pp == 0
                else "bfs"
                if p.chunks > 1
                else "1f1b"
            )
            yield Said(
                "schedule", {f"{P}pipeline_parallel_schedule": PLACED[False], f"{P}pipeline_parallel_schedule_csv": ""}, "refused",
                f"{self.called}: {why}", {"schedule": near, "plan_schedule": _named(near, setup)},
            )  # fmt: skip
            return
        name = named(schedule, p.pp, stages)
        yield Said("schedule", {
            f"{P}pipeline_parallel_schedule": name or PLACED[turned(schedule, p.pp, stages)],
            f"{P}pipeline_parallel_schedule_csv": "" if name else TABLE,
        })  # fmt: skip

    def _batch(self, setup: Setup) -> Iterator[Said]:
        p, m, samples = setup.point, setup.layout.micro_batches, setup.layout.samples
        seq = setup.model.seq
        if self.later:
            yield Said("micro_batch", {
                f"{T}num_tokens_per_microbatch_per_dp_rank": p.micro_batch * seq, f"{T}max_context_length": seq,
            })  # fmt: skip
            yield Said("micro_batches", {f"{P}num_pp_microbatches": m if p.pp > 1 else 1})
            yield Said("samples", {f"{T}num_tokens_per_train_step": samples * seq})
            return
        local = p.micro_batch * (m if p.pp > 1 else 1)
        length = {f"{T}seq_len": seq} if seq else {}
        yield Said("micro_batch", {
            f"{T}local_batch_size": local, f"{P}pipeline_parallel_microbatch_size": p.micro_batch if p.pp > 1 else 1, **length,
        })  # fmt: skip
        yield Said("micro_batches", why="the batch sizes say it")
        yield Said("samples", {f"{T}global_batch_size": samples})

    def _again(self, setup: Setup) -> Said:
        how = setup.point.recompute
        key = "activation_checkpoint"
        if how in ("none", "full"):
            return Said("recompute", {key: how})
        if how in NEAR_SELECTIVE:
            return Said(
                "recompute", {key: "selective"}, "close",
                f"{self.called} has no recomputation of {_again_words(how)}: the nearest, SelectiveAC, runs light ops and every other product again",
                {"recompute": "alternate"},
            )  # fmt: skip
        return Said(
            "recompute", {key: "full"}, "refused",
            f"{self.called} treats every layer alike and has no recomputation of {_again_words(how)}: use none, full or alternate",
            {"recompute": "full"},
        )  # fmt: skip

    def _numbers(self, setup: Setup) -> Iterator[Said]:
        recipe = setup.problem.recipe
        kinds = ("bfloat16", "float32")
        options: dict[str, Any] = {
            f"{T}dtype": recipe.param_dtype, f"{T}mixed_precision_param": recipe.compute_dtype,
            f"{T}mixed_precision_reduce": recipe.grad_dtype, f"{T}enable_cpu_offload": False,
        }  # fmt: skip
        whole = split(setup.layout.schedule, setup.stages) and setup.point.pp > 1
        if not self.later:
            options[f"{T}disable_cuda_graphs"] = setup.point.pp > 1 or setup.point.ep > 1 or setup.point.whole_experts
            options |= {"compile.enable": recipe.fused, "compile.components": ["loss"] if whole else ["model", "loss"]}
        reduces = kinds if self.later else ("float32",)
        wrong = [
            f"{what} in {dtype}" for what, dtype, some in (
                ("parameters", recipe.param_dtype, kinds), ("compute", recipe.compute_dtype, kinds), ("gradients", recipe.grad_dtype, reduces),
            ) if dtype not in some
        ]  # fmt: skip
        if recipe.matmul_dtype:
            wrong.append(
                f"products in {recipe.matmul_dtype}, which is a converter of the model (model_registry), not an option"
            )
        if wrong:
            yield Said(
                "precision",
                _known(options, kinds, reduces),
                "refused",
                f"{self.called} has no {wrong[0]}; plan in bfloat16 with gradients in float32",
            )
        else:
            yield Said("precision", options)
        if recipe.optimizer in ("adamw", "adam"):
            halved = recipe.state_bytes == 4 and recipe.optimizer == "adamw"
            name = {"optimizer.implementation": "fused_opt_states_bf16" if halved else "fused"}
            yield Said("optimizer", name, why="the recipe's param_groups say which, and how fast it learns")
        else:
            yield Said("optimizer", level="refused", why=f"{self.called} has no {recipe.optimizer}: use adamw or adam")


def _groups(setup: Setup) -> tuple[int, int]:
    """Groups of replicas that hold all, and members over which each group cuts parameters.

    A plan that cuts nothing is one group a replica, unless experts lie over replicas: these cut what is no expert.
    """
    p = setup.point
    groups = p.dp if p.zero == 0 else p.replicate
    return groups, setup.replicas // groups * p.cp


def _always_cut(who: str, experts: bool) -> str:
    over = "the replicas that share experts" if experts else "the ranks of context parallelism"
    return f"{who} cuts all parameters over {over} (ZeRO-3), the plan leaves them whole"


def _whole_layers(setup: Setup) -> tuple[int, ...]:
    """Units of stages of the same layers that end where layers end; () where a condition refuses the stages."""
    try:
        return parts_of(setup.expert, tuple(len(s.layers) for s in setup.shares)) if setup.model.layers else ()
    except ValueError:
        return ()


def _plain(setup: Setup) -> Any:
    from ..plan.model import Schedule

    return Schedule("1f1b", setup.layout.micro_batches)


def _named(name: str, setup: Setup) -> Any:
    from ..plan.model import Schedule

    chunks = setup.point.chunks
    return Schedule(name, setup.layout.micro_batches, {"v": chunks} if chunks > 1 else {})


def _again_words(how: str) -> str:
    if how.startswith("first:"):
        return f"a stage's first layers only ({how})"
    return {"attention": "attention only", "light": "light ops only", "alternate": "just these products"}.get(
        how, f'"{how}"'
    )


def _known(options: Mapping[str, Any], kinds: Sequence[str], reduces: Sequence[str]) -> dict[str, Any]:
    """Options with number formats that there are."""
    return {
        k: v if k.rpartition(".")[2] not in ("dtype", "mixed_precision_param", "mixed_precision_reduce") or v in kinds else kinds[0]
        for k, v in options.items()
    } | {f"{T}mixed_precision_reduce": options[f"{T}mixed_precision_reduce"] if options[f"{T}mixed_precision_reduce"] in reduces else "float32"}  # fmt: skip
