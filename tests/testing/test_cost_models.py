"""The suite for cost models passes all of ours, on every device family, and finds each fault that it is there to find."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from meshwright.cluster import Cluster, DeviceType, Level, Link, Mesh, presets, resolve
from meshwright.cost import Analytic, CostModel, DistIR, Group, OpMemory, OpRecord, Recorded, TransferRecord
from meshwright.cost.base import Collective
from meshwright.cost.choices import Choice, Profile
from meshwright.cost.constants import families, software
from meshwright.graph.ir import Factor, Floats, Ints, Op, Phase, Rule
from meshwright.testing import CostModelConformance, Priced, cost_conformance, everyday_ops
from meshwright.testing.cost_models import CHECKS, run_cost_check


def _profiled(*factors: Factor) -> tuple[Op, ...]:
    names = tuple((f.name,) for f in factors)
    return (Op("layer", "profiled", ("x",), ("y",), Rule(factors, (names,), (names,))),)


SAMPLES = Factor("samples", 64, samples=True)
GPU = DeviceType("gpu0", "gpu", 1e10, {}, 0.0)
WIRED = Cluster("wired", (GPU,), 4, (), (Level("node", 4, 1e9, 1e-3),), (Link(0, 1, 2e9, 1e-4), Link(1, 0, 2e9, 1e-4)))


def _recorded() -> Recorded:
    record = OpRecord(
        {"forward": 2.0, "input_grad": 2.0, "weight_grad": 3.0}, on={"cpu": {"forward": 7.0}},
        degree={2: {"forward": 1.5}, 4: {"forward": 1.75}}, static=10.0, kept=8.0, transient=1.0,
    )  # fmt: skip
    return Recorded({"layer": record}, {("t", ""): TransferRecord(seconds=5.0)})


def _profile() -> Profile:
    plain, cut = Choice("plain", 3.0, 8.0, 4.0, 2.0), Choice("cut", 2.0, 4.0, 2.0, 1.0)
    return Profile({"layer": {1: (plain, Choice("again", 4.0, 8.0, 1.0, 2.0)), 2: (cut,)}}, {})


class TestAnalytic(CostModelConformance):
    subject = Priced(Analytic, cluster=resolve("h100x64"))


class TestDistIR(CostModelConformance):
    subject = Priced(DistIR, cluster=resolve("h100x64"))


class TestRecorded(CostModelConformance):
    subject = Priced(_recorded, _profiled(SAMPLES, Factor("parts", 4, "opaque")), WIRED, {"parts": (1, 2, 4)})


class TestProfile(CostModelConformance):
    subject = Priced(_profile, _profiled(SAMPLES, Factor("parts", 2, "opaque")), WIRED, {"parts": (1, 2)})


def _clusters() -> dict[str, Cluster]:
    """One of each device family: 32 devices of a preset, or a preset's with the constants of a family that has none."""
    found: dict[str, Cluster] = {}
    for preset in presets().values():
        found.setdefault(preset.device.family, preset.cluster(32 if preset.node <= 32 else 64))
    found["cpu"] = resolve("localx4")
    for name in families():
        if name not in found:
            base = resolve("h100x32")
            found[name] = replace(base, types=tuple(replace(t, family=name) for t in base.types))
    return found


CLUSTERS = _clusters()


def test_every_family_is_tried() -> None:
    assert set(CLUSTERS) == set(families())


@pytest.mark.parametrize("family", sorted(CLUSTERS))
def test_the_analytic_model_keeps_its_promises_on_every_family(family: str) -> None:
    report = cost_conformance(Priced(Analytic, cluster=CLUSTERS[family]), examples=10)
    assert report.passed, report.text()


@pytest.mark.parametrize("generation", sorted(software()))
def test_the_analytic_model_keeps_its_promises_under_every_software(generation: str) -> None:
    report = cost_conformance(Priced(lambda: Analytic(software=generation)), examples=10)
    assert report.passed, report.text()


@pytest.mark.parametrize("precision", ["float16", "float32", "tfloat32", "float8_e4m3fn", "float4"])
def test_the_analytic_model_keeps_its_promises_in_every_precision(precision: str) -> None:
    report = cost_conformance(Priced(lambda: Analytic(precision=precision), cluster=resolve("b200x16")), examples=10)
    assert report.passed, report.text()


class Sound(CostModel):
    """FLOPs over the peak, bytes over the bandwidth."""

    name = "sound"

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        full = np.array([f.size for f in op.rule.factors], float)
        found: Floats = np.asarray(sizes / full).prod(axis=1) * (op.flops + 1e6) / max(device.peak.values())
        return found * {"backward": 2.0}.get(phase, 1.0)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        return np.asarray(nbytes, float) / device.bandwidth

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        kept = np.asarray(sizes, float).prod(axis=1)
        return OpMemory(0.0 * kept, kept, kept)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        members = np.prod([group.mesh.size(a) for a in group.axes])
        return np.asarray(nbytes, float) * (1.0 - 1.0 / members) / group.cluster.levels[0].bandwidth

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        return np.asarray(nbytes, float) * (src != dst) / cluster.levels[0].bandwidth


class Negative(Sound):
    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        found = super().memory(op, sizes, variant)
        return OpMemory(found.static, found.kept - 1e6, found.transient)


class First(Sound):
    """Prices the first of several shards."""

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        return np.full(len(sizes), super().compute(op, sizes, device, phase, variant)[0])


class ByName(Sound):
    """Remembers rates under the device's name."""

    def __init__(self) -> None:
        self.known: dict[str, DeviceType] = {}

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        return super().compute(op, sizes, self.known.setdefault(device.name, device), phase, variant)


class Sawtooth(Sound):
    """Odd sizes take twice the time."""

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        return super().compute(op, sizes, device, phase, variant) * (1.0 + sizes[:, 0] % 2)


class Upside(Sound):
    """Multiplies where it should divide."""

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        return np.asarray(nbytes, float) * device.bandwidth / 3e24


class Shrinks(Sound):
    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        kept = 1e9 / np.asarray(sizes, float).prod(axis=1)
        return OpMemory(0.0 * kept, kept, kept)


class Micro(Sound):
    """In microseconds."""

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        return super().compute(op, sizes, device, phase, variant) * 1e6


class Buckets(Sound):
    """Falls where another algorithm takes over."""

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        found = super().collective(kind, nbytes, group)
        return np.where(nbytes > 1e8, 0.5 * found, found)


class Crowd(Sound):
    """Each member brings bandwidth of its own."""

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        return super().collective(kind, nbytes, group) / np.prod([group.mesh.size(a) for a in group.axes]) ** 2


class Slower(Sound):
    """Links are latencies to it."""

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        return super().collective(kind, nbytes, group) * (group.cluster.levels[0].bandwidth / 1e11) ** 2


class Latency(Sound):
    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        return super().collective(kind, nbytes, group) + 1e-5


class OneWay(Sound):
    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        return super().transfer(nbytes, src, dst, cluster) * (1.0 if src < dst else 1.5)


class Hides(Sound):
    def overlap(self, kind: str) -> float:
        return 1.5


def test_the_model_that_the_faulty_ones_are_made_from_is_sound() -> None:
    report = cost_conformance(Priced(Sound))
    assert report.passed, report.text()
    assert report.text().startswith("sound ")


@pytest.mark.parametrize(
    ("model", "check", "fault"),
    [
        (Negative, "finite, never below zero", "is below zero"),
        (First, "arrays equal single prices", "one by one"),
        (ByName, "same question, same answer", "remember prices by the device's figures, not by its name"),
        (Sawtooth, "more work never faster", "is faster than at"),
        (Upside, "faster device never slower", "traffic is slower"),
        (Shrinks, "larger shard, no less memory", "falls as its shard grows"),
        (Micro, "seconds are seconds", "return seconds"),
        (Buckets, "more bytes never faster", "bytes is faster than"),
        (Crowd, "more members never faster", "of a node is faster than by"),
        (Slower, "faster links never slower", "is slower with"),
        (Latency, "nothing to move is free", "not 0"),
        (OneWay, "the same there and back", "back"),
        (Hides, "shares are shares", "overlap('data') is 1.5, no share"),
    ],
)
def test_a_faulty_model_is_found(model: Callable[[], CostModel], check: str, fault: str) -> None:
    found = run_cost_check(Priced(model), check)
    assert not found.passed
    assert fault in found.fault


def test_each_check_has_a_faulty_model_and_each_promise_a_test() -> None:
    tests = [name for name in vars(CostModelConformance) if name.startswith("test_")]
    assert len(tests) == len(CHECKS) == 13


def test_a_model_that_raises_is_at_fault_and_the_suite_goes_on() -> None:
    class Raises(Sound):
        def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
            raise ZeroDivisionError("division by zero")

    found = run_cost_check(Priced(Raises), "more work never faster")
    assert found.fault == "more work never faster: it raised ZeroDivisionError: division by zero"


def test_questions_do_not_depend_on_what_else_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> list[float]:
        found: list[float] = []

        class Listens(Sound):
            def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
                found.extend(nbytes.tolist())
                return super().traffic(nbytes, device)

        for name in ("more work never faster", "arrays equal single prices", "finite, never below zero"):
            assert run_cost_check(Priced(Listens), name).passed
        return found

    before = asked()
    numbers = [*range(100, 9000, 40), *(k / 16 for k in range(1, 170))]
    (tmp_path / "full_of_numbers.py").write_text("\n".join(f"N{k} = {n}" for k, n in enumerate(numbers)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "full_of_numbers", import_module("full_of_numbers"))
    assert asked() == before and len(before) > 100


def test_questions_stay_inside_the_op_and_name_their_mesh() -> None:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    from meshwright.testing._priced import Draw

    subject = Priced(Sound)

    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def holds(data: object) -> None:
        draw = Draw(subject, data)
        op = draw.op()
        sizes = draw.sizes(op, 3)
        full = np.array([f.size for f in op.rule.factors])
        assert (sizes >= 1).all() and (sizes <= full).all()
        assert (draw.larger(op, sizes) >= sizes[0]).all()
        group = draw.group()
        assert isinstance(group.mesh, Mesh) and subject.cluster.count % len(group.mesh.devices) == 0

    holds()
    assert {op.name for op in everyday_ops()} >= {"attention", "large", "loss"}
