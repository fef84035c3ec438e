"""The one exception family. A message is one sentence: what is wrong, where, what would be right."""

from __future__ import annotations


class MeshwrightError(Exception):
    """Base of every error that a user can cause or mend."""

    code = "error"
    exit_code = 2

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint


class InputError(MeshwrightError):
    """A file, an option or a value that cannot be right."""

    code = "input"


class Unsupported(MeshwrightError):
    """Right in itself, but nothing here can do it (yet); the sentence says what can."""

    code = "unsupported"

    def __init__(self, message: str, *, where: str = "", hint: str = "", reason: str = "") -> None:
        """`reason`: for a plan that can be priced but not run, which one of `execute.refusal.REASONS`."""
        super().__init__(message, where=where, hint=hint)
        self.reason = reason


class CaptureError(MeshwrightError):
    """A module that cannot be captured; names module, file and line."""

    code = "capture"


class Infeasible(MeshwrightError):
    """No plan satisfies the limits; the reason is the tightest constraint."""

    code = "infeasible"
    exit_code = 3


class ExecutionError(MeshwrightError):
    """A rank died or the run could not go on."""

    code = "execution"
    exit_code = 1
