"""Training steps of GPT-2 and of Llama blocks on one GPU, against what the simulator says with shipped and with calibrated constants.

    python benchmarks/bench_single_gpu.py measure FILE.json [--small]         on the machine with the GPU; needs torch, transformers
    python benchmarks/bench_single_gpu.py compare FILE.json [--profile FILE]  anywhere
    python benchmarks/bench_single_gpu.py                                     both, if there is a GPU

Weights, gradients and Adam's moments in bfloat16, the attention kernel that torch chooses, fused AdamW, random tokens; eager and torch.compile; the
median of fifteen steps, the bytes that the allocator held at most, and the seconds of kernels by kind in one more step. They
stand beside those that the model has for each kind: what a step would be shorter by if that kind took no time.
`--small` runs tiny models, also on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meshwright.graph.source import ConfigSource, resolve

WARM_UP, ROUNDS = 5, 15
GENERATION = {"eager": "eager", "compiled": "modern"}
"""How a case runs -> the software generation that prices it."""


@dataclass(frozen=True)
class Case:
    model: str
    layers: int
    """0: as the model has."""
    batch: int
    seq: int
    how: str

    @property
    def name(self) -> str:
        blocks = f", {self.layers} blocks" if self.layers else ""
        return f"{self.model}{blocks}, {self.batch} x {self.seq}, {self.how}"

    def source(self) -> ConfigSource:
        found = resolve(self.model)
        assert isinstance(found, ConfigSource)
        if not self.layers:
            return found
        key = "n_layer" if "n_layer" in found.config else "num_hidden_layers"
        config = {**found.config, key: self.layers}
        return replace(found, name=f"{found.name}-{self.layers}", config=config)


CASES = tuple(
    Case(model, layers, batch, seq, how)
    for model, layers, batch, seq in (
        ("gpt2", 0, 16, 1024),
        ("gpt2", 0, 4, 1024),
        ("llama-3.1-8b", 4, 2, 4096),
        ("llama-3.1-8b", 2, 1, 8192),
    )
    for how in GENERATION
)
SMALL = tuple(Case("gpt2", 2, 2, 128, how) for how in GENERATION)


# ------------------------------------------------------------------------- on the GPU


def gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(cases: Sequence[Case], file: Path) -> None:
    """Each case alone on the device: warmed up, then `ROUNDS` steps."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU"
    rows = []
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        try:
            row = {**asdict(case), **run(case, device)}
        except Exception as error:  # the other cases are worth having without this one
            row = {**asdict(case), "error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
        file.write_text(
            json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1), encoding="utf-8"
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch._dynamo.reset()


def run(case: Case, device: Any) -> dict[str, Any]:
    """Seconds of a step (median, quartiles) and bytes allocated at most."""
    import torch

    from meshwright.calibration.torch_runs import training_step

    there = device.type == "cuda"
    torch.manual_seed(0)
    step = training_step(case.source(), case.batch, case.seq, device, case.how == "compiled")
    for _ in range(WARM_UP if there else 1):
        step()
    if there:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(ROUNDS if there else 3):
        began = time.perf_counter()
        step()
        if there:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    low, middle, high = np.percentile(seconds, (25, 50, 75)).tolist()
    peak = float(torch.cuda.max_memory_allocated()) if there else 0.0
    kinds = kernel_seconds(step) if there else {}
    return {"seconds": middle, "low": low, "high": high, "peak_bytes": peak, "kernels": kinds}


KINDS = (
    ("attention", "flash|fmha|attention|sdpa"),
    ("optimizer", "multi_tensor|adam"),
    ("loss", "softmax|nll|cross_entropy"),
    ("norm", "layer_?norm|rms_?norm|gammabeta"),
    ("products", "gemm|cutlass|nvjet|xmma|cublas|splitk"),
    ("lookup", "index|embedding|gather|scatter"),
    ("light", "elementwise|triton|reduce|copy|memset|memcpy|cat"),
)
"""Kind of work -> what the names of its kernels have in them, the first that matches."""


def kernel_seconds(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of the device by kind of kernel in one step, and those of the longest kernels of no kind."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_type != torch.autograd.DeviceType.CUDA or not event.self_device_time_total:
            continue
        if event.is_user_annotation:  # the span of an optimizer's step, whose kernels come by themselves
            continue
        name = event.key.lower()
        kind = next((k for k, words in KINDS if re.search(words, name)), f"other: {event.key[:60]}")
        found[kind] = found.get(kind, 0.0) + event.self_device_time_total / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1])[:14])


# ------------------------------------------------------------------------- anywhere


def predict(case: Case, cluster: Any, cost: Any) -> tuple[float, float]:
    """(seconds of a step, bytes at most) by the simulator, of everything on one device."""
    from meshwright.simulate import simulate

    simulation = simulate(*planned(case, cluster, cost))
    return simulation.step_seconds, float(simulation.peak.max())


def planned(case: Case, cluster: Any, cost: Any) -> tuple[Any, Any]:
    """The problem of a case and its plan."""
    from meshwright.calibration.torch_runs import recipe
    from meshwright.plan.problem import Problem
    from meshwright.planners.grid import Grid

    trains = recipe(case.batch, case.how == "compiled")
    problem = Problem(case.source().graph(2, case.seq, "bfloat16"), cluster, cost, trains)
    found = Grid(fix={"dp": 1, "micro_batch": case.batch, "recompute": "none", "zero": 0}, top=1).plan(problem)
    assert found.plan is not None, found.reason
    return problem, found.plan


def without(case: Case, cluster: Any, profile: Any, generation: str) -> dict[str, float]:
    """Kind of work -> seconds by which the predicted step is shorter if it takes no time."""
    from meshwright.calibration.profile import with_constants
    from meshwright.calibration.stack import slower
    from meshwright.cost import Analytic

    plain = profile.cost("bfloat16", generation)
    whole, _ = predict(case, cluster, plain)
    found = {}
    for kind in ("products", "attention", "memory", "host", "fixed"):
        factors = {kind: 1e-6}
        table = {k: with_constants(f, slower(f, factors)) for k, f in profile.family_table().items()}
        if kind == "products":
            table = {k: with_constants(f, {"launch": 0.0}) for k, f in table.items()}
        software = with_constants(plain.software, slower(plain.software, factors))
        found[kind] = whole - predict(case, cluster, Analytic(software=software, families=table))[0]
    return found


def compare(measured: Mapping[str, Any], profile_file: Path | None) -> list[dict[str, Any]]:
    """A row a case, with what is predicted by shipped constants, by the profile's, and by the profile after the OTHER cases that
    ran alike were learnt from.
    """
    from meshwright.calibration import load
    from meshwright.calibration.machine import preset_of
    from meshwright.calibration.stack import Step, learn_stack
    from meshwright.cost import Analytic

    preset = preset_of(measured["device"], 0.0)
    if preset is None:
        raise SystemExit(f"no preset is called like {measured['device']}: nothing is shipped for it")
    cluster = preset.cluster(1)
    profile = load(profile_file) if profile_file else None
    rows = []
    taught: dict[str, list[Any]] = {}
    for row in measured["rows"]:
        if "error" in row:
            rows.append(row)
            continue
        case = Case(*(row[k] for k in ("model", "layers", "batch", "seq", "how")))
        generation = GENERATION[case.how]
        found = dict(row)
        found["shipped_s"], found["predicted_bytes"] = predict(case, cluster, Analytic(software=generation))
        if profile is not None:
            found["calibrated_s"], _ = predict(case, cluster, profile.cost("bfloat16", generation))
            found["without"] = without(case, cluster, profile, generation)
            problem, plan = planned(case, cluster, profile.cost("bfloat16", generation))
            taught.setdefault(generation, []).append((found, Step(case.name, problem, plan, row["seconds"])))
        rows.append(found)
    for generation, pairs in taught.items():
        learnt = learn_stack([s for _, s in pairs], name="own", software=generation, base=profile)
        for (found, _), seconds in zip(pairs, learnt.without, strict=True):
            found["learnt_s"] = float(seconds)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{'case':42}{'measured':>20}{'shipped':>18}{'calibrated':>18}{'others learnt':>18}{'memory GiB':>12}{'predicted':>17}"
    )
    for row in rows:
        name = Case(*(row[k] for k in ("model", "layers", "batch", "seq", "how"))).name
        if "error" in row:
            print(f"{name:42}  {row['error']}")
            continue
        spread = f"{1e3 * row['seconds']:8.1f} ms ± {100 * (row['high'] - row['low']) / 2 / row['seconds']:.1f} %"
        cells = [
            f"{1e3 * row[k]:8.1f} {100 * (row[k] / row['seconds'] - 1):+5.1f} %" if k in row else "–"
            for k in ("shipped_s", "calibrated_s", "learnt_s")
        ]
        peak, said = row["peak_bytes"], row["predicted_bytes"]
        memory = f"{said / 2**30:7.2f} {100 * (said / peak - 1):+5.1f} %" if peak else f"{said / 2**30:7.2f}"
        print(f"{name:42}{spread:>20}{cells[0]:>18}{cells[1]:>18}{cells[2]:>18}{peak / 2**30:12.2f}{memory:>17}")
        for title, seconds in (("kernels", row.get("kernels")), ("without", row.get("without"))):
            if seconds:
                print(f"    {title}: " + ", ".join(f"{k} {1e3 * x:.1f} ms" for k, x in seconds.items()))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("measure", "compare", "both"), default="both")
    parser.add_argument("file", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "single_gpu.json")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.what == "both" and not gpu():
        print("no GPU here: nothing is measured")
        return 0
    if asked.what != "compare":
        measure(SMALL if asked.small else CASES, asked.file)
    if asked.what == "measure":
        return 0
    rows = compare(json.loads(asked.file.read_text(encoding="utf-8")), asked.profile)
    if asked.json:
        print(json.dumps(rows))
    else:
        table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
