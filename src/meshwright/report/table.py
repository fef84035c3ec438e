"""The answer of `plan` on one screen: candidates, step, memory, why, how sure, what next, what was written.

Plan for llama-3.1-8b on h100x64        batch 1,024 of 8,192 tokens · bf16 · AdamW
                                        grid: 296 plans priced in 6.3 s, 41 do not fit
    layout        µbatch  recompute   step s  tok/s/GPU    MFU   memory/GPU GiB (limit 71.6)
▶ 1 dp64 z2       1 × 16  none          15.6      8,402  46.4 %   63.1 ████████▊░   88 %
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from .._words import MISSING, count, decimals_for, file_size, gib, number, percent, plural, rounded_parts, time_part
from ..cluster import is_local
from ..plan.model import Plan
from ..simulate.result import Lane
from .candidates import Candidate
from .lines import Line, Style, bar, columns, labelled, listed, sums
from .outcome import Outcome, Question
from .training import size_words, training_words

OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
PROVED = 0.1
"""Gap to a proven bound up to which it is worth saying."""
NARROW = 60
"""Below this width every plan is a block of its own."""
APART = ": "
"""In a layout before what tells it from the row above."""
DROPPED = ("bar", "MFU", "recompute")
"""Columns that a narrow terminal loses, in this order."""


def plan_lines(outcome: Outcome, width: int = 100, next_steps: bool = True) -> list[Line]:
    """Everything that `plan` and `show` print, for a terminal of `width` columns."""
    lines = heading(outcome, width)
    lines += candidate_lines(outcome, width)
    if outcome.simulation is not None:
        lines += [Line(""), *step_lines(outcome, width), *memory_lines(outcome, width), Line("")]
        lines += [Line(t) for t in labelled("Train", money_words(outcome), width)]
        lines += [Line(t) for t in labelled("Why", outcome.sentences(), width)]
        lines += [Line(t) for t in labelled("Sure?", sure(outcome), width)]
    if outcome.notes:
        lines += [Line(t) for t in labelled("Note", list(outcome.notes), width)]
    if outcome.status == "infeasible":
        lines += [Line("")] + [Line(t) for t in labelled("Why", [outcome.reason], width)]
    if outcome.hints:
        what = "That fits" if outcome.hints[0].startswith("--planner") else "Smallest that fits"
        lines += [Line(t) for t in labelled("", [f"{what}: {' or '.join(outcome.hints)}"], width, indent=0)]
    if next_steps and outcome.folder:
        lines += [Line(""), *next_lines(outcome, width)]
    if outcome.files:
        lines += written_lines(outcome, width)
    return lines


def heading(outcome: Outcome, width: int) -> list[Line]:
    q = outcome.question
    left = f"Plan for {q.model} on {q.cluster.name}"
    right = [recipe_words(q), searched_words(outcome)]
    start = max(40, len(left) + 2)
    if start + max(map(len, right)) <= width:
        return [Line(left.ljust(start) + right[0], "title"), Line(" " * start + right[1], "quiet")]
    return [Line(left, "title"), *(Line(t, "quiet") for r in right for t in labelled("", [r], width, indent=4))]


def recipe_words(q: Question) -> str:
    """ "batch 1,024 of 8,192 tokens · bf16 · AdamW", with "(default)" behind what was not asked for."""
    batch = f"batch {count(q.batch)}" + (" (default)" if "batch" in q.defaults else "")
    if q.seq:
        batch += f" of {count(q.seq)} tokens" + (" (default)" if "seq" in q.defaults else "")
    return " · ".join((batch, q.precision, OPTIMIZERS.get(q.optimizer, q.optimizer)))


def searched_words(outcome: Outcome) -> str:
    """ "grid: 296 plans priced in 6.3 s, 41 do not fit"."""
    of = f" of {count(outcome.points)}" if outcome.points > outcome.evaluated else ""
    plans = "plan" if outcome.evaluated == 1 and not of else "plans"
    priced = f"{count(outcome.evaluated)}{of} {plans} priced" if outcome.evaluated else "searched"
    words = f"{outcome.planner}: {priced}"
    if outcome.seconds:
        words += f" in {number(outcome.seconds, 2)} s"
    if outcome.refused:
        words += f", {count(outcome.refused)} do not fit"
    gap = outcome.gap
    if gap is not None and gap <= PROVED:
        words += f", proved within {percent(gap, 2)} of the optimum of this cost model"
    if outcome.status == "stopped":
        words += ", stopped: best so far"
    elif outcome.result_status == "budget":
        words += ", stopped by the budget"
    return words


def candidate_lines(outcome: Outcome, width: int) -> list[Line]:
    """The table: as many columns as fit, or one block a plan on a narrow terminal."""
    if not outcome.shown() and not outcome.misses:
        return []
    if width < NARROW:
        return blocks(outcome)
    long = any(APART in c.layout for c in (*outcome.shown(), *_shown_misses(outcome)))
    for dropped, apart in [(0, False), *((k, long) for k in range(0 if long else 1, len(DROPPED) + 1))]:
        lines = table(outcome, frozenset(DROPPED[:dropped]), apart)
        if max(len(line.text) for line in lines) <= width:
            return lines
    return blocks(outcome)


def candidate_rows(outcome: Outcome, with_bar: bool = True, with_recompute: bool = True) -> list[list[str]]:
    """The heads, then a row a plan: layout with its rank, µbatch, recompute, step s, rate, MFU, memory."""
    q = outcome.question
    limit = f"memory/{q.device_word} {outcome.unit[1]} (limit {gib(q.usable, outcome.unit[0])})"
    rank_width = len(str(max(1, len(outcome.shown()))))
    head = [" " * (rank_width + 3) + "layout", "µbatch", "recompute" if with_recompute else "", "step s"]
    rows = [[*head, f"{q.item_word}/s/{q.device_word}", "MFU"]]
    for i, c in enumerate(outcome.shown()):
        rows.append(_cells(f"{'▶' if i == 0 else ' '} {i + 1:{rank_width}} ", c, with_recompute))
    for c in _shown_misses(outcome):
        rows.append(_cells("✗ " + " " * (rank_width + 1), c, with_recompute))
    return [[*row, memory] for row, memory in zip(rows, [limit, *_memory_cells(outcome, with_bar)], strict=True)]


def table(outcome: Outcome, without: frozenset[str], apart: bool = False) -> list[Line]:
    """`candidate_rows` as lines, without the columns of these names; `apart`: what a layout says behind a colon on a line of
    its own."""
    rows = candidate_rows(outcome, "bar" not in without, "recompute" not in without)
    below = [""] * len(rows)
    if apart:
        for k, row in enumerate(rows):
            row[0], colon, below[k] = row[0].partition(APART)
            row[0] += colon.rstrip()
    shown = len(outcome.shown())
    styles: list[Style] = ["quiet", *("chosen" if i == 0 else "" for i in range(shown))]
    styles += ["refused"] * (len(rows) - 1 - shown)
    keep = [k for k in range(6) if (k != 5 or "MFU" not in without) and any(row[k] for row in rows)]
    texts = columns([[row[k] for k in keep] for row in rows], {j for j, k in enumerate(keep) if k >= 3})
    width = max(map(len, texts))
    lines = []
    for text, row, tail, style in zip(texts, rows, below, styles, strict=True):
        lines.append(Line(f"{text.ljust(width)}  {row[6]}".rstrip(), style))
        lines += [Line(f"      {tail}", style)] if tail else []
    return lines


def _cells(mark: str, c: Candidate, with_recompute: bool) -> list[str]:
    # "pp4×2" says it already: chunks are run interleaved.
    schedule = "" if c.schedule == "interleaved" and "×" in c.layout else c.schedule
    how = f"{c.recompute:4}  {schedule}".rstrip() if with_recompute else schedule
    return [
        mark + c.layout,
        f"{c.micro_batch} × {c.micro_batches}",
        how,
        number(c.step_s),
        count(c.tokens_per_s_per_device),
        percent(c.mfu),
    ]


def _shown_misses(outcome: Outcome) -> Sequence[Candidate]:
    """Where nothing fits the three nearest misses; beside a plan the one that it had to be slower than, else the fastest."""
    if not outcome.candidates:
        return outcome.misses[:3]
    best = outcome.candidates[0].step_s
    faster = [m for m in outcome.misses if m.step_s < best]
    fastest = sorted(outcome.misses, key=lambda m: m.step_s if m.step_s == m.step_s else best)
    return (faster or fastest)[:1]


def _memory_cells(outcome: Outcome, with_bar: bool) -> list[str]:
    usable, (unit, _) = outcome.question.usable or float("inf"), outcome.unit
    cells = []
    shown = [*outcome.shown(), *_shown_misses(outcome)]
    wide = max(len(gib(c.memory_bytes, unit)) for c in shown)
    for i, c in enumerate(shown):
        share = c.memory_bytes / usable
        text = gib(c.memory_bytes, unit).rjust(wide) + (f" {bar(share)}" if with_bar else "")
        if c.fits:
            text += f" {100 * share:4.0f} %"
            tie = outcome.tied_with[i] if i < len(outcome.candidates) else -1
            text += f" tie with {tie + 1}" if tie >= 0 else ""
        else:
            text += f" over by {gib(c.over_bytes, unit)}"
        cells.append(text)
    return cells


def blocks(outcome: Outcome) -> list[Line]:
    """Under 60 columns: a few short lines a plan."""
    q, (unit, name) = outcome.question, outcome.unit
    lines: list[Line] = []
    for i, c in enumerate([*outcome.shown(), *_shown_misses(outcome)]):
        tie = outcome.tied_with[i] if c.fits else -1
        style: Style = "refused" if not c.fits else "chosen" if i == 0 else ""
        mark = "✗" if not c.fits else f"{'▶' if i == 0 else ' '} {i + 1}"
        verdict = f"{100 * c.memory_bytes / q.usable:.0f} %" if c.fits else f"over by {gib(c.over_bytes, unit)}"
        lines += [
            Line(f"{mark} {c.layout}" + (f", tie with {tie + 1}" if tie >= 0 else ""), style),
            Line(f"    µbatch {c.micro_batch} × {c.micro_batches}, recompute {c.recompute} {c.schedule}".rstrip()),
        ]
        if c.step_s == c.step_s:
            rate = f"{count(c.tokens_per_s_per_device)} {q.item_word}/s/{q.device_word}"
            lines.append(Line(f"    step {number(c.step_s)} s, {rate}, MFU {percent(c.mfu)}"))
        lines.append(Line(f"    memory {gib(c.memory_bytes, unit)} of {gib(q.usable, unit)} {name}, {verdict}"))
    return lines


def step_lines(outcome: Outcome, width: int) -> list[Line]:
    sim = outcome.simulation
    assert sim is not None
    decimals = decimals_for(sim.step_seconds)
    parts = [f"{time_part(k)} {v}" for k, v in rounded_parts(sim.seconds_by, decimals)]
    lines = [Line(t) for t in sums("Step", f"{number(sim.step_seconds)} s", parts, "", width)]
    if sim.staleness:
        late = (
            f"without a flush: the period of {count(outcome.question.batch)} samples, whose gradients are up to "
            f"{plural(sim.staleness, 'update')} late; not the step of a plan with a flush"
        )
        lines += [Line(t) for t in labelled("", [late], width)]
    return lines


def memory_lines(outcome: Outcome, width: int) -> list[Line]:
    """Of the fullest lane."""
    sim, q = outcome.simulation, outcome.question
    assert sim is not None
    fullest = int(sim.peak.argmax())
    lane = sim.lanes[fullest]
    unit, name = outcome.unit
    parts = {k: v / unit for k, v in sim.peak_by[fullest].items()}
    texts = [f"{k} {v}" for k, v in rounded_parts(parts, 1)]
    where = f"on every {q.device_word}"
    if len(sim.lanes) > 1:
        where = f"on pipeline rank {fullest + 1} of {len(sim.lanes)} ({_stages(lane)})"
    tail = f"{where}; {gib(q.installed, unit)} installed, {gib(q.installed - q.usable, unit)} kept free"
    return [Line(t) for t in sums("Memory", f"{gib(float(sim.peak[fullest]), unit)} {name}", texts, tail, width)]


def _stages(lane: Lane) -> str:
    return f"stage{'s' if len(lane.stages) > 1 else ''} {', '.join(map(str, lane.stages))}"


def money_words(outcome: Outcome) -> list[str]:
    """How long the tokens that were asked for take, for how much, and what other sizes of the cluster would cost."""
    words = []
    if outcome.training is not None:
        q = outcome.question
        words = training_words(outcome.training, q.cluster, q.device_word, outcome.error.share)
    if outcome.sizes:
        item = "token" if outcome.question.seq else "sample"
        words.append(size_words(outcome.sizes, outcome.question.cluster.name, item))
    return words


def sure(outcome: Outcome) -> list[str]:
    """How far predictions were off, and which of the rows are therefore the same."""
    q = outcome.question
    device = q.cluster.types[0].name if q.cluster.types else "these devices"
    seconds = outcome.simulation.step_seconds if outcome.simulation is not None else nan
    words = [outcome.error.sentence(outcome.family, outcome.kind, device, seconds)]
    if outcome.simulation is not None:
        words.append(outcome.error.memory_sentence(outcome.kind, float(outcome.simulation.peak.max())))
    if outcome.goal == "memory":
        return words
    tied = [i for i, t in enumerate(outcome.tied_with[: outcome.top]) if t == 0]
    pair = f"Two plans of one model closer than {number(100 * outcome.error.pairs_within, 2)} % are a tie"
    pair += ", as by the constants that ship" if "step" in outcome.error.others else ""
    words.append(f"{pair}: time {', '.join(str(i + 1) for i in [0, *tied])}." if tied else f"{pair}: here none is.")
    return words


def next_lines(outcome: Outcome, width: int) -> list[Line]:
    folder = outcome.folder
    if outcome.plan is None:
        return []
    commands = [
        (f"meshwright verify {folder}", "same loss and gradients as one device"),
        (f"meshwright run {folder} --steps 20", "train it on the devices of this machine")
        if is_local(outcome.question.cluster_spec or "local")
        else (
            f"meshwright export {folder} --to {outcome.trainer or 'NAME'}",
            "settings for the trainer you have",
        ),
        (f"meshwright show {folder}", "open the report"),
    ]
    return command_lines(commands, width)


def command_lines(commands: Sequence[tuple[str, str]], width: int) -> list[Line]:
    """The block "Next": (command, what it does)."""
    wide = max(len(c) for c, _ in commands)
    lines = []
    for k, (command, what) in enumerate(commands):
        text = f"{'Next' if k == 0 else '':9}{command.ljust(wide)}   {what}"
        lines.append(Line(text if len(text) <= width else f"{'Next' if k == 0 else '':9}{command}"))
    return lines


def written_lines(outcome: Outcome, width: int) -> list[Line]:
    names = [f"{name} {file_size(size)}" if size > 1000 else name for name, size in outcome.files.items()]
    return [Line(t) for t in listed(f"Wrote    {outcome.folder}/   ", names, width)]


def plan_words(plan: Plan) -> str:
    """Schedule and micro-batches of a plan: "1f1b over 16 micro-batches"."""
    m = plan.schedule.micro_batches
    return (
        f"{plan.schedule.name if len(plan.stages) > 1 else 'accumulation'} over {m} micro-batches" if m > 1 else MISSING
    )
