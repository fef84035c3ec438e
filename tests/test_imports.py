"""Which folder may import which, and what `import meshwright` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "meshwright"
MAY_IMPORT: dict[str, set[str]] = {
    "graph": set(),
    "cluster": set(),
    "solvers": set(),
    "cost": {"graph", "cluster"},
    "plan": {"cost"},
    "formats": {"plan"},
    "lower": {"plan"},
    "layouts": {"lower"},
    "simulate": {"lower"},
    "planners": {"simulate", "solvers", "layouts"},
    "execute": {"lower"},
    "report": {"simulate", "layouts"},
    "export": {"simulate", "layouts"},
    "testing": {"planners"},
    "calibration": {"planners", "execute"},
    "validation": {"planners", "calibration"},
}
"""The layers; a folder may import what these may import, too. Everything else (the glue, cli) may import all."""
ALWAYS = {"errors", "_callable", "_jit", "_parsed", "_spelling", "_toml", "_views", "_words"}


def allowed(folder: str) -> set[str]:
    direct = MAY_IMPORT[folder]
    return {folder, *ALWAYS, *direct, *(name for d in direct for name in allowed(d))}


def imported(path: Path) -> set[str]:
    """First names below meshwright that a file imports, at its top or at use."""
    found: set[str] = set()
    package = path.relative_to(SOURCE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("meshwright.")}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                parts = (node.module or "").split(".")
                if parts[0] == "meshwright":
                    found |= {parts[1]} if len(parts) > 1 else {n.name for n in node.names}
            else:
                base = package[: len(package) - node.level + 1]
                whole = (*base, *(node.module.split(".") if node.module else ()))
                found |= {whole[0]} if whole else {n.name for n in node.names}
    return found


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    wrong = {
        str(path.relative_to(SOURCE)): sorted(imported(path) - allowed(folder))
        for path in sorted((SOURCE / folder).rglob("*.py"))
        if imported(path) - allowed(folder)
    }
    assert not wrong


def test_every_folder_is_in_the_table() -> None:
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert folders - {"cli"} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    "statement",
    [
        "import meshwright",
        "import meshwright.cli.app",
        "import meshwright; meshwright.Plan, meshwright.Cluster, meshwright.simulate",
        "from meshwright.planners import registry; registry.planners()",
        "from meshwright.graph.zoo import entries; entries()",
    ],
)
def test_neither_torch_nor_numba_is_loaded_by(statement: str) -> None:
    code = f"{statement}; import sys; print(sorted({{'torch', 'numba', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
