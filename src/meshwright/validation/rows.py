"""Measured rows from CSV files: what of them a plan can say, and why the rest is left out.

Cleaning follows the notes that come with the data: step times only (never MFU across sources), rows with a derived step
time keep it, formulas only where the source published nothing else, vocabularies padded as the software pads them.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Any

from ..cluster._units import quantity
from ..errors import InputError
from .models import Dense

FAMILIES = {"gpt": "gpt", "mpt": "gpt", "llama": "llama", "internlm": "llama", "nemotron": "nemotron"}
VOCAB = {"gpt": 51200, "mpt": 50304, "llama": 32000, "internlm": 103168, "nemotron": 256000}
"""Where the row does not say."""
SIDE_FILES = frozenset({"collectives", "hardware", "relative_speedups"})
DEVICES = (
    ("V100-SXM3", "v100-dgx2"), ("V100", "v100"), ("A100-SXM-40", "a100-40"), ("A100", "a100"), ("A800", "a800"),
    ("H100-96", "h100-500w"), ("H100", "h100"), ("H800", "h800"),
)  # fmt: skip
"""Beginning of the accelerator's name -> machine of `machines.py`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured optimizer step of a dense transformer, as settings of a plan. Seconds; bytes."""

    id: str
    source: str
    model: Dense
    machine: str
    """Key of `machines.MACHINES`."""
    devices: int
    node: int
    """Devices a node."""
    nic: float
    """Bytes/s a device out of its node; 0 = the machine's own."""
    precision: str
    software: str
    grad: str
    pure: bool
    """Weights and optimizer in 16 bits, no master copy."""
    dp: int
    tp: int
    pp: int
    chunks: int
    zero: int
    sequence: bool
    micro_batch: int
    batch: int
    recompute: str
    """none, full, attention (its scores again), alternate (light ops and every other product), mlp (activation and norms)."""
    seconds: float
    memory: float
    """Bytes, 0 if not measured."""

    @property
    def device(self) -> str:
        """a100, h100 or v100: whose constants its machine has."""
        return {"a800": "a100", "a100-40": "a100", "h800": "h100", "h100-500w": "h100", "v100-dgx2": "v100"}.get(
            self.machine, self.machine
        )


class Refused(Exception):
    """Why a row is left out; its text is what is counted."""


def read(folder: Path) -> tuple[list[Row], dict[str, list[str]]]:
    """All rows under `folder`/measured that a plan can express; and reason -> ids of the others.

    Raises:
        InputError: no measured rows there.
    """
    files = sorted((folder / "measured").glob("*.csv"))
    if not files:
        raise InputError(f"no measured rows in {folder / 'measured'}: give the folder that holds measured/*.csv")
    rows: list[Row] = []
    refused: dict[str, list[str]] = {}
    for file in files:
        for raw in _measured(file):
            try:
                rows.append(_row(raw))
            except Refused as why:
                refused.setdefault(str(why), []).append(raw["id"])
    return _once(rows, refused), refused


def _measured(file: Path) -> Iterator[dict[str, str]]:
    """Rows of one file that are whole training steps; nothing of side tables."""
    if file.stem in SIDE_FILES:
        return
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        if not {"id", "family", "gbs", "step_time_s"} <= set(reader.fieldnames or ()):
            return
        yield from reader


def _once(rows: list[Row], refused: dict[str, list[str]]) -> list[Row]:
    """Duplicates (same settings, same time) stand once."""
    seen: set[Row] = set()
    found = []
    for row in rows:
        key = replace(row, id="", memory=0.0)
        if key in seen:
            refused.setdefault("the same settings and time as another row", []).append(row.id)
            continue
        seen.add(key)
        found.append(row)
    return found


@cache
def sources() -> Mapping[str, Mapping[str, Any]]:
    """How each source was run (sources.toml)."""
    return tomllib.loads(resources.files(__package__).joinpath("sources.toml").read_text(encoding="utf-8"))


def _number(raw: Mapping[str, str], field: str, default: float | None = None) -> float:
    text = raw.get(field, "")
    try:
        return float(text)
    except ValueError:
        if default is None:
            raise Refused(f"no {field.replace('_', ' ')}") from None
        return default


def _row(raw: dict[str, str]) -> Row:
    family = raw["family"]
    if family not in FAMILIES:
        raise Refused("not a dense decoder-only transformer")
    machine = next((m for start, m in DEVICES if raw["accel"].startswith(start)), "")
    if not machine or " + " in raw["accel"] or "node" in raw["accel"]:
        raise Refused("device other than A100, H100 or V100")
    known = sources().get(raw["source"])
    if known is None:
        raise Refused(f"{raw['source']}: {_why_no_source(raw['source'])}")
    _refuse_kinds(raw)
    tp, pp, dp = (int(_number(raw, f)) for f in ("tp", "pp", "dp"))
    devices = int(_number(raw, "devices"))
    if dp * tp * pp != devices:
        raise Refused("degrees do not multiply to the devices")
    batch = int(_number(raw, "gbs"))
    micro = int(_number(raw, "mbs", known.get("micro_batch", {}).get(raw["model"], _micro_batch(raw, batch, dp))))
    if batch % (dp * micro):
        raise Refused("the batch does not split over replicas and micro-batches")
    model = _model(raw, family, tp)
    chunks = max(1, int(_number(raw, "vpp", 1)))
    if pp == 1:
        chunks = 1
    if chunks > 1 and batch // dp // micro % pp:
        raise Refused("interleaving needs a multiple of pp micro-batches")
    if model.layers < pp * chunks:
        raise Refused("more stages than layers")
    software = _software(raw, known["software"])
    precision = _precision(raw)
    return Row(
        id=raw["id"],
        source=raw["source"],
        model=model,
        machine=machine,
        devices=devices,
        node=int(_number(raw, "devices_per_node", 8)),
        nic=quantity(known["nic"], "bandwidth") if "nic" in known else 0.0,
        precision=precision,
        software=software,
        grad="float32" if known.get("grad") == "float32" and raw["precision"] != "bf16-pure" else "bfloat16",
        pure=raw["precision"] == "bf16-pure",
        dp=dp,
        tp=tp,
        pp=pp,
        chunks=chunks,
        zero=int(_number(raw, "zero", known.get("zero", 0))) if dp > 1 else 0,
        sequence=_number(raw, "seq_par", 0) > 0 and tp > 1,
        micro_batch=micro,
        batch=batch,
        recompute=_recompute(raw, known, software),
        seconds=_seconds(raw, model, devices, batch),
        memory=_number(raw, "mem_gib", 0.0) * 2**30,
    )


def _why_no_source(source: str) -> str:
    reasons = {
        "megatron-ci": "small models of a test suite, bound by the host",
        "amp": "V100 and T4 mixed over slow Ethernet, trials of one model",
        "mlperf-training": "low-rank adaptation, or settings not stated",
        "nemo-longctx": "context parallelism",
        "sailor": "device other than A100, H100 or V100",
    }
    return reasons.get(source, "how its software ran is not stated")


def _refuse_kinds(raw: Mapping[str, str]) -> None:
    if raw["status"] not in ("ok", ""):
        raise Refused("ran out of memory or failed")
    if _number(raw, "cp", 1) > 1:
        raise Refused("context parallelism")
    if _number(raw, "experts", 0) > 1 or _number(raw, "ep", 1) > 1:
        raise Refused("experts")
    other = raw["other"]
    if re.search("LoRA", other):
        raise Refused("low-rank adaptation")
    if re.search("SFT|packed", other):
        raise Refused("fine-tuning on packed sequences of unknown lengths")
    if "rowwise" in other:
        raise Refused("fp8 scaled by rows")
    if raw["offload"] not in ("", "none", "0"):
        raise Refused("activations offloaded to the host")


def _micro_batch(raw: Mapping[str, str], batch: int, dp: int) -> int:
    """Not stated: one micro-batch in Megatron 2020 (no accumulation), else one sample."""
    return batch // dp if raw["source"] == "megatron-2020" else 1


def _model(raw: Mapping[str, str], family: str, tp: int) -> Dense:
    hidden, heads = int(_number(raw, "hidden")), int(_number(raw, "heads"))
    vocab = int(_number(raw, "vocab", VOCAB[family]))
    vocab = ceil(vocab / (128 * tp)) * 128 * tp  # padded so that it splits evenly, as Megatron-LM does
    kv = int(_number(raw, "kv_heads", heads))
    return Dense(
        FAMILIES[family],
        int(_number(raw, "layers")),
        hidden,
        heads,
        heads if FAMILIES[family] == "gpt" else kv,
        int(_number(raw, "ffn", 4 * hidden)),
        vocab,
        int(_number(raw, "seq_len")),
    )


def _precision(raw: Mapping[str, str]) -> str:
    name = raw["precision"]
    if "fp8" in name:
        return "float8_e4m3fn"
    if name in ("bf16", "fp16", "bf16-pure", "bf16-TE"):
        return "float16" if name == "fp16" else "bfloat16"
    raise Refused(f"precision {name or 'not stated'}")


def _software(raw: Mapping[str, str], usual: str) -> str:
    other, precision = raw["other"], raw["precision"]
    if raw["source"] == "torchtitan" and "torch.compile" in other:
        return "overlapped" if re.search("async TP", other, re.IGNORECASE) else "modern"
    if raw["source"] == "jax-toolbox" and ("TE" in precision or "minimal_flash" in other):
        return "xla-flash"
    return usual


def _recompute(raw: Mapping[str, str], known: Mapping[str, Any], software: str) -> str:
    how = raw["recompute"]
    if how in ("", "unknown"):
        how = known.get("recompute", "none")
    fused = software != "unfused"
    if how in ("none", "None", "selective-none", "minimal_flash"):
        return "none"
    if how == "full":
        return "full"
    if raw["source"] == "torchtitan" and how in ("selective", "selective-op"):
        return "alternate"
    if how == "selective":
        return "none" if fused else "attention"  # fused attention computes its scores again anyway
    if how.startswith("mlp"):
        return "mlp"
    raise Refused("recompute of some layers only")


def _seconds(raw: Mapping[str, str], model: Dense, devices: int, batch: int) -> float:
    """Measured, or from the source's TFLOP/s by the source's own formula where it published nothing else."""
    if raw["step_time_s"]:
        return _number(raw, "step_time_s")
    if raw["source"] == "megatron-core-h100" and raw["model_tflops_per_dev"]:
        h, s, layers = model.hidden, model.seq, model.layers
        vocab = _number(raw, "vocab")
        flops = 72 * batch * s * layers * h * h * (1 + s / (6 * h) + vocab / (12 * layers * h))
        return flops / (_number(raw, "model_tflops_per_dev") * 1e12 * devices)
    raise Refused("no step time")
