"""Megatron-Bridge: a recipe in Python that begins with the model's own and sets every field of the layout.

Its recipes begin with a distributed optimizer, both overlaps and a layout of their own, so nothing is left to them: what Megatron-LM
leaves to its defaults is written here. Words are answered as for Megatron-LM (`_megatron_words`); fields are spelled by their place
in its ConfigContainer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files as package_files
from typing import Any, TypeAlias

from .._spelling import nearest
from .._words import count
from ..errors import InputError
from . import _megatron_conditions
from ._megatron_options import ALIASES, Given, known
from ._megatron_read import Reader
from ._megatron_words import OWN, Voice, data_parallel, said
from ._recipe import Set, Unknown, recipe_of
from .base import Exporter, Read
from .model import Model
from .said import Condition, Said
from .setup import Setup

FILE = "recipe.py"
PLACES: Mapping[str, tuple[str, ...]] = {
    "micro_batch_size": ("train",), "global_batch_size": ("train",), "seq_length": ("model", "dataset"), "ckpt_format": ("checkpoint",),
    "use_distributed_optimizer": ("ddp", "optimizer"), "overlap_grad_reduce": ("ddp",), "overlap_param_gather": ("ddp",),
    "use_megatron_fsdp": ("ddp", "dist"), "use_torch_fsdp2": ("dist",), "data_parallel_sharding_strategy": ("ddp",),
    "outer_dp_sharding_strategy": ("ddp",), "num_distributed_optimizer_instances": ("ddp",), "use_tp_pp_dp_mapping": ("dist",),
    "megatron_fsdp_main_grads_dtype": ("ddp",), "megatron_fsdp_grad_comm_dtype": ("ddp",), "optimizer": ("optimizer",),
    "sgd_momentum": ("optimizer",), "use_precision_aware_optimizer": ("optimizer",), "exp_avg_dtype": ("optimizer",),
    "exp_avg_sq_dtype": ("optimizer",), "mixed_precision": ("",), "comm_overlap": ("",),
}  # fmt: skip
"""Field -> sections of the configuration that have it; all others are the model's."""
NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "devices": {"use_tp_pp_dp_mapping": False},
    "sequence": {"sequence_parallel": False},
    "context": {"cp_comm_type": "p2p"},
    "ep": {"expert_model_parallel_size": 1},
    "whole_experts": {"expert_tensor_parallel_size": None},
    "replicate": {"num_distributed_optimizer_instances": 1},
    "zero": {
        "use_distributed_optimizer": False, "use_megatron_fsdp": False, "use_torch_fsdp2": False, "overlap_grad_reduce": False,
        "overlap_param_gather": False, "data_parallel_sharding_strategy": "no_shard", "comm_overlap": None, "ckpt_format": "torch_dist",
    },
    "stages": {
        "pipeline_model_parallel_layout": None, "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False, "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
    },
    "recompute": {
        "recompute_granularity": None, "recompute_method": None, "recompute_num_layers": None, "recompute_modules": None,
    },
    "optimizer": {"use_precision_aware_optimizer": False},
}  # fmt: skip
"""Word -> fields as they are where the plan asks for nothing."""
DROPPED = {
    "num_layers", "num_attention_heads", "hidden_size", "group_query_attention", "num_query_groups", "max_position_embeddings",
    "untie_embeddings_and_output_weights", "num_experts", "multi_latent_attention",
    "bf16", "fp16", "fp8", "accumulate_allreduce_grads_in_fp32", "grad_reduce_in_bf16",
}  # fmt: skip
"""Fields that the model's own recipe has, or that mixed_precision says together."""
SECTIONS = {"model", "train", "ddp", "dist", "optimizer", "checkpoint", "dataset", "comm_overlap", "mixed_precision"}
EITHER = {"use_distributed_optimizer", "use_megatron_fsdp"}
"""Fields of two sections, of which one that is true is enough."""
Fields: TypeAlias = dict[tuple[str, str], Given]
"""(section, of those in `EITHER`; else "", field) -> what is given."""
_MARK = re.compile(r"megatron\.bridge|\bcfg\.(?:model|ddp|train)\.\w+\s*=")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Code(str):
    """A value that is written as it stands."""


class MegatronBridge(Exporter):
    name = "megatron-bridge"
    title = "Megatron-Bridge"
    package = "megatron-bridge"
    versions = ("0.6.2",)
    source = "megatron-bridge 0.6.2: training/config.py, recipes; megatron-core 0.19.2"
    order = OWN
    takes = "a Python recipe"
    left_out = "data, learning rate, checkpoints"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return bool(_MARK.search(text))

    @property
    def voice(self) -> Voice:
        return Voice("Megatron-Bridge", torch_fsdp2=False)

    def said(self, setup: Setup) -> Iterator[Said]:
        for s in said(setup, self.voice):
            fields = {**NEUTRAL.get(s.word, {}), **{k: v for k, v in s.options.items() if k not in DROPPED}}
            if s.word == "chunks":
                fields |= _chunks(setup)
            if s.word == "precision" and s.level != "refused":
                fields["mixed_precision"] = _mixed_precision(setup, s.options)
            yield replace(s, options=spelled(fields))

    def conditions(self) -> Sequence[Condition]:
        return (*_megatron_conditions.conditions(), Condition("order with Megatron-FSDP", self._order))

    def _order(self, setup: Setup) -> str:
        """_validate_and_apply_megatron_fsdp_configs."""
        if setup.in_order(OWN) or "fsdp" not in data_parallel(setup, self.voice):
            return ""
        return "its own order of ranks with Megatron-FSDP (ZeRO 2 and 3): the plan has replicas outside of the stages; use ZeRO 1"

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {k: v for s in self.said(setup) for k, v in s.options.items()}
        name, module = base_of(setup.name)
        code = [f"{option} = {_written(value)}" for option, value in options.items()]
        imports = ["import torch", *([f"from {module} import {name} as recipe"] if name else [])]
        imports += ["from megatron.bridge.training.mixed_precision import MixedPrecisionConfig"]
        lines = [
            f'"""{self.called}: {setup.name or "a model"} on {count(setup.world)} devices. Not in the plan: {self.left_out}."""',
            "",
            *imports,
            "",
            "",
            "def config():" if name else "def config(recipe):  # the recipe of your model: there is none by its name",
            "    cfg = recipe()",
            *(f"    {line}" for line in code),
            "    return cfg",
        ]
        if name:
            lines += [
                "",
                "",
                'if __name__ == "__main__":',
                "    from megatron.bridge.training.gpt_step import forward_step",
                "    from megatron.bridge.training.pretrain import pretrain",
                "",
                "    pretrain(config(), forward_step)",
            ]
        return {FILE: "\n".join(lines) + "\n"}

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        (name, text), *_ = files.items()
        recipe = recipe_of(name, text)
        ignored: dict[str, str] = {}
        given = _inherited(name, recipe.base)
        for found in recipe.sets:
            self._take(name, found, given, ignored)
        if not given:
            raise InputError(f"{name} sets no field of {self.called}", where=name)
        values: dict[str, Given] = {}
        for (_, field), one in given.items():
            if field not in values or one.value is True:
                values[field] = one
        read = Reader(values, model, world, self.called, ignored, _place).read()
        return replace(read, given=spelled({field: one.value for field, one in values.items()}))

    def _take(self, name: str, found: Set, given: Fields, ignored: dict[str, str]) -> None:
        """One field that the recipe sets."""
        *before, last = found.path
        section = next((s for s in reversed(before) if s in SECTIONS), "")
        fields = known()[1]
        field = ALIASES.get(last, last)
        shown, where = f"cfg.{found.text}", f"{name}:{found.line}"
        if last == "mixed_precision":
            given.update(_precision(found.value, shown, where))
            return
        if not section:  # a section as a whole: its keywords are read by themselves
            return
        if field not in fields:
            near = nearest(last, fields)
            if near in READ:
                raise InputError(
                    f"{where}: {self.called} has no field {'.'.join(found.path)}: did you mean {near}?", where=where
                )
            return
        key = section if field in EITHER else "", field
        if found.value is not None and not isinstance(found.value, Unknown):
            given[key] = Given(found.value, shown, where)
            return
        given.pop(key, None)
        if found.value is not None and field in READ:
            ignored[shown] = "its value is not plain: taken as its default"


READ = {
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "expert_model_parallel_size",
    "expert_tensor_parallel_size", "virtual_pipeline_model_parallel_size", "sequence_parallel", "cp_comm_type", *PLACES,
    *(field for fields in NEUTRAL.values() for field in fields),
} - {"mixed_precision", "comm_overlap"}  # fmt: skip
"""Fields that decide a layout."""


def base_of(name: str) -> tuple[str, str]:
    """(short name, module) of the recipe of a model; empty where there is none by its name."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for short, (_, module) in recipes()["short"].items():
        if re.sub(r"[^a-z0-9]", "", short.removesuffix("_pretrain_config")) == plain:
            return short, module
    return "", ""


@lru_cache(maxsize=1)
def recipes() -> Mapping[str, Any]:
    """Layouts of the package's own recipes for H100, and short names of these with their modules."""
    text = package_files(__package__).joinpath("_megatron_bridge_recipes.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


def _inherited(name: str, base: str) -> Fields:
    """What a recipe begins with, where it is one of the package's own."""
    table = recipes()
    own = table["recipes"].get(table["short"].get(base, [base])[0], {})
    found: Fields = {
        (section if field in EITHER else "", ALIASES.get(field, field)): Given(value, f"{_place(field)} = {value!r} (of {base})", name)
        for field, value in own.items() for section in PLACES.get(field, ("model",))
    }  # fmt: skip
    return found | _precision("bf16_mixed", f"mixed_precision (of {base})", name) if found else {}


def _precision(value: Any, shown: str, where: str) -> Fields:
    """Of a name such as "bf16_with_fp8_current_scaling_mixed"; of a MixedPrecisionConfig its keywords are read by themselves."""
    if not isinstance(value, str):
        return {}
    return {
        ("", field): Given(True if field != "fp8" else value, shown, where) for field in ("bf16", "fp16", "fp8") if field in value
    }  # fmt: skip


def _chunks(setup: Setup) -> dict[str, Any]:
    many = setup.point.chunks > 1
    return {
        "virtual_pipeline_model_parallel_size": setup.point.chunks if many else None,
        "overlap_p2p_comm": many,
        "batch_p2p_comm": not many,
    }


def _mixed_precision(setup: Setup, options: Mapping[str, Any]) -> Code:
    r = setup.problem.recipe
    given = [f"{k}=True" for k in ("bf16", "fp16") if k in options] or ["fp32=True"]
    given += [
        f"params_dtype=torch.{r.compute_dtype}",
        f"pipeline_dtype=torch.{r.compute_dtype}",
        "autocast_enabled=False",
    ]
    given += [f"grad_reduce_in_fp32={r.grad_dtype == 'float32'}"]
    given += [f"fp8={options['fp8']!r}"] if "fp8" in options else []
    return Code(f"MixedPrecisionConfig({', '.join(given)})")


def spelled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Places of fields; types are torch's."""
    return {
        ".".join(part for part in ("cfg", section, field) if part): (
            Code(f"torch.{_SHORT[value]}") if field.endswith("_dtype") and value in _SHORT else value
        )
        for field, value in fields.items() for section in PLACES.get(field, ("model",))
    }  # fmt: skip


def _place(field: str) -> str:
    return next(iter(spelled({field: None})))


def _written(value: Any) -> str:
    if isinstance(value, Code):
        return value
    return json.dumps(value) if isinstance(value, str) else repr(value)
