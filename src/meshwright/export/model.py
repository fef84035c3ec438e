"""What a trainer asks of a model, read from its graph: layers and their names, heads, experts, vocabulary, tied weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..graph.ir import Graph
from ..layouts.expert import Expert, expert_of
from ..layouts.units import Units
from ..lower.memo import memo
from ..plan.lookup import entry_range

_NUMBER_LAST = re.compile(r"\.\d+$")


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes are 0 where there is nothing of the kind."""

    layers: tuple[str, ...]
    """Module paths of the layers, in order: "model.layers.0" …; of several stacks one after the other."""
    stacks: tuple[str, ...]
    """Module paths of the lists of layers: "model.layers"."""
    heads: int
    kv_heads: int
    experts: int
    vocabulary: int
    seq: int
    """Positions of a sample."""
    tied: bool
    """A parameter that ops before the first layer and after the last both read."""
    before: tuple[str, ...]
    """Modules with ops before the first layer."""
    after: tuple[str, ...]

    @property
    def decoder(self) -> bool:
        """One stack of layers with attention between an embedding and a head: what trainers of language models build."""
        return len(self.stacks) == 1 and self.heads > 0 and self.vocabulary > 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one stage holds."""

    layers: range
    """Positions in `Model.layers`."""
    before: bool
    """What stands before the first layer (the embedding)."""
    after: bool
    """What stands after the last layer (norm, head, loss)."""


def model_of(graph: Graph) -> Model:
    """Facts of a graph; the same for the same graph."""
    found: Model = memo(graph, "trainer's model", lambda: _read(graph))
    return found


def shares_of(expert: Expert, parts: tuple[int, ...]) -> tuple[Share, ...]:
    """Per stage what it holds, from its units."""
    held, layers = _unit_places(expert), len(model_of(expert.graph).layers)
    found, at, next_layer = [], 0, 0
    for n in parts:
        here = held[at : at + n]
        stop = max((min(high, layers - 1) for _, high in here), default=-1) + 1
        stop = max(stop, next_layer)
        found.append(
            Share(range(next_layer, stop), any(low < 0 for low, _ in here), any(high >= layers for _, high in here))
        )
        at, next_layer = at + n, stop
    return tuple(found)


def parts_of(expert: Expert, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Units of each stage that holds so many layers, in order; what is before and after them is on the first and the last stage.

    Raises:
        ValueError: they are not all layers, or a stage would end inside of a unit.
    """
    held, layers = _unit_places(expert), model_of(expert.graph).layers
    if sum(counts) != len(layers):
        raise ValueError(f"stages of {sum(counts)} layers in all, but the model has {len(layers)}")
    ends, done = [], 0
    for n in counts:
        done += n
        end = next((u for u, (_, high) in enumerate(held) if high >= done), len(held))
        if end < len(held) and held[end][0] < done and done < len(layers) and held[end][0] >= 0:
            raise ValueError(
                f"{layers[done - 1]} and {layers[done]} cannot be parted: they stand in one piece of the model"
            )
        ends.append(end)
    ends[-1] = len(held)
    return tuple(b - a for a, b in zip((0, *ends), ends, strict=False))


def _unit_places(expert: Expert) -> list[tuple[int, int]]:
    """Per unit the first and the last of the places of its ops; see `_places`."""

    def read() -> list[tuple[int, int]]:
        graph, units = expert.graph, Units(expert.atoms.folded)
        model = model_of(graph)
        places = _places(graph, model.layers, model.stacks)
        found = []
        for u in range(len(units)):
            own = [places[i] for entry in units.ops(u, u + 1) for i in entry_range(graph, entry)]
            found.append((min(own), max(own)))
        return found

    found: list[tuple[int, int]] = memo(expert.graph, "places of units", read)
    return found


def _places(graph: Graph, layers: tuple[str, ...], stacks: tuple[str, ...]) -> list[int]:
    """Per op: −1 before the first layer, the layer's position, the number of layers after the last. An op of no layer that
    stands between two belongs to the earlier."""
    number = {path: n for n, path in enumerate(layers)}
    own = [number.get(_layer(op.module, stacks)) for op in graph.ops]
    final = max((i for i, x in enumerate(own) if x is not None), default=len(own))
    found, here = [], -1
    for i, place in enumerate(own):
        here = here if place is None else max(here, place)
        found.append(len(layers) if i > final else here)
    return found


def _layer(module: str, stacks: tuple[str, ...]) -> str:
    """The layer that a module is in: "model.layers.0"; "" if none."""
    for stack in stacks:
        if module.startswith(stack + "."):
            number = module.removeprefix(stack + ".").partition(".")[0]
            if number.isdecimal():
                return f"{stack}.{number}"
    return ""


def _read(graph: Graph) -> Model:
    stacks = tuple(dict.fromkeys(_NUMBER_LAST.sub("", run.name) for run in graph.runs))
    layers = tuple(dict.fromkeys(path for op in graph.ops if (path := _layer(op.module, stacks))))
    places = _places(graph, layers, stacks)
    expert = expert_of(graph)
    heads = kv_heads = 0
    for node in expert.atoms.nodes:
        op = graph.ops[node.index]
        if "attention" in op.kind:
            sizes = {f.name: f.size for f in op.rule.factors}
            kv_heads = sizes.get("heads", 0)
            heads = kv_heads * sizes.get("group", 1)
            break
    early = {t for i, op in enumerate(graph.ops) if places[i] < 0 for t in op.inputs if graph.tensor[t].role == "param"}
    late = {t for i, op in enumerate(graph.ops) if places[i] == len(layers) for t in op.inputs}
    rows = [
        graph.tensor[t].shape[0]
        for i, op in enumerate(graph.ops)
        if places[i] < 0 and op.kind == "embedding"
        for t in op.inputs
        if graph.tensor[t].role == "param"
    ]
    tokens = [graph.tensor[t].shape for t in graph.inputs]
    return Model(
        layers, stacks, heads, kv_heads, max((expert.atoms.nodes[n].size[a] for n, a in expert.experts.items()), default=0),
        max(rows, default=0), max((shape[1] for shape in tokens if len(shape) == 2), default=0), bool(early & late),
        *(tuple(dict.fromkeys(op.module for i, op in enumerate(graph.ops) if places[i] == p)) for p in (-1, len(layers))),
    )  # fmt: skip
