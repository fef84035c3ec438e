"""`make docs`: writes what the pages take from the program. `docs/build.py PART …` writes some of it only.

schedules   pipeline schedules, drawn, and their table
layouts     tables of volumes
concepts    the pictures of docs/concepts.md
planners    a page for each planner, from its docstring, tags, settings and the cases that its tests assert
exporters   a page for each exporter, from its registry
errors      how far predictions were from measured steps: tables of README, truth and how-it-decides
captures    blocks between `<!-- run: COMMAND -->` and `<!-- end -->`, and the picture of the report
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

PARTS = ("schedules", "layouts", "concepts", "planners", "exporters", "errors", "captures")


def main(wanted: list[str]) -> int:
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"docs/build.py: no part {', '.join(unknown)}: there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for name in wanted or PARTS:
        started = time.process_time()
        import_module(f"parts.{name}").main()
        print(f"{name}: {time.process_time() - started:.1f} s of CPU time", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
