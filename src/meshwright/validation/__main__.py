"""Makes what the package ships of measured steps.

python -m meshwright.validation fit FOLDER     constants fitted to the steps in FOLDER/measured: fitted.toml and cost/constants
python -m meshwright.validation ship FOLDER    the rows themselves and the graphs of their models: data/
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ..cost import constants
from ..errors import MeshwrightError
from .fit import chosen, fit, prepare, write
from .rows import Table, read
from .shipped import ship
from .tables import rewrite


def _fit(table: Table) -> None:
    found = fit(prepare(chosen(table.rows)))
    write(found, Path(__file__).with_name("fitted.toml"))
    rewrite(found["all"], Path(constants.__file__).parent)


COMMANDS: Mapping[str, Callable[[Table], None]] = {"fit": _fit, "ship": ship}


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
