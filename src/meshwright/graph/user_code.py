"""`model.py:build`: a user's file is executed, its function called, and what it returns is understood.

`build()` returns `(module, example inputs)`; the inputs are a tensor, a tuple in the order of `forward`'s arguments, or
a dict by their names, with the samples in dim 0. Parameters of `build` called `batch`, `seq` or like a field of
`Shrink` are filled in when asked for; the others keep their defaults.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, MeshwrightError
from . import cache as disk
from .ir import Graph
from .source import Kind, ModelSource
from .zoo import Inputs, Shrink

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_FOLDERS: set[Path] = set()
"""Of the files executed in this process."""


@dataclass(frozen=True)
class CodeSource(ModelSource):
    spec: str
    path: str
    function: str
    kind: Kind = "code"

    @property
    def name(self) -> str:  # type: ignore[override]
        stem = Path(self.path).stem
        return stem if self.function == "build" else f"{stem}-{self.function}"

    @cached_property
    def _facts(self) -> Mapping[str, int]:
        """What only the built model knows, remembered on disk so that a cached graph needs no torch."""
        key = disk.facts_key(self.identity())
        found = disk.load_facts(key)
        if found is None:
            _, inputs = self.build()
            first = next(iter(inputs.values()))
            tokens = token_names(inputs)
            found = {
                "batch": int(first.shape[0]),
                "seq": int(first.shape[1]) if tokens and first.dim() > 1 else 1,
                "text": int(bool(tokens)),
            }
            disk.save_facts(key, found)
        return found

    @property
    def default_batch(self) -> int:
        return self._facts["batch"]

    @property
    def default_seq(self) -> int:
        return self._facts["seq"]

    @property
    def text(self) -> bool:
        return bool(self._facts["text"])

    def sequence(self, wanted: int) -> int:
        with _folder_on_path(self.path), _told(self.path):
            free = "seq" in inspect.signature(self._function()).parameters
        return wanted if free or not self.text else self.default_seq

    def identity(self) -> Mapping[str, object]:
        return {
            "function": self.function,
            "sources": {p: _digest(text) for p, text in local_sources(self.path).items()},
        }

    def build(
        self,
        batch: int = 0,
        seq: int = 0,
        dtype: str = "float32",
        *,
        device: str = "meta",
        shrink: Shrink | None = None,
        attention: str = "meshwright",
    ) -> tuple[nn.Module, Inputs]:
        import torch

        with _folder_on_path(self.path), _told(self.path):
            function = self._function()
            with torch.device(device):
                returned = function(**self._wanted(function, batch, seq, shrink))
        module, inputs = self._understood(function, returned)
        module = module.to(getattr(torch, dtype)).train()
        before = next(iter(inputs.values())).shape[0]
        for name, x in inputs.items():
            x = x.to(device, getattr(torch, dtype) if x.is_floating_point() else None)
            if batch and batch != before and x.dim() and x.shape[0] == before:
                x = x[torch.arange(batch, device=x.device) % before]
            inputs[name] = x
        self._check_seq(function, inputs, (shrink.seq if shrink else 0) or seq)
        take_form(module, inputs, attention)
        return module, inputs

    def random_inputs(
        self, batch: int, seq: int, generator: Generator, *, shrink: Shrink | None = None, dtype: str = "float32"
    ) -> Inputs:
        """Floats are normal; integers are drawn from the values that the example has, for others may be illegal.

        An example that is all one value (zeros) says nothing: then they are below the smallest embedding or the
        widest last layer of the module.
        """
        import torch

        module, examples = self.build(batch, seq, dtype, device="cpu", shrink=shrink)
        found: Inputs = {}
        for name, x in examples.items():
            if x.is_floating_point():
                found[name] = torch.randn(x.shape, generator=generator).to(x.dtype)
                continue
            values = torch.unique(x)
            if len(values) < 2 and x.dtype != torch.bool:
                values = torch.arange(_fewest_values(module))
            drawn = values[torch.randint(0, len(values), x.shape, generator=generator)]
            found[name] = drawn.to(x.dtype)
        return found

    def text_inputs(self, tokens: Tensor, generator: Generator) -> Inputs:
        _, inputs = self.build()
        names = token_names(inputs)
        if not names:
            raise InputError(
                f"{self.spec}: no text model: it needs two integer inputs of one shape, one of them labels"
            )
        text = {names[0]: tokens[:, :-1], names[1]: tokens[:, 1:]}
        if len(inputs) == len(text):
            return text
        return self.random_inputs(tokens.shape[0], tokens.shape[1] - 1, generator) | text

    def _capture(self, batch: int, seq: int, dtype: str, shrink: Shrink | None) -> Graph:
        with _folder_on_path(self.path):  # forward may import what lies beside the file
            return super()._capture(batch, seq, dtype, shrink)

    def _function(self) -> Callable[..., object]:
        module = _loaded(self.path)
        found = getattr(module, self.function, None)
        if not callable(found):
            own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
            defines = f"it defines {_listed(own)}" if own else "it defines no function"
            raise InputError(f'{Path(self.path).name} has no function "{self.function}": {defines}')
        return cast("Callable[..., object]", found)

    def _wanted(self, function: Callable[..., object], batch: int, seq: int, shrink: Shrink | None) -> dict[str, Any]:
        """Arguments for those parameters of `build` that say a size we were asked for."""
        asked: dict[str, Any] = {"batch": batch, "seq": seq}
        if shrink is not None:
            asked |= {f.name: v for f in fields(shrink) if (v := getattr(shrink, f.name)) > 0}
        parameters = inspect.signature(function).parameters
        needed = [
            n
            for n, p in parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not asked.get(n)
        ]
        if needed:
            raise InputError(
                f"{self._at(function, first=True)}: {self.function}() needs {_listed(needed)}: give each a default"
            )
        return {name: value for name, value in asked.items() if value and name in parameters}

    def _understood(self, function: Callable[..., object], returned: object) -> tuple[nn.Module, Inputs]:
        from torch import nn

        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], nn.Module)):
            raise InputError(
                f"{self._at(function)}: {self.function}() returned {_article(returned)}: "
                "it must return (module, example_inputs)"
            )
        module, examples = returned
        return module, self._named(function, module, examples)

    def _named(self, function: Callable[..., object], module: nn.Module, examples: object) -> Inputs:
        """Example inputs by the names of `forward`'s arguments."""
        import torch

        names = [n for n, p in inspect.signature(module.forward).parameters.items() if p.kind is not p.VAR_KEYWORD]
        values = examples if isinstance(examples, (tuple, list, dict)) else (examples,)
        found = dict(values) if isinstance(values, dict) else dict(zip(names, values))
        odd = [n for n in found if n not in names] or list(values)[len(names) :]
        if odd or not found:
            raise InputError(
                f"{self._at(function)}: the example inputs do not fit forward({', '.join(names)}): "
                "give one tensor for each argument, in their order or by their names"
            )
        for name, value in found.items():
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f'{self._at(function)}: the example input "{name}" is {_article(value)}, not a tensor: '
                    "give it a default in forward instead"
                )
        return found

    def _check_seq(self, function: Callable[..., object], inputs: Inputs, seq: int) -> None:
        names = token_names(inputs)
        if names and seq > 1 and (own := inputs[names[0]].shape[1]) != seq:
            raise InputError(
                f"{self._at(function, first=True)}: the example inputs have {own:,} tokens, not {seq:,}: "
                f"give {self.function}() a parameter called seq"
            )

    def _at(self, function: Callable[..., object], first: bool = False) -> str:
        """file:line of the function's last `return`, or of its `def`."""
        code = inspect.unwrap(function).__code__
        line = code.co_firstlineno
        with contextlib.suppress(OSError, TypeError):
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            returns = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Return)]
            line += (max(returns) - 1) if returns and not first else 0
        return f"{Path(self.path).name}:{line}"


def local_sources(path: str) -> dict[str, str]:
    """Text of the file and of every module beside it that it imports, directly or not, by path relative to it.

    Raises:
        InputError: the file cannot be read, or is not Python.
    """
    root = Path(path).resolve().parent
    found: dict[str, str] = {}
    waiting = [Path(path).resolve()]
    while waiting:
        file = waiting.pop()
        label = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
        if label in found:
            continue
        try:
            found[label] = file.read_text(encoding="utf-8")
            tree = ast.parse(found[label])
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except (SyntaxError, ValueError) as error:
            raise InputError(_syntax(file.name, error)) from error
        waiting += [target for name in _imports(tree, file, root) for target in _files(root, name)]
    return found


def _imports(tree: ast.AST, file: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """Dotted names that could be local modules, seen from the root folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                folder = file.parents[node.level - 1]
                if not folder.is_relative_to(root):
                    continue
                base = folder.relative_to(root).parts + base
            yield base
            yield from ((*base, alias.name) for alias in node.names)


def _files(root: Path, name: tuple[str, ...]) -> Iterator[Path]:
    """The module's file and the `__init__` of each package around it."""
    for end in range(1, len(name) + 1):
        place = root.joinpath(*name[:end])
        yield from (f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file())


def _loaded(path: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise InputError(f"{path}: No such file or directory")
    name = f"_user_{file.stem}_{_digest(str(file))[:8]}"
    _forget(file.parent, local_sources(path))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _forget(folder: Path, sources: Iterable[str]) -> None:
    """Drops loaded modules that this folder has files for: edited since, or of the same name in another user's folder."""
    _FOLDERS.add(folder)
    names = {part.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for part in sources}
    for name in names & set(sys.modules):
        file = getattr(sys.modules[name], "__file__", None)
        if file and any(Path(file).is_relative_to(known) for known in _FOLDERS) and "site-packages" not in file:
            del sys.modules[name]


@contextlib.contextmanager
def _folder_on_path(path: str) -> Iterator[None]:
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """An error in the user's code becomes one sentence with its place in their files."""
    try:
        yield
    except MeshwrightError:
        raise
    except SyntaxError as error:
        raise InputError(_syntax(Path(path).name, error)) from error
    except (Exception, SystemExit) as error:  # sys.exit() in a script would end the command without a word
        folder = Path(path).resolve().parent
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if Path(f.filename).is_relative_to(folder) and "site-packages" not in f.filename
        ]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else Path(path).name
        if isinstance(error, SystemExit):
            raise InputError(f"{place}: ends the program: it must build the model and return", where=place) from error
        text = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"{place}: {type(error).__name__}: {text}", where=place) from error


def token_names(inputs: Inputs) -> tuple[str, str] | None:
    """(tokens, labels) when two integer inputs [samples, seq] have one shape and one is called labels or targets."""
    import torch

    ints = {n: x.shape for n, x in inputs.items() if x.dtype == torch.int64 and x.dim() == 2}
    labels = next((n for n in ints if n.lower() in ("labels", "label", "targets", "target", "y")), None)
    tokens = next((n for n in ints if n != labels and labels and ints[n] == ints[labels]), None)
    return (tokens, labels) if tokens and labels else None


def take_form(module: nn.Module, inputs: Inputs, attention: str) -> None:
    """A model of transformers computes its loss and nothing besides; "meshwright": with attention and experts that a plan can
    cut, "eager": with its plainest attention. Other models are as they are."""
    from .user_model import is_transformers

    if not is_transformers(module):
        return
    from .zoo._transformers import set_forms, set_own

    if attention != "meshwright" or any(name.endswith("attention_mask") for name in inputs):
        set_own(module, attention)
        return
    tokens = token_names(inputs)
    set_forms(module, int(inputs[tokens[0]].shape[1]) if tokens else 1)


def _fewest_values(module: nn.Module) -> int:
    from torch import nn

    tables = [m.num_embeddings for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    widths = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
    return max(1, min(tables) if tables else widths[-1] if widths else 2)


def _syntax(name: str, error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"{name}{f':{line}' if line else ''}: {type(error).__name__}: {getattr(error, 'msg', error)}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _article(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
