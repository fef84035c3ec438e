"""Between a plan folder and the files of another trainer: written, checked by reading them back, read from a user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, Unsupported
from .export.base import Exporter
from .export.outcome import Exported, export
from .export.reading import setup_from
from .export.registry import installed, load
from .output_folder import write_together
from .save import Opened, check_same_model
from .simulate.simulator import simulate
from .stated import Stated

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
    wanted, found = exported.runs.plan(), again.plan()
    here = installed(type(exporter))
    prices = [simulate(problem, plan, detail=False).step_seconds for plan in (wanted, found)]
    return Checked(here, not here or here in exporter.versions, wanted == found and prices[0] == prices[1], *prices)


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
