"""How a layer's operators are cut, where their results rest, and where values change their layout: op by op.

Taken from the lowered program, so that it shows what runs. Element-wise ops and views that nothing is converted for are left
out. Equal blocks stand once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .._words import count, size
from ..graph.ir import Graph
from ..graph.kinds import kind_of
from ..lower import lower
from ..lower.program import APART, GRAD, RAW, Instr, Segment
from ..plan.model import Layout, Plan
from ..plan.problem import Recipe
from .answers import OpAnswer
from .charts.base import table
from .lines import Line, columns

HEAD = ("op", "cut", "result rests as", "forward", "backward")
WORDS = {
    "all_gather": "gather", "reduce_scatter": "scatter sum", "all_reduce": "sum", "all_to_all": "swap",
    "broadcast": "broadcast blocks for", "reduce": "sum blocks of",
}  # fmt: skip
OWN = ("stat", "panel")
"""Kinds of instructions that an op says of itself: they name no values, as statistics and blocks of products in steps."""


@dataclass(frozen=True, slots=True)
class OpRow:
    """One op of one part of the model."""

    part: str
    """ "model.layers, 32 equal blocks", or "" outside of runs."""
    op: str
    """Without the path of its part."""
    cut: str
    """ "n over tp, m1 over dp"; "whole" where every device computes all of it; gradients behind it that are cut otherwise."""
    rests: str
    """ "[batch/dp, 8192/tp, 4096]": sizes of the dims, with the axes that cut them; behind it the gradient's, where it rests
    otherwise."""
    forward: tuple[str, ...]
    """What is sent, in words: "gather x over tp, 64 MiB"."""
    backward: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        return self.op, self.cut, self.rests, "; ".join(self.forward), "; ".join(self.backward)


def sharding_rows(graph: Graph, plan: Plan, recipe: Recipe) -> list[OpRow]:
    """Ops of all stages in program order; parts that several stages hold alike are said once."""
    program = lower(plan.rewritten or graph, plan, recipe)
    found: dict[OpRow, None] = {}
    for code in program.stages:
        for segment in code.segments:
            if segment.name != "constants":
                for row in _Rows(plan.rewritten or graph, segment, program.micro_batch, code.mesh.axes).rows():
                    found.setdefault(row)
    return list(found)


class _Rows:
    """Of one segment."""

    def __init__(self, graph: Graph, segment: Segment, micro_batch: int, axes: Sequence[str]) -> None:
        self.graph, self.segment, self.samples, self.axes = graph, segment, micro_batch, axes
        run = next((r for r in graph.runs if r.name == segment.name), None)
        self.part = f"{segment.name}, {count(run.count)} equal blocks" if run else ""
        self.path = f"{segment.name}.{segment.block}" if run else ""

    def rows(self) -> list[OpRow]:
        forward: dict[str, list[str]] = {}
        backward: dict[str, list[str]] = {}
        ops = [i for i in self.segment.forward if i.kind == "compute"]
        reader = {v: i.on for i in reversed(ops) for v in i.inputs}
        maker = {v: i.on for i in ops for v in i.outputs}
        serves = self._serves(reader, maker)
        for into, instrs in ((forward, self.segment.forward), (backward, self.segment.backward)):
            for i in instrs:
                if i.communicates:
                    values = [v.removeprefix(GRAD) for v in (*i.outputs, *i.inputs)]
                    on = i.on if i.kind in OWN else i.within or next((serves[v] for v in values if v in serves), "")
                    if on:
                        into.setdefault(on, []).append(self._words(i))
        found = []
        apart: dict[str, list[Instr]] = {}
        for i in self.segment.backward:
            if i.within and i.kind == "compute":
                apart.setdefault(i.on, []).append(i)
        for i in ops:
            kind = kind_of(self.graph.ops[self.graph.position[i.on]].kind)
            if i.on in forward or i.on in backward or kind is None or not kind.light:
                gradients = [g for g in apart.get(i.on, []) if g.cuts != i.cuts]
                found.append(self._row(i, gradients, forward.get(i.on, []), backward.get(i.on, [])))
        return found

    def _serves(self, reader: dict[str, str], maker: dict[str, str]) -> dict[str, str]:
        """Value of a conversion -> the op for which it is made: that whose result comes to rest, else the first reader."""
        found: dict[str, str] = {}
        steps = [i for i in self.segment.forward if i.kind not in ("compute", *OWN)]
        for i in steps:
            made = found.get(i.inputs[0]) or (maker.get(i.inputs[0]) if i.inputs[0].endswith(RAW) else None)
            if made is not None:
                found[i.outputs[0]] = made
        wanted = dict(reader)  # also what is only a step on the way to what an op reads
        for i in reversed(steps):
            read = wanted.get(i.outputs[0])
            if read is not None and i.outputs[0] not in found:
                found[i.outputs[0]] = read
                wanted.setdefault(i.inputs[0], read)
        return found

    def _row(self, i: Instr, gradients: Sequence[Instr], forward: list[str], backward: list[str]) -> OpRow:
        """`gradients`: those that are cut otherwise than the op."""
        names = self.graph.ops[self.graph.position[i.on]].inputs
        said = {f"gradient of {' and '.join(self._short(names[k]) for k in g.targets)}: {_cut(g)}" for g in gradients}
        cut = "; ".join([_cut(i), *sorted(said)])
        rests = next(
            (self._rest(t) or layout_text(r, self.graph.samples) for t, r in zip(i.outputs, i.results, strict=True)), ""
        )
        rests += "".join(f"; gradient {x}" for x in map(self._gradient_rest, i.outputs) if x)
        return OpRow(self.part, self._short(i.on), cut, rests, tuple(_counted(forward)), tuple(_counted(backward)))

    def _gradient_rest(self, result: str) -> str:
        """Layout of its gradient at rest; "" where it rests as the result does."""
        name = GRAD + result.removesuffix(RAW) + APART
        for i in self.segment.backward:
            if name in i.inputs:
                layout = i.results[i.arriving[i.inputs.index(name)]] if i.kind == "compute" else i.before
                return layout_text(layout, self.graph.samples) if layout is not None else ""
        return ""

    def _rest(self, raw: str) -> str:
        """Layout of a result once its sums are completed; "" where there is nothing to complete."""
        if not raw.endswith(RAW):
            return ""
        name = raw.removesuffix(RAW)
        last = next((i for i in self.segment.forward if name in i.outputs and i.after is not None), None)
        return layout_text(last.after, self.graph.samples) if last is not None and last.after is not None else ""

    def _words(self, i: Instr) -> str:
        per = i.nbytes if i.samples is None else i.nbytes * self.samples
        over = "+".join(i.axes)
        if i.kind == "stat":
            return f"{'count' if i.op == 'count' else 'statistics'} over {over}"
        what = WORDS.get(i.collective or "", i.kind)
        gradient = "gradient of " if any(v.startswith(GRAD) for v in i.inputs) else ""
        amount = size(per) if i.samples is None else f"{size(i.nbytes)} a sample"
        return f"{what} {gradient}{self._short(i.on)} over {over}, {amount}"

    def _short(self, name: str) -> str:
        return name.removeprefix(self.path).lstrip("./") if self.path else name


def _cut(i: Instr) -> str:
    return ", ".join(f"{f} over {'+'.join(c.axis for c in cuts)}" for f, cuts in i.cuts) or "whole"


def _counted(words: Sequence[str]) -> list[str]:
    return [f"{words.count(w)} × {w}" if words.count(w) > 1 else w for w in dict.fromkeys(words)]


def layout_text(layout: Layout, samples: int) -> str:
    """ "[batch/dp, 8192/tp, 4096]"; sub-dimensions of one dim are joined by ·. `samples`: of the captured batch."""
    dims = []
    for d, subs in enumerate(layout.dims):
        shown = []
        for k, (n, cuts) in enumerate(subs):
            word = "batch" if (d, k) == (0, 0) and n == samples else str(n)
            if n != 1 or cuts or len(subs) == 1:
                shown.append(f"{word}/{'+'.join(c.axis for c in cuts)}" if cuts else word)
        dims.append("·".join(shown))
    return f"[{', '.join(dims)}]"


def sharding_lines(rows: Sequence[OpRow], width: int) -> list[Line]:
    """For a terminal: one block of columns a part; on a narrow one the conversions go below their op."""
    lines: list[Line] = []
    for part in dict.fromkeys(r.part for r in rows):
        mine = [r for r in rows if r.part == part]
        lines.append(Line(part or "outside of blocks", "title"))
        text = columns([HEAD[:3], *(r.cells[:3] for r in mine)], ())
        for k, line in enumerate(text):
            lines.append(Line("  " + line, "quiet" if k == 0 else ""))
            if k:
                row = mine[k - 1]
                for word, sent in (("forward ", row.forward), ("backward", row.backward)):
                    lines += [Line(f"      {word}  {w}"[:width], "quiet") for w in sent]
    return lines


def sharding_diff_lines(first: Sequence[OpRow], second: Sequence[OpRow], width: int) -> list[Line]:
    """What two plans do otherwise, op by op."""
    one, two = ({(r.part, r.op): r for r in rows} for rows in (first, second))
    lines: list[Line] = []
    alike = 0
    for key in dict.fromkeys([*one, *two]):
        a, b = one.get(key), two.get(key)
        if a is not None and b is not None and a.cells == b.cells:
            alike += 1
            continue
        lines.append(Line(f"{key[0]}: {key[1]}" if key[0] else key[1], "title"))
        for name, row in (("first ", a), ("second", b)):
            if row is None:
                lines.append(Line(f"  {name}  nothing to say: follows its operands", "quiet"))
                continue
            lines.append(Line(f"  {name}  {row.cut}; rests as {row.rests}"[:width]))
            lines += [Line(f"          {w}"[:width], "quiet") for w in (*row.forward, *row.backward)]
    lines.append(Line(f"{count(alike)} ops are cut and converted alike.", "quiet"))
    return lines


def sharding_section(rows: Sequence[OpRow]) -> str:
    """The same for the report."""
    if not any(r.cut != "whole" for r in rows):
        return ""
    body = ""
    for part in dict.fromkeys(r.part for r in rows):
        mine = [list(r.cells) for r in rows if r.part == part]
        body += f"<h3>{escape(part or 'outside of blocks')}</h3>{table(HEAD, mine, left=5)}"
    caption = "One layer's operators: what cuts each, how its result rests, and what is sent around it. [batch/dp, 4096/tp] is a value of two dims, the first cut over dp, the second over tp."
    return f'<section><h2>8. How operators are cut</h2><p class="soft">{escape(caption)}</p><details class="plain" open><summary>{count(len(rows))} ops</summary>{body}</details></section>'


def sharding_object(rows: Sequence[OpRow]) -> list[OpAnswer]:
    """For JSON."""
    return [
        {
            "part": r.part,
            "op": r.op,
            "cut": r.cut,
            "rests": r.rests,
            "forward": list(r.forward),
            "backward": list(r.backward),
        }
        for r in rows
    ]
