"""From argv to an exit code: errors become one sentence, our own bugs a saved traceback.

Exit codes: 0 done, 1 the answer is no, 2 bad input, 3 infeasible, 70 our bug, 130 stopped with nothing.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from ..errors import MeshwrightError
from ..report.lines import encodable
from .interrupt import STOPPED
from .spread import spread_sets

if TYPE_CHECKING:
    from .answers import ErrorAnswer

BUG = 70
BAD_INPUT = 2


def run(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = spread_sets(sys.argv[1:] if argv is None else argv)
    if "_MESHWRIGHT_COMPLETE" in os.environ:
        from .completion import quick

        if found := quick(os.environ):
            sys.stdout.write(found + "\n")
            return 0
    from .app import app

    try:
        result = app(args=args, prog_name="meshwright", standalone_mode=False)
    except MeshwrightError as error:
        return _fail(error, args)
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        # The reader of a pipe went away ("| head"): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _usage(error, args)
        if type(error).__name__ == "Abort":  # older versions of the parser
            return _stopped()
        return _bug(error, args)
    if result == STOPPED:  # what the parser makes of KeyboardInterrupt
        return _stopped()
    return result if isinstance(result, int) else 0


def _stopped() -> int:
    _write("meshwright: stopped; nothing was written")
    return STOPPED


def _fail(error: MeshwrightError, args: list[str]) -> int:
    _write(f"meshwright: {error.message}")
    _as_json(error.code, error.message, error.where, error.hint, args)
    return error.exit_code


def _usage(error: Exception, args: list[str]) -> int:
    """A wrong option: the parser's words as one sentence of ours."""
    message = str(error.format_message()).strip().rstrip(".")  # type: ignore[attr-defined]
    message = re.sub(r" \(Possible options: [^)]*\)", "", " ".join(message.split()))
    if not message:  # `meshwright plan` alone: the help was shown
        return BAD_INPUT
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "meshwright")
    message = f'{message[0].lower() + message[1:]}: see "{path} --help"'
    _write(f"meshwright: {message}")
    _as_json("usage", message, "", "", args)
    return BAD_INPUT


def _bug(error: Exception, args: list[str]) -> int:
    import tempfile
    import time
    import traceback

    where = traceback.extract_tb(error.__traceback__)
    last = f"{os.path.basename(where[-1].filename)}:{where[-1].lineno}" if where else "unknown place"
    text = f"meshwright {' '.join(args)}\n\n{traceback.format_exc()}"
    name = f"meshwright-bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path = os.path.join(tempfile.gettempdir(), name)
    try:
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)
        saved = f"the traceback is in {path}, please report it"
    except OSError:
        sys.stderr.write(text)
        saved = "please report the traceback above"
    reason = " ".join(str(error).split())[:200]
    message = f"a bug of ours ({type(error).__name__} at {last}: {reason}): {saved}"
    _write(f"meshwright: {message}")
    _as_json("bug", message, last, "", args)
    return BUG


def _as_json(code: str, message: str, where: str, hint: str, args: list[str]) -> None:
    if "--json" in args:
        import json

        answer: ErrorAnswer = {
            "schema": "meshwright.error/1",
            "status": "infeasible" if code == "infeasible" else "error",
            "error": {"code": code, "message": message, "where": where, "hint": hint},
        }
        sys.stdout.write(json.dumps(answer) + "\n")


def complain(sentence: str) -> None:
    """An error on stderr that is not raised, because a result was shown beside it."""
    _write(f"meshwright: {sentence}")


def _write(text: str) -> None:
    sys.stderr.write(encodable(text, sys.stderr.encoding or "ascii") + "\n")
