"""The table of `validate`, from its JSON object: how far predictions were from published measurements, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._words import GIB, MISSING, plural
from .lines import Line, columns, labelled

HEADS = ("steps", "error", "median", "90 %", "in order", "tau", "regret", "constant", "its own", "3 rows")
SECTIONS = (("sources", "source"), ("devices", "device"), ("strata", "stratum"))
MEANING = (
    "error: mean of |predicted / measured − 1|; median: signed; 90 %: nine of ten rows are nearer; in order: share of the "
    "pairs of plans of one problem more than {apart:g} % apart; tau: Kendall's, in such groups; regret: step of the plan "
    "picked over the best measured, − 1; constant: error at the efficiency of the device in other sources, its own: in the "
    "source itself; 3 rows: error of the other rows when three of the source are learnt from, mean over draws."
)
KINDS = {
    "allocated": "peak allocated", "resting": "allocated between steps", "nvidia-smi": "nvidia-smi",
    "reserved": "peak reserved (one-sided)", "unknown": "not said of what",
}  # fmt: skip
INDENT = 11


def truth_lines(answer: Mapping[str, Any], width: int) -> list[Line]:
    """All that `meshwright validate` prints."""
    lines: list[Line] = []
    texts = columns(score_rows(answer), range(1, len(HEADS) + 1), gap=2 if width >= 100 else 1)
    lines += [Line(t, "quiet" if t.startswith(("source", "device", "stratum")) else "") for t in texts]
    lines += [Line(""), *(Line(t, "quiet") for t in labelled("", [_meaning(answer)], width, 0)), Line("")]
    if answer["memory"]:
        texts = columns([["memory", "steps", "error", "median", "90 %"], *memory_rows(answer["memory"])], range(1, 5))
        lines += [Line(t, "" if i else "quiet") for i, t in enumerate(texts)]
        lines.append(Line(""))
    for label, paragraphs in facts(answer).items():
        lines += [Line(t) for t in labelled(label, paragraphs, width, INDENT)]
    return lines


def score_rows(answer: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the three tables under each other, each with its heads, a blank row between them."""
    rows: list[list[str]] = []
    for section, word in SECTIONS:
        if len(answer[section]) > (section != "sources"):
            rows += [[""] * (len(HEADS) + 1)] if rows else []
            rows.append([word, *HEADS])
            rows += [_score_row(s[word] + (" *" if s.get("flagged") else ""), s) for s in answer[section]]
    return rows


def _score_row(name: str, s: Mapping[str, Any]) -> list[str]:
    return [
        name, f"{s['rows']:,}", share(s["mape"]), signed(s["median"]), share(s["p90"]), share(s["ordered"]),
        f"{s['tau']:.2f}" if s["tau"] is not None else MISSING, share(s["regret"]), share(s["baseline"]),
        share(s["own_baseline"]), share(s["after_three_rows"]),
    ]  # fmt: skip


def memory_rows(scores: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [KINDS[m["kind"]], f"{m['rows']:,}", share(m["mape"]), signed(m["median"]), share(m["p90"])] for m in scores
    ]


def share(value: float | None) -> str:
    """Per cent, as it stands in the object."""
    return f"{value:.1f} %" if value is not None else MISSING


def signed(value: float | None) -> str:
    return f"{value:+.1f} %" if value is not None else MISSING


def _meaning(answer: Mapping[str, Any]) -> str:
    starred = any(s["flagged"] for s in answer["sources"])
    note = " * small models, shared hosts or settings not stated: in no mean over sources." if starred else ""
    return MEANING.format(apart=answer["strata"][0]["apart"]) + note


def facts(answer: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label -> sentences under the tables."""
    pairs = answer["pairs"]
    found = {
        "Steps": [
            f"{answer['rows']:,} of {plural(len(answer['sources']), 'source')}, each predicted by constants fitted without it"
        ],
        "Error": [
            f"{share(answer['mape'])} mean over sources, {share(answer['median_over_sources'])} median; after three rows of "
            f"the source {share(answer['after_three_rows'])} median (constant efficiency: of the device "
            f"{share(answer['baseline'])} mean, of the source itself {share(answer['own_baseline'])})"
        ],
        "Pairs": [
            f"the ratio of two plans of one problem is off by {share(pairs['error'])} in the median of {pairs['pairs']:,} "
            f"pairs within {pairs['near']:g} %; of plans predicted to differ by more, {share(pairs['ordered'])} are in the "
            "right order"
        ],
        "Intervals": [interval_words(i, answer["share"]) for i in answer["intervals"]],
        "Memory": [interval_words(i, answer["share"]) for i in answer["memory_intervals"]],
        "Fit": fit_words(answer["out_of_memory"]),
        "Left out": ["; ".join(f"{n:,} {reason}" for reason, n in answer["left_out"].items()) or "none"],
    }
    return {label: words for label, words in found.items() if words}


def interval_words(i: Mapping[str, Any], wanted: float) -> str:
    where = f"{i['family']}, " if i["family"] else ""
    who = f"{where}{i['kind']} ({plural(i['sources'], 'source')}, {plural(i['rows'], 'step')})"
    if i["low"] is None:
        return f"{who}: none, three independent sources are needed"
    unseen = (
        f", {share(i['covered_unseen'])} with the width decided without it, too"
        if i["covered_unseen"] is not None
        else ""
    )
    return (
        f"{who}: {i['low']:.2f} to {i['high']:.2f} times the prediction for {wanted:g} %; made without a source it held "
        f"{share(i['covered'])} of that source's rows{unseen}"
    )


def fit_words(out: Mapping[str, Any]) -> list[str]:
    words = [f"of {out['ran']:,} plans that ran, {share(out['false_oom'])} were predicted not to fit"]
    if out["failed"]:
        words.append(
            f"of {plural(out['failed'], 'plan')} that ran out of memory, {out['recognised']} were recognised; of all plans "
            f"predicted to fit, {share(out['false_fit'])} did not"
        )
        words += [
            f"{'recognised' if row['recognised'] else 'missed'}: {row['id']} ({row['source']}) needs "
            f"{row['needs_bytes'] / GIB:.1f} GiB of {row['usable_bytes'] / GIB:.1f}"
            for row in out["rows"]
        ]
    return words
