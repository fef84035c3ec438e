"""Part of `make docs`: draws every pipeline schedule into docs/schedules/*.svg and writes the table of docs/schedules.md.

Pictures and figures come from the generators of `meshwright.plan.schedules`; nothing here is typed in but which to draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshwright.plan.model import Schedule
from meshwright.plan.schedules import chunks_of, generate, held, links, pipes, timed
from meshwright.report.schedule_picture import SCALE, schedule_svg

from .pages import DOCS, with_table, write

FOLDER, PAGE = DOCS / "schedules", DOCS / "schedules.md"
Args = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Picture:
    file: str
    title: str
    name: str
    args: Args = field(default_factory=dict)
    ranks: int = 4
    micro_batches: int = 8
    stretch: Mapping[int, float] = field(default_factory=dict)
    """Stage -> how many times as long its actions are."""
    scale: float = SCALE
    """Pixels of one forward of a rank."""


PICTURES = (
    Picture("gpipe", "gpipe", "gpipe"),
    Picture("1f1b", "1f1b", "1f1b"),
    Picture("dapple", "dapple, policy B", "dapple", {"policy": "B"}),
    Picture("interleaved", "interleaved, v = 2", "interleaved", {"v": 2}),
    Picture("bfs", "bfs, v = 2", "bfs", {"v": 2}),
    Picture("zb-h1", "zb-h1", "zb-h1"),
    Picture("zb-h2", "zb-h2", "zb-h2"),
    Picture("zb-auto", "zb-auto, limit 6", "zb-auto", {"limit": 6}),
    Picture("zb-v", "zb-v", "zb-v"),
    Picture("v-half", "v-half", "v-half"),
    Picture("v-min", "v-min", "v-min"),
    Picture("hanayo", "hanayo, one wave", "hanayo", {"v": 2}, micro_batches=4, scale=44.0),
    Picture("hanayo-2", "hanayo, two waves", "hanayo", {"v": 4}, micro_batches=4, scale=44.0),
    Picture("dualpipe", "dualpipe", "dualpipe"),
    Picture("dualpipev", "dualpipev", "dualpipev"),
    Picture("chimera", "chimera, 4 micro-batches", "chimera", micro_batches=4, scale=40.0),
    Picture("chimera-direct", "chimera, direct", "chimera"),
    Picture("chimera-doubling", "chimera, doubling", "chimera", {"form": "doubling"}),
    Picture("chimera-halving", "chimera, halving", "chimera", {"form": "halving"}),
    Picture("pipedream", "pipedream", "pipedream"),
    Picture("pipedream-replicas", "pipedream, replicas 3,1", "pipedream", {"replicas": "3,1"}, 2, 9, {0: 3.0}, 20.0),
    Picture("2bw", "2bw, 2 batches", "2bw", {"batches": 2}, micro_batches=4),
)


def drawing(p: Picture) -> str:
    """The SVG of one picture."""
    rest = {k: v for k, v in p.args.items() if k != "v"}
    chunks = chunks_of(Schedule(p.name, p.micro_batches, p.args))
    rows = generate(p.name, p.ranks, p.micro_batches, chunks, **rest)
    return schedule_svg(
        rows,
        links=links(p.name, p.ranks, chunks, **rest),
        chunks=chunks,
        copies=pipes(Schedule(p.name, p.micro_batches, p.args)),
        scale=p.scale,
        stretch=p.stretch,
        title=f"{p.title}: {len(rows)} ranks, {p.micro_batches} micro-batches",
    )


def table() -> list[str]:
    """Idle share, makespan and memory of every picture."""
    lines = [
        "| schedule | stages a rank | time | idle | longest rank | held by rank | copies of the weights |",
        "| --- | --: | --: | --: | --: | --- | --: |",
    ]
    for p in PICTURES:
        rest = {k: v for k, v in p.args.items() if k != "v"}
        schedule = Schedule(p.name, p.micro_batches, p.args)
        chunks, copies = chunks_of(schedule), pipes(schedule)
        rows = generate(p.name, p.ranks, p.micro_batches, chunks, **rest)
        bars = timed(rows, links(p.name, p.ranks, chunks, **rest), chunks=chunks // copies, stretch=p.stretch)
        end = max(b.end for row in bars for b in row)
        busy = sum(b.end - b.start for row in bars for b in row)
        span = max(row[-1].end - row[0].start for row in bars)
        kept = ", ".join(f"{held(row, chunks // copies):g}" for row in rows)
        lines.append(
            f"| [{p.title}](#{anchor(p)}) | {chunks} | {end:g} | {100 * (1 - busy / (len(rows) * end)):.1f} % | {span:g} | {kept} | "
            f"{weights(p)} |"
        )
    return lines


def weights(p: Picture) -> str:
    """Copies of a stage's weights that a rank keeps."""
    if p.name == "pipedream":
        counts = [int(x) for x in str(p.args.get("replicas", ",".join(["1"] * p.ranks))).split(",")]
        ahead = [(sum(counts) - 1 - sum(counts[:s])) // counts[s] + 1 for s in range(len(counts))]
        return f"{max(ahead)} … {min(ahead)}"
    return "2" if p.name == "2bw" else str(pipes(Schedule(p.name, p.micro_batches, p.args)))


def anchor(p: Picture) -> str:
    """Of the page's heading over a picture: the schedule's own name."""
    return p.name


def main() -> None:
    """Writes what has changed."""
    for p in PICTURES:
        write(FOLDER / f"{p.file}.svg", drawing(p))
    write(PAGE, with_table(PAGE.read_text(encoding="utf-8"), "schedules", table()))
