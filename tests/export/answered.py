"""What every answer of every target must be, whatever the plan: a level with its sentences, and files that read back as what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from export.drawn import again
from meshwright.export.base import Exporter
from meshwright.export.outcome import Exported, answer, priced
from meshwright.export.setup import Setup


def answers(exporter: Exporter, setup: Setup) -> Iterator[Exported]:
    """As the plan is, and the nearest where the target cannot say it."""
    found = answer(exporter, setup)
    yield found
    if found.level == "refused":
        yield answer(exporter, setup, lossy=True)


def check(found: Exported, price: Callable[[Setup], float]) -> None:
    """Sentences for what is not exact and none for what is; files, where there are any, that say what the target runs, at its price."""
    assert (found.level == "exact") == (not found.sentences)
    assert all(s and not s.endswith(".") for s in found.sentences)
    if not found.files:
        assert found.level == "refused"
        return
    read = again(found.exporter, found)
    assert (read.plan(), read.sums_each) == (found.runs.plan(), found.runs.sums_each), (
        found.setup.point.words(), read.point.words(), found.sentences,
    )  # fmt: skip
    assert price(read) == price(found.runs)


class Prices:
    """Seconds of a step of setups of one problem, each simulated once."""

    def __init__(self) -> None:
        self._known: dict[object, float] = {}

    def __call__(self, setup: Setup) -> float:
        layout = setup.layout
        key = (layout.point, layout.parts, repr(layout.schedule), layout.devices, layout.samples, setup.sums_each)
        if key not in self._known:
            self._known[key] = priced(setup).step_seconds
        return self._known[key]
