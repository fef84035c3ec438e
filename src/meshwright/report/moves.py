"""What moves when a plan replaces another, in words and for scripts.

Moves    4 of 8 devices stay, 4 are gone, 0 are new. Weights and optimizer state, on all devices together: …
         devices  kept MiB  received   read   sent
         0           178.0     178.0    0.0    0.0
"""

from __future__ import annotations

from collections.abc import Sequence

from .._words import count, memory_unit, number, plural, size
from ..plan.moved import DeviceMoves, Moves, Piece, RankReads
from ..plan.moves import READ
from .answers import MovesAnswer, ResumeAnswer
from .lines import Line, columns, labelled

ROWS = 8
"""Rows of devices, and of ranks, that a screen shows."""
NO_INTERVAL = (
    "No interval for sending: nobody has measured what it takes to move the state of one plan to another, so take it for an order "
    "of magnitude."
)
FILES = 3
"""Files of a checkpoint that a row names."""


def moves_lines(moves: Moves, before: int, width: int) -> list[Line]:
    """The block "Moves". `before`: devices of the old cluster."""
    kept, sent, read = (moves.total(w) for w in ("kept", "received", "read"))
    now = len(moves.devices)
    words = f"{count(len(moves.stay))} of {plural(before, 'device')} stay, {count(before - len(moves.stay))} are gone, "
    words += f"{count(now - len(moves.stay))} are new. "
    words += (
        f"Weights and optimizer state, on all devices together: {size(kept)} stay where they are, {size(sent)} are "
    )
    words += f"sent, {size(read)} must be read."
    lines = [Line(t) for t in labelled("Moves", [words], width)]
    unit, name = memory_unit(max(d.kept + d.received + d.read for d in moves.devices))
    rows = [["devices", f"kept {name}", "received", "read", "sent"]]
    groups = _grouped(moves.devices)
    for numbers, d in groups[:ROWS]:
        rows.append([numbers, *(f"{x / unit:,.1f}" for x in (d.kept, d.received, d.read, d.sent))])
    texts = columns(rows, {1, 2, 3, 4})
    lines += [Line(f"{'':9}{text}", "quiet" if k == 0 else "") for k, text in enumerate(texts)]
    if len(groups) > ROWS:
        lines.append(Line(f"{'':9}and {plural(len(groups) - ROWS, 'row')} more (--json has all)", "quiet"))
    more = []
    if sent:
        more.append(
            f"Sending takes {number(moves.seconds)} s by the link prices of the cost model: the busiest device, one transfer after "
            "the other."
        )
        more.append(NO_INTERVAL)
    if moves.biggest:
        more.append(f"Biggest pieces: {'; '.join(map(_piece, moves.biggest))}.")
    if read:
        more.append(f"{size(read)} are on no device that stays: they come from a checkpoint.")
    return lines + [Line(t) for t in labelled("", more, width)]


def resume_lines(checkpoint: str, ranks: Sequence[RankReads], width: int) -> list[Line]:
    """The block "Resume": what each rank reads when all of them start from a checkpoint."""
    total, files = sum(r.nbytes for r in ranks), {f for r in ranks for f in r.files}
    words = f"Started again from {checkpoint}, ranks read {size(total)} of {plural(len(files), 'file')}:"
    lines = [Line(t) for t in labelled("Resume", [words], width)]
    for r in ranks[:ROWS]:
        named = ", ".join(r.files[:FILES]) + (f" and {len(r.files) - FILES} more" if len(r.files) > FILES else "")
        text = f"rank {r.rank} reads {size(r.nbytes)} of {plural(r.tensors, 'tensor')} in {named}"
        lines += [Line(t) for t in labelled("", [text], width)]
    if len(ranks) > ROWS:
        lines.append(Line(f"{'':9}and {plural(len(ranks) - ROWS, 'rank')} more (--json has all)", "quiet"))
    return lines


def moves_object(moves: Moves) -> MovesAnswer:
    """The same for scripts."""
    return {
        "stay": {str(old): new for old, new in moves.stay.items()},
        "kept_bytes": moves.total("kept"),
        "sent_bytes": moves.total("received"),
        "read_bytes": moves.total("read"),
        "send_s": moves.seconds,
        "send_low_s": None,
        "send_high_s": None,
        "send_note": NO_INTERVAL if moves.total("received") else "",
        "devices": [
            {
                "device": d.device,
                "kept_bytes": d.kept,
                "received_bytes": d.received,
                "read_bytes": d.read,
                "sent_bytes": d.sent,
            }
            for d in moves.devices
        ],
        "biggest": [
            {
                "tensor": p.tensor,
                "alike": p.alike,
                "from_device": None if p.src == READ else p.src,
                "to_device": p.dst,
                "bytes": p.nbytes,
            }
            for p in moves.biggest
        ],
    }


def resume_object(checkpoint: str, ranks: Sequence[RankReads]) -> ResumeAnswer:
    """The same for scripts."""
    return {
        "checkpoint": checkpoint,
        "ranks": [{"rank": r.rank, "bytes": r.nbytes, "tensors": r.tensors, "files": list(r.files)} for r in ranks],
    }


def _piece(p: Piece) -> str:
    source = "from the checkpoint" if p.src == READ else f"from device {p.src}"
    like = f" (and {p.alike} like it)" if p.alike else ""
    return f"{p.tensor}{like} {size(p.nbytes)} {source} to {p.dst}"


def _grouped(devices: Sequence[DeviceMoves]) -> list[tuple[str, DeviceMoves]]:
    """Neighbours with the same figures share a row: ("0 to 7", one of them)."""
    found: list[list[DeviceMoves]] = []
    for d in devices:
        last = found[-1][0] if found else None
        if last is not None and _figures(last) == _figures(d):
            found[-1].append(d)
        else:
            found.append([d])
    return [
        (str(g[0].device) if len(g) == 1 else f"{g[0].device} to {g[-1].device}", g[0])
        for g in found
    ]  # fmt: skip


def _figures(d: DeviceMoves) -> tuple[float, ...]:
    return d.kept, d.received, d.read, d.sent
