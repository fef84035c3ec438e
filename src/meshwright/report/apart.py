"""Names of plans that choose an option per op: what a row does otherwise than the row above it, and no two rows alike.

    dp8 z1 31%: wte z1                     the first row: what is not as most of the parameters are, and which products are cut
    dp8 z1 31%: wpe col8                   then what differs from the row above, the most parameters first
    dp8 z3 99%: ln_2 z0, mlp.c_proj.bias z3    and what else tells a row from all that begin alike

The words of a plan (`cut_words`) stay as they are; what stands behind the colon is true of the plan alone as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import Factor, Graph
from ..plan.model import Cut, Plan, Stage
from .candidates import Candidate
from .cut_words import WEIGHT, axes_of, chosen_by_op, op_words, params_held, pattern, rest_level, way_words
from .shardings import layout_text
from .short_names import LONG, short_names

LONGEST = 60
"""Characters of a name."""
SMALL = 0.001
"""Share of the parameters below which a difference is said only where a row cannot be told from another without it."""
MUCH = 0.01
"""Share of the parameters above which how they are cut is said before how others rest."""
BRIEF = 8
"""Characters above which names of parameters are cut where a row has no room for them."""
MORE = " …"

Subject = tuple[str, str]
"""(parameter, op or value, what of it): its cut, or how it rests."""


@dataclass(frozen=True)
class Facts:
    """What one plan does, by subject."""

    words: str
    """Of the whole plan: "dp8 z1 31%"."""
    values: Mapping[Subject, str]
    """Of parameters: "col8", "z1"."""
    weights: Mapping[Subject, int]
    """Elements of the parameter."""
    usual: Mapping[Subject, str]
    """What is as most of the plan is, and needs no word in a table's first row."""
    further: Mapping[Subject, str] = field(default_factory=dict)
    """Of other ops, and of values that rest cut."""


def told_apart(rows: Sequence[Candidate], graph: Graph) -> list[Candidate]:
    """The rows, those of plans that choose per op with their names. They are in the order of the table."""
    plans = [build() if (build := row.plan) is not None else None for row in rows]
    own = [(i, plan) for i, plan in enumerate(plans) if plan is not None and chosen_by_op(plan)]
    facts = [facts_of(plan, graph) for _, plan in own]
    names = differences(facts, labels_of(facts, graph), labels_of(facts, graph, BRIEF))
    found = list(rows)
    for (i, _), name in zip(own, names, strict=True):
        found[i] = replace(rows[i], layout=name)
    return found


def differences(rows: Sequence[Facts], labels: Mapping[Subject, str], brief: Mapping[Subject, str]) -> list[str]:
    """Names of plans in the order of a table, of at most `LONGEST` characters; plans that do the same have the same.

    Args:
        labels: names of all subjects; `brief`: shorter ones, for rows that have no room for them.
    """
    every = [{**row.values, **row.further} for row in rows]
    params = {s for row in rows for s in row.values}
    alike: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(row.words, []).append(i)
    tables = {words: _Table([every[i] for i in group], params) for words, group in alike.items()}
    names = []
    for i, row in enumerate(rows):
        above = row.usual if i == 0 else every[i - 1]
        new = [s for s in row.values if row.values[s] != above.get(s)]
        total = sum(n for (_, what), n in row.weights.items() if what == "rests") or 1
        new.sort(key=lambda s: (s[1] != "cut" or row.weights[s] < MUCH * total, -row.weights[s]))
        large = [s for s in new if row.weights[s] > SMALL * total] or (new[:1] if i else [])
        must = tables[row.words].telling(alike[row.words].index(i), large[:1], new)
        names.append(_Name(row.words, every[i], must, large, labels, brief))
    taken: dict[str, set[str]] = {}
    for name in names:
        taken.setdefault(name.text, set()).add(name.mark)
    return [name.text if len(taken[name.text]) == 1 else name.marked for name in names]


@dataclass(frozen=True)
class _Name:
    words: str
    values: Mapping[Subject, str]
    must: Sequence[Subject]
    """What tells it from others."""
    new: Sequence[Subject]
    """What is to be said where there is room."""
    labels: Mapping[Subject, str]
    brief: Mapping[Subject, str]

    @cached_property
    def text(self) -> str:
        """What tells it from others and what is new, as far as there is room; if there is not, what is new."""
        chosen = list(self.must)
        if len(self._said(chosen)) <= LONGEST:
            left = [s for s in self.new if s not in chosen]
            while left and len(self._said([*chosen, left[0]], left[1:])) <= LONGEST:
                chosen.append(left.pop(0))
            text = self._said(chosen, left)
            return text if len(text) <= LONGEST else self._said(chosen)
        text = self._said(chosen, labels=self.brief)
        return text if len(text) <= LONGEST else self._beginning("")

    @property
    def marked(self) -> str:
        """With a mark of all that the plan does, where others read as it does."""
        return self._beginning(f" #{self.mark}")

    @cached_property
    def mark(self) -> str:
        return sha256(repr(sorted(self.values.items())).encode()).hexdigest()[:4]

    def _beginning(self, end: str) -> str:
        """As much of what is new as there is room for, by shorter names where it is not even two."""
        whole = list(self.new or self.must)
        for labels in (self.labels, self.brief):
            chosen = list(whole)
            while chosen and len(self._said(chosen, MORE, labels) + end) > LONGEST:
                chosen.pop()
            if len(chosen) >= min(2, len(whole)):
                break
        return self._said(chosen, MORE, labels) + end

    def _said(self, subjects: Sequence[Subject], left: Sized = (), labels: Mapping[Subject, str] | None = None) -> str:
        """ "dp8 z1 54%: c_fc+c_attn z1, wpe col8", and whether more is `left`."""
        found: dict[str, list[str]] = {}
        for s in subjects:
            found.setdefault(self.values.get(s, "whole"), []).append((labels or self.labels)[s])
        facts = ", ".join(f"{'+'.join(names)} {value}" for value, names in found.items())
        return f"{self.words}: {facts}" + (MORE if left else "") if facts else self.words


class _Table:
    """Facts of rows whose words are the same, as numbers."""

    def __init__(self, rows: Sequence[Mapping[Subject, str]], params: Collection[Subject]) -> None:
        self.subjects = list(dict.fromkeys(s for row in rows for s in row))
        self.place = {s: k for k, s in enumerate(self.subjects)}
        number: dict[str | None, int] = {}
        codes = [[number.setdefault(row.get(s), len(number)) for s in self.subjects] for row in rows]
        self.first = np.array([s in params for s in self.subjects])
        self.codes: NDArray[np.int64] = np.array(codes, np.int64).reshape(len(rows), len(self.subjects))

    def telling(self, row: int, said: Sequence[Subject], new: Sequence[Subject]) -> list[Subject]:
        """`said`, and as few more as tell the row from all others that do not do the same: of parameters as long as these
        tell it from one; of equals, one of `new` first."""
        other = self.codes != self.codes[row]
        other = other[other.any(axis=1)]
        chosen = list(said)
        for s in chosen:
            other = other[~other[:, self.place[s]]]
        rank = np.zeros(len(self.subjects))
        for k, s in enumerate(new):
            rank[self.place[s]] = 1 - k / (len(new) + 1)
        while len(other):
            tells = other.sum(axis=0) + 0.5 * rank
            known = np.where(self.first & other.any(axis=0), tells, 0.0)
            k = int((known if known.any() else tells).argmax())
            chosen.append(self.subjects[k])
            other = other[~other[:, k]]
        return chosen


def facts_of(plan: Plan, graph: Graph) -> Facts:
    """Of a plan that chooses per op."""
    stage = plan.stages[0]
    cuts: dict[str, dict[str, int]] = {}
    rests: dict[str, dict[str, int]] = {}
    patterns: dict[str, int] = {}
    levels: dict[str, int] = {}
    cut_of: dict[str, set[tuple[str, bool]]] = {}
    for held in params_held(plan, graph):
        way, level, like = way_words(held.ways, stage), f"z{held.level}", pattern(held.ways, stage)
        for table, key in ((cuts.setdefault(held.param, {}), way), (rests.setdefault(held.param, {}), level), (patterns, like), (levels, level)):  # fmt: skip
            table[key] = table.get(key, 0) + held.elements
        cut_of.setdefault(held.param, set()).add((like, any(kind in held.ways for kind in WEIGHT)))
    values: dict[Subject, str] = {}
    weights: dict[Subject, int] = {}
    usual: dict[Subject, str] = {}
    for what, tables in (("cut", cuts), ("rests", rests)):
        for param, own in tables.items():
            values[param, what] = _mixed(own)
            weights[param, what] = sum(own.values())
    most, level = (max(sorted(table), key=table.__getitem__, default="") for table in (patterns, levels))
    for param, kinds in cut_of.items():
        usual[param, "rests"] = level
        if kinds == {(most, False)}:
            usual[param, "cut"] = values[param, "cut"]
    return Facts(op_words(plan, graph), values, weights, usual, _further(graph, stage))


def _mixed(values: Mapping[str, int]) -> str:
    """ "z1", or of blocks that are not treated alike "z1/z3", the most first."""
    return "/".join(sorted(values, key=lambda v: (-values[v], v)))


def _further(graph: Graph, stage: Stage) -> dict[Subject, str]:
    """What ops compute that no parameter tells, what values rest cut, and how parameters of blocks rest that differ."""
    found: dict[Subject, str] = {}
    for name, sharding in stage.shardings.items():
        factors = graph.ops[graph.position[name]].rule.factors
        if words := "·".join(_over(f, sharding.cuts[f.name], stage) for f in factors if sharding.cuts.get(f.name)):
            found[name, "op"] = words
    for name, layout in stage.layouts.items():
        if axes_of(layout):
            found[name, "value"] = f"rests as {layout_text(layout, graph.samples)}"
    for name, layout in stage.gradients.items():
        found[name, "gradient"] = f"gradient rests as {layout_text(layout, graph.samples)}"
    for name, storage in stage.storage.items():
        if graph.representative_param.get(name, name) != name:
            found[name, "storage"] = f"z{rest_level(storage, {})}"
    return found


def _over(factor: Factor, cuts: Sequence[Cut], stage: Stage) -> str:
    """ "dp8", "heads8", "d1×2"."""
    name = "dp" if factor.samples else factor.name
    return f"{name}{'×' if name[-1:].isdigit() else ''}{prod(stage.mesh.size(c.axis) for c in cuts)}"


def labels_of(rows: Sequence[Facts], graph: Graph, most: int = LONG) -> dict[Subject, str]:
    """Short names of all that facts are of; parameters, ops and values each among themselves."""
    kinds: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, what in (*row.values, *row.further):
            kinds.setdefault(what, {})[name] = None
    return {
        (name, what): label for what, names in kinds.items() for name, label in short_names(names, graph, most).items()
    }
