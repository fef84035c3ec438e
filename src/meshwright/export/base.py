"""The shape of an exporter: what a target says of each word, its own conditions, the files, and how they are read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import InputError
from .model import Model
from .said import Condition, Said
from .setup import Setup


@dataclass(frozen=True, slots=True)
class Read:
    """What a trainer's files say, in words of `Point` and `Recognised`; a word that they leave open is missing."""

    words: Mapping[str, Any]
    """dp (all replicas of samples, experts' among them), replicate, zero, reshard, tp, sequence, cp, context, ep, whole_experts, pp,
    chunks, schedule, micro_batch, samples, recompute: as in `Point`; sums_each: as in `Setup`; counts: layers of each stage, or
    missing for as even as the target deals them; seq: positions of a sample; order: the target's device axes, outer first;
    rows: a custom table; args: of the schedule, besides its chunks."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Options that change speed or memory and are not understood -> what is assumed instead."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """Word -> the option that says it, as the target spells it: "--tensor-model-parallel-size 8"."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Options as the files have them, named as `Exporter.said` names them -> value."""
    version: str = ""
    """Of the target, where options tell that only it has; "" where they do not."""
    model: str = ""
    """As the files call the model; "" where they do not. Said by lines["model"]."""
    precision: str = ""
    """Type in which products are computed: "bfloat16"; "" where the files leave it open. Said by lines["precision"]."""


class Exporter(ABC):
    """One target. Instances are made for one version of it."""

    name: ClassVar[str]
    """As in `--to NAME`."""
    title: ClassVar[str]
    """As in sentences: "torchtitan"."""
    package: ClassVar[str]
    """Its distribution's name, to tell which version is installed; "" for none."""
    versions: ClassVar[tuple[str, ...]]
    """Versions that this file was read from, the default first."""
    source: ClassVar[str]
    """Where the facts are from."""
    order: ClassVar[tuple[str, ...]]
    """Axes of `Point.mesh` and "pp", outer first, along which it counts ranks."""
    takes: ClassVar[str]
    """What `read` reads: "a Python recipe"."""
    left_out: ClassVar[str] = "data set, learning rate, checkpoint folder"
    """What is not in a plan, for the user to say."""
    least_again: ClassVar[str] = "none"
    """What plans recompute with which its table of levels is computed: another word where it cannot recompute nothing."""

    def __init__(self, version: str = "") -> None:
        """Raises InputError: no such version."""
        self.version = version or self.versions[0]
        if self.version not in self.versions:
            raise InputError(
                f"{self.name}@{version}: {self.title} is known here as {', '.join(self.versions)}; use {self.nearest(version)}",
                where="--to",
            )

    def nearest(self, version: str) -> str:
        """The known version closest to another, by its numbers."""

        def numbers(text: str) -> tuple[int, ...]:
            return tuple(int(x) for x in text.split(".") if x.isdecimal())

        wanted = numbers(version)
        known = [v for v in self.versions if numbers(v)]
        older = [v for v in known if numbers(v) <= wanted]
        return f"{self.name}@{max(older, key=numbers) if older else min(known, key=numbers)}"

    @property
    def called(self) -> str:
        """ "torchtitan 0.3.0"."""
        return f"{self.title} {self.version}"

    @classmethod
    @abstractmethod
    def recognises(cls, text: str) -> bool:
        """Whether a file with this text is one that `read` takes, told by what no other target's file holds."""

    @abstractmethod
    def said(self, setup: Setup) -> Iterator[Said]:
        """An answer to every word of `WORDS`; several of one word: the worst level counts, options add up."""

    @abstractmethod
    def conditions(self) -> Sequence[Condition]:
        """What the target demands, each a sentence when broken."""

    @abstractmethod
    def files(self, setup: Setup) -> Mapping[str, str]:
        """Name -> text, for a setup that it can say (as it runs it)."""

    @abstractmethod
    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        """What such files say, the target's own defaults filled in.

        Args:
            files: as `files` writes them, or as a user has them (one file, under any name).
            world: devices in all, for degrees that the target works out.

        Raises:
            InputError: not such a file, an unknown option with a nearest name, a value out of range: file, line, field.
        """
