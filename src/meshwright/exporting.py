"""A problem as a profile file of a public format, so that any captured model is planned as the published ones are.

dnn_partitioning, piper   a node an op, priced at `Graph.samples`
pipedream                 a node a layer, as that planner sees them, for one worker's share of the batch
dapple                    the states of these layers, for the whole batch
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import InputError
from .formats import dapple, dnn_partitioning, pipedream, piper
from .formats.pipedream import Node
from .plan.problem import Problem


def asked(text: str) -> tuple[str, Path]:
    """ "piper=gpt2.json" -> ("piper", gpt2.json).

    Raises:
        InputError: no FORMAT=FILE, or no such format.
    """
    name, equals, file = (part.strip() for part in text.partition("="))
    if not equals or not file or name not in _WRITERS:
        raise InputError(
            f"--save-profile {text}: write FORMAT=FILE, such as piper=gpt2.json; formats are {', '.join(_WRITERS)}",
            where="--save-profile",
        )
    return name, Path(file)


def profile_text(problem: Problem, name: str, title: str = "model") -> str:
    """The content of a profile of format `name`; `title` is what a format calls it that holds several.

    Raises:
        Unsupported: what the format has no place for: a backward that is written out or not known, mixed devices.
    """
    return _WRITERS[name](problem, title)


def save(problem: Problem, name: str, file: Path, title: str) -> None:
    """Write a profile.

    Raises:
        InputError: the file cannot be written.
    """
    text = profile_text(problem, name, title)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}", where=str(file)) from None


def _pipedream(problem: Problem, title: str) -> str:
    from .planners._profile import profile_of

    profile = profile_of(problem, max(1, problem.recipe.samples // problem.cluster.count))
    names = [f"node{v + 1}" for v in range(len(profile))]
    nodes = [
        Node(
            names[v], problem.graph.ops[ops[0]].module or problem.graph.ops[ops[0]].kind, 1e3 * float(profile.forward[v]),
            1e3 * float(profile.backward[v]), (float(profile.activation[v]),), float(profile.params[v]),
        )
        for v, ops in enumerate(profile.ops)
    ]  # fmt: skip
    return pipedream.text_of(nodes, [(names[a], names[b]) for a, b in profile.edges])


def _dapple(problem: Problem, title: str) -> str:
    from .planners._dapple_states import sums_of

    sums = sums_of(problem)
    columns = [1e3 * (sums.forward + sums.backward), sums.activation, sums.params, sums.out]
    return _json(dapple.document_of(title, problem.recipe.samples, sums.below, [c.tolist() for c in columns]))


def _json(document: object) -> str:
    return json.dumps(document) + "\n"


_WRITERS: Mapping[str, Callable[[Problem, str], str]] = {
    "dnn_partitioning": lambda problem, title: _json(dnn_partitioning.export(problem)),
    "piper": lambda problem, title: _json(piper.export(problem)),
    "pipedream": _pipedream,
    "dapple": _dapple,
}
WRITTEN = tuple(_WRITERS)
"""Formats that a captured model can be written in; the others hold no model's times and bytes."""
