"""A `build` that is handed over as a function: `mw.plan(build, …)` in the script that trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .ir import Graph
from .source import default_seq
from .user_code import CodeSource, take_form, token_names
from .zoo import Inputs, Shrink

if TYPE_CHECKING:
    from torch import nn

    from .user_model import Batch, Feed, Like, Loss


@dataclass(frozen=True, slots=True)
class _Made:
    module: nn.Module
    feed: Feed
    example: Inputs
    inputs: Like

    @property
    def samples(self) -> int:
        return next(int(x.shape[0]) for x in self.example.values() if x.dim())


@dataclass(frozen=True)
class FunctionSource(CodeSource):
    """`build()` returns the module, or (module, example batch). Captured anew each time: a function has no identity that
    outlives its process."""

    call: Callable[..., object] | None = None
    example: Batch | None = None
    """One batch of any number of samples; None = `build` returns one, or the model is one of transformers."""
    loss: Loss | None = None

    @staticmethod
    def of(call: Callable[..., object], example: Batch | None = None, loss: Loss | None = None) -> FunctionSource:
        """Raises InputError for something that cannot be called."""
        if not callable(call):
            raise InputError(f"a model is a name, a path or a function that builds it, not a {type(call).__name__}")
        name = getattr(call, "__name__", type(call).__name__)
        try:
            path = inspect.getsourcefile(inspect.unwrap(call)) or f"{name}.py"
        except TypeError:
            path = f"{name}.py"
        return FunctionSource(f"{path}:{name}", path, name, call=call, example=example, loss=loss)

    @property
    def can_be_found(self) -> bool:
        """Whether the specification names the same model for another process: no loss, no example, a function of a file."""
        return (
            self.example is None
            and self.loss is None
            and Path(self.path).is_file()
            and getattr(self.call, "__qualname__", "<").isidentifier()
        )

    def identity(self) -> Mapping[str, object]:
        raise InputError(f"{self.function} is a function of this process: its graph is not kept")

    def graph(
        self,
        batch: int = 2,
        seq: int = 0,
        dtype: str = "bfloat16",
        *,
        shrink: Shrink | None = None,
        cache: bool = False,
    ) -> Graph:
        return self._capture(batch, seq, dtype, shrink)

    @cached_property
    def _facts(self) -> Mapping[str, int]:
        made = self._made(0, 0, "meta", None)
        tokens = token_names(made.example)
        return {
            "batch": made.samples,
            "seq": int(made.example[tokens[0]].shape[1]) if tokens else 1,
            "text": int(bool(tokens)),
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
        """The module with the loss inside, in training mode, and example inputs."""
        import torch

        from .user_model import join, resized

        made = self._made(batch, seq, device, shrink)
        module = made.module.to(getattr(torch, dtype)).train()
        take_form(module, made.example, attention)
        if self.loss is not None:
            join(module, made.feed, self.loss)
        inputs = resized(made.example, made.inputs, batch or made.samples)
        return module, {
            n: x.to(device, getattr(torch, dtype) if x.is_floating_point() else None) for n, x in inputs.items()
        }

    def _made(self, batch: int, seq: int, device: str, shrink: Shrink | None) -> _Made:
        import torch
        from torch import nn

        from .user_model import Feed, is_transformers, like

        function = self._function()
        with torch.device(device):
            returned = function(**self._wanted(function, batch, seq, shrink))
        module, example = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{self._at(function)}: {self.function}() returned {type(returned).__name__}: it must return the module, "
                "or (module, example batch)"
            )
        example = self.example if self.example is not None else example
        seq = (shrink.seq if shrink else 0) or seq
        if example is None:
            if not is_transformers(module):
                raise InputError(
                    f"{self.function}() says nothing of a batch: return (module, example batch), or give inputs=, one "
                    "batch of any number of samples"
                )
            from .zoo._transformers import inputs_of

            settings: Any = module.config
            example = inputs_of(module, seq or default_seq(settings.to_dict()))
        feed = Feed.of(module, example, self.loss)
        named = feed.named(example)
        self._check_seq(function, named, seq)
        return _Made(module, feed, named, like(named))

    def _function(self) -> Callable[..., object]:
        assert self.call is not None
        return self.call

    def _capture(self, batch: int, seq: int, dtype: str, shrink: Shrink | None) -> Graph:
        from .user_model import graph_of

        made = self._made(batch, seq, "meta", shrink)
        return graph_of(made.module, made.feed, made.inputs, batch, loss=self.loss, dtype=dtype)
