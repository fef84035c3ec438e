"""What `meshwright new` writes, as files that work as they stand: a planner, and what makes a package of it.

In each of them the words greedy_tp, greedy-tp and GreedyTp stand for the names that are asked for.
"""

from __future__ import annotations

import re
from importlib.resources import files

_ABOUT = """\
# greedy-tp

A planner for Meshwright: `src/greedy_tp/__init__.py`.

```
pip install -e .
meshwright plan gpt2 --cluster a100x8 --planner greedy_tp
meshwright check greedy_tp
pytest
```
"""
_PROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "greedy-tp"
version = "0.1.0"
description = "A planner for meshwright"
requires-python = ">=3.11"
dependencies = ["meshwright"]

[project.entry-points."meshwright.planners"]
greedy_tp = "greedy_tp:GreedyTp"

[tool.setuptools.packages.find]
where = ["src"]

[tool.pytest.ini_options]
pythonpath = ["src"]
"""
_TEST = '''\
"""The six promises of a planner, a test each."""

from greedy_tp import GreedyTp
from meshwright.testing import PlannerConformance


class TestGreedyTp(PlannerConformance):
    planner = GreedyTp()
'''


def module(name: str) -> str:
    """The file of a planner called `name`, an identifier of Python in small letters."""
    return _named(files(__package__).joinpath("greedy_tp.py").read_text(encoding="utf-8"), name)


def package(name: str) -> dict[str, str]:
    """Path in the package's folder -> content."""
    return {
        "pyproject.toml": _named(_PROJECT, name),
        "README.md": _named(_ABOUT, name),
        f"src/{name}/__init__.py": module(name),
        f"tests/test_{name}.py": _named(_TEST, name),
    }


def class_name(name: str) -> str:
    """ "greedy_tp" -> "GreedyTp"."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _named(text: str, name: str) -> str:
    words = {"greedy_tp": name, "greedy-tp": name.replace("_", "-"), "GreedyTp": class_name(name)}
    return re.sub("|".join(words), lambda found: words[found[0]], text)
