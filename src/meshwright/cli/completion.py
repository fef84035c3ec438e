"""What the shell completes: models, clusters, planners, plans, settings, degrees that divide the cluster.

Loads no torch. `quick` answers without the parser, too, whose import a person would wait for; the parser's own answer
comes from the same functions, and a test holds one against the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._epilogs import EPILOG

SOURCES = Path(__file__).resolve().parent.parent
PRECISIONS = ("bf16", "fp16", "fp32")
OBJECTIVES = ("step", "cost", "memory")
RECOMPUTE = ("none", "light", "full", "attention")
NEW_KINDS = ("planner",)
"""What `new` makes."""
DESCRIBED = ("problem.toml", "cluster.toml", "annotations.toml", "steps.toml", "plan.json")
"""Files that `schema` describes."""
_NO_PLANNERS = frozenset({"base", "registry", "types"})
_PROFILES = ("devices", "memory", "bandwidth", "micro_batches", "workers")
"""Settings of recorded profiles."""


def model_names(incomplete: str) -> list[str]:
    from ..graph.zoo import entries

    return [e.name for e in entries() if e.name.startswith(incomplete)] + _files(incomplete, (".json", ".toml"))


def cluster_names(incomplete: str) -> list[str]:
    """Presets with one node's count and with the counts of 8 and 64 devices or more."""
    from ..cluster.presets import presets

    names = ["local", *(f"{p.name}x{p.node * k}" for p in presets().values() for k in (1, 8))]
    return [n for n in names if n.startswith(incomplete)] + _files(incomplete, (".toml",))


def preset_names(incomplete: str) -> list[str]:
    from ..cluster.presets import presets

    return [name for name in presets() if name.startswith(incomplete)]


def planner_names(incomplete: str) -> list[str]:
    """Ours are called as their files are, so that none is loaded."""
    from importlib.metadata import entry_points

    names = {p.stem for p in (SOURCES / "planners").glob("[a-z]*.py")} - _NO_PLANNERS
    names |= {entry.name for entry in entry_points(group="meshwright.planners")}
    return sorted(n for n in names if n.startswith(incomplete)) + _files(incomplete, (".py",))


def planner_lists(incomplete: str) -> list[str]:
    """Of `compare`: "grid,gp" becomes "grid,gpipe"."""
    done, comma, last = incomplete.rpartition(",")
    names = planner_names(last) + [word for word in ("all",) if not comma and word.startswith(last)]
    return [f"{done}{comma}{name}" for name in names if name not in done.split(",")]


def exporter_names(incomplete: str) -> list[str]:
    """Trainers that plans are written for."""
    from ..export.registry import names

    return [n for n in names() if n.startswith(incomplete)]


def plan_paths(incomplete: str) -> list[str]:
    base = Path(incomplete).parent
    folders = sorted(p for p in base.iterdir() if (p / "plan.json").exists()) if base.is_dir() else []
    return [str(p) for p in folders if str(p).startswith(incomplete)] + _files(incomplete, (".json",))


def model_or_plan(incomplete: str) -> list[str]:
    return list(dict.fromkeys([*model_names(incomplete), *plan_paths(incomplete)]))


def layout_words(ctx: Any, incomplete: str) -> list[str]:
    """Degrees that divide the cluster: "tp=2", "tp=4", … after what is there already; `ctx` is the parser's."""
    done, comma, last = incomplete.rpartition(",")
    count = _devices(ctx.params.get("cluster") or "local")
    degrees = [d for d in range(1, count + 1) if count % d == 0] if 0 < count <= 1 << 16 else []
    words = [f"{axis}={d}" for axis in ("dp", "tp", "pp") if not re.search(rf"\b{axis}=", done) for d in degrees]
    return [f"{done}{comma}{w}" for w in words if w.startswith(last)]


def setting_names(ctx: Any, incomplete: str) -> list[str]:
    """ "devices=", … of a profile, and the parameters of the planner that was named; after "=" its words."""
    own = _parameters(ctx.params.get("planner") or "")
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={word}" for word in own.get(key, ()) if word.startswith(value)]
    found = [*_PROFILES, *(name for name in own if name not in _PROFILES)]
    return [f"{name}=" for name in found if name.startswith(incomplete)]


def new_kinds(incomplete: str) -> list[str]:
    return [kind for kind in NEW_KINDS if kind.startswith(incomplete)]


def command_names(incomplete: str) -> list[str]:
    return [name for name in EPILOG if name != "meshwright" and name.startswith(incomplete)]


def schema_names(incomplete: str) -> list[str]:
    return [name for name in (*command_names(""), *DESCRIBED) if name.startswith(incomplete)]


def one_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Completes one of `words`."""

    def found(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return found


Complete = Callable[..., list[str]]
"""(incomplete), or (ctx, incomplete) for those in `_WITH_OTHERS`."""
_WITH_OTHERS: tuple[Complete, ...] = (layout_words, setting_names)
_ARGUMENTS: Mapping[str, tuple[Complete, ...]] = {
    "plan": (model_names,), "compare": (model_names,), "simulate": (model_or_plan,), "models": (model_names,),
    "show": (plan_paths,), "verify": (plan_paths,), "run": (plan_paths,), "replan": (plan_paths,), "check": (planner_names,),
    "planners": (planner_names,), "clusters": (preset_names,), "new": (new_kinds,), "schema": (schema_names,), "export": (plan_paths,), "exporters": (exporter_names,),
}  # fmt: skip
"""Per command what its arguments are, in order."""
_SEARCH: Mapping[str, Complete] = {
    "--cluster": cluster_names, "-c": cluster_names, "--precision": one_of(PRECISIONS),
}  # fmt: skip
_PLANNED: Mapping[str, Complete] = {
    **_SEARCH, "--planner": planner_names, "--fix": layout_words, "--set": setting_names,
    "--objective": one_of(OBJECTIVES), "--for": exporter_names,
}  # fmt: skip
_OPTIONS: Mapping[str, Mapping[str, Complete]] = {
    "plan": _PLANNED,
    "replan": _PLANNED,
    "compare": {**_SEARCH, "--planners": planner_lists, "--objective": one_of(OBJECTIVES)},
    "simulate": {
        **_SEARCH, "--recompute": one_of(RECOMPUTE), "--for": exporter_names, "--format": exporter_names,
    },
    "export": {"--to": exporter_names},
    "show": {"--diff": plan_paths},
}  # fmt: skip
"""Per command the options whose values are completed."""
_FLAGS = frozenset(
    {
        "--json",
        "-q",
        "--quiet",
        "-v",
        "--verbose",
        "--package",
        "--text",
        "--trace",
        "--shardings",
        "--check",
        "--allow-lossy",
    }
)
"""Options without a value; a command with another one is left to the parser."""


@dataclass(frozen=True)
class _Words:
    """What a shell asks: the words before, the one that is being written, and how it wants the answer."""

    before: list[str]
    incomplete: str
    cut: int = 0
    """Letters of the answers that the shell holds to be an earlier word: bash breaks words at "="."""
    head: str = ""
    """What the shell is to run with the answers between this and `tail`."""
    tail: str = ""
    quote: str = ""


@dataclass
class _Given:
    params: dict[str, str] = field(default_factory=dict)


def quick(env: Mapping[str, str]) -> str:
    """The answer to bash, zsh or fish without the parser; "" = not one of the things known here: the parser answers."""
    asked = _asked(env)
    if asked is None or asked.incomplete.startswith("-"):
        return ""
    found = [word[asked.cut :] for word in _answers(asked.before, asked.incomplete)]
    # What a shell would have to be told to quote is the parser's.
    if not found or any(re.search(r"[\s\"'$`:\\]", word) for word in found):
        return ""
    return asked.head + "\n".join(f"{asked.quote}{word}{asked.quote}" for word in found) + asked.tail


def _asked(env: Mapping[str, str]) -> _Words | None:
    shell = env.get("_MESHWRIGHT_COMPLETE", "")
    line = env.get("COMP_WORDS", "") if shell == "complete_bash" else env.get("_TYPER_COMPLETE_ARGS", "")
    if re.search(r"[\"'\\]", line):
        return None
    words = line.split()
    if shell == "complete_bash":
        place = env.get("COMP_CWORD", "")
        if not place.isdecimal():
            return None
        before, last = _joined(words[1 : int(place)], "".join(words[int(place) : int(place) + 1]))
        cut = last.rfind("=") + 1 if "=" in words else 0
        return _Words(before, last, cut)
    if shell == "complete_zsh" or (shell == "complete_fish" and env.get("_TYPER_COMPLETE_FISH_ACTION") == "get-args"):
        last = words.pop() if words[1:] and not line.endswith(" ") else ""
        wrap = ("_arguments '*: :((", "))'", '"') if shell == "complete_zsh" else ("", "", "")
        return _Words(words[1:], last, 0, *wrap)
    return None


def _joined(before: list[str], last: str) -> tuple[list[str], str]:
    """Words as they were typed: bash gives "tp=2" as "tp", "=", "2"."""
    found: list[str] = []
    for word in (*before, last):
        if found and (word == "=" or found[-1].endswith("=")) and not found[-1].startswith("-"):
            found[-1] += word
        else:
            found.append(word)
    return found[:-1], found[-1]


def _answers(before: list[str], incomplete: str) -> list[str]:
    if not before:
        return command_names(incomplete)
    command, *rest = before
    options = _OPTIONS.get(command, {})
    given, arguments, wanted = _Given(), 0, ""
    for word in rest:
        if wanted:
            given.params[{"-c": "cluster"}.get(wanted, wanted.removeprefix("--"))] = word
            wanted = ""
        elif word in _FLAGS:
            continue
        elif word.startswith("-"):
            if "=" in word or (word in ("-h", "--help")):
                return []
            wanted = word
        else:
            arguments += 1
    if wanted:
        complete = options.get(wanted)
    else:
        taken = _ARGUMENTS.get(command, ())
        complete = taken[arguments] if arguments < len(taken) else None
    if complete is None:
        return []
    return complete(given, incomplete) if complete in _WITH_OTHERS else complete(incomplete)


def _devices(spec: str) -> int:
    """Devices of a cluster; 0 where that cannot be told."""
    if spec.endswith(".toml"):
        import tomllib

        try:
            nodes = tomllib.loads(Path(spec).read_text(encoding="utf-8")).get("node", [])
            return sum(int(n["devices"]) * int(n.get("count", 1)) for n in nodes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
    from ..cluster.names import resolve
    from ..errors import InputError

    try:
        return resolve(spec).count
    except InputError:
        return 0


def _parameters(planner: str) -> dict[str, tuple[str, ...]]:
    """Parameter -> the words that it may be, of the planner of this name or file: read, not run."""
    import ast

    file = Path(planner) if planner.endswith(".py") else SOURCES / "planners" / f"{planner}.py"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if planner else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for node in tree.body:
        body = node.body if isinstance(node, ast.ClassDef) else []
        names = {t.id for part in body if isinstance(part, ast.Assign) for t in part.targets if isinstance(t, ast.Name)}
        if "info" not in names:
            continue
        for part in body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                found |= {a.arg: _choices(a.annotation) for a in part.args.kwonlyargs}
    return found


def _choices(annotation: Any) -> tuple[str, ...]:
    """Words of Literal["a", "b"]; of a bool; else none."""
    import ast

    if isinstance(annotation, ast.Name) and annotation.id == "bool":
        return "true", "false"
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inside = annotation.slice
        values = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if annotation.value.id == "Literal":
            return tuple(str(v.value) for v in values if isinstance(v, ast.Constant))
    return ()


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    base = Path(incomplete).parent
    if not base.is_dir():
        return []
    shown = (str(p) for p in sorted(base.iterdir()) if p.name.endswith(endings))
    return [s for s in shown if s.startswith(incomplete)]
