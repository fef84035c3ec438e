"""DeepSpeed's JSON file as people have it: settings left out, "auto" of Hugging Face's Trainer, keys of older versions."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._parsed import parsed_json, parsed_python
from .._spelling import nearest
from .._words import count
from ..errors import InputError, Unsupported
from ._deepspeed_keys import ASSUMED, KNOWN, REMOVED, TELLING, ZERO
from ._words import line_of
from .base import Read

AUTO = "auto"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def recognises(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    return any(f'"{key}"' in text for key in TELLING)


def read(called: str, files: Mapping[str, str], world: int) -> Read:
    """See `Exporter.read`. A Python file beside the JSON file is searched for the call that makes layers run again."""
    code = {name: text for name, text in files.items() if name.endswith(".py")}
    settings = {name: text for name, text in files.items() if text.lstrip().startswith("{")}
    if len(settings) != 1:
        raise InputError(f"{called} reads one JSON file: {len(settings)} of {', '.join(files)} begin as one")
    (name, text), *_ = settings.items()
    return _Reading(called, name, text, _asks_again(code)).read(world)


class _Reading:
    def __init__(self, called: str, name: str, text: str, again: bool) -> None:
        self.called, self.name, self.text, self.again = called, name, text, again
        self.words: dict[str, Any] = {}
        self.lines: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.config = self._parsed()

    def read(self, world: int) -> Read:
        self._keys()
        tp = self._degree("tp", "tensor_parallel.autotp_size") or self._degree("tp", "tensor_parallel.tp.tp_size")
        cp = self._degree("cp", "sequence_parallel_size")
        pp = self._degree("pp", "pipeline.stages")
        self.words |= {"tp": max(tp, 1), "cp": max(cp, 1), "pp": max(pp, 1), "context": "ulysses", "sequence": False}
        self._experts(max(tp, 1))
        self._zero()
        self._stages(max(pp, 1))
        self._batch(world // (max(tp, 1) * max(cp, 1) * max(pp, 1)))
        self._recompute()
        self._rest()
        return Read(self.words, self.ignored, self.lines, dict(_flat(self.config)), precision=self._precision())

    # ---- the file

    def _parsed(self) -> dict[str, Any]:
        try:
            found = parsed_json(self.text, object_pairs_hook=self._once)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.name}:{error.lineno}: no JSON: {error.msg}", where=self.name) from None
        if not isinstance(found, dict):
            raise InputError(f"{self.name}: no JSON object", where=self.name)
        return found

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise self._wrong(key, f'"{key}" stands twice')
            seen[key] = value
        return seen

    def _wrong(self, key: str, words: str) -> InputError:
        line = line_of(self.text, f'"{key.rpartition(".")[2]}"')
        return InputError(f"{self.name}:{line}: {words}", where=self.name)

    def _keys(self) -> None:
        self._known(self.config, KNOWN, "")
        zero = self.config.get("zero_optimization")
        if isinstance(zero, dict):
            self._known(zero, ZERO, "zero_optimization.")

    def _known(self, keys: Iterable[str], known: frozenset[str], folder: str) -> None:
        for key in keys:
            if folder + key in REMOVED:
                raise self._wrong(key, f'{self.called} has no "{folder + key}" any more: leave it out')
            if key not in known:
                if near := nearest(key, known):
                    raise self._wrong(key, f'{self.called} has no setting "{folder + key}": did you mean "{near}"?')
                self.ignored[folder + key] = "no setting of DeepSpeed: taken as the script's own"

    def _get(self, path: str) -> Any:
        """The value at a path; None where there is none."""
        here: Any = self.config
        for key in path.split("."):
            here = here.get(key) if isinstance(here, dict) else None
        return here

    def _number(self, path: str, least: int = 1) -> int | None:
        """A whole number; None where it is left out or left to the Trainer."""
        value = self._get(path)
        if value is None or value == AUTO:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < least:
            raise self._wrong(path, f'"{path}": {json.dumps(value)} must be a whole number of at least {least}')
        return int(value)

    def _says(self, word: str, path: str) -> None:
        self.lines[word] = f'"{path}": {json.dumps(self._get(path))}'

    # ---- words

    def _degree(self, word: str, path: str) -> int:
        found = self._number(path, least=0)
        if found is not None:
            self._says(word, path)
        return found or 0

    def _experts(self, tp: int) -> None:
        ranks = (self._number("expert_parallel.autoep_size") or 1) if self._get("expert_parallel.enabled") else 1
        if ranks > 1:
            self._says("ep", "expert_parallel.autoep_size")
        if ranks > 1 and ranks % tp:
            raise Unsupported(
                f"{self.name}: autoep_size {ranks} with autotp_size {tp}: only multiples of autotp_size can be priced",
                where=self.name,
            )
        self.words |= {"ep": ranks, "whole_experts": ranks > 1 and tp > 1}
        if (inside := self._number("expert_parallel.expert_tensor_parallel_size") or 1) > 1:
            raise self._wrong(
                "expert_tensor_parallel_size", f"{self.called} takes expert_tensor_parallel_size 1 only, not {inside}"
            )

    def _zero(self) -> None:
        zero = self.config.get("zero_optimization", {})
        if isinstance(zero, bool):
            stage, path = int(zero), "zero_optimization"
        else:
            stage, path = self._number("zero_optimization.stage", least=0) or 0, "zero_optimization.stage"
        if stage > 3:
            raise self._wrong("stage", f'"{path}": {stage} must be one of 0, 1, 2, 3')
        if self._get(path) is not None:
            self._says("zero", path)
        self.words["zero"] = stage
        if stage == 3:
            # what is used again within so many parameters is not given back: all of them, if the whole model is near
            live, reuse = (
                self._number(f"zero_optimization.stage3_max_{k}", 0) for k in ("live_parameters", "reuse_distance")
            )
            self.words["reshard"] = not (live and reuse and live == reuse and live != 10**9)
            if self.words["reshard"] and reuse != 0:
                self.ignored["zero_optimization.stage3_max_reuse_distance"] = (
                    "weights are given back after each use"
                    if self.words["reshard"]
                    else "weights are kept until the backward"
                )
        if stage in (1, 2) and not self._get("zero_optimization.overlap_comm"):
            self.ignored["zero_optimization.overlap_comm"] = (
                "gradients are reduced beside the backward (off by default)"
            )

    def _stages(self, pp: int) -> None:
        if pp == 1:
            return
        held = self._get("pipeline.layers")
        if held is None:
            self.ignored["pipeline.partition"] = "layers are dealt evenly"
        elif not isinstance(held, list) or not all(isinstance(n, int) and n >= 0 for n in held) or len(held) != pp:
            raise self._wrong("layers", f'"pipeline.layers": must be {pp} whole numbers, layers of each stage')
        else:
            self.words["counts"] = tuple(held)
            self._says("counts", "pipeline.layers")

    def _batch(self, replicas: int) -> None:
        keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        batch, micro, steps = (self._number(key) for key in keys)
        left = [key for key in keys if self.config.get(key) == AUTO]
        for word, key in zip(("samples", "micro_batch", "micro_batches"), keys, strict=True):
            if key in self.config and key not in left:
                self._says(word, key)
        if batch is None and micro is None and not left:
            raise InputError(f'{self.name}: needs "{keys[0]}" or "{keys[1]}"', where=self.name)
        replicas = max(replicas, 1)
        if not left:
            if micro is None and batch is not None:
                micro = batch // replicas // (steps or 1)
            steps = steps or (batch // (micro or 1) // replicas if batch and micro else 1)
            batch = batch or (micro or 0) * steps * replicas
            if not micro or not steps or batch != micro * steps * replicas:
                raise self._wrong(
                    keys[0] if keys[0] in self.config else keys[1],
                    f"{keys[0]} {count(batch)} is not {keys[1]} {micro} × {keys[2]} {steps} × {replicas} replicas",
                )
        elif batch is None and micro and steps:
            batch = micro * steps * replicas
        elif batch and steps and micro is None and batch % (steps * replicas) == 0:
            micro = batch // steps // replicas
        if batch is not None:
            self.words["samples"] = batch
        if micro is not None:
            self.words["micro_batch"] = micro
        elif left:
            self.ignored["train_micro_batch_size_per_gpu"] = "left to the Trainer: 1 sample"
        if batch is None:
            self.ignored["train_batch_size"] = "left to the Trainer: the batch that was asked for"

    def _recompute(self) -> None:
        interval = self._number("pipeline.activation_checkpoint_interval", least=0) or 0
        if interval:
            self._says("recompute", "pipeline.activation_checkpoint_interval")
        if interval > 1:
            self.ignored["pipeline.activation_checkpoint_interval"] = f"each layer alone, not {interval} together"
        self.words["recompute"] = "full" if interval or self.again else "none"
        if self._get("activation_checkpointing") and not self.again:
            self.ignored["activation_checkpointing"] = "tunes what the code recomputes; without the code: nothing is"

    def _rest(self) -> None:
        for path, (default, instead) in ASSUMED.items():
            value = self._get(path)
            if value is not None and value != default and value != {}:
                self.ignored[path] = instead

    def _precision(self) -> str:
        """Of products; "" where it is left to the Trainer."""
        kinds = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "torch_autocast": "bfloat16"}
        on = [kind for kind in kinds if self._get(f"{kind}.enabled")]
        if any(self._get(f"{kind}.enabled") == AUTO for kind in on):
            return ""
        if not on:
            self.lines["precision"] = "bf16.enabled (not given)"
            return "float32"
        kind = on[0]
        found = str(self._get("torch_autocast.dtype") or "") if kind == "torch_autocast" else ""
        self.lines["precision"] = f'"{kind}.enabled": true'
        return _DTYPES.get(found.removeprefix("torch."), found) or kinds[kind]


def _flat(settings: Mapping[str, Any], folder: str = "") -> Iterator[tuple[str, Any]]:
    """Path -> value."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{folder}{key}.")
        else:
            yield folder + key, value


def _asks_again(code: Mapping[str, str]) -> bool:
    """Whether a call makes every layer run again."""
    for name, text in code.items():
        try:
            tree = parsed_python(text)
        except SyntaxError as error:
            raise InputError(f"{name}:{error.lineno}: no Python: {error.msg}", where=name) from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "gradient_checkpointing_enable":
                return True
    return False
