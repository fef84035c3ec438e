"""From fields of Megatron's configurations to words of a layout, its defaults and conditions filled in.

Read in megatron-core 0.19.2: validate_args of training/arguments.py, __post_init__ of core/transformer/transformer_config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._words import count
from ..errors import InputError
from ..layouts.again import FIRST, MODULES
from . import _megatron_layout as layout
from ._megatron_options import Values
from ._megatron_words import OWN, TURNED
from .base import Read
from .model import Model

STRATEGIES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
CONTEXTS = {"a2a": "ulysses", "all_gather": "gather", "allgather": "gather", "p2p": "gather", "a2a+p2p": "ulysses"}
UNPRICED: Mapping[str, str] = {
    "fp8": "products are priced in the precision asked for",
    "fp4": "products are priced in the precision asked for",
    "fp8_param_gather": "weights are gathered in the precision asked for",
    "tp_comm_overlap": "collectives of tensor parallelism are priced as they stand, not beside products",
    "overlap_moe_expert_parallel_comm": "all-to-alls of experts are priced as they stand",
    "delay_wgrad_compute": "a backward is one piece",
    "defer_embedding_wgrad_compute": "a backward is one piece",
    "microbatch_group_size_per_vp_stage": "groups are as long as there are pipeline ranks",
    "cpu_offloading_num_layers": "activations stay on the device",
    "cpu_offloading": "activations stay on the device",
    "fine_grained_activation_offloading": "activations stay on the device",
    "optimizer_cpu_offload": "moments stay on the device",
    "use_precision_aware_optimizer": "moments are priced in float32",
    "grad_reduce_in_bf16": "gradients are summed in float32",
    "distribute_saved_activations": "inputs of recomputed layers are whole on every tensor rank",
    "mtp_num_layers": "layers of multi-token prediction are priced if the model has them",
    "moe_expert_capacity_factor": "tokens are spread over experts as the model says",
    "moe_shared_expert_overlap": "shared experts run before the others",
    "cuda_graph_impl": "kernels are launched one by one",
    "rampup_batch_size": "priced at the full batch",
    "step_batch_size_schedule": "priced at the full batch",
    "hybrid_context_parallel": "all samples are cut over the context",
    "hierarchical_context_parallel_sizes": "one all-to-all over the context",
    "enable_full_sharding_in_hsdp": "groups of replicas hold copies",
    "overlap_param_gather_with_optimizer_step": "the first gather waits for the optimizer",
    "ddp_bucket_size": "gradients are summed as they come",
    "ddp_num_buckets": "gradients are summed as they come",
    "encoder_tensor_model_parallel_size": "one stack of layers",
    "encoder_pipeline_model_parallel_size": "one stack of layers",
    "standalone_embedding_stage": "the embedding is on the first stage",
}
"""Field that changes speed or memory -> what is assumed instead."""
ONLY = {"cuda_graph_impl": "none", "cpu_offloading_num_layers": 0, "mtp_num_layers": 0}
"""Values of these that change nothing."""


@dataclass
class Reader:
    """What one set of values says of a model on so many devices."""

    values: Values
    model: Model
    world: int
    called: str
    ignored: dict[str, str]
    spelled: Callable[[str], str] = lambda name: f"--{name.replace('_', '-')}"
    """A field as the file would say it."""
    words: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)

    def read(self) -> Read:
        """All words.

        Raises:
            InputError: a value that Megatron refuses, or that no layout here has: file, line, option.
        """
        self._model()
        tp, pp, cp = self._degrees()
        dp = self.world // (tp * pp * cp)
        self._batch(dp)
        self._experts(tp, dp)
        self._stored(dp)
        chunks = self._stages(pp)
        self._schedule(dp, pp, chunks)
        self._recompute()
        self._order()
        self._rest(dp * cp)
        return Read(self.words, self.ignored, self.lines, precision=self._precision())

    # ---- values

    def number(self, name: str, default: int, least: int = 1) -> int:
        given = self.values.get(name)
        if given is None:
            return default
        try:
            found = int(str(given.value))
        except ValueError:
            found = least - 1
        if found < least:
            why = (
                "the script does not set it"
                if "$" in str(given.value)
                else f"a whole number of at least {least} is wanted"
            )
            raise InputError(f"{given.where}: {given.option}: {why}", where=given.where)
        return found

    def text(self, name: str, default: str) -> str:
        return str(self.values[name].value) if name in self.values else default

    def on(self, name: str, default: bool = False) -> bool:
        return bool(self.values[name].value) if name in self.values else default

    def say(self, word: str, value: Any, *fields: str) -> None:
        self.words[word] = value
        if options := [self.values[f].option for f in fields if f in self.values]:
            self.lines[word] = " ".join(options)

    def wrong(self, name: str, why: str) -> InputError:
        given = self.values.get(name)
        return InputError(
            f"{given.where}: {given.option}: {why}" if given else f"{self.called}: {why}",
            where=given.where if given else "",
        )

    # ---- words

    def _model(self) -> None:
        m = self.model
        for name, found, what in (
            ("num_layers", len(m.layers), "layers"), ("num_attention_heads", m.heads, "heads"), ("num_experts", m.experts, "experts"),
        ):  # fmt: skip
            if name in self.values and (given := self.number(name, found, 0)) != found:
                raise self.wrong(name, f"the model has {count(found)} {what}, not {count(given)}")
        for name in ("hybrid_layer_pattern", "hybrid_override_pattern"):
            if name in self.values:
                raise self.wrong(name, "layers of several kinds are not read: a decoder of one kind is")
        for name in ("seq_length", "encoder_seq_length"):
            if name in self.values:
                self.say("seq", self.number(name, m.seq), name)

    def _degrees(self) -> tuple[int, int, int]:
        names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
        tp, pp, cp = (self.number(name, 1) for name in names)
        if self.number("tensor_parallel_num_weight_shards", tp) != tp:
            raise self.wrong(
                "tensor_parallel_num_weight_shards",
                "weights cut further than tensor parallelism cuts them are not read",
            )
        if self.world % (tp * pp * cp):
            raise InputError(
                f"{self.called}: {count(self.world)} devices do not split over tp {tp} × pp {pp} × cp {cp} = {count(tp * pp * cp)}",
                where=next((self.values[name].where for name in names if name in self.values), ""),
            )
        for word, name, n in zip(("tp", "pp", "cp"), names, (tp, pp, cp), strict=True):
            self.say(word, n, name)
        self.say("sequence", self.on("sequence_parallel") and tp > 1, "sequence_parallel")
        if cp > 1:
            self._context()
        return tp, pp, cp

    def _context(self) -> None:
        given = self.values["cp_comm_type"].value if "cp_comm_type" in self.values else ["p2p"]
        kinds = [str(k) for k in given] if isinstance(given, list) else str(given).split()
        odd = next((k for k in kinds if k not in CONTEXTS), "")
        if odd:
            raise self.wrong("cp_comm_type", f'"{odd}" is none of {", ".join(CONTEXTS)}')
        first = max(dict.fromkeys(kinds), key=kinds.count)
        self.say("context", CONTEXTS[first], "cp_comm_type")
        shown = self.lines.get("context", f"{self.spelled('cp_comm_type')} p2p (default)")
        if len(set(kinds)) > 1:
            self.ignored[shown] = f"every layer is priced with {first}"
        elif first == "p2p":
            self.ignored[shown] = "keys and values are priced as gathered at once, not passed round a ring"
        elif first == "a2a+p2p":
            self.ignored[shown] = "priced as one all-to-all over the whole context"

    def _batch(self, dp: int) -> None:
        micro = self.number("micro_batch_size", 1)
        if "micro_batch_size" not in self.values:
            self.ignored[f"{self.spelled('micro_batch_size')} (not given)"] = "Megatron asks for it; priced with 1"
        samples = self.number("global_batch_size", micro * dp)
        if samples % (micro * dp):
            below = samples // (micro * dp) * micro * dp
            raise self.wrong(
                "global_batch_size",
                f"{count(samples)} samples do not split over dp {dp} × micro-batch {micro}; use "
                f"{count(below) + ' or ' if below else ''}{count(below + micro * dp)}",
            )
        self.say("micro_batch", micro, "micro_batch_size")
        self.say("samples", samples, "global_batch_size")

    def _experts(self, tp: int, dp: int) -> None:
        ep, inside = self.number("expert_model_parallel_size", 1), self.number("expert_tensor_parallel_size", tp)
        names = ("expert_model_parallel_size", "expert_tensor_parallel_size")
        if ep > 1 and (not self.model.experts or self.model.experts % ep):
            raise self.wrong(names[0], f"ep {ep} does not divide the {self.model.experts or 'no'} experts of the model")
        whole = inside == 1 and tp > 1 and self.model.experts > 0
        if self.model.experts and (inside not in (1, tp) or (whole and ep % tp)):
            raise self.wrong(
                names[1] if names[1] in self.values else names[0],
                f"experts cut {inside} ways inside and {ep} ways over devices beside tp {tp} are not read: they are cut as tp cuts "
                f"(expert tensor parallelism {tp}), or lie whole on a multiple of {tp} devices",
            )
        outer = ep // tp if whole else ep
        if dp % outer:
            raise self.wrong(names[0], f"experts over {outer} replicas are read, of which there are {dp}")
        if ep > 1 and self.words["cp"] > 1:
            self.ignored[self.values[names[0]].option] = (
                "experts are priced over replicas, not over members of a context first"
            )
        self.say("ep", ep, names[0])
        self.say("whole_experts", whole, names[1])
        if ep > 1 and (kind := self.text("moe_token_dispatcher_type", "allgather")) == "flex":
            self.ignored[f"{self.spelled('moe_token_dispatcher_type')} {kind}"] = (
                "tokens are priced as sent by all-to-all"
            )

    def _stored(self, dp: int) -> None:
        if self.on("use_megatron_fsdp"):
            strategy = self.text("data_parallel_sharding_strategy", "optim_grads_params")
            if strategy not in STRATEGIES:
                raise self.wrong("data_parallel_sharding_strategy", f"it is none of {', '.join(STRATEGIES)}")
            self.say("zero", STRATEGIES[strategy], "use_megatron_fsdp", "data_parallel_sharding_strategy")
        elif self.on("use_torch_fsdp2"):
            self.say("zero", 3, "use_torch_fsdp2")
            self.say("reshard", self.on("torch_fsdp2_reshard_after_forward", True), "torch_fsdp2_reshard_after_forward")
        else:
            self.say("zero", int(self.on("use_distributed_optimizer")), "use_distributed_optimizer")
        copies = self.number("num_distributed_optimizer_instances", 1)
        within = dp // (self.words["ep"] // (self.words["tp"] if self.words["whole_experts"] else 1))
        if within % copies:
            raise self.wrong(
                "num_distributed_optimizer_instances", f"{copies} groups do not divide the {within} replicas"
            )
        if self.words["zero"]:
            self.say("replicate", copies, "num_distributed_optimizer_instances")
        if self.text("outer_dp_sharding_strategy", "no_shard") != "no_shard" and copies > 1:
            self.ignored[self.values["outer_dp_sharding_strategy"].option] = "groups of replicas hold copies of moments"

    def _stages(self, pp: int) -> int:
        """Chunks of a rank; says how many layers each stage holds."""
        layers, names = (
            len(self.model.layers),
            ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
        )
        string = "pipeline_model_parallel_layout"
        virtual = "virtual_pipeline_model_parallel_size"
        both = [n for n in (*names, string) if n in self.values]
        if len(both) > 1:
            raise self.wrong(both[1], f"not together with {self.values[both[0]].option}")
        extra = (
            int(self.on("account_for_embedding_in_pipeline_split")),
            int(self.on("account_for_loss_in_pipeline_split")),
        )
        ends = [
            n for n in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers") if n in self.values
        ]
        counted = [
            n for n in ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split") if self.on(n)
        ]
        if string in both and (ends or counted):
            raise self.wrong((ends or counted)[0], "not together with a layout")
        if ends and counted:
            raise self.wrong(ends[0], f"not together with {self.values[counted[0]].option}")
        if string in both:
            counts = self._layout(string, pp, layers)
            chunks = len(counts) // pp
            if self.number(virtual, chunks) != chunks:
                raise self.wrong(virtual, f"the layout has {chunks} stages a rank")
        else:
            chunks, counts = self._dealt(pp, layers, extra, names)
        if chunks > 1 and pp == 1:
            raise self.wrong((both or [string])[0], "several stages a rank need two pipeline ranks or more")
        if len(counts) > 1:
            self.say("counts", counts, *both, *ends)
        self.say("chunks", chunks, *both)
        self.counts = counts
        return chunks

    def _layout(self, string: str, pp: int, layers: int) -> tuple[int, ...]:
        given = self.values[string].value
        text = given if isinstance(given, str) else "|".join(_letters(part) for part in given)
        if "m" in "".join(_try(text)):
            self.ignored[self.values[string].option] = "layers of multi-token prediction (m) are left out"
            text = "|".join(part.replace("m", "") for part in _try(text))
        try:
            counts = layout.counts(text, layers)
        except ValueError as error:
            raise self.wrong(string, str(error)) from None
        if len(counts) % pp:
            raise self.wrong(string, f"its {len(counts)} parts do not divide over {pp} pipeline ranks")
        return counts

    def _dealt(
        self, pp: int, layers: int, extra: tuple[int, int], names: tuple[str, str]
    ) -> tuple[int, tuple[int, ...]]:
        """Layers of stages where no layout says them."""
        first, last = (
            self.values.get(n) for n in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
        )
        each: list[int]
        if first or last:
            begin = self.number("decoder_first_pipeline_num_layers", 1) if first else 0
            end = self.number("decoder_last_pipeline_num_layers", 1) if last else 0
            middle, rest = pp - bool(first) - bool(last), layers - begin - end
            if middle < 0 or rest < 0 or bool(middle) != bool(rest) or (middle and rest % middle):
                raise self.wrong(
                    "decoder_first_pipeline_num_layers" if first else "decoder_last_pipeline_num_layers",
                    f"the other {count(max(0, rest))} layers do not divide over the other {max(0, middle)} pipeline ranks",
                )
            each = [
                *([begin] if first else []),
                *([rest // middle] * middle if middle else []),
                *([end] if last else []),
            ]
        else:
            if (layers + sum(extra)) % pp:
                counted = f" and {sum(extra)} counted as layers" if any(extra) else ""
                raise self.wrong(
                    "pipeline_model_parallel_size",
                    f"the {layers} layers{counted} do not divide over {pp} pipeline ranks",
                )
            each = [(layers + sum(extra)) // pp] * pp
        if names[0] in self.values:
            n = self.number(names[0], 1)
            if each[0] % n:
                raise self.wrong(names[0], f"{n} does not divide the {each[0]} layers of a pipeline rank")
            chunks = each[0] // n
        else:
            chunks = self.number(names[1], self.number("virtual_pipeline_model_parallel_size", 1))
        odd = next((n for n in each if n % chunks), 0)
        if odd:
            raise self.wrong(names[1], f"{chunks} stages a rank do not divide its {odd} layers")
        counts = [each[rank] // chunks for _ in range(chunks) for rank in range(pp)]
        counts[0] -= extra[0]
        counts[-1] -= extra[1]
        return chunks, tuple(counts)

    def _schedule(self, dp: int, pp: int, chunks: int) -> None:
        m = self.words["samples"] // (dp * self.words["micro_batch"])
        self.words["schedule"] = "interleaved" if chunks > 1 else "1f1b"
        if chunks == 1:
            return
        if m % pp:
            raise self.wrong(
                "global_batch_size",
                f"{count(m)} micro-batches are no multiple of the {pp} pipeline ranks, as interleaved 1F1B needs",
            )
        if m == pp:
            self.words["args"] = {"short": 1}

    def _recompute(self) -> None:
        names = ("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules")
        kind = self.text(names[0], "selective" if self.on("recompute_activations") else "none")
        n = self.number(names[2], 0, 0)
        if kind == "selective":
            given = self.values[names[3]].value if names[3] in self.values else ["core_attn"]
            modules = [str(m) for m in given] if isinstance(given, list) else str(given).split()
            unknown = [m for m in modules if m not in MODULES]
            if unknown:
                self.ignored[" ".join([self.spelled("recompute_modules"), *unknown])] = "not recomputed"
            left = sorted(set(modules) & set(MODULES))
            how = "none" if not left else "attention" if left == ["core_attn"] else "+".join(left) + "+"
        elif kind == "full":
            how = self._whole_layers(names, n)
        elif kind == "none":
            how = "none"
        else:
            raise self.wrong(names[0], "full or selective is wanted")
        self.say("recompute", how, *names, "recompute_activations")

    def _whole_layers(self, names: tuple[str, ...], n: int) -> str:
        method = self.text(names[1], "")
        if method not in ("uniform", "block") or names[2] not in self.values:
            raise self.wrong(
                names[0], f"it needs {self.spelled(names[1])} uniform or block, and {self.spelled(names[2])}"
            )
        if method == "block":
            return "none" if n == 0 else "full" if n >= max(self.counts) else f"{FIRST}{n}"
        if n > 1:
            self.ignored[self.values[names[2]].option] = (
                "the input of every layer is kept, not of every group of layers"
            )
        return "full"

    def _order(self) -> None:
        turned = self.on("use_tp_pp_dp_mapping")
        if turned and self.words["pp"] > 1 and (self.words["cp"] > 1 or self.words["ep"] > 1):
            inside = self.words["tp"] if self.words["whole_experts"] else 1
            if self.words["cp"] > 1 or self.words["ep"] > inside:
                raise self.wrong(
                    "use_tp_pp_dp_mapping", "with stages it takes neither context parallelism nor experts over replicas"
                )
        self.say("order", TURNED if turned else OWN, "use_tp_pp_dp_mapping")

    def _precision(self) -> str:
        for name, precision in (("bf16", "bfloat16"), ("fp16", "float16")):
            if self.on(name):
                self.lines["precision"] = self.values[name].option
                return precision
        self.lines["precision"] = f"{self.spelled('bf16')} (not given)"
        return "float32"

    def _rest(self, members: int) -> None:
        for name, assumed in UNPRICED.items():
            given = self.values.get(name)
            if given is None or given.value in (False, None) or str(given.value) == str(ONLY.get(name, "")):
                continue
            self.ignored[given.option] = assumed
        if "moe_layer_recompute" in self.values and self.on("moe_layer_recompute"):
            self.ignored[self.values["moe_layer_recompute"].option] = "not recomputed"
        if not self.on("overlap_p2p_comm", True) and self.words["pp"] > 1:
            self.ignored[self.values["overlap_p2p_comm"].option] = "sends between stages are priced beside the compute"
        if members > 1 and not self.on("use_torch_fsdp2"):
            for name, needed in (("overlap_grad_reduce", True), ("overlap_param_gather", self.words["zero"] > 0)):
                if needed and not self.on(name):
                    self.ignored[f"{self.spelled(name)} (not given)"] = "priced as if it were: beside the compute"
        if (optimizer := self.text("optimizer", "adam")) != "adam":
            self.ignored[self.values["optimizer"].option] = (
                f"what it keeps is priced as the request says, not as {optimizer}"
            )


def _try(text: str) -> tuple[str, ...]:
    try:
        return layout.parts(text)
    except ValueError:
        return (text,) if "m" not in text else ("",)


_LETTERS = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}


def _letters(part: Any) -> str:
    """A part of a layout that is written as a list of words."""
    words = part if isinstance(part, list) else [part]
    return "".join(_LETTERS.get(str(w).strip().lower(), str(w)) for w in words)
