"""Actions as text ("2F3" = forward of micro-batch 3 through stage 2) and tables as CSV.

The CSV is what torch.distributed.pipelining reads (format compute_only): a line per rank, a cell per action, an empty
cell idle, a joint pair "(0F7;7B3)OVERLAP_F_B".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import InputError
from ..model import Action, ActionKind, Row

_COMPUTE = re.compile(r"(\d+)([FBIW])(\d+)(?:-(\d+))?")
_WHOLE = re.compile(r"(\d+)(UPDATE|REDUCE|GATHER|FREE)")
_PAIR = re.compile(r"\(([^;]+);([^)]+)\)OVERLAP_F_B")
_KINDS: dict[str, ActionKind] = {
    "F": "F", "B": "B", "I": "I", "W": "W", "UPDATE": "UPDATE", "REDUCE": "REDUCE", "GATHER": "GATHER", "FREE": "FREE",
}  # fmt: skip


def action_text(action: Action | tuple[Action, Action]) -> str:
    """ "2F3"; "2F6-7" for a span; "2UPDATE"; a pair "(0F7;7B3)OVERLAP_F_B".

    Raises:
        InputError: an action on an op or a tensor; those have no text form.
    """
    if isinstance(action, tuple):
        return f"({action_text(action[0])};{action_text(action[1])})OVERLAP_F_B"
    if action.kind not in _KINDS:
        raise InputError(f'action {action.kind} of "{action.on}" has no text form: only actions on whole stages have')
    if len(action.kind) > 1:
        return f"{action.on}{action.kind}"
    last = f"-{action.micro_batch + action.span - 1}" if action.span > 1 else ""
    return f"{action.on}{action.kind}{action.micro_batch}{last}"


def parse_action(text: str) -> Action | tuple[Action, Action]:
    """The inverse of `action_text`.

    Raises:
        InputError: not an action.
    """
    pair = _PAIR.fullmatch(text)
    if pair:
        return _single(pair[1]), _single(pair[2])
    return _single(text)


def _single(text: str) -> Action:
    found = _COMPUTE.fullmatch(text)
    if found:
        first = int(found[3])
        last = int(found[4]) if found[4] else first
        if last < first:
            raise InputError(f'action "{text}": the last micro-batch is before the first')
        return Action(_KINDS[found[2]], int(found[1]), first, last - first + 1)
    found = _WHOLE.fullmatch(text)
    if found:
        return Action(_KINDS[found[2]], int(found[1]))
    raise InputError(f'"{text}" is no action: write stage, kind, micro-batch, such as 2F3')


def to_csv(rows: Iterable[Row]) -> str:
    """One line per row, in the order given."""
    return "".join(",".join(action_text(action) for action in row.actions) + "\n" for row in rows)


def from_csv(text: str) -> tuple[Row, ...]:
    """Line i becomes the row of rank i.

    Raises:
        InputError: a cell that is no action, with its line.
    """
    found = []
    for rank, line in enumerate(text.splitlines()):
        try:
            actions = tuple(parse_action(cell.strip()) for cell in line.split(",") if cell.strip())
        except InputError as error:
            raise InputError(error.message, where=f"line {rank + 1}") from error
        found.append(Row((rank,), actions))
    return tuple(found)
