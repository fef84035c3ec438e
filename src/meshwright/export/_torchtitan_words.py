"""From torchtitan's settings to the words of a layout: its defaults filled in, what it works out worked out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ..errors import InputError
from ..layouts.style import CONTEXTS
from ..plan.model import Row, Schedule
from ..plan.schedules import from_csv
from ._torchtitan_fields import BASES, FIELDS, MAIN, OWN
from ._torchtitan_recipe import Settings, Unread
from ._torchtitan_schedules import NAMES, SINGLE, TURNED, recognised, schedule_of
from ._torchtitan_settings import eight_bits, generation
from .base import Read
from .model import Model

HINT = "SCHEDULE"
"""Constant of a recipe that says what its CSV is: name and arguments."""
CONTEXT = "CONTEXT"
"""Constant of a recipe that says how its model attends over the ranks of cp, which main leaves to the model."""


_FLAVOR = re.compile(r"""model_registry\(\s*['"]([^'"]+)""")


class Words:
    """What the settings of one run say."""

    def __init__(self, settings: Settings, files: Mapping[str, str], model: Model, world: int) -> None:
        self.settings, self.files, self.model, self.world = settings, files, model, world
        self.version = generation(settings)
        self.ignored: dict[str, str] = {}
        self.lines: dict[str, str] = {}

    def read(self) -> Read:
        """Raises InputError: what torchtitan itself refuses, or no plain value where one is needed."""
        tp, cp, pp, ep = (
            self.degree(word, f"parallelism.{long}_parallel_degree")
            for word, long in (("tp", "tensor"), ("cp", "context"), ("pp", "pipeline"), ("ep", "expert"))
        )
        if not self.model.experts and ep > 1:
            ep = 1
            self.ignored["parallelism.expert_parallel_degree"] = "no effect: the model has no experts"
        replicate, shard = self._data(tp, cp, pp)
        dp = replicate * shard
        micro_batch, m, samples = self._batch(dp, pp)
        words: dict[str, object] = {
            "dp": dp, "tp": tp, "cp": cp, "pp": pp, "micro_batch": micro_batch, "samples": samples, "recompute": self._again(),
            "sequence": bool(self.value("sequence", "parallelism.enable_sequence_parallel")), "context": self._context(cp),
        }  # fmt: skip
        words |= self._experts(ep, tp, cp, shard)
        words |= self._zero(replicate, shard * cp, pp)
        words |= self._stages(pp, m)
        self._rest()
        given = {key: value for key, value in self.settings.values.items() if not isinstance(value, Unread)}
        return Read(words, self.ignored, self.lines, given, self.version, self._model(), self._precision())

    def value(self, word: str, key: str) -> object:
        """A setting or its default; remembered as what says `word`."""
        found = self.settings.values.get(key, FIELDS[key].default)
        if key in self.settings.values:
            self.lines.setdefault(word, f"{key} {found}" + (f" ({at})" if (at := self.settings.where.get(key)) else ""))
        if isinstance(found, Unread):
            raise InputError(f"{key} is {found.text}, not a plain value: write it out", where=self.where(key))
        return found

    def whole(self, word: str, key: str) -> int:
        found = self.value(word, key)
        if not isinstance(found, int) or isinstance(found, bool) or abs(found) >= 1 << 53:
            raise InputError(f"{key} is {found!r}: it must be a whole number", where=self.where(key))
        return found

    def degree(self, word: str, key: str) -> int:
        found = self.whole(word, key)
        if found < 1:
            raise InputError(f"{key} is {found}: it must be 1 or more", where=self.where(key))
        return found

    def where(self, key: str) -> str:
        return self.settings.where.get(key, "")

    def _model(self) -> str:
        """As we call it, where the recipe says which of torchtitan's it trains; else as torchtitan does."""
        base = next((b for b in self.settings.bases if b in BASES), "")
        spec = self.settings.values.get("model_spec")
        told = _FLAVOR.search(spec.text) if isinstance(spec, Unread) else None
        flavor = told[1] if told else BASES[base].flavor if base and spec is None else ""
        if not flavor:
            return ""
        module = BASES[base].module if base else ""
        self.lines["model"] = f"{module} {flavor}".strip()
        ours = (name for name, own in OWN.items() if (own.module, own.flavor) == (module, flavor))
        return next(ours, self.lines["model"]) if module else ""

    def _precision(self) -> str:
        key = "training.mixed_precision_param"
        found = self.settings.values.get(key, FIELDS[key].default)
        self.lines["precision"] = f"{key} {found}"
        return found if isinstance(found, str) else ""

    def _data(self, tp: int, cp: int, pp: int) -> tuple[int, int]:
        """Groups of replicas, and replicas of each."""
        replicate = self.degree("replicate", "parallelism.data_parallel_replicate_degree")
        key = "parallelism.data_parallel_shard_degree"
        shard = self.whole("dp", key)
        if shard == -1:
            shard = self.world // (replicate * cp * tp * pp)
        if shard < 1 or replicate * shard * cp * tp * pp != self.world:
            raise InputError(
                f"data_parallel_replicate_degree {replicate} × data_parallel_shard_degree {shard} × context_parallel_degree {cp} × "
                f"tensor_parallel_degree {tp} × pipeline_parallel_degree {pp} = {replicate * max(shard, 0) * cp * tp * pp:,}, but there are "
                f"{self.world:,} devices", where=self.where(key),
            )  # fmt: skip
        return replicate, shard

    def _batch(self, dp: int, pp: int) -> tuple[int, int, int]:
        """Samples of a micro-batch, micro-batches of a step, samples of a step."""
        if self.version == MAIN:
            return self._tokens(dp, pp)
        local = self.degree("micro_batch", "training.local_batch_size")
        samples = self.whole("samples", "training.global_batch_size")
        samples = local * dp if samples < 0 else samples
        if samples == 0 or samples % (local * dp):
            raise InputError(
                f"training.global_batch_size {samples:,} is no multiple of local_batch_size {local} × {dp} replicas",
                where=self.where("training.global_batch_size"),
            )
        rounds = samples // (local * dp)
        if pp == 1:
            return local, rounds, samples
        size = self.degree("micro_batch", "parallelism.pipeline_parallel_microbatch_size")
        if local % size:
            raise InputError(
                f"training.local_batch_size {local} is no multiple of pipeline_parallel_microbatch_size {size}",
                where=self.where("training.local_batch_size"),
            )
        self._several_flushes(rounds)
        return size, local // size, samples

    def _several_flushes(self, rounds: int) -> None:
        if rounds > 1:
            raise InputError(
                f"each step runs its pipeline {rounds} times, with a flush in between: no layout here says that; make the local batch "
                f"{rounds} times as large", where=self.where("training.global_batch_size"),
            )  # fmt: skip

    def _tokens(self, dp: int, pp: int) -> tuple[int, int, int]:
        seq = self.model.seq
        if not seq:
            raise InputError("batches are counted in tokens, and the model takes none")
        each = self.degree("micro_batch", "training.num_tokens_per_microbatch_per_dp_rank")
        m = self.degree("micro_batch", "parallelism.num_pp_microbatches") if pp > 1 else 1
        total = self.whole("samples", "training.num_tokens_per_train_step")
        total = each * m * dp if total < 0 else total
        if each % seq:
            raise InputError(
                f"num_tokens_per_microbatch_per_dp_rank {each:,} is no multiple of the {seq:,} tokens of a sample",
                where=self.where("training.num_tokens_per_microbatch_per_dp_rank"),
            )
        if total == 0 or total % (each * m * dp):
            raise InputError(
                f"num_tokens_per_train_step {total:,} is no multiple of the {each * m * dp:,} tokens of one round of all replicas",
                where=self.where("training.num_tokens_per_train_step"),
            )
        rounds = total // (each * m * dp)
        if pp > 1:
            self._several_flushes(rounds)
        return each // seq, m if pp > 1 else rounds, total // seq

    def _again(self) -> str:
        found = self.settings.values.get("activation_checkpoint", FIELDS["activation_checkpoint"].default)
        if "activation_checkpoint" in self.settings.values:
            self.lines["recompute"] = f"activation_checkpoint {found}"
        if found in ("none", "full"):
            return str(found)
        if found == "selective":
            self.ignored["activation_checkpoint"] = (
                "selective: which products run again depends on how they are fused; priced as light ops and every other product"
            )
            return "alternate"
        text = found.text if isinstance(found, Unread) else str(found)
        self.ignored["activation_checkpoint"] = (
            f"{text}: what it keeps is not known; priced as light ops and every other product"
        )
        return "alternate"

    def _context(self, cp: int) -> str:
        said = self.settings.constants.get(CONTEXT)
        if self.version != MAIN or cp == 1:
            return "gather"
        if said not in CONTEXTS:
            self.ignored["context_parallel_degree"] = (
                "how attention sees all positions is said in the model: priced with all keys and values gathered"
            )
        return str(said) if said in CONTEXTS else "gather"

    def _experts(self, ep: int, tp: int, cp: int, shard: int) -> Mapping[str, object]:
        if ep == 1:
            return {}
        if (shard * cp * tp) % ep:
            raise InputError(
                f"expert_parallel_degree {ep} does not divide data_parallel_shard_degree {shard} × context {cp} × tensor {tp}",
                where=self.where("parallelism.expert_parallel_degree"),
            )
        if ep % tp or shard % (ep // tp):
            raise InputError(
                f"expert_parallel_degree {ep} takes a part of the {tp} ranks of tensor parallelism, or some of context parallelism: no layout "
                f"here says that; use a multiple of {tp} that divides {shard * tp}", where=self.where("parallelism.expert_parallel_degree"),
            )  # fmt: skip
        if cp > 1:
            self.ignored["parallelism.expert_parallel_degree"] = (
                f"with context parallelism experts lie over its {cp} ranks first; priced as if over replicas only"
            )
        return {"ep": ep, "whole_experts": tp > 1}

    def _zero(self, replicate: int, shard: int, pp: int) -> Mapping[str, object]:
        """What is cut over `shard` members of each of `replicate` groups."""
        keeps = str(self.value("reshard", "parallelism.fsdp_reshard_after_forward"))
        if keeps not in ("default", "always", "never"):
            raise InputError(
                f'fsdp_reshard_after_forward is "{keeps}": it is default, always or never',
                where=self.where("parallelism.fsdp_reshard_after_forward"),
            )
        defers = self.version == MAIN and bool(self.value("zero", "parallelism.fsdp_defer_gradient_reduction"))
        each = {"sums_each": replicate > 1 and pp == 1 and not defers}
        if shard == 1:
            return each | {"zero": 0, "replicate": 1}
        groups = replicate if replicate > 1 else 1
        if pp > 1 or defers:
            if keeps == "always":
                self.ignored["parallelism.fsdp_reshard_after_forward"] = (
                    "always: weights are gathered again for every micro-batch; priced as once a step"
                )
            return each | {"zero": 1, "replicate": groups}
        return each | {"zero": 3, "replicate": groups, "reshard": keeps != "never"}

    def _stages(self, pp: int, m: int) -> Mapping[str, object]:
        if pp == 1:
            return {"schedule": "1f1b"}
        text = str(self.value("schedule", "parallelism.pipeline_parallel_schedule"))
        name = next((n for n in NAMES if n.lower() == text.lower()), "")
        if not name:
            raise InputError(
                f'no schedule "{text}": torch has {", ".join(NAMES)}',
                where=self.where("parallelism.pipeline_parallel_schedule"),
            )
        rows = self._table()
        counts = self._counts(pp, name)
        v, odd = divmod(len(counts), pp)
        if odd:
            raise InputError(
                f"{len(counts)} stages do not divide over {pp} pipeline ranks", where=self.lines.get("stages", "")
            )
        wants = 2 if name in TURNED else 1 if name in SINGLE and not rows else v
        if v != wants:
            raise InputError(
                f"schedule {name} has {wants} stage{'s' * (wants > 1)} a rank: got {len(counts)} stages for {pp} ranks",
                where=self.where("parallelism.pipeline_parallel_schedule"),
            )
        try:
            hint = self.settings.constants.get(HINT)
            found = recognised(rows, pp, m, name in TURNED, _hinted(hint, m)) if rows else schedule_of(name, pp, m, v)
        except InputError as error:
            raise InputError(error.message, where=self.where("parallelism.pipeline_parallel_schedule")) from None
        words: dict[str, object] = {"schedule": found.name, "chunks": v, "counts": counts}
        return words | ({"rows": found.rows} if found.rows else {"args": dict(found.args)})

    def _table(self) -> tuple[Row, ...]:
        """Rows of the CSV, none if there is none."""
        key = "parallelism.pipeline_parallel_schedule_csv"
        path = self.value("schedule", key)
        if not path:
            return ()
        name = PurePosixPath(str(path)).name
        text = next((t for n, t in self.files.items() if PurePosixPath(n).name == name), None)
        if text is None:
            raise InputError(f"its schedule is in {path}: give that file too, beside it", where=self.where(key))
        try:
            return from_csv(text)
        except InputError as error:
            raise InputError(error.message, where=f"{name}, {error.where}") from None

    def _counts(self, pp: int, schedule: str) -> tuple[int, ...]:
        """Layers of each stage."""
        key = "parallelism.module_fqns_per_model_part"
        key = key.replace("module_", "pipeline_parallel_module_") if self.version == MAIN else key
        parts = self.value("stages", key)
        if parts is not None:
            return self._listed(parts, key)
        layers = len(self.model.layers)
        first, last = (
            self.whole("stages", f"parallelism.pipeline_parallel_{end}_stage_less_layers") for end in ("first", "last")
        )
        each = self.value("stages", "parallelism.pipeline_parallel_layers_per_stage")
        if each is None:
            stages = pp * (1 if schedule in SINGLE else 2)
        else:
            per = self.degree("stages", "parallelism.pipeline_parallel_layers_per_stage")
            stages = math.ceil((layers + first + last) / per)
        try:
            return dealt(layers, stages, first, last)
        except ValueError as error:
            raise InputError(str(error), where=self.where("parallelism.pipeline_parallel_layers_per_stage")) from None

    def _listed(self, parts: object, key: str) -> tuple[int, ...]:
        """Layers of each list of module names."""
        if not isinstance(parts, list) or not all(isinstance(p, list) for p in parts):
            raise InputError(f"{key} must be a list of lists of module names", where=self.where(key))
        done, counts = 0, []
        for s, names in enumerate(parts):
            numbers = [n for name in names if (n := self._layer(str(name))) >= 0]
            if sorted(numbers) != list(range(done, done + len(numbers))):
                raise InputError(
                    f"stage {s} of {key} holds layers {numbers}: after layer {done - 1} comes {done}" if done else
                    f"stage {s} of {key} holds layers {numbers}: they begin at 0", where=self.where(key),
                )  # fmt: skip
            counts.append(len(numbers))
            done += len(numbers)
        if done != len(self.model.layers):
            raise InputError(
                f"{key} lists {done} layers, the model has {len(self.model.layers)}", where=self.where(key)
            )
        return tuple(counts)

    def _layer(self, name: str) -> int:
        """Position of the layer with a name, torchtitan's or the model's own; −1 for what is no layer."""
        if name in self.model.layers:
            return self.model.layers.index(name)
        found = re.fullmatch(r"layers\.(\d+)", name)
        return int(found[1]) if found else -1

    def _rest(self) -> None:
        """Settings that change speed or memory and that no plan says."""
        for key, field in FIELDS.items():
            if field.assumed and self.settings.values.get(key, field.default) != field.default:
                self.ignored[key] = f"{self.settings.values[key]}: priced with {field.assumed}"
        for base in self.settings.bases:
            if base not in BASES:
                self.ignored[base] = (
                    "a recipe that is not in the file: torchtitan's defaults are assumed for what is not said here"
                )
        for key in self.settings.foreign:
            self.ignored[key] = "no option of torchtitan: taken as the recipe's own"
        narrow = eight_bits(self.settings)
        if narrow:
            self.ignored[narrow] = "products in 8 bits: say so with the problem, they are priced as it says"
        seq_key = "training.max_context_length" if self.version == MAIN else "training.seq_len"
        seq = self.settings.values.get(seq_key)
        if isinstance(seq, int) and self.model.seq and seq != self.model.seq:
            self.ignored[seq_key] = (
                f"{seq:,} positions: the model was captured with {self.model.seq:,}, and is priced so"
            )


def dealt(layers: int, stages: int, first: int = 1, last: int = 1) -> tuple[int, ...]:
    """Layers of each stage where nothing lists them: what is before the layers counts as `first` layers, what is after as `last`.

    Raises:
        ValueError: a stage would be left without its share.
    """
    if stages == 1:
        return (layers,)
    each, extra = divmod(layers + first + last, stages)
    if each < max(1, first, last):
        raise ValueError(
            f"{stages} stages of {layers} layers, the embedding as {first} and the head as {last}: {each} a stage is too few"
        )
    counts = [each + (s < extra) for s in range(stages)]
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts)


def _hinted(hint: object, m: int) -> Schedule | None:
    if not isinstance(hint, dict) or not isinstance(hint.get("name"), str):
        return None
    return Schedule(hint["name"], m, {k: v for k, v in hint.items() if k != "name"})


def listed(shares: Sequence[Sequence[str]]) -> str:
    """Lists of module names as Python."""
    return "[" + ", ".join(repr(list(names)) for names in shares) + "]"
