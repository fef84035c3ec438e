"""accelerate's YAML and scripts as users have them, in words of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._parsed import parsed_json
from .._spelling import nearest
from .._words import whole_number
from ..errors import InputError
from ._calls import Call, Open, constants, parsed
from ._hf_options import known
from ._hf_python import Script, distributed, found_calls, number
from ._yaml import Setting, settings
from .base import Read
from .model import Model

SECTIONS = ("fsdp_config", "parallelism_config", "deepspeed_config", "megatron_lm_config", "dynamo_config", "fp8_config")  # fmt: skip
MIXED = {"bf16": "bfloat16", "fp16": "float16"}
STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
"""FSDP 1's, by number from 1."""
TYPES = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON", "DEEPSPEED", "FSDP", "XLA", "MEGATRON_LM")  # fmt: skip


def read(files: Mapping[str, str], model: Model, world: int) -> Read:
    """What the YAML says, then the calls of scripts beside it, which have the last word.

    Raises:
        InputError: neither is there, an unknown setting, values that accelerate refuses: file and line.
    """
    script = Script()
    scripts = {name: text for name, text in files.items() if name.endswith(".py") or "Accelerator(" in text}
    plain = {name: text for name, text in files.items() if name not in scripts and not name.endswith((".sh", ".json"))}
    if not scripts and not plain:
        raise InputError(
            "neither accelerate's YAML nor a script that makes an Accelerator", where=next(iter(files), "file")
        )
    for file, text in plain.items():
        _Yaml(script, settings(text, file), file, model, files).read()
    if "dp" not in script.words:
        script.say("dp", world, "one replica a process")
        script.words["zero"] = 0
    for file, text in scripts.items():
        _script(script, text, file, model, world)
    for key, word in (("script.MICRO_BATCH", "micro_batch"), ("GradientAccumulationPlugin.num_steps", "m")):
        if word in script.words:  # by whatever option they say it
            script.given.setdefault(key, script.words[word])
    m = script.words.pop("m", 0)
    each = script.words.get("micro_batch", 0)
    if m and each and "samples" not in script.words:
        script.say(
            "samples", m * each * script.words["dp"], f"{each} × {m} micro-batches × {script.words['dp']} replicas"
        )
    fully = script.words.pop("fsdp", False)
    every = script.words.pop("every", None)
    if fully and every is not True and m != 1 and script.words.get("zero") == 3:
        script.ignored["no sync_each_batch"] = (
            "priced as if gradients were cut after every micro-batch; with accumulation and without "
            "GradientAccumulationPlugin(sync_each_batch=True) each device keeps whole gradients"
        )
    return script.read()


class _Yaml:
    """One file of settings."""

    def __init__(
        self, script: Script, found: Mapping[str, Setting], file: str, model: Model, files: Mapping[str, str]
    ) -> None:
        self.script, self.found, self.file, self.model, self.files = script, found, file, model, files

    def read(self) -> None:
        self._known()
        self.script.given |= {key: setting.value for key, setting in self.found.items()}
        kind = str(self.value("distributed_type", ""))
        if not kind:
            raise InputError("no distributed_type: FSDP, MULTI_GPU, DEEPSPEED or another", where=f"{self.file}:1")
        if kind not in TYPES:
            near = nearest(kind.upper(), TYPES, limit=3) or "FSDP"
            raise InputError(f'no distributed_type "{kind}": did you mean {near}?', where=self.at("distributed_type"))
        processes = self.whole("num_processes", 1)
        self.script.say("dp", processes, f"num_processes: {processes}")
        self.script.words["zero"] = 0
        if kind == "FSDP":
            self._fsdp(processes)
        elif kind == "DEEPSPEED":
            self._deepspeed()
        elif kind == "MEGATRON_LM":
            self._megatron(processes)
        self._not_priced()

    # ---- values

    def at(self, key: str) -> str:
        return f"{self.file}:{self.found[key].line}" if key in self.found else self.file

    def value(self, key: str, default: Any) -> Any:
        found = self.found.get(key)
        return default if found is None or found.value is None else found.value

    def whole(self, key: str, default: int) -> int:
        value = self.value(key, default)
        if isinstance(value, str) and (written := whole_number(value)) is not None:
            value = written
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{key}: {value!r} is no whole number of at least 1", where=self.at(key))
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, default)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if not isinstance(value, bool):
            raise InputError(f"{key}: {value!r} is neither true nor false", where=self.at(key))
        return value

    # ---- sections

    def _known(self) -> None:
        for key in self.found:
            section, _, name = key.partition(".")
            if not name:
                known("ClusterConfig", section, self.at(key), self.script.ignored)
            elif section in SECTIONS:
                prefix = section.removesuffix("_config") + "_"
                bare = section in ("deepspeed_config", "parallelism_config") or name.startswith(prefix)
                known(section, name if bare else prefix + name, self.at(key), self.script.ignored)

    def _fsdp(self, processes: int) -> None:
        prefix = "fsdp_config.fsdp_"
        version = self.whole(f"{prefix}version", 1)
        sizes = {name: self.whole(f"parallelism_config.parallelism_config_{name}_size", 1) for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")}  # fmt: skip
        sized = any(key.startswith("parallelism_config.") for key in self.found)
        if sized and version == 1:
            raise InputError("parallelism_config needs fsdp_version: 2", where=self.at(f"{prefix}version"))
        self.script.say("zero", 3, f"fsdp_version: {version}")
        self.script.words["fsdp"] = version == 2
        if sized:
            self._parallelism(sizes, processes)
        if version == 2:
            keep = self.flag(f"{prefix}reshard_after_forward", True)
            self.script.say("reshard", keep, f"fsdp_reshard_after_forward: {str(keep).lower()}")
        else:
            self._strategy(processes)
        again = self.flag(f"{prefix}activation_checkpointing", False)
        self.script.say(
            "recompute", "full" if again else "none", f"fsdp_activation_checkpointing: {str(again).lower()}"
        )
        wrap = str(self.value(f"{prefix}auto_wrap_policy", "NO_WRAP"))
        if wrap != "TRANSFORMER_BASED_WRAP":
            self.script.ignored[f"fsdp_auto_wrap_policy: {wrap}"] = (
                "priced as if each layer were gathered when it is needed (TRANSFORMER_BASED_WRAP)"
                + ("; so the whole model is, at once" if wrap == "NO_WRAP" else "")
            )
        for name in ("offload_params", "activation_checkpointing_offload"):
            if self.flag(prefix + name, False):
                self.script.ignored[f"fsdp_{name}: true"] = "priced without offload"

    def _parallelism(self, sizes: Mapping[str, int], processes: int) -> None:
        """As ParallelismConfig checks them."""
        replicate, shard, tp, cp, sp = (sizes[n] for n in ("dp_replicate", "dp_shard", "tp", "cp", "sp"))
        where = self.at("parallelism_config.parallelism_config_dp_shard_size")
        total = replicate * shard * tp * cp * sp
        if cp > 1 and sp > 1:
            raise InputError("cp_size and sp_size exclude each other: leave one at 1", where=where)
        if (tp > 1 or cp > 1) and replicate > 1 and shard == 1:
            raise InputError(f"dp_replicate_size {replicate} beside tp or cp needs dp_shard_size above 1", where=where)
        if shard == 1 and cp == 1:
            raise InputError("FSDP needs dp_shard_size or cp_size above 1: nothing is left to cut over", where=where)
        if "num_processes" in self.found and total != processes:
            raise InputError(f"sizes multiply to {total}, but num_processes is {processes}", where=where)
        said = ", ".join(f"{n}_size: {sizes[n]}" for n in ("dp_replicate", "dp_shard") if sizes[n] > 1)
        self.script.say("dp", replicate * shard, said or "dp_shard_size: 1")
        self.script.say("replicate", replicate, f"dp_replicate_size: {replicate}")
        self.script.say("tp", tp, f"tp_size: {tp}")
        if cp > 1:
            self.script.say("cp", cp, f"cp_size: {cp}")
            strategy = str(self.value("parallelism_config.parallelism_config_cp_comm_strategy", "allgather"))
            _context(self.script, strategy)
        if sp > 1:
            self.script.say("cp", sp, f"sp_size: {sp}")
            self.script.say("context", "ulysses", f"sp_size: {sp}")

    def _strategy(self, processes: int) -> None:
        """FSDP 1: what its strategy keeps whole and where."""
        key = "fsdp_config.fsdp_sharding_strategy"
        said = str(self.value(key, self.value("fsdp_config.fsdp_reshard_after_forward", "FULL_SHARD"))).upper()
        name = STRATEGIES[n - 1] if (n := whole_number(said)) and n <= len(STRATEGIES) else said
        if name not in STRATEGIES:
            near = nearest(name, STRATEGIES, limit=3) or "FULL_SHARD"
            raise InputError(f'no sharding strategy "{said}": did you mean {near}?', where=self.at(key))
        spelled = f"fsdp_sharding_strategy: {name}"
        self.script.say("zero", 0 if name == "NO_SHARD" else 3, spelled)
        self.script.say("reshard", name in ("FULL_SHARD", "HYBRID_SHARD", "NO_SHARD"), spelled)
        if name.startswith("HYBRID"):
            self.script.say("replicate", min(processes, self.whole("num_machines", 1)), spelled)

    def _deepspeed(self) -> None:
        if name := self.value("deepspeed_config.deepspeed_config_file", ""):
            text = self.files.get(str(name).rpartition("/")[2])
            if text is None:
                raise InputError(
                    f"the layout is in DeepSpeed's file: give {name} in place of this one",
                    where=self.at("deepspeed_config.deepspeed_config_file"),
                )
            self._deepspeed_file(text, str(name))
            return
        stage = self.value("deepspeed_config.zero_stage", 2)
        if stage not in (0, 1, 2, 3):
            raise InputError(
                f"zero_stage: {stage!r} is none of 0, 1, 2, 3", where=self.at("deepspeed_config.zero_stage")
            )
        self.script.say("zero", int(stage), f"zero_stage: {stage}")
        m = self.whole("deepspeed_config.gradient_accumulation_steps", 1)
        self.script.say("m", m, f"gradient_accumulation_steps: {m}")
        for part in ("optimizer", "param"):
            device = self.value(f"deepspeed_config.offload_{part}_device", "none")
            if device != "none":
                self.script.ignored[f"offload_{part}_device: {device}"] = "priced without offload"

    def _deepspeed_file(self, text: str, file: str) -> None:
        try:
            found = parsed_json(text)
        except ValueError as error:
            raise InputError(f"not JSON: {error}", where=file) from None
        zero = found.get("zero_optimization", {}) if isinstance(found, dict) else None
        stage = zero.get("stage", 0) if isinstance(zero, dict) else None
        if stage not in (0, 1, 2, 3):
            raise InputError("DeepSpeed's file says no zero_optimization with a stage of 0, 1, 2 or 3", where=file)
        self.script.say("zero", int(stage), f'"stage": {stage}')
        for key, word in (("train_micro_batch_size_per_gpu", "micro_batch"), ("train_batch_size", "samples")):
            if isinstance(found.get(key), int) and found[key] > 0:
                self.script.say(word, found[key], f'"{key}": {found[key]}')

    def _megatron(self, processes: int) -> None:
        prefix = "megatron_lm_config.megatron_lm_"
        degrees = {w: self.whole(prefix + key, 1) for w, key in (("tp", "tp_degree"), ("pp", "pp_degree"), ("cp", "context_parallel_size"), ("ep", "expert_model_parallel_size"))}  # fmt: skip
        for word, n in degrees.items():
            self.script.say(word, n, f"megatron_lm {word}: {n}")
        rest = degrees["tp"] * degrees["pp"] * degrees["cp"]
        if processes % rest:
            raise InputError(f"tp × pp × cp = {rest} does not divide num_processes: {processes}", where=self.file)
        self.script.say("dp", processes // rest, f"num_processes: {processes}")
        zero = self.flag(f"{prefix}use_distributed_optimizer", False)
        self.script.say("zero", int(zero), f"megatron_lm_use_distributed_optimizer: {str(zero).lower()}")
        self.script.say(
            "sequence", self.flag(f"{prefix}sequence_parallelism", False), "megatron_lm_sequence_parallelism"
        )
        if self.flag(f"{prefix}recompute_activations", False):
            self.script.say("recompute", "attention", "megatron_lm_recompute_activations: true")
        if f"{prefix}recompute_granularity" in self.found:
            full = self.value(f"{prefix}recompute_granularity", "") == "full"
            self.script.say("recompute", "full" if full else "attention", f"{prefix}recompute_granularity")
        m = self.whole(f"{prefix}num_micro_batches", 1)
        self.script.say("m", m, f"megatron_lm_num_micro_batches: {m}")

    def _not_priced(self) -> None:
        mixed = str(self.value("mixed_precision", "no"))
        if mixed in MIXED:
            self.script.compute(MIXED[mixed], f"mixed_precision: {mixed}")
        if mixed == "fp8":
            self.script.ignored["mixed_precision: fp8"] = "priced in the precision that was asked for (--precision)"
        backend = str(self.value("dynamo_config.dynamo_backend", "NO")).upper()
        if backend != "NO":
            self.script.ignored[f"dynamo_backend: {backend}"] = "priced as the plan's own kernels are"
        if self.flag("downcast_bf16", False) if "downcast_bf16" in self.found and self.value("downcast_bf16", "no") not in ("no", "yes") else False:  # fmt: skip
            self.script.ignored["downcast_bf16: true"] = "priced without"


def _context(script: Script, strategy: str) -> None:
    script.say("context", "gather", f"cp_comm_strategy: {strategy}")
    if strategy != "allgather":
        script.ignored[f"cp_comm_strategy: {strategy}"] = (
            "priced as allgather: keys and values pass in one collective, not in a ring"
        )


def _script(script: Script, text: str, file: str, model: Model, world: int) -> None:
    """Calls that a script makes."""
    found = found_calls(script, text, file)
    last = {c.name: c for c in found}
    if c := last.get("ParallelismConfig"):
        _sizes(script, c, last, file)
    if c := last.get("DistributedConfig"):
        distributed(script, c, model, world, file)
        script.words["fsdp"] = False
    if c := last.get("FullyShardedDataParallelPlugin"):
        _plugin(script, c)
    if c := last.get("DeepSpeedPlugin"):
        stage = c.arguments.get("zero_stage", 2)
        script.say("zero", stage if stage in (0, 1, 2, 3) else 2, f"zero_stage={stage}")
    if c := last.get("Accelerator"):
        m = c.arguments.get("gradient_accumulation_steps")
        if isinstance(m, int):
            script.say("m", m, f"gradient_accumulation_steps={m}")
    if c := last.get("GradientAccumulationPlugin"):
        m = number(c, "num_steps", 1, file)
        script.say("m", m, f"num_steps={m}")
        script.words["every"] = c.arguments.get("sync_each_batch", False)
    if c := last.get("DataLoader"):
        size = c.arguments.get("batch_size")
        if isinstance(size, int) and not isinstance(size, Open):
            script.say("micro_batch", size, f"batch_size={size}")
    if "activation_checkpointing_enable" in last or "gradient_checkpointing_enable" in last:
        script.say("recompute", "full", "activation_checkpointing_enable()")
    own = constants(parsed(text, file))
    script.given |= {f"script.{k}": v for k, v in own.items() if isinstance(v, (int, str))}
    for name, word in (("MICRO_BATCH", "micro_batch"), ("SAMPLES", "samples"), ("ACCUMULATION", "m")):
        if isinstance(own.get(name), int):
            script.say(word, own[name], f"{name} = {own[name]}")


def _sizes(script: Script, c: Call, last: Mapping[str, Call], file: str) -> None:
    """ParallelismConfig in a script: with tp the model is cut by transformers; sp is DeepSpeed's."""
    replicate, shard, tp, cp, sp = (
        number(c, f"{n}_size", 1, file) for n in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    )
    if cp > 1 and sp > 1:
        raise InputError("cp_size and sp_size exclude each other: leave one at 1", where=f"{file}:{c.line}")
    if (tp > 1 or cp > 1) and replicate > 1 and shard == 1:
        raise InputError(
            f"dp_replicate_size={replicate} beside tp or cp needs dp_shard_size above 1", where=f"{file}:{c.line}"
        )
    script.say("dp", replicate * shard, f"dp_replicate_size={replicate}, dp_shard_size={shard}")
    script.say("tp", tp, f"tp_size={tp}")
    if sp > 1:
        script.say("cp", sp, f"sp_size={sp}")
        script.say("context", "ulysses", f"sp_size={sp}")
    else:
        script.say("replicate", replicate, f"dp_replicate_size={replicate}")
    if cp > 1:
        script.say("cp", cp, f"cp_size={cp}")
        handler = last.get("TorchContextParallelConfig")
        _context(script, str(handler.arguments.get("cp_comm_strategy", "allgather")) if handler else "allgather")


def _plugin(script: Script, c: Call) -> None:
    """FullyShardedDataParallelPlugin in place of the YAML's section."""
    script.say("zero", 3, f"FullyShardedDataParallelPlugin in line {c.line}")
    script.words["fsdp"] = c.arguments.get("fsdp_version", 1) == 2
    keep = c.arguments.get("reshard_after_forward", True)
    if isinstance(keep, bool):
        script.say("reshard", keep, f"reshard_after_forward={keep}")
    again = c.arguments.get("activation_checkpointing", False)
    if isinstance(again, bool):
        script.say("recompute", "full" if again else "none", f"activation_checkpointing={again}")
    if c.arguments.get("cpu_offload"):
        script.ignored["cpu_offload"] = "priced without offload"
