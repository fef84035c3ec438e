"""A trainer that is made up: data, tensor and pipeline parallelism, 1F1B, all or nothing recomputed, settings as key=value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from meshwright.errors import InputError
from meshwright.export.base import Exporter, Read
from meshwright.export.model import Model
from meshwright.export.said import WORDS, Condition, Said
from meshwright.export.setup import Setup

KEYS = ("dp", "tp", "pp", "zero", "micro_batch", "samples", "recompute")


def _splits(setup: Setup) -> str:
    p = setup.point
    each = setup.replicas * p.micro_batch
    samples = setup.layout.samples
    if samples % each == 0:
        return ""
    below = samples // each * each
    return (
        f"a batch that splits over dp {setup.replicas} × micro-batch {p.micro_batch}: {samples:,} does not; use "
        f"{below:,} or {below + each:,}"
    )


class Plain(Exporter):
    name = "plain"
    title = "Plain"
    package = ""
    versions = ("2.0", "1.0")
    source = "made up"
    order = ("pp", "dp", "tp")
    takes = "key=value lines"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return text.startswith("dp=")

    def said(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        values = {"dp": p.dp, "tp": p.tp, "pp": p.pp, "zero": p.zero, "micro_batch": p.micro_batch}
        values |= {"samples": setup.layout.samples, "recompute": p.recompute}
        for word in WORDS:
            options = {word: values[word]} if word in values else {}
            if word == "zero" and p.zero == 2:
                yield Said(word, {"zero": 3}, "close", "it gathers weights every micro-batch", {"zero": 3})
            elif word == "recompute" and p.recompute not in ("none", "full"):
                yield Said(
                    word, level="refused", why=f"Plain cannot recompute {p.recompute}", runs_as={"recompute": "none"}
                )
            elif word == "schedule" and p.schedule != "1f1b":
                yield Said(
                    word, level="refused", why=f"Plain has no schedule {p.schedule}", runs_as={"schedule": "1f1b"}
                )
            elif word == "devices" and not setup.in_order(self.order):
                yield Said(word, level="refused", why="Plain counts its devices over pp, dp and tp")
            elif word == "stages" and len({len(s.layers) for s in setup.shares}) > 1:
                yield Said(word, level="refused", why="Plain deals layers evenly")
            else:
                yield Said(word, options)

    def conditions(self) -> Sequence[Condition]:
        return (Condition("batch splits", _splits),)

    def files(self, setup: Setup) -> Mapping[str, str]:
        values = {key: value for s in self.said(setup) for key, value in s.options.items()}
        return {"plain.txt": "".join(f"{k}={v}\n" for k, v in values.items())}

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        (text,) = files.values()
        words: dict[str, object] = {}
        for number, line in enumerate(text.splitlines(), 1):
            key, _, value = line.partition("=")
            if key not in KEYS:
                raise InputError(f'plain.txt:{number}: no setting "{key}"')
            words[key] = int(value) if value.isdigit() else value
        return Read(words, lines={k: f"{k}={v}" for k, v in words.items()})
