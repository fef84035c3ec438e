"""Options that several commands share, with their words, and what the shell completes for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from .._words import whole_number
from ..errors import InputError
from .completion import (
    OBJECTIVES,
    PRECISIONS,
    cluster_names,
    exporter_names,
    layout_words,
    model_names,
    one_of,
    plan_paths,
    planner_names,
    setting_names,
)
from .numbers import amount, whole
from .screen import Color


def read_tokens(text: str) -> float:
    from ..request import tokens_of

    try:
        return tokens_of(text)
    except ValueError as error:
        raise InputError(f"--tokens {text}: {error}", where="--tokens") from None


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='A name ("meshwright models"), a Hugging Face config.json, model.py:build, a problem.toml, or a recorded profile.',
        autocompletion=model_names,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL", help="A model as for plan; or profile files.", autocompletion=model_names),
]
PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan.json, or the folder that holds it.", autocompletion=plan_paths)
]
Cluster = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cluster", "-c", metavar="NAME", envvar="MESHWRIGHT_CLUSTER", autocompletion=cluster_names,
        help='A preset with a count (h100x64), local, or a cluster.toml.  [default: local]',
    ),
]  # fmt: skip
Profile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--profile", metavar="NAME", envvar="MESHWRIGHT_PROFILE",
        help="Constants from calibrate: a name, or a file.toml.  [default: for local, what was measured here]",
    ),
]  # fmt: skip
Batch = Annotated[int | None, whole("--batch", 1, help="Sequences (or images) a step.")]
Seq = Annotated[int | None, whole("--seq", 1, help="Tokens a sequence.")]
AttentionShare = Annotated[
    float | None,
    amount(
        "--attention-share", "share of attention", metavar="X",
        help="What packed documents leave: sum of squared lengths over the squared sequence.  [default: 1]",
    ),
]  # fmt: skip
RoutingSkew = Annotated[
    float | None,
    amount("--routing-skew", "times the mean load", metavar="X", help="Tokens of the busiest device of experts over the mean.  [default: 1]"),
]  # fmt: skip
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        help="What the model computes in.",
        autocompletion=one_of(PRECISIONS),
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.  [default: MODEL-CLUSTER]")
]
Seed = Annotated[int | None, whole("--seed", 0, help="Of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail.")]
ColorChoice = Annotated[Color, typer.Option("--color", metavar="auto|always|never", help="Colour of the output.")]
Planner = Annotated[
    str | None,
    typer.Option(
        "--planner", metavar="NAME", envvar="MESHWRIGHT_PLANNER", autocompletion=planner_names,
        help="A registered planner, or a ./file.py.  [default: grid]",
    ),
]  # fmt: skip
Budget = Annotated[float | None, amount("--budget", "seconds", metavar="S", help="Seconds of search.")]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="|".join(OBJECTIVES),
        help="What is made smallest.  [default: step]",
        autocompletion=one_of(OBJECTIVES),
    ),
]
Tokens = Annotated[
    float | None,
    typer.Option(
        "--tokens", metavar="N", parser=read_tokens,
        help="To be trained on, such as 15T or 300e9: says how many days, and what they cost.",
    ),
]  # fmt: skip
Price = Annotated[
    float | None,
    amount("--price", "money", metavar="X", help="Of one device and hour.  [default: what the cluster says]"),
]
Top = Annotated[int, whole("--top", 1, 100, help="Plans shown.")]
Fix = Annotated[
    str | None,
    typer.Option("--fix", metavar="tp=8,pp=1", help="Degrees that are given.", autocompletion=layout_words),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="recompute=none,full", help="Choices that the search may use; may be repeated."),
]


Mesh = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mesh", metavar="x=2,y=4", help="Axes of the mesh, for planners that are told one (gspmd)."),
]
Annotations = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--annotations",
        metavar="FILE",
        help="Shardings of some tensors, TOML or JSON, for planners that complete them.",
    ),
]
SaveProfile = Annotated[
    str | None,
    typer.Option(
        "--save-profile", metavar="FORMAT=FILE", help="Also write the priced model as a profile: piper=gpt2.json, …"
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TRAINER[@VERSION]", autocompletion=exporter_names,
        help='Only what this trainer runs exactly ("meshwright exporters").',
    ),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE",
        help="A parameter of the planner, or what overrides a profile: devices=8, memory=16GiB, …; may be repeated.",
        autocompletion=setting_names,
    ),
]  # fmt: skip


def parse_fix(text: str | None) -> dict[str, int] | None:
    """ "tp=8,pp=1" -> {"tp": 8, "pp": 1}."""
    if text is None:
        return None
    found: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not (degree := whole_number(value.strip())):
            raise InputError(f'--fix {item}: write a degree as tp=8, several as "tp=8,pp=1"', where="--fix")
        if key.strip() in found:
            raise InputError(f"--fix {key.strip()} stands twice: give it once", where="--fix")
        found[key.strip()] = degree
    return found


def parse_allow(items: list[str] | None) -> dict[str, tuple[str, ...]] | None:
    """["recompute=none,full"] -> {"recompute": ("none", "full")}."""
    if items is None:
        return None
    found: dict[str, tuple[str, ...]] = {}
    for item in items:
        key, equals, values = item.partition("=")
        choices = tuple(v.strip() for v in values.split(",") if v.strip())
        if not equals or not choices:
            raise InputError(f"--allow {item}: write the choices as recompute=none,full", where="--allow")
        found[key.strip()] = (*found.get(key.strip(), ()), *choices)
    return found


def short_folder(folder: Path) -> str:
    """As a person would type it."""
    relative = os.path.relpath(folder)
    return relative if not relative.startswith("../..") else str(folder)
