"""Which factors grow with the samples: a mark on the batch dim of the inputs, carried along the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from .ir import Dims, Graph, Op, Rule, Tensor

Span = tuple[int, int]
"""The samples inside one dim: a stride that steps through them (elements from low to high); (1, 1) = none."""
NONE: Span = (1, 1)
Spans = tuple[Span, ...]
"""Per dim of one tensor."""


def batch_spans(shape: Sequence[int], samples: int) -> Spans:
    """The batch dim of an input: dim 0 if it has that size, else the only dim of that size, else dim 0 if it is a multiple
    (tokens of all samples in one row)."""
    spans = [NONE] * len(shape)
    if samples > 1 and shape:
        equal = [i for i, n in enumerate(shape) if n == samples]
        if equal and (equal[0] == 0 or len(equal) == 1):
            spans[equal[0]] = (1, samples)
        elif shape[0] % samples == 0 and shape[0]:
            spans[0] = (shape[0] // samples, shape[0])
    return tuple(spans)


def inputs_like(graph: Graph) -> dict[str, tuple[tuple[int, ...], str]]:
    """Per input of a graph: (shape, dtype), a dim of -k holding k elements a sample."""
    found = {}
    for name in graph.inputs:
        t = graph.tensor[name]
        spans = batch_spans(t.shape, graph.samples)
        shape = tuple(-(n // graph.samples) if span != NONE else n for n, span in zip(t.shape, spans, strict=True))
        found[name] = (shape, t.dtype)
    return found


def flag_samples(ops: Sequence[Op], tensors: Iterable[Tensor], samples: int) -> tuple[Op, ...]:
    """The ops with `Factor.samples` set.

    Marks run forward from the inputs; a dim that an op makes from nothing (an expanded class token, zeros of the batch
    size) gets its mark back from the op that joins it with marked data, and then runs forward again.
    """
    kinds = {t.name: t for t in tensors}
    spans: dict[str, Spans] = {
        t.name: batch_spans(t.shape, samples) if t.role == "input" else (NONE,) * len(t.shape) for t in kinds.values()
    }
    wished: dict[str, Spans] = {}
    known: dict[
        tuple[int, tuple[Spans, ...], tuple[Spans, ...]], tuple[Rule, tuple[Spans, ...], tuple[Spans, ...]]
    ] = {}
    flagged: list[Op] = []
    for _ in range(3):
        flagged, before = [], dict(wished)
        for op in ops:
            ins = tuple(spans[name] for name in op.inputs)
            outs = tuple(wished.get(name, ()) for name in op.outputs)
            key = (id(op.rule), ins, outs)
            if key not in known:
                known[key] = _carry(op.rule, ins, outs)
            rule, results, back = known[key]
            spans.update(zip(op.outputs, results, strict=True))
            flagged.append(op if rule is op.rule else replace(op, rule=rule))
            for name, own, wish in zip(op.inputs, ins, back, strict=True):
                if wish != own and kinds[name].role == "activation":
                    wished[name] = _union(wish, wished.get(name, ()))
        if wished == before:
            break
    return tuple(flagged)


def _union(a: Spans, b: Spans) -> Spans:
    return tuple(x if x != NONE else y for x, y in zip(a, b, strict=True)) if b else a


def _carry(
    rule: Rule, operands: tuple[Spans, ...], wished: tuple[Spans, ...]
) -> tuple[Rule, tuple[Spans, ...], tuple[Spans, ...]]:
    """The flagged rule, the spans of its results, and those its operands would have if all agreed."""
    size = {f.name: f.size for f in rule.factors}
    inside: dict[str, Span] = {}
    for dims, spans in (*zip(rule.operands, operands, strict=True), *zip(rule.results, wished, strict=True)):
        if spans:
            _mark(dims, spans, size, inside)
    if not inside:
        none = tuple((NONE,) * len(dims) for dims in rule.results)
        return rule, none, tuple((NONE,) * len(dims) for dims in rule.operands)
    factors = tuple(replace(f, samples=True) if f.name in inside else f for f in rule.factors)
    results = tuple(_spans(dims, size, inside) for dims in rule.results)
    return (
        Rule(factors, rule.operands, rule.results),
        results,
        tuple(_spans(dims, size, inside) for dims in rule.operands),
    )


def _mark(dims: Dims, spans: Spans, size: Mapping[str, int], inside: dict[str, Span]) -> None:
    """Adds, per factor that a span touches, the part of the factor that the samples are."""
    for names, (low, high) in zip(dims, spans, strict=True):
        stride = 1
        for name in reversed(names):
            start, end = max(low, stride), min(high, stride * size[name])
            if start < end:
                inside.setdefault(name, (max(start // stride, 1), max(end // stride, 1)))
            stride *= size[name]


def _spans(dims: Dims, size: Mapping[str, int], inside: Mapping[str, Span]) -> Spans:
    found: list[Span] = []
    for names in dims:
        low, high, stride = 0, 0, prod(size[name] for name in names)
        for name in names:
            stride //= size[name]
            if name in inside:
                a, b = inside[name]
                high = max(high, stride * b)
                low = stride * a
        found.append((low, high) if high else NONE)
    return tuple(found)
