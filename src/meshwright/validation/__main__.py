"""python -m meshwright.validation DATA_FOLDER: fit all constants again and write fitted.toml."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from ..errors import MeshwrightError
from .fit import fit, prepare, write
from .rows import read


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(arguments) != 1:
        print(
            "usage: python -m meshwright.validation DATA_FOLDER (the folder that holds measured/*.csv)", file=sys.stderr
        )
        return 2
    try:
        rows = read(Path(arguments[0])).rows
        write(fit(prepare(rows)), Path(__file__).with_name("fitted.toml"))
    except MeshwrightError as error:
        print(f"meshwright: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
