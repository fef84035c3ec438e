"""Part of `make docs`: how far predictions were from measured steps, and which constants they hang on, from the data that ships.

`meshwright validate --json` is run once (a minute of CPU time); README has its table by device, docs/truth.md all that the
command prints, docs/how-it-decides.md the intervals and constants. A figure in a sentence stands before
`<!-- figure: PATH -->`, as PATH leads through the object to it: `sources/amp/mape`, `predictions/amp-0001/error`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from meshwright.calibration.stack import priors
from meshwright.cost.constants import chip, families
from meshwright.report.error_model import KINDS, error_model
from meshwright.report.truth import KINDS as MEMORY_KINDS
from meshwright.report.truth import share, signed, truth_lines
from meshwright.validation.parameters import PARAMETERS, targets

from .pages import DOCS, ROOT, table, with_table, write

FIGURE = re.compile(r"(?P<sign>[-+]?)\d[\d,]*(?:\.(?P<decimals>\d+))?(?P<rest>(?: %)?<!-- figure: (?P<path>.+?) -->)")
PAGES = (DOCS / "truth.md", DOCS / "calibrate.md")
"""Those with figures in sentences."""
NAMES = {
    "a100": "A100", "h100": "H100, H200", "h100-500w": "H100 of 500 W", "v100": "V100", "p100": "P100", "t4": "T4", "l4": "L4", "a10g": "A10G",
    "blackwell": "B200, GB200", "blackwell-ultra": "B300, GB300", "cdna3": "MI300X", "cdna3-1000w": "MI325X", "cdna4": "MI350, MI355X",
    "tpu": "TPU", "cpu": "CPU",
}  # fmt: skip
SHARES = (
    ("products, 16 bits", "gemm_16"), ("8 bits", "gemm_8"), ("attention", "attention_modern"), ("memory", "memory"),
    ("first level", "inner"), ("levels above", "outer"),
)  # fmt: skip


def by_device(answer: Mapping[str, Any]) -> list[str]:
    """Of the README: one row a device family, and all sources together."""
    rows = [
        [
            NAMES[d["device"]],
            f"{d['rows']:,}",
            str(len(d["sources"])),
            share(d["mape"]),
            signed(d["median"]),
            share(d["ordered"]),
            share(d["baseline"]),
        ]
        for d in sorted(answer["devices"], key=lambda d: -d["rows"])
    ]
    total = [
        "**mean over sources**", f"{answer['rows']:,}", str(len(answer["sources"])), f"**{share(answer['mape'])}**", "",
        "–", share(answer["baseline"]),
    ]  # fmt: skip
    heads = ("device", "steps", "sources", "error", "median", "pairs in order", "constant efficiency")
    return table(heads, [*rows, total], range(1, 7))


def by_memory(answer: Mapping[str, Any]) -> list[str]:
    rows = [
        [MEMORY_KINDS[m["kind"]], f"{m['rows']:,}", share(m["mape"]), signed(m["median"]), share(m["p90"])]
        for m in answer["memory"]
    ]
    return table(("memory", "steps", "error", "median", "90 %"), rows, range(1, 5))


def printed(answer: Mapping[str, Any]) -> list[str]:
    """What `meshwright validate` prints on 100 columns."""
    return ["```", "$ meshwright validate", *(line.text.rstrip() for line in truth_lines(answer, 100)), "```"]


def intervals() -> list[str]:
    """Of error_model.toml, which every answer reads."""
    model = error_model()
    rows = []
    for (family, kind), found in model.ranges.items():
        width = f"{found.low:.2f} to {found.high:.2f}" if found.low is not None and found.high is not None else "none"
        rows.append([NAMES[family], KINDS[kind], found.steps, found.sources, width])
    for kind, found in model.memory.items():
        width = f"{found.low:.2f} to {found.high:.2f}" if found.low is not None and found.high is not None else "none"
        rows.append(["memory, any device", KINDS[kind], found.steps, found.sources, width])
    return table(("device", "kind", "steps", "sources", f"measured over predicted, {model.share:g} %"), rows, (2, 3, 4))


def constants() -> list[str]:
    """Shares of nominal rates by family; *slanted*: no measured step has changed the guess."""
    fitted = {(name, field) for p in PARAMETERS for kind, name, field in targets(p) if kind == "family"}
    measured = Counter[str]()
    for (family, _), found in error_model().ranges.items():
        measured[chip(family)] += found.steps
    rows = []
    for name, own in families().items():
        cells = [f"{100 * float(getattr(own, field)):.0f} %" for _, field in SHARES]
        marked = [c if (name, field) in fitted else f"*{c}*" for c, (_, field) in zip(cells, SHARES, strict=True)]
        rows.append([NAMES[name], f"{measured[chip(name)]:,}", *marked])
    return table(("device", "measured steps", *(head for head, _ in SHARES)), rows, range(1, 8))


def spreads() -> list[str]:
    """Of priors.toml: how far published stacks differ."""
    known = priors()["all"]
    rows = [[name, f"{100 * spread:.0f} %"] for name, spread in known.spreads.items()]
    rows.append(["one step, in a stack that is known", f"{100 * known.noise:.0f} %"])
    return table(("factor on the seconds of", "standard deviation of its logarithm"), rows, (1,))


def own_rows(answer: Mapping[str, Any]) -> list[str]:
    """What three rows leave, by how many of them are of the stack of the row that they predict."""
    rows = [
        [o["own"], o["sources"], share(o["share"]), share(o["before"]), share(o["after"])] for o in answer["three_rows"]
    ]
    return table(("of the three", "sources", "predictions", "error before", "after"), rows, range(5))


def restated(text: str, answer: Mapping[str, Any]) -> str:
    """A page with the figures of its sentences as they are in the object, with the sign and the digits that they have there."""

    def figure(old: re.Match[str]) -> str:
        value = figure_at(answer, old["path"])
        return f"{value:{'+' if old['sign'] else ''},.{len(old['decimals'] or '')}f}{old['rest']}"

    return FIGURE.sub(figure, text)


def figure_at(answer: Mapping[str, Any], path: str) -> float:
    """The figure to which names lead, those of a list's items among them: their first field."""
    found: Any = answer
    for name in path.split("/"):
        items = found if isinstance(found, Mapping) else {str(next(iter(item.values()))): item for item in found}
        if name not in items:
            raise SystemExit(f"{path}: there is no {name}")
        found = items[name]
    return float(found)


def validated() -> dict[str, Any]:
    """The JSON object of `meshwright validate`."""
    done = subprocess.run([sys.executable, "-m", "meshwright", "validate", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"meshwright validate --json: exit code {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def decides(text: str) -> str:
    """docs/how-it-decides.md with its tables; needs no validation."""
    return with_table(with_table(text, "intervals", intervals()), "constants", constants())


def main() -> None:
    page = DOCS / "how-it-decides.md"
    write(page, decides(page.read_text(encoding="utf-8")))
    answer = validated()
    for path, name, lines in (
        (ROOT / "README.md", "errors", by_device(answer)),
        (ROOT / "README.md", "memory", by_memory(answer)),
        (DOCS / "truth.md", "validate", printed(answer)),
        (DOCS / "truth.md", "own rows", own_rows(answer)),
        (DOCS / "truth.md", "spreads", spreads()),
    ):
        write(path, with_table(path.read_text(encoding="utf-8"), name, lines))
    for path in PAGES:
        write(path, restated(path.read_text(encoding="utf-8"), answer))
