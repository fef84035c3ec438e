"""One row of a table of measurements, by column: numbers, words, and the settings that `other` spells out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


class Refused(Exception):
    """Why a row is left out; its text is what is counted."""


@dataclass(frozen=True)
class Columns:
    """A row of the CSV file; a column that the file lacks is empty."""

    raw: Mapping[str, str]

    def text(self, field: str) -> str:
        return self.raw.get(field) or ""

    def number(self, field: str, default: float | None = None) -> float:
        """The number in a column, `default` where there is none.

        Raises:
            Refused: no number there and no default.
        """
        try:
            return float(self.text(field))
        except ValueError:
            if default is None:
                raise Refused(f"no {field.replace('_', ' ')}") from None
            return default

    def whole(self, field: str, default: float | None = None) -> int:
        """See `number`; cut to a whole number."""
        return int(self.number(field, default))

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """key -> value of `other` where it is "key=value; key=value"; a word alone is its own key, its value empty."""
        found = {}
        for part in self.text("other").split(";"):
            key, _, value = part.strip().partition("=")
            if key:
                found[key.strip()] = value.strip()
        return found

    def flag(self, key: str) -> bool:
        """Whether `other` sets `key` to 1."""
        return self.settings.get(key) == "1"

    def mentions(self, pattern: str) -> bool:
        """Whether `other` matches a regular expression, in either case."""
        return re.search(pattern, self.text("other"), re.IGNORECASE) is not None
