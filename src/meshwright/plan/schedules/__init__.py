"""Pipeline schedules as rows of actions: who runs which stage on which micro-batch, in which order.

Rank r of p holds chunks c = 0 … v − 1, chunk c being stage c·p + r. Sources of the tables are named in each file.
"""

from .check import Exchange, Message, deadlock_free, exchanges, stuck
from .rows import GENERATORS, chunks_of, conditions, generate, rows
from .text import action_text, from_csv, parse_action, to_csv

__all__ = [
    "GENERATORS",
    "Exchange",
    "Message",
    "action_text",
    "chunks_of",
    "conditions",
    "deadlock_free",
    "exchanges",
    "from_csv",
    "generate",
    "parse_action",
    "rows",
    "stuck",
    "to_csv",
]
