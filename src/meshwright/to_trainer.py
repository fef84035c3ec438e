"""Between a plan folder and the files of another trainer: written, checked by reading them back, read from a user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._parsed import ENCODING
from .answer import Reopened
from .errors import InputError, Unsupported
from .export._words import plain_name
from .export.base import Exporter, Read
from .export.gains import gaining, path
from .export.model import model_of
from .export.outcome import Exported, export, priced, verdict
from .export.reading import setup_from
from .export.registry import installed, load
from .export.setup import Setup, setup_of
from .layout_by_hand import spelled as by_hand
from .output_folder import write_together
from .plan.model import Plan
from .plan.schedules import plain
from .report.gains import Change
from .request import Request
from .save import Opened, check_same_model
from .stated import Say, Stated, state
from .stated import silent as _silent

OURS = "meshwright"
"""The target that is no other trainer: a plan folder is what our own runner takes."""


@dataclass(frozen=True)
class Written:
    """A plan in a trainer's words, with what is in the folder."""

    exported: Exported
    folder: Path
    files: dict[str, int]
    """Name -> bytes; none where it was refused."""


def written(opened: Opened, stated: Stated, target: str, *, lossy: bool = False, out: Path | None = None) -> Written:
    """Export a plan and write its files together, into PLAN/NAME unless `out` says where.

    Raises:
        InputError: no such target or version, a folder that cannot be written. Unsupported: the target cannot say the plan; the
        sentence says what.
    """
    exporter = load(target)
    check_same_model(opened, stated)
    exported = export(exporter, stated.problem, opened.plan, name=stated.source.name, lossy=lossy)
    if not exported.files:
        raise Unsupported(refusal(exported), where="--to")
    folder = out or opened.folder / exporter.name
    sizes = write_together(folder, {name: text.encode() for name, text in exported.files.items()})
    return Written(exported, folder, sizes)


def refusal(exported: Exported) -> str:
    """Why nothing was written, and the way round."""
    why = "; ".join(exported.sentences)
    lossy = exported.level == "refused" and not exported.broken
    nearest = "use --allow-lossy to write the nearest that it can, or " if lossy else ""
    return f"{why}: {nearest}--to meshwright runs the plan as it is"


@dataclass(frozen=True)
class Checked:
    """What --check found."""

    installed: str
    """Version of the target here; "" for none."""
    known: bool
    """Whether the exporter was read from that version."""
    same: bool
    """Files read back are the layout that was written, at the same price."""
    step_s: float
    again_s: float


def checked(exported: Exported) -> Checked:
    """Read what was written, price it, and compare; look whether the target is installed here.

    Raises:
        InputError: what was written cannot be read.
    """
    exporter = exported.exporter
    problem = exported.setup.problem
    read = exporter.read(exported.files, exported.setup.model, problem.cluster.count)
    again = setup_from(problem, exporter, read, exported.setup.name)
    wanted, found = (replace(s.plan(), schedule=plain(s.layout.schedule)) for s in (exported.runs, again))
    here = installed(type(exporter))
    prices = [priced(s).step_seconds for s in (exported.runs, again)]
    return Checked(here, not here or here in exporter.versions, wanted == found and prices[0] == prices[1], *prices)


@dataclass(frozen=True)
class Imported:
    """A trainer's files as a layout of a problem."""

    exporter: Exporter
    read: Read
    setup: Setup
    stated: Stated


def imported(request: Request, file: Path, format_name: str = "", say: Say = _silent) -> Imported:
    """What a trainer's file runs, on the cluster of a request; positions and batch are the file's where the request has none.

    Raises:
        InputError: the file cannot be read or recognised, degrees that are not the cluster's.
    """
    files = _texts(file)
    exporter = reader_of("\n".join(files.values()), format_name)
    stated = state(request, say)
    read = exporter.read(files, model_of(stated.problem.graph), stated.problem.cluster.count)
    if read.version not in ("", exporter.version) and "@" not in format_name:
        exporter = type(exporter)(read.version)
    wished = {k: int(read.words[w]) for k, w in (("seq", "seq"), ("batch", "samples")) if w in read.words}
    asked = {
        k: n for k, n in wished.items() if getattr(request, k) is None and getattr(stated.request, k) not in (None, n)
    }
    if asked:
        stated = state(
            replace(request, batch=asked.get("batch", request.batch), seq=asked.get("seq", request.seq)), say
        )
        read = exporter.read(files, model_of(stated.problem.graph), stated.problem.cluster.count)
    words = {k: v for k, v in read.words.items() if k != "samples"} if request.batch else read.words
    setup = setup_from(stated.problem, exporter, replace(read, words=words), stated.source.name)
    return Imported(exporter, replace(read, ignored={**_asked_otherwise(read, stated), **read.ignored}), setup, stated)


def _asked_otherwise(read: Read, stated: Stated) -> dict[str, str]:
    """What the files say of the model and of precision, where another was asked for: option -> what is priced instead."""
    found, name, precision = {}, stated.source.name, stated.problem.recipe.compute_dtype
    if read.model and plain_name(read.model) != plain_name(name):
        found[read.lines.get("model", read.model)] = f"priced for {name}, the model that was asked for"
    if read.precision not in ("", precision):
        said = read.lines.get("precision", read.precision)
        found[said] = f"computes in {read.precision}; priced in {precision} (--precision)"
    return found


def _texts(file: Path) -> dict[str, str]:
    """A file, or all text files of a folder that an export wrote."""
    try:
        if file.is_dir():
            return {p.name: p.read_text(encoding=ENCODING) for p in sorted(file.iterdir()) if p.is_file()}
        return {file.name: file.read_text(encoding=ENCODING)}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text"
        raise InputError(f"cannot read {file}: {why}", where="--from") from None


def changes(theirs: Imported, plan: Plan) -> list[Change]:
    """From a trainer's settings to a plan that it runs, one change at a time; each makes the step shorter, or fit."""
    ours = setup_of(theirs.setup.problem, plan, theirs.setup.name)
    options = spelled(theirs.exporter)

    def as_run(setup: Setup) -> Setup:
        return replace(setup, sums_each=verdict(theirs.exporter, setup).runs.sums_each)

    here, found = dict(theirs.read.given), list[Change]()
    for step in gaining(theirs.setup, path(theirs.setup, ours, as_run), options):
        # From what the file has, which may say the same by other options than we would.
        changed = {
            key: (here.get(key) if theirs.read.given else before, after)
            for key, (before, after) in step.options(options).items()
        }
        here |= {key: after for key, (_, after) in changed.items()}
        changed = {key: both for key, both in changed.items() if not _same(*both)}
        found.append((changed, step.seconds, step.memory, step.fits))
    return found


def _same(before: Any, after: Any) -> bool:
    """Whether an option has one value; texts of a command line are values. No option is one that is off."""
    absent = (None, False, "")
    return str(before) == str(after) or (before in absent and after in absent)


def spelled(exporter: Exporter) -> Callable[[Setup], dict[str, Any]]:
    """How a target writes a setup: option -> value."""
    return lambda setup: {key: value for s in exporter.said(setup) for key, value in s.options.items()}


def reader_of(text: str, format_name: str = "") -> Exporter:
    """The exporter that reads a trainer's file, by its content or by name.

    Raises:
        InputError: no trainer's file that is known.
    """
    from .export.registry import kind, names

    if format_name:
        return load(format_name)
    able = [name for name in names() if kind(name).recognises(text)]
    if not able:
        raise InputError(
            f"no file of {', '.join(names())}: say which with --format NAME, or give a plan.json", where="--from"
        )
    return load(able[0])


def changes_between(first: Reopened, other: Reopened) -> tuple[float, list[Change]] | None:
    """Seconds of the first plan's step, and what leads to the other, one option at a time; None where they answer other
    problems or one is no layout of degrees."""
    a, b = first.stated, other.stated
    if (
        first.outcome.plan is None
        or other.outcome.plan is None
        or first.outcome.simulation is None
        or not a.request.same_problem(b.request)
    ):
        return None
    try:
        theirs, ours = (setup_of(a.problem, x.outcome.plan) for x in (first, other) if x.outcome.plan is not None)
    except Unsupported:
        return None
    found: list[Change] = [
        (s.options(lambda setup: by_hand(setup.point)), s.seconds, s.memory, s.fits) for s in path(theirs, ours)
    ]
    return first.outcome.simulation.step_seconds, found
