"""The public functions: names or objects in, objects out. The commands are a thin skin over these."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from . import answer, cheapest, comparing, save
from ._words import gib
from .cluster.launch import Launch, shape_of
from .errors import InputError
from .layout_by_hand import LayoutByHand
from .plan.model import Plan
from .plan.problem import Problem
from .report.compare import Comparison
from .report.outcome import Outcome
from .request import Request
from .simulate.result import Simulation
from .stated import CAPTURED_SAMPLES, Stated, state

if TYPE_CHECKING:
    from .execute import RunResult, StepReport, VerifyResult
    from .graph.ir import Graph
    from .graph.source import ModelSource
    from .graph.user_function import FunctionSource
    from .graph.user_model import Batch, Loss
    from .report.measured import Measured
    from .simulate.simulator import Preset

Build = Callable[..., object]
Progress = Callable[[str, int, int, float], None]


def plan(
    model: str | Build,
    *,
    inputs: Batch | None = None,
    loss: Loss | None = None,
    cluster: str = "local",
    profile: str = "",
    batch: int | None = None,
    seq: int | None = None,
    precision: str = "bf16",
    planner: str = "grid",
    budget: float | None = None,
    fix: Mapping[str, int] | None = None,
    allow: Mapping[str, tuple[str, ...]] | None = None,
    keep_free: float | None = None,
    objective: str = "step",
    tokens: float | None = None,
    price: float | None = None,
    seed: int = 0,
    top: int = 5,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """The best plan that `planner` finds; `.plan`, `.simulation`, `.candidates` and `.why` of the answer say what and why.

    Args:
        model: a name of the zoo, a path to a Hugging Face config.json, "model.py:build", or the function itself: it
            returns the module, or (module, example batch).
        inputs: with a function: one batch of any number of samples, as the training loop has it; models of transformers
            need none.
        loss: with a function: loss(output, batch), one number, unless the model returns its loss.
        cluster: "h100x64", "local", or a path to a cluster.toml.
        profile: constants that `meshwright calibrate` wrote: a name or a path; "" = for "local", what was measured here.
        batch, seq: samples a step and tokens a sample; None = the model's default.
        budget: seconds of search; None = until it ends.
        fix, allow: {"tp": 8}, {"recompute": ("none", "full")}.
        objective: what is least: "step", "memory", or "cost", which also looks at smaller clusters of the same preset.
        tokens: to be trained on; `.training` of the answer says how long and for how much.
        price: money for a device and hour; None = what the cluster says.
        keep_free: bytes of every device that stay free; None = a tenth.
        folder: where plan, report, trace and problem are written; None = nowhere.

    Raises:
        InputError: a name, file or option that cannot be right. CaptureError: the model cannot be captured.
    """
    source = _source(model, inputs, loss)
    request = Request(
        source.spec if source else str(model),
        cluster, batch, seq, precision, "adamw", keep_free, planner, budget, objective, fix or {}, allow or {},
        seed, profile=profile, tokens=tokens, price=price,
    )  # fmt: skip
    if folder is not None and source is not None and not source.can_be_found:
        raise InputError(
            f"{source.function}() cannot be named in {folder}: a folder is written for a function at the top of a file that "
            "returns (module, example batch), with the loss inside of the module"
        )
    chosen = answer.planner_of(request, top)
    stated = state(request, source=source)
    if objective == "cost":
        stated, outcome = cheapest.search(stated, chosen, top=top, progress=progress)
    else:
        outcome = answer.search(stated, chosen, top=top, progress=progress)
    return save.write(outcome, stated, Path(folder)) if folder is not None and outcome.plan is not None else outcome


def _source(model: str | Build, inputs: Batch | None, loss: Loss | None) -> FunctionSource | None:
    if isinstance(model, str):
        if inputs is not None or loss is not None:
            raise InputError(f"{model} has its inputs and its loss: inputs= and loss= go with a function that builds")
        return None
    from .graph.user_function import FunctionSource

    return FunctionSource.of(model, inputs, loss)


@overload
def simulate(model: Problem, plan: Plan, *, preset: Preset = "default", detail: bool = True) -> Simulation: ...
@overload
def simulate(model: str, **layout: Any) -> Outcome: ...


def simulate(
    model: Problem | str, plan: Plan | None = None, *, preset: Preset = "default", detail: bool = True, **layout: Any
) -> Simulation | Outcome:
    """One step of a plan of a problem; or of a model by name, under a layout given by its degrees.

    Args:
        preset: with a problem: "distir" plays its program as the simulator of DistIR does.
        layout: with a name: cluster, profile, batch, seq, precision, tokens, price, and dp, tp, pp, vpp, zero, micro_batch, recompute, schedule.

    Raises:
        InputError: degrees that do not multiply to the devices, or a layout that is not legal for the model.
    """
    if isinstance(model, Problem):
        from .simulate.simulator import simulate as price

        if plan is None:
            raise TypeError("simulate(problem, plan) needs the plan")
        return price(model, plan, preset=preset, detail=detail)
    asked = {
        k: layout.pop(k)
        for k in ("cluster", "profile", "batch", "seq", "precision", "seed", "tokens", "price")
        if k in layout
    }
    return answer.by_hand(state(Request(model, **asked)), LayoutByHand(**layout))


def compare(
    model: str,
    planners: Sequence[str] | str = "all",
    *,
    cluster: str = "local",
    batch: int | None = None,
    seq: int | None = None,
    budget: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Every planner on one problem, judged by the simulator.

    Raises:
        InputError: an unknown name.
    """
    names = comparing.planners_named(planners) if isinstance(planners, str) else list(planners)
    comparing.check_names(names)
    return comparing.compare(state(Request(model, cluster, batch, seq, budget=budget, seed=seed)), names)


def load(path: str | Path) -> Plan:
    """The plan of a plan.json or of the folder that holds it.

    Raises:
        InputError: missing or damaged.
    """
    from .plan.serial import load as load_plan

    place = Path(path)
    file = place / "plan.json" if place.is_dir() else place
    return replace(load_plan(file), folder=str(file.parent))


def stated_plan(path: str | Path) -> tuple[Stated, Plan]:
    """A plan with the model, cluster and problem that its folder names.

    Raises:
        InputError: missing, damaged, or for another model.
    """
    opened = save.open_plan(Path(path))
    stated = state(opened.request)
    save.check_same_model(opened, stated)
    return stated, opened.plan


def verify(
    plan: str | Path | Plan | Outcome,
    model: str | Build | None = None,
    *,
    inputs: Batch | None = None,
    loss: Loss | None = None,
    ranks: int = 4,
    full_size: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] = lambda phase: None,
) -> VerifyResult:
    """Does a plan compute what one device computes? Runs it on processes of this machine, scaled down.

    Args:
        plan: a plan.json or its folder; or what `load` or `plan` returned.
        model, inputs, loss: as for `plan`; None: what the plan's folder names.
        ranks: about how many processes.
        full_size: scale nothing down.

    Raises:
        Unsupported: a plan that can be priced but not run. InputError: a plan of another model. ExecutionError: a rank died.
    """
    from .execute import verify as prove

    source: ModelSource
    if model is None:
        stated, found = stated_plan(_folder_of(plan))
        graph, source, seq = stated.problem.graph, stated.source, stated.request.seq or 0
    else:
        found, source, graph, seq = _planned_for(plan, model, inputs, loss)
    return prove(found, graph, source, seq=seq, ranks=ranks, whole=full_size, seed=seed, progress=progress)


def _folder_of(plan: str | Path | Plan | Outcome) -> str | Path:
    if isinstance(plan, (Outcome, Plan)):
        plan = plan.folder
    if not plan:
        raise InputError("the plan is not written, so nothing names its model: give model=, as it was given to mw.plan")
    return plan


def _planned_for(
    plan: str | Path | Plan | Outcome, model: str | Build, inputs: Batch | None, loss: Loss | None
) -> tuple[Plan, ModelSource, Graph, int]:
    """A plan and the model that it is for, as it was captured for planning."""
    from .graph.source import resolve
    from .plan.match import check_match

    if isinstance(plan, Outcome):
        if plan.plan is None:
            raise InputError(f"there is no plan to verify: {plan.reason or 'none fits'}")
        found = plan.plan
    else:
        found = plan if isinstance(plan, Plan) else load(plan)
    source = _source(model, inputs, loss) or resolve(str(model))
    tokens = next((shape for shape, dtype in found.inputs.values() if dtype == "int64" and len(shape) == 2), None)
    seq = tokens[1] if tokens else 0
    graph = source.graph(CAPTURED_SAMPLES, seq, found.precision or "bfloat16")
    if found.graph != graph.digest:
        check_match(found, graph, source.name)
    return found, source, graph, seq


def run(
    plan: str | Path,
    *,
    steps: int = 20,
    resume: str | Path | None = None,
    data: str | Path | None = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    reference: bool = False,
    learning_rate: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> RunResult:
    """Train a written plan: one process a device on this machine, or one rank under torchrun.

    Args:
        plan: a plan.json or its folder.
        folder: where checkpoints go, one every ten steps; None = none.
        seed: of first values, samples and dropout; None = the resumed checkpoint's, else 0.
        reference: train the model in this process too, side by side.
        learning_rate: of AdamW; None = its default.

    Raises:
        InputError: the model does not fit this machine, or no such checkpoint. ExecutionError: a rank died.
    """
    from .execute import AdamW, train

    stated, found = stated_plan(plan)
    _check_room(stated, plan)
    return train(
        found,
        stated.source,
        steps=steps,
        seq=stated.request.seq or 0,
        seed=seed,
        data=str(data) if data is not None else None,
        folder=folder,
        save_every=CHECKPOINT_EVERY,
        resume=resume,
        optimizer=AdamW(lr=learning_rate) if learning_rate is not None else None,
        reference=reference,
        on_step=on_step,
    )


def measured_run(plan: str | Path, result: RunResult) -> Measured | None:
    """The steps of a run beside those that were predicted for the plan's cluster; None after a single step.

    Raises:
        InputError: the plan is missing, damaged, or for another model.
    """
    from .report.measured import measured
    from .simulate.simulator import simulate as price

    if not result.spent:
        return None
    stated, found = stated_plan(plan)
    simulation = price(stated.problem, found)
    return measured(found, simulation, result.spent, len(result.steps) - 1, priced_for=stated.problem.cluster.name)


def launch(plan: str | Path, arguments: Sequence[str] = ()) -> Launch:
    """How the machines of a written plan's cluster are started to train it; captures nothing.

    Args:
        arguments: of `meshwright run`, after the plan.

    Raises:
        InputError: missing or damaged, or devices that do not fill whole machines.
    """
    from .cluster import resolve

    opened = save.open_plan(Path(plan))
    cluster = resolve(opened.request.cluster)
    devices = len({d for s in opened.plan.stages for d in s.mesh.devices})
    command = ("-m", "meshwright", "run", str(plan), *arguments)
    name = Path(plan).name.removesuffix(".json")  # versions in names have dots
    return Launch(shape_of(cluster, devices), command, name, cluster.types[0].kind == "gpu")


CHECKPOINT_EVERY = 10
"""Steps."""
MOST_RANKS = 64
"""Processes that one machine is asked to start."""
STATE_BYTES = 16.0
"""A parameter, its gradient and two moments in float32."""


def _check_room(stated: Stated, plan: str | Path) -> None:
    """Refuse what cannot fit this machine, before any process starts.

    Raises:
        InputError: more state than memory; under torchrun nothing is checked.
    """
    if "WORLD_SIZE" in os.environ:
        return
    q = stated.question
    line = launch(plan).line
    need, have = q.parameter_count * STATE_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have or q.cluster.count > MOST_RANKS:
        raise InputError(
            f"{q.model} under a plan for {q.cluster.name} needs {gib(need)} GiB of state on {q.cluster.count:,} devices and "
            f"this machine has {gib(have)} GiB: verify it here, and on the cluster start it with {line}"
        )
