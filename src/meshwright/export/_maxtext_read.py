"""MaxText's settings as people have them: a YAML file over base.yml, a command with key=value, or both; sizes left at −1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf, prod
from typing import Any

import yaml

from .._spelling import nearest
from .._words import count
from ..errors import InputError, Unsupported
from ._maxtext_names import AGAIN, ASSUMED, MESH, NEAREST_AGAIN, OWN, SIZE_OF, options, our_name
from ._shell import script
from ._yaml import parsed_yaml, settings
from .base import Read
from .model import Model

_KEY = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_TELLING = re.compile(
    r"\b(?:ici|dcn)_\w+_parallelism\s*[:=]|\bbase_config:\s*\S*base\.yml|maxtext\.trainers|MaxText[./]train"
)
_DEFAULTS: Mapping[str, Any] = {"dcn_data_parallelism": -1, "ici_fsdp_parallelism": -1}


def recognises(text: str) -> bool:
    return _TELLING.search(text) is not None


def read(called: str, files: Mapping[str, str], model: Model, world: int) -> Read:
    """See `Exporter.read`. What a command says stands over what a file says."""
    found: dict[str, tuple[Any, str]] = {}
    for name, text in sorted(files.items(), key=lambda item: _is_command(item[1])):
        found |= {key: (value, place) for key, value, place in _settings(name, text)}
    if not found:
        raise InputError(f"{called} reads {', '.join(files)}, where no setting stands", where=", ".join(files))
    return _Reading(called, found, model, world).read()


def _is_command(text: str) -> bool:
    return any(_KEY.fullmatch(word.text) for command in script(text)[0] for word in command) or text.startswith("#!")


def _settings(name: str, text: str) -> Iterator[tuple[str, Any, str]]:
    """Key, value and place of each setting."""
    if _is_command(text):
        for command in script(text)[0]:
            for word in command:
                if found := _KEY.fullmatch(word.text):
                    yield found[1], _value(found[2], f"{name}:{word.line}"), f"{name}:{word.line}"
        return
    for key, setting in settings(text, name).items():
        yield key, setting.value, f"{name}:{setting.line}"


def _value(text: str, place: str) -> Any:
    try:
        return parsed_yaml(text) if text else ""
    except yaml.YAMLError:
        raise InputError(f"{place}: no value: {text}", where=place) from None


class _Reading:
    def __init__(self, called: str, found: Mapping[str, tuple[Any, str]], model: Model, world: int) -> None:
        self.called, self.found, self.model, self.world = called, found, model, world
        self.lines: dict[str, str] = {}
        self.ignored: dict[str, str] = {}

    def read(self) -> Read:
        self._keys()
        size = self._sizes()
        data, fsdp = size["data"], size["fsdp"] * size["fsdp_transpose"]
        tp, cp = size["tensor"] * size["tensor_sequence"], size["context"] * size["context_usp_ulysses"]
        zero = 3 if fsdp > 1 else int(bool(self._get("shard_optimizer_over_data", False)))
        words: dict[str, Any] = {
            "dp": data * fsdp * size["expert"],
            "replicate": data if fsdp > 1 else 1,
            "zero": zero,
            "tp": tp,
            "sequence": size["tensor_sequence"] > 1,
            "cp": cp,
            "ep": size["expert"],
            "pp": size["stage"],
            "order": self._order(size),
        }
        self._sides(size)
        if cp > 1:
            words["context"] = self._context()
        words |= self._pipeline(size["stage"])
        words |= self._batch(words["dp"], size["stage"])
        words["recompute"] = self._recompute()
        if (seq := self._number("max_target_length", 2048)) != self.model.seq and "max_target_length" in self.found:
            self.ignored["max_target_length"] = f"{count(self.model.seq)} positions, as asked for, not {count(seq)}"
        for key, (default, instead) in ASSUMED.items():
            if self._get(key, default) != default:
                self.ignored[key] = instead
        model = str(self._get("model_name", ""))
        self._says("model", "model_name")
        self._says("precision", "dtype")
        precision = str(self._get("dtype", "bfloat16"))
        given = {key: value for key, (value, _) in self.found.items()}
        model = "" if model == "default" else our_name(model)
        return Read(words, self.ignored, self.lines, given, model=model, precision=precision)

    # ---- settings

    def _keys(self) -> None:
        known = options()
        for key, (_, place) in self.found.items():
            if key in known:
                continue
            if near := nearest(key, known):
                raise InputError(f'{place}: {self.called} has no setting "{key}": did you mean "{near}"?', where=place)
            self.ignored[key] = "no setting of MaxText: taken as the script's own"

    def _get(self, key: str, default: Any) -> Any:
        return self.found[key][0] if key in self.found else default

    def _number(self, key: str, default: int, least: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not (least <= value < 1 << 53 or value == -1):
            place = self.found[key][1]
            raise InputError(f"{place}: {key}: {value} must be a whole number of at least {least}, or -1", where=place)
        return value

    def _says(self, word: str, key: str) -> None:
        if key in self.found:
            self.lines[word] = f"{key}: {self.found[key][0]}"

    # ---- degrees

    def _sizes(self) -> dict[str, int]:
        """Members of each axis, those left at −1 filled in."""
        slices = self._number("num_slices", -1)
        dcn = {a: self._axis("dcn", a) for a in (*MESH, "sequence")}
        if slices == -1:
            slices = prod(n for n in dcn.values() if n != -1)
        if slices == 1 and all(n in (1, -1) for n in dcn.values()):
            dcn = dict.fromkeys(dcn, 1)
        if self.world % slices:
            raise InputError(f"{self.called}: {slices} slices do not divide {count(self.world)} devices")
        ici = {a: self._axis("ici", a) for a in (*MESH, "sequence")}
        dcn, ici = self._filled("dcn", dcn, slices), self._filled("ici", ici, self.world // slices)
        for axis, word in (
            ("diloco", "DiLoCo"),
            ("autoregressive", "decoding"),
            ("context_autoregressive", "decoding"),
        ):
            if dcn[axis] * ici[axis] > 1:
                raise Unsupported(f"{self.called}: {axis} {dcn[axis] * ici[axis]} ({word}) cannot be priced")
        inner = [a for a in MESH if dcn[a] > 1 and any(ici[b] > 1 for b in MESH[: MESH.index(a)])]
        for axis in inner:
            self.ignored[f"dcn_{SIZE_OF.get(axis, axis)}_parallelism"] = "ranks are counted as in one slice"
        for word, axis in (("dp", "fsdp"), ("dp", "data"), ("pp", "stage"), ("cp", "context"), ("ep", "expert")):
            for kind in ("dcn", "ici"):
                self._says(word, f"{kind}_{SIZE_OF.get(axis, axis)}_parallelism")
        sizes = {a: dcn[a] * ici[a] for a in MESH}
        sizes["context"] *= dcn["sequence"] * ici["sequence"]
        return sizes

    def _axis(self, kind: str, axis: str) -> int:
        key = f"{kind}_{SIZE_OF.get(axis, axis)}_parallelism"
        return self._number(key, _DEFAULTS.get(key, 1))

    def _filled(self, kind: str, sizes: dict[str, int], whole: int) -> dict[str, int]:
        what = "slices" if kind == "dcn" else "devices of a slice"
        open_axes = [a for a, n in sizes.items() if n == -1]
        if len(open_axes) > 1:
            names = " and ".join(f"{kind}_{SIZE_OF.get(a, a)}_parallelism" for a in open_axes)
            raise InputError(f"{self.called}: {names} are both -1: one can be")
        known = prod(n for n in sizes.values() if n != -1)
        if (open_axes and whole % known) or (not open_axes and whole != known):
            raise InputError(
                f"{self.called}: {kind} sizes multiply to {count(known)}, but there are {count(whole)} {what}"
            )
        return {a: whole // known if n == -1 else n for a, n in sizes.items()}

    def _order(self, size: Mapping[str, int]) -> tuple[str, ...]:
        axes = self._get("mesh_axes", None)
        if axes is None:
            return OWN
        if not isinstance(axes, list) or any(a not in MESH for a in axes):
            place = self.found["mesh_axes"][1]
            raise InputError(f"{place}: mesh_axes must be a list of {', '.join(MESH)}", where=place)
        word = {
            "stage": "pp",
            "data": "dpr" if size["fsdp"] > 1 else "dp",
            "fsdp": "dp",
            "fsdp_transpose": "dp",
            "expert": "ep",
        }
        word |= {"context": "cp", "context_usp_ulysses": "cp", "tensor": "tp", "tensor_sequence": "tp"}
        return tuple(dict.fromkeys(word[a] for a in axes if a in word and size[a] > 1))

    def _sides(self, size: Mapping[str, int]) -> None:
        """What the axes are said to cut, where that is not what is priced."""
        self._says("tp", "ici_tensor_sequence_parallelism" if size["tensor_sequence"] > 1 else "ici_tensor_parallelism")
        rules = self._get("logical_axis_rules", None)
        pairs = [r for r in rules if isinstance(r, list) and len(r) == 2] if isinstance(rules, list) else []
        given = {str(rule[0]): rule[1] for rule in pairs}
        if size["tensor"] > 1 and size["tensor_sequence"] > 1:
            self.ignored["ici_tensor_parallelism"] = "as tensor_sequence"
        if size["tensor"] > 1 and given.get("activation_embed") != []:
            self.ignored["logical_axis_rules: activation_embed"] = (
                "features are whole between products, not cut over tensor"
            )
        if size["fsdp"] == 1 and size["context"] * size["expert"] > 1 and "embed" not in given:
            self.ignored["logical_axis_rules: embed"] = "weights are whole over context and expert"
        if size["fsdp_transpose"] > 1:
            self.ignored["ici_fsdp_transpose_parallelism"] = "as fsdp"

    def _context(self) -> str:
        strategy = str(self._get("context_parallel_strategy", "all_gather"))
        known = {"all_gather": "gather", "ring": "gather", "ulysses": "ulysses", "usp": "ulysses"}
        if strategy not in known:
            place = self.found["context_parallel_strategy"][1]
            raise InputError(
                f"{place}: context_parallel_strategy: {strategy} must be one of {', '.join(known)}", where=place
            )
        self._says("context", "context_parallel_strategy")
        if strategy in ("ring", "usp"):
            self.ignored["context_parallel_strategy"] = f"as {'all_gather' if strategy == 'ring' else 'ulysses'}"
        if known[strategy] == "gather" and self._get("context_parallel_load_balance", True):
            self.ignored["context_parallel_load_balance"] = (
                "each rank has neighbouring positions, the last the most work"
            )
        return known[strategy]

    # ---- pipeline, batch, recompute

    def _pipeline(self, pp: int) -> dict[str, Any]:
        if pp == 1:
            return {"chunks": 1, "schedule": "1f1b"}
        layers = len(self.model.layers)
        piped = self._number("pipeline_parallel_layers", -1)
        if piped not in (-1, layers):
            self.ignored["pipeline_parallel_layers"] = f"all {layers} layers are in the pipeline, not {piped}"
        each = self._number("num_layers_per_pipeline_stage", 1)
        repeats = self._number("num_pipeline_repeats", -1)
        repeats = layers // (pp * each) if repeats == -1 else repeats
        if repeats < 1 or pp * repeats * each != layers:
            raise InputError(
                f"{self.called}: {pp} stages × {repeats} repeats × num_layers_per_pipeline_stage {each} is not {layers} layers"
            )
        self._says("chunks", "num_pipeline_repeats")
        return {"chunks": repeats, "schedule": "bfs" if repeats > 1 else "gpipe"}

    def _batch(self, replicas: int, pp: int) -> dict[str, Any]:
        value = self._get("per_device_batch_size", 12.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            place = self.found["per_device_batch_size"][1]
            raise InputError(f"{place}: per_device_batch_size: {value} must be a number above 0", where=place)
        steps = self._number("gradient_accumulation_steps", 1)
        at_once = int(self.world * value)
        m = self._number("num_pipeline_microbatches", -1) if pp > 1 else 1
        m = pp if m == -1 else m
        if not at_once or at_once % (replicas * m):
            over = f"{replicas} replicas" + (f" × {m} micro-batches" if pp > 1 else "")
            raise InputError(
                f"{self.called}: {count(self.world)} devices × per_device_batch_size {value:g} are {at_once} samples, which do not "
                f"split over {over}"
            )
        if pp > 1 and steps > 1:
            self.ignored["gradient_accumulation_steps"] = "all micro-batches of a step are in one loop"
        self._says("micro_batch", "per_device_batch_size")
        self._says("samples", "gradient_accumulation_steps")
        return {"samples": at_once * steps, "micro_batch": at_once // (replicas * m)}

    def _recompute(self) -> str:
        policy = str(self._get("remat_policy", "full")).lower()
        self._says("recompute", "remat_policy")
        if policy in AGAIN:
            return AGAIN[policy]
        if policy in NEAREST_AGAIN:
            self.ignored["remat_policy"] = f'as "{NEAREST_AGAIN[policy]}"'
            return NEAREST_AGAIN[policy]
        place = self.found["remat_policy"][1]
        known = ", ".join((*AGAIN, *NEAREST_AGAIN))
        raise InputError(f"{place}: remat_policy: {policy} must be one of {known}", where=place)
