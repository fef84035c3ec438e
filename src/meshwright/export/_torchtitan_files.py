"""The files of a run: a recipe, the table of a schedule that has no name, a launch script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pprint import pformat
from typing import Any

from ..plan.model import Schedule
from ._torchtitan_fields import AFTER, BEFORE, MAIN, OWN, Own
from ._torchtitan_schedules import table
from ._torchtitan_words import CONTEXT, HINT
from .setup import Setup

TABLE = "schedule.csv"
POLICIES = {"none": "None", "selective": "SelectiveAC.Config()", "full": "FullAC.Config()"}


def own_of(setup: Setup) -> Own | None:
    """The model in torchtitan, if it has it in this size."""
    found = OWN.get(setup.name)
    return found if found is not None and found.layers == len(setup.model.layers) else None


def stage_modules(setup: Setup) -> list[list[str]]:
    """Names of the modules of each stage: torchtitan's for its models, else the model's own."""
    own, model = own_of(setup), setup.model
    layers = [f"layers.{n}" for n in range(len(model.layers))] if own else list(model.layers)
    before = BEFORE if own else tuple(m for m in model.before if _holds(m, model.layers))
    after = AFTER if own else tuple(m for m in model.after if _holds(m, model.layers))
    found: list[list[str]] = [layers[s.layers.start : s.layers.stop] for s in setup.shares]
    found[0][:0] = before
    found[-1] += after
    return found


def _holds(module: str, layers: Sequence[str]) -> bool:
    """Whether a path is a module of its own, not one around the layers."""
    return bool(module) and not any(layer.startswith(f"{module}.") for layer in layers)


def files_of(called: str, version: str, setup: Setup, options: Mapping[str, Any], csv: bool) -> dict[str, str]:
    """Name -> text."""
    found = {"recipe.py": _recipe(called, version, setup, options, csv), "launch.sh": _launch(called, setup)}
    return found | ({TABLE: table(setup.layout.schedule, setup.stages)} if csv else {})


def _recipe(called: str, version: str, setup: Setup, options: Mapping[str, Any], csv: bool) -> str:
    own = own_of(setup)
    lines = [
        f'"""{_title(setup)} for {called}, as Meshwright planned it ({setup.point.words()}, {setup.layout.samples:,} samples a step).',
        "",
        "Not in a plan, and as the recipe below has them: data set, learning rate, checkpoint folder.",
        '"""',
        "",
        *(["from pathlib import Path", ""] if csv else []),
        "from torchtitan.config import ParallelismConfig",
    ]
    policy = POLICIES[options["activation_checkpoint"]]
    if policy != "None":
        lines.append(f"from torchtitan.distributed.activation_checkpoint import {policy.partition('.')[0]}")
    if own:
        lines += [
            f"from torchtitan.models.{own.module} import model_registry",
            f"from torchtitan.models.{own.module}.config_registry import {own.base} as base",
        ]
    lines += ["from torchtitan.trainer import Trainer", ""]
    if not own:
        lines += [
            "# Your own recipe: a function that returns a Trainer.Config with your model_spec, data and learning rate.",
            "from my_recipe import base",
            "",
        ]
    if csv:
        lines += [f"{HINT} = {_hint(setup.layout.schedule)}  # what {TABLE} is", ""]
    if setup.point.cp > 1 and version == MAIN:
        lines += [f"{CONTEXT} = {_text(setup.point.context)}  # how base() must build the attention of its model", ""]
    lines += ["", "def train() -> Trainer.Config:", "    config = base()"]
    if own and version != MAIN:
        lines.append(f"    config.model_spec = model_registry({_text(own.flavor)}, attn_backend={_text('flex')})")
    if own and version == MAIN:
        lines.append(f"    # The model of this plan is {own.module}'s {own.flavor}: base() must build it.")
    lines += [f"    # {note}" for note in _notes(version, setup, own)]
    lines += _parallelism(options)
    for key, value in options.items():
        section, _, field = key.partition(".")
        if section == "activation_checkpoint":
            lines.append(f"    config.activation_checkpoint = {POLICIES[value]}")
        elif section != "parallelism":
            lines.append(f"    config.{section}.{field} = {_text(value)}")
    return "\n".join([*lines, "    return config", ""])


def _parallelism(options: Mapping[str, Any]) -> list[str]:
    lines = ["    config.parallelism = ParallelismConfig("]
    for key, value in options.items():
        section, _, field = key.partition(".")
        if section == "parallelism" and field.endswith("_csv") and value:
            lines.append(f"        {field}=str(Path(__file__).with_name({_text(value)})),")
        elif section == "parallelism" and field.endswith("fqns_per_model_part") and value:
            lines += [f"        {field}=[", *(f"            {_text(stage)}," for stage in value), "        ],"]
        elif section == "parallelism":
            lines.append(f"        {field}={_text(value)},")
    return [*lines, "    )"]


def _notes(version: str, setup: Setup, own: Own | None) -> list[str]:
    p = setup.point
    found = []
    if p.tp > 1 and not own:
        found.append("tp: the parallelize_fn of your model_spec cuts it.")
    if p.cp > 1 and version == MAIN:
        kind = "UlyssesCPInnerAttention" if p.context == "ulysses" else "KVAllGatherCPFlexInnerAttention"
        found.append(f"cp: base() must build its attention as {kind} (ContextParallelTransform).")
    if p.cp > 1 and not own and version != MAIN:
        found.append("cp: your model must use FlexAttention.")
    if version == MAIN and setup.problem.recipe.fused:
        found.append("Fused light ops: keep your model's local_compile_regions on.")
    return found


def _hint(schedule: Schedule) -> str:
    return _text({"name": schedule.name, **schedule.args})


def _title(setup: Setup) -> str:
    return setup.name or "A model"


def _text(value: Any) -> str:
    """A plain value as Python with double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(x) for x in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    return pformat(value)


def _launch(called: str, setup: Setup) -> str:
    world, node = setup.world, setup.problem.cluster.node_size
    nodes, odd = divmod(world, node) if world > node else (1, 0)
    run = "-m torchtitan.train --module recipe --config train"
    head = [
        "#!/usr/bin/env bash",
        f"# {called} on {world:,} devices. Options of torchtitan that follow override the recipe.",
    ]
    if nodes == 1 and not odd:
        start = [f'exec torchrun --standalone --nproc-per-node {world} {run} "$@"']
    else:
        head.append("# Run it on every node, with NODE_RANK from 0 and MASTER_ADDR of node 0 set.")
        start = [
            f'exec torchrun --nnodes {nodes} --nproc-per-node {node} --node-rank "${{NODE_RANK:?}}" \\',
            '  --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}" \\',
            f'  {run} "$@"',
        ]
    return "\n".join(
        [*head, "set -euo pipefail", 'cd "$(dirname "$0")"', 'export PYTHONPATH=".:${PYTHONPATH:-}"', *start, ""]
    )
