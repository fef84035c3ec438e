"""Every named schedule: its rows, its arguments, how many stages a rank holds and where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from ..model import Action
from . import dualpipe
from .asynchronous import double_buffered, pipedream
from .breadth_first import breadth_first
from .chimera import chimera, worker
from .controllable_memory import building_blocks
from .early_backward import early_backward
from .gpipe import gpipe
from .hanayo import hanayo, snake
from .interleaved import interleaved
from .one_f_one_b import one_f_one_b
from .zero_bubble import zb_h1
from .zero_bubble_auto import Times, zb_auto
from .zero_bubble_v import zb_v

Value: TypeAlias = int | float | str
Args: TypeAlias = Mapping[str, Value]
Entry: TypeAlias = Action | tuple[Action, Action]
Table: TypeAlias = tuple[tuple[Entry, ...], ...]
Make: TypeAlias = Callable[[int, int, int, Args], Table]
"""(p, m, v, all arguments) -> per rank its actions."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One named schedule. `chunks`: 0 = any number v, else exactly that many stages a rank (Chimera: 2 f)."""

    make: Make
    chunks: int = 1
    args: Args = field(default_factory=dict)
    """Name -> default; a given value has the default's type."""
    split: bool = False
    """The backward is two actions, I and W."""
    lay: Literal["loop", "snake", "pipes"] = "loop"
    """loop: stage s on rank s mod p; snake: there and back; pipes: several copies of p stages, see `chimera`."""
    asks: Callable[[int, int, int, Args], str] = lambda p, m, v, args: ""
    """What else it needs, in words that follow "schedule … needs"; "" if that is given."""


def _each(make: Callable[[int, int, int, int, Args], tuple[Entry, ...]]) -> Make:
    """Rows of a schedule that is written down rank by rank."""
    return lambda p, m, v, args: tuple(make(p, m, r, v, args) for r in range(p))


def replicas_of(args: Args, p: int) -> tuple[int, ...]:
    """PipeDream's replicas of each stage: "3,1"; one each if nothing is said."""
    text = str(args.get("replicas", ""))
    return tuple(int(x) for x in text.split(",")) if text else (1,) * p


def pipes_of(args: Args) -> int:
    return 2 * int(args.get("f", 1))


def _multiple(p: int, m: int, v: int, args: Args) -> str:
    if v == 1 or m % p == 0:
        return ""
    return f"micro-batches in a multiple of its {p} ranks: {m} are not, {-(-m // p) * p} would be"


def _asks_dapple(p: int, m: int, v: int, args: Args) -> str:
    if args["policy"] not in ("A", "B"):
        return f'policy A or B: "{args["policy"]}" is neither'
    return f"D = 0 (no limit) or more: got {args['D']}" if int(args["D"]) < 0 else ""


def _asks_auto(p: int, m: int, v: int, args: Args) -> str:
    if int(args["limit"]) < 0:
        return f"limit = 0 (twice the ranks) or more micro-batches: got {args['limit']}"
    bad = [name for name in ("F", "I", "W") if not 0 < float(args[name]) < float("inf")]
    if bad:
        return f"F, I and W above 0: {bad[0]} is {args[bad[0]]}"
    return "" if 0 <= float(args["send"]) < float("inf") else f"send of 0 or more: got {args['send']}"


def _asks_replicas(p: int, m: int, v: int, args: Args) -> str:
    try:
        counts = replicas_of(args, p)
    except ValueError:
        counts = ()
    if len(counts) == p and all(n > 0 for n in counts):
        return ""
    return f'replicas of its {p} stages, such as "{",".join(["1"] * p)}": got "{args["replicas"]}"'


def _asks_batches(p: int, m: int, v: int, args: Args) -> str:
    if m < p:
        return f"at least {p} micro-batches an update on {p} ranks, else two weight versions do not suffice: got {m}"
    return "" if int(args["batches"]) > 0 else f"at least 1 batch: got {args['batches']}"


def _asks_dualpipe(p: int, m: int, v: int, args: Args) -> str:
    if p % 2:
        return f"an even number of ranks: {p} is odd"
    return "" if m % 2 == 0 and m >= 2 * p else f"an even number of at least {2 * p} micro-batches: got {m}"


def _asks_dualpipev(p: int, m: int, v: int, args: Args) -> str:
    return "" if m >= 2 * p else f"at least {2 * p} micro-batches on {p} ranks: got {m}"


def _asks_hanayo(p: int, m: int, v: int, args: Args) -> str:
    return f"an even number of chunks, two a wave: v = {v} is odd" if v % 2 else ""


def _asks_chimera(p: int, m: int, v: int, args: Args) -> str:
    f, form = int(args["f"]), args["form"]
    if p % 2:
        return f"an even number of ranks: {p} is odd"
    if f < 1 or (p // 2) % f:
        return f"f pairs of pipes that divide {p // 2}, half its ranks: f = {f} does not"
    if form not in ("direct", "doubling", "halving"):
        return f'form direct, doubling or halving: "{form}" is none of them'
    if m <= p:
        return "" if form != "halving" else f"more than {p} micro-batches for form halving: got {m}"
    if f > 1:
        return f"at most {p} micro-batches with f = {f}: got {m}"
    unit = p if form == "direct" else 2 * p
    return f"micro-batches in a multiple of {unit} for form {form}: {m} are not" if m % unit else ""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "gpipe": Kind(_each(lambda p, m, r, v, args: gpipe(p, m, r))),
        "1f1b": Kind(_each(lambda p, m, r, v, args: one_f_one_b(p, m, r))),
        "interleaved": Kind(
            _each(lambda p, m, r, v, args: interleaved(p, m, r, v, short=bool(args["short"]))),
            args={"short": 0},
            chunks=0,
            asks=_multiple,
        ),
        "bfs": Kind(_each(lambda p, m, r, v, args: breadth_first(p, m, r, v)), chunks=0),
        "zb-h1": Kind(_each(lambda p, m, r, v, args: zb_h1(p, m, r)), split=True),
        "zb-h2": Kind(lambda p, m, v, args: zb_auto(p, m, 2 * p), split=True),
        "zb-auto": Kind(
            lambda p, m, v, args: zb_auto(
                p, m, int(args["limit"]) or 2 * p, Times(*(float(args[name]) for name in ("F", "I", "W", "send")))
            ),
            args={"F": 1.0, "I": 1.0, "W": 1.0, "send": 0.0, "limit": 0},
            split=True,
            asks=_asks_auto,
        ),
        "zb-v": Kind(
            _each(lambda p, m, r, v, args: zb_v(p, m, r)), chunks=2, split=True, lay="snake"
        ),
        "v-half": Kind(
            lambda p, m, v, args: building_blocks(p, m, half=True), chunks=2, split=True, lay="snake"
        ),
        "v-min": Kind(
            lambda p, m, v, args: building_blocks(p, m, half=False), chunks=2, split=True, lay="snake"
        ),
        "hanayo": Kind(lambda p, m, v, args: hanayo(p, m, v), chunks=0, lay="snake", asks=_asks_hanayo),
        "dapple": Kind(
            _each(lambda p, m, r, v, args: early_backward(p, m, r, str(args["policy"]), int(args["D"]))),
            args={"policy": "A", "D": 0},
            asks=_asks_dapple,
        ),
        "dualpipe": Kind(
            _each(lambda p, m, r, v, args: dualpipe.dualpipe(p, m, r)),
            chunks=2, split=True, lay="pipes", asks=_asks_dualpipe,
        ),
        "dualpipev": Kind(
            _each(lambda p, m, r, v, args: dualpipe.dualpipev(p, m, r)),
            chunks=2, split=True, lay="snake", asks=_asks_dualpipev,
        ),
        "chimera": Kind(
            lambda p, m, v, args: chimera(p, m, int(args["f"]), str(args["form"])),
            chunks=2, args={"f": 1, "form": "direct"}, lay="pipes", asks=_asks_chimera,
        ),
        "pipedream": Kind(
            lambda p, m, v, args: pipedream(m, replicas_of(args, p)), args={"replicas": ""}, asks=_asks_replicas
        ),
        "2bw": Kind(
            _each(lambda p, m, r, v, args: double_buffered(p, m, r, int(args["batches"]))),
            args={"batches": 1},
            asks=_asks_batches,
        ),
    }
)  # fmt: skip


def rank_of(name: str, p: int, stage: int, args: Args) -> int:
    """The rank that holds a stage."""
    lay = KINDS[name].lay
    if lay == "snake":
        return snake(p, stage)
    if lay == "pipes":
        return worker(p, int(args.get("f", 1)), *divmod(stage, p))
    return stage % p
