"""How DeepSpeed's `PipelineModule` deals a list of modules over stages, and which of its methods deals as a plan does.

The list is [all before the first layer, each layer, all after the last], and of a model with tied weights the first entry
again, to be used as the head. Methods of 0.19.8 (runtime/pipe/module.py):
uniform      entries evenly, the first stages one more
parameters   by the parameters of each entry, tied ones in both places
type:REGEX   by the number of entries whose class matches: here of those that are layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import inf, prod

from .model import model_of
from .setup import Setup

LAYERS_ONLY = "type:^(?!before$|after$)"
"""Every class but `Before` and `After`, which hold what stands around the layers. DeepSpeed lowers the whole text and splits
it at colons."""


def uniform(entries: int, stages: int) -> tuple[int, ...]:
    """End of each stage in the list."""
    if entries <= stages:
        return tuple(min(s + 1, entries) for s in range(stages))
    return tuple(accumulate(entries // stages + (s < entries % stages) for s in range(stages)))


@lru_cache(maxsize=256)
def balanced(weights: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """End of each stage, stages of the least difference between the heaviest and the lightest.

    A table over prefixes, each built on the one best cut of a shorter prefix (so not always the least of all), of equal cuts
    the one that leaves the last stage shortest: as DeepSpeed has it, so that the answer is the same.
    """
    n = len(weights)
    if n <= stages:
        return uniform(n, stages)
    total = [0, *accumulate(weights)]
    most, least = [0.0] + [inf] * n, [inf] * (n + 1)
    starts: list[list[int]] = []
    for j in range(1, stages + 1):
        most_j, least_j, start_j = [inf] * (n + 1), [inf] * (n + 1), [0] * (n + 1)
        for i in range(j, n + 1):
            spread = inf
            for k in range(i):
                own = total[i] - total[k]
                high, low = max(most[k], own), min(least[k], own)
                if high - low <= spread:
                    spread, most_j[i], least_j[i], start_j[i] = high - low, high, low, k
        most, least = most_j, least_j
        starts.append(start_j)
    ends = [n]
    for start_j in reversed(starts[1:]):
        ends.append(start_j[ends[-1]])
    return tuple(reversed(ends))


def weights_of(setup: Setup) -> tuple[int, ...]:
    """Parameters of each entry of the list; of the first again where it ends the list. Without layers the model is one entry."""
    graph, model = setup.problem.graph, model_of(setup.problem.graph)
    inside = [next((n for n, path in enumerate(model.layers) if _in(op.module, path)), None) for op in graph.ops]
    of_layers = [i for i, n in enumerate(inside) if n is not None]
    if not of_layers:
        return (sum(prod(t.shape) for t in graph.params()),)
    first, last = min(of_layers), max(of_layers)
    entries: list[set[str]] = [set() for _ in range(len(model.layers) + 2)]
    for i, (op, layer) in enumerate(zip(graph.ops, inside, strict=True)):
        place = layer + 1 if layer is not None else 0 if i < first else len(entries) - 1 if i > last else None
        if place is not None:
            entries[place].update(t for t in op.inputs if graph.tensor[t].role == "param")
    if model.tied:
        entries[-1] -= entries[0]
        entries.append(entries[0])
    return tuple(sum(prod(graph.tensor[t].shape) for t in names) for names in entries)


def _in(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


def methods(setup: Setup, stages: int) -> Mapping[str, tuple[int, ...]]:
    """Method -> ends of the stages that it makes."""
    weights = weights_of(setup)
    is_layer = tuple(int(0 < n <= len(setup.model.layers)) for n in range(len(weights)))
    return {
        LAYERS_ONLY: balanced(is_layer, stages),
        "parameters": balanced(weights, stages),
        "uniform": uniform(len(weights), stages),
    }


def ends_of(setup: Setup) -> tuple[int, ...] | None:
    """Ends of the plan's stages in the list; None where a stage ends inside of an entry."""
    shares, layers = setup.shares, len(setup.model.layers)
    if sum(s.before for s in shares) != 1 or sum(s.after for s in shares) != 1 or not shares[0].before:
        return None
    entries = layers + 2 + setup.model.tied
    return tuple(entries if s.after else s.layers.stop + 1 for s in shares)


def method_for(setup: Setup) -> str:
    """The method that deals as the plan does; "" if none does: in a model without layers nothing is dealt."""
    if not setup.model.layers:
        return ""
    ends = ends_of(setup)
    return next((name for name, found in methods(setup, setup.stages).items() if found == ends), "")


def counts(ends: Sequence[int], layers: int) -> tuple[int, ...]:
    """Layers of each stage."""
    inside = [min(max(end - 1, 0), layers) for end in ends]
    return tuple(b - a for a, b in pairwise((0, *inside)))
