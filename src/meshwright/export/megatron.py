"""Megatron-LM: options of its training scripts, as a launch script.

dp             devices / (tp · pp · cp)          zero 1     the distributed optimizer
tp, sequence   tensor_model_parallel_size …      zero 2, 3  Megatron-FSDP; weights kept for the backward: torch FSDP2
cp             a2a = ulysses, all_gather         stages     a layout string: "Et*15|t*16|t*15L"
ep             expert_model_parallel_size …      schedule   1F1B, interleaved with several stages a rank
recompute      full; block = the first k layers of every stage; selective = parts that it names
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._words import count
from . import _megatron_conditions
from ._megatron_options import of_script, of_yaml
from ._megatron_read import Reader
from ._megatron_words import OWN, Voice, data_parallel, said
from .base import Exporter, Read
from .model import Model
from .said import Condition, Said
from .setup import Setup

SCRIPT = "megatron.sh"
SPELLED = {
    "gradient_accumulation_fusion": "--no-gradient-accumulation-fusion",
    "torch_fsdp2_reshard_after_forward": "--torch-fsdp2-no-reshard-after-forward",
    "fp8": "--fp8-format",
}
"""Fields whose option is not their name with hyphens; of these the truth values are written where they are false."""
_OPTION = re.compile(
    r"--(?:(?:tensor|pipeline)-model-parallel-size|micro-batch-size|use-distributed-optimizer|use-megatron-fsdp)\b"
)
_KEYS = re.compile(r"^\s+--[\w-]+\s*:", re.MULTILINE)
"""Options as keys of YAML."""
_FIELD = re.compile(r"^\s*(?:tensor|pipeline)_model_parallel_size\s*:", re.MULTILINE)


class Megatron(Exporter):
    name = "megatron"
    title = "Megatron-LM"
    package = "megatron-core"
    versions = ("0.19.2", "0.16.1")
    source = "megatron-core 0.19.2 and 0.16.1: megatron/training/arguments.py, megatron/core"
    order = OWN
    takes = "a command line, a launch script, a YAML configuration"
    left_out = "data, tokenizer, learning rate, checkpoints, and of the model its feed-forward size, activation, norms and positions"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return bool(_OPTION.search(text) or (_FIELD.search(text) and "cfg." not in text))

    @property
    def voice(self) -> Voice:
        return Voice("Megatron", fsdp_dtypes=self.version != "0.16.1")

    def said(self, setup: Setup) -> Iterator[Said]:
        return (replace(s, options=spelled(s.options)) for s in said(setup, self.voice))

    def conditions(self) -> Sequence[Condition]:
        return _megatron_conditions.conditions()

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {k: v for s in self.said(setup) for k, v in s.options.items()}
        cluster, fsdp = (
            setup.problem.cluster,
            "fsdp" in data_parallel(setup, self.voice),
        )
        each = min(cluster.node_size, setup.world)
        ranks = ["torchrun", f"--nproc-per-node {each}"]
        if setup.world > each:
            ranks += [f"--nnodes {setup.world // each}", '--node-rank "$NODE_RANK"', '--master-addr "$MASTER_ADDR"']
        order = "unset CUDA_DEVICE_MAX_CONNECTIONS  # 1 would serialise what sharded data parallelism overlaps"
        if not fsdp:
            order = (
                "export CUDA_DEVICE_MAX_CONNECTIONS=1  # asked for before Blackwell with tensor or context parallelism"
            )
        lines = [
            "#!/usr/bin/env bash",
            f"# {self.called}: {setup.name or 'a model'} on {count(setup.world)} devices.",
            f"# Not in the plan, to be given behind the name of this script: {self.left_out}.",
            "set -euo pipefail",
        ]
        if fsdp or setup.point.tp > 1 or setup.point.cp > 1:
            lines.append(order)
        lines += ["LAYOUT=(", *(f"  {_written(k, v)}" for k, v in options.items()), ")"]
        lines.append(" ".join([*ranks, "pretrain_gpt.py", '"${LAYOUT[@]}"', '"$@"']))
        return {SCRIPT: "\n".join(lines) + "\n"}

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        (name, text), *_ = files.items()
        if _KEYS.search(text) or (_FIELD.search(text) and not _OPTION.search(text)):
            values, unknown = of_yaml(name, text, self.called)
        else:
            values, unknown = of_script(name, text, self.called)
        read = Reader(values, model, world, self.called, unknown).read()
        return replace(read, given=spelled({field: one.value for field, one in values.items()}))


def spelled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Options of fields; one without a value is True."""
    return {
        SPELLED.get(name, f"--{name.replace('_', '-')}"): (not value if name in SPELLED and isinstance(value, bool) else value)
        for name, value in fields.items()
    }  # fmt: skip


def _written(option: str, value: Any) -> str:
    if value is True:
        return option
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([option, *(shlex.quote(str(v)) for v in values)])
