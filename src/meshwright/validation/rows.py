"""Measured rows from CSV files: what of them a plan can say, and why the rest is left out.

Cleaning follows the notes that come with the data: step times only (never MFU across sources), rows with a derived step
time keep it, formulas only where the source published nothing else, vocabularies padded as the software pads them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..cluster._units import quantity
from ..cost.constants import Attention, chip
from ..errors import InputError
from .columns import Columns, Refused
from .machines import machine_of, machines
from .models import Shape
from .moe import Sparse
from .settings import (
    attention_of,
    chunks_of,
    engine_of,
    experts_of,
    flags_of,
    grad_of,
    kept_of,
    layers_of,
    memory_kind_of,
    precision_of,
    recompute_of,
    refuse_kinds,
    refuse_rings,
    scaling_of,
    seconds_of,
    software_of,
    sources,
)
from .shapes import shape_of

MOST = 0.65
"""Of a device's peak that whole steps reach: the best of the other rows has .62, BERT at 512 positions .66 to .72."""
SIDE_FILES = frozenset({"collectives", "hardware", "relative_speedups"})


@dataclass(frozen=True, slots=True)
class Row:
    """One measured optimizer step, as settings of a plan. Seconds; bytes."""

    id: str
    source: str
    model: Shape
    machine: str
    """Key of `machines.machines()`."""
    devices: int
    node: int
    """Devices a node."""
    nic: float
    """Bytes/s a device out of its node; 0 = the machine's own."""
    precision: str
    """dtype of the operands of matrix products."""
    software: str
    grad: str
    pure: bool
    """Weights and optimizer in 16 bits, no master copy."""
    dp: int
    """Replicas; those that share experts count in `ep`."""
    tp: int
    pp: int
    chunks: int
    zero: int
    sequence: bool
    micro_batch: int
    batch: int
    recompute: str
    """A word of `layouts.again`."""
    seconds: float
    """0 if not measured: out of memory."""
    memory: float
    """Peak bytes of a device, 0 if not measured."""
    cp: int = 1
    ep: int = 1
    kept: str = ""
    """dtype in which operands of 8-bit products are kept for the backward; "" = 16 bits."""
    scaling: str = ""
    """How 8- and 4-bit operands are scaled: delayed, current (by tensor), block, row; "" in 16 bits and more."""
    whole_experts: bool = False
    """Experts are cut over tp as over ep, none inside."""
    attention: Attention | Literal[""] = ""
    """`Software.attention` where the source states it; "" = what the software usually has."""
    loss: Literal["", "plain", "in-place", "compiled", "fused"] = ""
    """How the cross entropy holds its logits (`Software.loss`), where the source states it; "" = as the software usually does."""
    engine: Literal["", "torch", "transformer-engine"] = ""
    """What computes the layers, where the source states it; "" = as the software usually does."""
    deterministic: bool = False
    """Whether products give the same every time."""
    dropout: bool = True
    """Whether attention through its score matrix drops scores out; the published mixtures of experts do not."""
    grouped: bool = True
    """Whether experts are multiplied in groups, not one after the other."""
    short_warm_up: bool = False
    """Interleaved steps of as many micro-batches as ranks warm up no longer than others (`short` of the schedule)."""
    bucket: float = 0.0
    """See `Recipe.bucket`."""
    memory_kind: str = "unknown"
    """What `memory` counts: allocated, reserved, nvidia-smi (with the driver's context) or unknown."""
    allocated: float = 0.0
    """Bytes of a device that stay allocated between steps, 0 if not measured."""
    status: str = "ok"
    """ok, or oom."""
    layers: tuple[int, ...] = ()
    """Blocks of each stage where they are dealt unevenly."""
    flags: tuple[str, ...] = ()
    """See `settings.flags_of`."""
    memory_at: str = "fullest"
    """Which device `memory` and `allocated` are of: the fullest, or one of the last pipeline stage ("last")."""
    where: str = ""
    """File, table or line of the source."""

    @property
    def device(self) -> str:
        """Family of the device (cost/constants/families.toml); boards limited in power count with their product."""
        return chip(machines()[self.machine].device.family)


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of a folder."""

    rows: list[Row] = field(default_factory=list)
    """With a step time."""
    failed: list[Row] = field(default_factory=list)
    """That ran out of memory."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> ids of rows that no plan says."""


def read(folder: Path) -> Table:
    """All rows of the CSV files in `folder`, or in its folder "measured".

    Raises:
        InputError: no measured rows there.
    """
    files = sorted((folder / "measured").glob("*.csv")) or sorted(folder.glob("*.csv"))
    if not files:
        raise InputError(
            f"no measured rows in {folder}: give a folder of CSV files, or the one that holds measured/*.csv"
        )
    found = Table()
    seen: set[Row] = set()
    for file in files:
        for raw in _measured(file):
            try:
                row = _row(Columns(raw))
                if (key := replace(row, id="", where="", memory=0.0, allocated=0.0)) in seen:
                    raise Refused("the same settings and time as another row")
                seen.add(key)
                (found.rows if row.status == "ok" else found.failed).append(row)
            except Refused as why:
                found.refused.setdefault(str(why), []).append(raw["id"])
    return found


def _measured(file: Path) -> Iterator[dict[str, str]]:
    """Rows of one file that are whole training steps; nothing of side tables."""
    if file.stem in SIDE_FILES:
        return
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        if not {"id", "family", "gbs", "step_time_s"} <= set(reader.fieldnames or ()):
            return
        yield from reader


def _row(raw: Columns) -> Row:
    source = raw.text("source")
    if raw.text("status") not in ("", "ok", "oom", "oom-or-failed"):
        raise Refused(f"status {raw.text('status')}")
    known = sources().get(source)
    if known is None:
        raise Refused(f"{source}: {_why_no_source(source)}")
    machine = machine_of(raw.text("accel"))
    refuse_kinds(raw)
    tp, pp, cp, dp = raw.whole("tp"), raw.whole("pp"), raw.whole("cp", 1), raw.whole("dp")
    devices = raw.whole("devices")
    if dp * tp * pp * cp != devices:
        raise Refused("degrees do not multiply to the devices")
    model = shape_of(raw, tp)
    refuse_rings(raw, model, tp * cp)
    batch = raw.whole("gbs")
    micro = raw.whole("mbs", known.get("micro_batch", {}).get(raw.text("model"), _micro_batch(raw, batch, dp)))
    if batch % (dp * micro):
        raise Refused("the batch does not split over replicas and micro-batches")
    ep, whole_experts = experts_of(raw, dp, tp)
    chunks = chunks_of(raw, known, model, pp)
    if chunks > 1 and batch // dp // micro % pp:
        raise Refused("interleaving needs a multiple of pp micro-batches")
    layers = layers_of(raw, model, pp * chunks)
    software = software_of(raw, known["software"])
    pure = raw.text("precision") == "bf16-pure"
    row = Row(
        id=raw.text("id"),
        source=source,
        model=model,
        machine=machine,
        devices=devices,
        node=raw.whole("devices_per_node", 8),
        nic=quantity(known["nic"], "bandwidth") if "nic" in known else 0.0,
        precision=precision_of(raw, known),
        software=software,
        grad=grad_of(raw, known),
        pure=pure,
        dp=dp // ep,
        tp=tp,
        pp=pp,
        chunks=chunks,
        zero=raw.whole("zero", known.get("zero", 0)) if dp * cp > 1 else 0,
        sequence=raw.number("seq_par", 0) > 0 and tp > 1,
        micro_batch=micro,
        batch=batch,
        recompute=recompute_of(raw, known, software),
        seconds=seconds_of(raw, known, model, machines()[machine].device.peak["bfloat16"]),
        memory=raw.number("mem_gib", 0.0) * 2**30,
        cp=cp,
        kept=kept_of(raw, known),
        scaling=scaling_of(raw, known),
        ep=ep,
        whole_experts=whole_experts,
        attention=attention_of(raw, known, software),
        short_warm_up=chunks > 1 and bool(known.get("short_warm_up")),
        bucket=float(known.get("bucket", 0.0)),
        loss="fused" if raw.flag("ce_fusion") else known.get("loss", ""),
        engine=engine_of(raw, known),
        deterministic=raw.flag("deterministic"),
        dropout=not isinstance(model, Sparse),
        grouped=raw.text("source") != "megatron-ci" or raw.flag("grouped_gemm"),
        memory_kind=memory_kind_of(raw),
        allocated=raw.number("mem_allocated_gib", 0.0) * 2**30,
        status="oom" if raw.text("status").startswith("oom") else "ok",
        layers=layers,
        flags=flags_of(raw),
        memory_at="last" if "last rank" in raw.text("mem_kind") else "fullest",
        where=raw.text("loc"),
    )
    refuse_skipped(row)
    return row


def refuse_skipped(row: Row) -> None:
    """Steps that do less than full sequences need: some software leaves padding out.

    Raises:
        Refused: more than `MOST` of the device's peak would have been useful work.
    """
    peak = machines()[row.machine].device.peak
    rate = peak.get(row.precision.partition("_")[0], peak["bfloat16"])
    if row.model.flops * row.batch > MOST * rate * row.devices * row.seconds > 0:
        raise Refused(f"more than {MOST:.0%} of the peak if sequences were full: padding is left out")


def _why_no_source(source: str) -> str:
    reasons: Mapping[str, str] = {
        "tpu": "layout or batch not stated",
        "maxtext-gpu": "layout and batch not stated",
        "primus": "batch not stated, or a mixture of experts whose shape is not",
        "colossalai": "its columns do not agree with each other",
        "llama3-paper": "neither step time nor chunks published",
        "torchgpipe": "U-Net, ResNet-101 and AmoebaNet, which no shape says",
    }
    return reasons.get(source, "how its software ran is not stated")


def _micro_batch(raw: Columns, batch: int, dp: int) -> int:
    """Not stated: one micro-batch in Megatron 2020 (no accumulation), else one sample."""
    return batch // dp if raw.text("source") == "megatron-2020" else 1
