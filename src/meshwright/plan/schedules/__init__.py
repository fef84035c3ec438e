"""Pipeline schedules as rows of actions: who runs which stage on which micro-batch, in which order.

Rank r of p holds v stages, which ones says `home`: c·p + r for c = 0 … v − 1 unless the schedule runs there and back or in
several pipes. Sources of the tables are named in each file.
"""

from .check import Exchange, Message, deadlock_free, exchanges, stuck
from .clock import Timed, held, timed
from .rows import GENERATORS, chunks_of, conditions, generate, home, links, pipes, plain, rows, rows_of, workers
from .text import action_text, from_csv, parse_action, to_csv

__all__ = [
    "GENERATORS",
    "Exchange",
    "Message",
    "Timed",
    "action_text",
    "chunks_of",
    "conditions",
    "deadlock_free",
    "exchanges",
    "from_csv",
    "generate",
    "held",
    "home",
    "links",
    "parse_action",
    "pipes",
    "plain",
    "rows",
    "rows_of",
    "stuck",
    "timed",
    "to_csv",
    "workers",
]
