"""What a capture cannot say, noticed while it runs and told in one sentence with module, file and line.

| in the module                | without notice it would            | here                              |
| custom autograd.Function     | lose its backward silently         | refused                           |
| `if x.max() > t`             | fail deep inside of the tracer     | refused, the expression quoted    |
| a loop over every token      | be traced for hours                | refused when 50,000 ops are made |
| `.item()`, `.tolist()`       | become a number nobody can cut     | refused                           |
| `checkpoint()`               | be inlined, its recompute lost     | a note: the plan decides recompute |
"""

from __future__ import annotations

import contextlib
import linecache
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from ..errors import CaptureError, MeshwrightError
from .ir import Graph

# Reads of a value by Python; the first line of the sentence depends on which.
_BRANCHES = ("__bool__",)
_READS = ("item", "tolist", "numpy", "__int__", "__float__", "__index__")
# The largest models of the zoo have 11,000 ops; what is several times longer is a loop over the tokens.
_MOST_CALLS = 50_000
_OWN = str(Path(__file__).resolve().parent)
_TORCH = str(Path(torch.__file__).resolve().parent)


@dataclass(frozen=True, slots=True)
class Place:
    module: str
    file: str
    line: int

    @property
    def text(self) -> str:
        """The source line, without the colon of an `if`."""
        return linecache.getline(self.file, self.line).strip().removesuffix(":")

    def __str__(self) -> str:
        return f"{self.module or 'the model'} ({Path(self.file).name}:{self.line})"


@dataclass(slots=True)
class Seen:
    """What a capture met so far."""

    names: dict[int, str]
    stack: list[nn.Module] = field(default_factory=list)
    deepest: Place | None = None
    """Where the last module call failed."""
    refused: str = ""
    checkpoints: list[str] = field(default_factory=list)

    def place(self) -> Place | None:
        """The innermost line of Python that is neither torch's nor ours, and the module that runs it."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith((_OWN, _TORCH, "<")) and "/contextlib.py" not in name:
                return Place(self._module(), name, frame.f_lineno)
            frame = frame.f_back
        return None

    def _module(self) -> str:
        return next((n for m in reversed(self.stack) if (n := self.names.get(id(m)))), "")

    def refuse(self, sentence: str) -> None:
        """Only the first reason counts: what comes after may follow from it."""
        self.refused = self.refused or sentence

    def checked(self, graph: Graph) -> Graph:
        """The captured graph with its notes. Raises CaptureError if a hazard passed the tracer unharmed."""
        if self.refused:
            raise CaptureError(self.refused)
        notes = tuple(
            f"checkpoint() in {place} is inlined: the plan decides what is recomputed"
            for place in dict.fromkeys(self.checkpoints)
        )
        return replace(graph, notes=(*graph.notes, *notes)) if notes else graph


@contextlib.contextmanager
def watched(module: nn.Module) -> Iterator[Seen]:
    """Watches the module while it is captured inside the block.

    Raises:
        CaptureError: instead of whatever the tracer raised, or for a hazard that it did not mind (`Seen.checked`).
    """
    names: dict[int, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), name)
    seen = Seen(names)
    with contextlib.ExitStack() as stack:
        _follow_modules(seen, stack)
        _watch_functions(seen, stack)
        _watch_checkpoints(seen, stack)
        _watch_values(seen, stack)
        _watch_length(seen, stack)
        _hush(stack)
        try:
            yield seen
        except MeshwrightError as error:
            if seen.refused:
                raise CaptureError(seen.refused) from error
            raise
        except Exception as error:
            raise CaptureError(seen.refused or _sentence(seen, error)) from error


def _follow_modules(seen: Seen, stack: contextlib.ExitStack) -> None:
    def enter(module: nn.Module, args: object) -> None:
        seen.stack.append(module)

    def leave(module: nn.Module, args: object, result: object) -> None:
        if seen.stack and seen.stack[-1] is module:
            seen.stack.pop()

    for handle in (
        nn_module.register_module_forward_pre_hook(enter),
        nn_module.register_module_forward_hook(leave),
    ):
        stack.callback(handle.remove)


def _watch_functions(seen: Seen, stack: contextlib.ExitStack) -> None:
    from torch.utils.checkpoint import CheckpointFunction

    original = torch.autograd.Function.__dict__["apply"].__func__

    def apply(cls: type, *args: Any, **kwargs: Any) -> object:
        if cls is CheckpointFunction:
            # Traced as it is, its forward would run without gradients.
            _note_checkpoint(seen)
            function, _, *inputs = args
            return function(*inputs)
        if not cls.__module__.startswith("torch.") and (place := seen.place()):
            seen.refuse(
                f"cannot capture {place}: {cls.__name__} is a custom autograd.Function, whose backward would be lost; "
                "write it as a custom_op of torch with register_autograd"
            )
        return original(cls, *args, **kwargs)

    _patch(stack, torch.autograd.Function, "apply", classmethod(apply))


def _watch_checkpoints(seen: Seen, stack: contextlib.ExitStack) -> None:
    from torch.utils import checkpoint

    original = checkpoint._checkpoint_without_reentrant_generator

    def generator(*args: Any, **kwargs: Any) -> Any:
        _note_checkpoint(seen)
        return original(*args, **kwargs)

    _patch(stack, checkpoint, "_checkpoint_without_reentrant_generator", generator)


def _watch_length(seen: Seen, stack: contextlib.ExitStack) -> None:
    """A scan written as a loop in Python becomes one op a step and layer; calls outside of modules are copies."""
    original = torch.fx.Graph.create_node
    made = 0

    def create_node(self: torch.fx.Graph, *args: Any, **kwargs: Any) -> torch.fx.Node:
        nonlocal made
        made += bool(seen.stack)
        if made > _MOST_CALLS:
            refusal = (
                f"cannot capture {seen.place() or 'the model'}: more than {_MOST_CALLS:,} ops, so a loop is written out step "
                "by step; use an op that scans, or a shorter --seq"
            )
            seen.refuse(refusal)
            raise CaptureError(refusal)
        return original(self, *args, **kwargs)

    _patch(stack, torch.fx.Graph, "create_node", create_node)


def _hush(stack: contextlib.ExitStack) -> None:
    """A trace that fails is printed by torch, whole, before it raises; we say it in one sentence."""
    from torch.export import _trace

    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    stack.callback(log.setLevel, log.level)
    log.setLevel(logging.CRITICAL)
    _patch(stack, _trace, "print", lambda *args, **kwargs: None)


def _note_checkpoint(seen: Seen) -> None:
    if place := seen.place():
        seen.checkpoints.append(str(place))


def _watch_values(seen: Seen, stack: contextlib.ExitStack) -> None:
    """A read of a value of a tensor without one; real tensors (constants made while building) are read aside."""
    from torch.utils._python_dispatch import _disable_current_modes

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if _valueless(self) and (place := seen.place()):
                does, remedy = (
                    ("branches on data", "use torch.where")
                    if name in _BRANCHES
                    else ("reads a value from data", "keep it a tensor")
                )
                seen.refuse(f'cannot capture {place}: "{place.text}" {does}; {remedy}')
            elif type(self) is torch.Tensor and not _valueless(self):
                with _disable_current_modes():
                    return original(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        return read

    for name in (*_BRANCHES, *_READS):
        _patch(stack, torch.Tensor, name, wrap(name))


def _valueless(tensor: torch.Tensor) -> bool:
    return (
        type(tensor).__name__ in ("FakeTensor", "FunctionalTensor")
        or tensor.is_meta
        or bool(torch._is_functional_tensor(tensor))
    )


def _patch(stack: contextlib.ExitStack, owner: Any, name: str, value: object) -> None:
    """Set for the time of the capture; what was inherited is inherited again."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    stack.callback(lambda: setattr(owner, name, own) if own is not None else delattr(owner, name))


def _sentence(seen: Seen, error: Exception) -> str:
    """Module, file and line of a failure nobody foresaw: the last line of the model's code on its way."""
    place: Place | None = None
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((_OWN, _TORCH, "<")) and "/contextlib.py" not in name:
            place = Place(seen._module(), name, trace.tb_lineno)
        trace = trace.tb_next
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"cannot capture {place or 'the model'}: {type(error).__name__}: {text}"
