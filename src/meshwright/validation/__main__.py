"""Makes what the package ships of measured steps.

python -m meshwright.validation fit FOLDER     constants fitted to the steps in FOLDER/measured: fitted.toml, cost/constants
                                               and, with these, calibration/priors.toml
python -m meshwright.validation priors FOLDER  the last alone: how far stacks differ around the constants as they are
python -m meshwright.validation ship FOLDER    the rows themselves and the graphs of their models: data/
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import calibration
from ..cost import constants
from ..errors import MeshwrightError
from . import priors
from .fit import chosen, fit, prepare, write
from .parameters import Values
from .rows import Table, read
from .score import fitted
from .settings import ASIDE
from .shipped import ship
from .tables import rewrite
from .worth import told


def _fit(table: Table) -> None:
    found = fit(prepare(chosen(table.rows)))
    write(found, Path(__file__).with_name("fitted.toml"))
    rewrite(found["all"], Path(constants.__file__).parent)
    _write_priors(table, found)


def _priors(table: Table) -> None:
    _write_priors(table, fitted())


def _write_priors(table: Table, found: Mapping[str, Values]) -> None:
    rows = [r for r in table.rows if not ASIDE & set(r.flags)]
    ids = set[str]().union(*(told([r for r in rows if r.source == s]) for s in {r.source for r in rows}))
    cases = prepare([r for r in rows if r.id in ids])
    priors.write(priors.fit_priors(cases, found), Path(calibration.__file__).with_name("priors.toml"))


COMMANDS: Mapping[str, Callable[[Table], None]] = {"fit": _fit, "priors": _priors, "ship": ship}


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(arguments) != 2 or arguments[0] not in COMMANDS:
        print(
            f"usage: python -m meshwright.validation {'|'.join(COMMANDS)} FOLDER (the folder that holds measured/*.csv)",
            file=sys.stderr,
        )
        return 2
    try:
        COMMANDS[arguments[0]](read(Path(arguments[1])))
    except MeshwrightError as error:
        print(f"meshwright: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
