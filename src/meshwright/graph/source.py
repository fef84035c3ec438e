"""Where a model comes from: a name of the zoo, a configuration file, or a function in a user's file."""

from __future__ import annotations

import abc
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._parsed import ENCODING, parsed_json
from .._spelling import nearest
from ..errors import InputError
from . import cache as disk
from .ir import Graph
from .zoo import Config, Inputs, Own, Shrink, by_name, own

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Kind = Literal["zoo", "config", "code"]
_LONGEST_DEFAULT = 4096
"""Tokens a sample for a configuration that could take more: long contexts are asked for, not assumed."""


class ModelSource(abc.ABC):
    """A model that can be built, captured and fed; making one loads no torch.

    Attributes:
        spec: what the user wrote.
        name: short, fit for a folder.
        default_batch: samples a step when none is given.
        default_seq: tokens a sample when none is given; 1 for a model without a sequence.
        text: it reads tokens and predicts tokens.
    """

    spec: str
    name: str
    kind: Kind

    @property
    @abc.abstractmethod
    def default_batch(self) -> int: ...

    @property
    @abc.abstractmethod
    def default_seq(self) -> int: ...

    @property
    @abc.abstractmethod
    def text(self) -> bool: ...

    def sequence(self, wanted: int) -> int:
        """Tokens a sample that the model can be built for: `wanted`, or its only length."""
        return wanted

    @abc.abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Everything about the model that a captured graph depends on, as JSON values."""

    @abc.abstractmethod
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
        """The user's own module in training mode and example inputs; 0 = the default."""

    @abc.abstractmethod
    def random_inputs(
        self, batch: int, seq: int, generator: Generator, *, shrink: Shrink | None = None, dtype: str = "float32"
    ) -> Inputs:
        """Legal inputs of `batch` samples on the CPU, drawn from `generator`."""

    @abc.abstractmethod
    def text_inputs(self, tokens: Tensor, generator: Generator) -> Inputs:
        """Inputs that train the model on `tokens`, [samples, seq + 1] consecutive tokens of a text.

        What is neither tokens nor labels is drawn from `generator`, as `random_inputs` does.
        """

    def graph(
        self,
        batch: int = 2,
        seq: int = 0,
        dtype: str = "bfloat16",
        *,
        shrink: Shrink | None = None,
        cache: bool = True,
    ) -> Graph:
        """The captured graph with its repeated blocks and its digest; a second call reads it from disk.

        Raises:
            CaptureError: the module does what no graph can say; names module, file and line.
        """
        seq = seq or self.default_seq
        key = disk.key(self.identity(), batch, seq, dtype, shrink)
        found = disk.load(key) if cache else None
        if found is None:
            found = self._capture(batch, seq, dtype, shrink)
            if cache:
                disk.save(key, found)
        return found

    def _capture(self, batch: int, seq: int, dtype: str, shrink: Shrink | None) -> Graph:
        from .blocks import with_runs
        from .capture import capture
        from .hazards import watched

        module, inputs = self.build(batch, seq, dtype, shrink=shrink)
        with contextlib.ExitStack() as stack:
            if "transformers.masking_utils" in sys.modules and "position_ids" not in inputs:
                from .zoo._transformers import one_sequence_a_sample

                stack.enter_context(one_sequence_a_sample())
            seen = stack.enter_context(watched(module))
            graph = capture(module, inputs, batch)
        return with_runs(seen.checked(graph))


@dataclass(frozen=True)
class ConfigSource(ModelSource):
    """A class of transformers, or a module of the zoo, from a configuration: of the zoo, or the user's file."""

    spec: str
    name: str
    kind: Kind
    config: Config
    batch: int
    seq: int
    capacity: str | float = "no-drop"
    """Room of an expert: "no-drop", or so many times its even share of a sequence's tokens."""

    @property
    def default_batch(self) -> int:
        return self.batch

    @property
    def default_seq(self) -> int:
        return self.seq

    @property
    def text(self) -> bool:
        named = self.config.get("architectures")
        classes = named if isinstance(named, list) else []
        return self.seq > 1 and not any(str(name).endswith("ForSequenceClassification") for name in classes)

    @property
    def _own(self) -> Own | None:
        return own().get(str(self.config["model_type"]))

    def identity(self) -> Mapping[str, object]:
        room = {} if self.capacity == "no-drop" else {"capacity": self.capacity}
        return {"config": self.config, **room}

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
        batch, seq = batch or self.batch, seq or self.seq
        if self._own:
            return self._own.build(self.config, batch, seq, dtype, device, shrink)
        from .zoo._transformers import build

        return build(
            self.config, batch, seq, dtype, device=device, shrink=shrink, attention=attention, capacity=self.capacity
        )

    def random_inputs(
        self, batch: int, seq: int, generator: Generator, *, shrink: Shrink | None = None, dtype: str = "float32"
    ) -> Inputs:
        import torch

        module, blank = self.build(batch, seq, dtype, shrink=shrink)
        return {
            name: torch.randint(0, self._values(module, name), tuple(x.shape), generator=generator)
            if x.dtype == torch.int64
            else torch.randn(tuple(x.shape), generator=generator).to(x.dtype)
            for name, x in blank.items()
        }

    def _values(self, module: nn.Module, name: str) -> int:
        """How many values an integer input may take."""
        if self._own:
            return self._own.values(module, name)
        settings: Any = module.config
        if name == "labels" and not type(module).__name__.endswith(("LM", "LMHeadModel", "ConditionalGeneration")):
            return int(settings.num_labels)
        return int(settings.get_text_config().vocab_size)

    def text_inputs(self, tokens: Tensor, generator: Generator) -> Inputs:
        if self._own and self._own.text:
            return self._own.text(tokens)
        from .zoo._transformers import configure, targets

        settings, seq = configure(self.config, tokens.shape[1] - 1, None)
        if settings.is_encoder_decoder:
            return {"input_ids": tokens[:, :-1], "labels": tokens[:, -targets(settings.to_dict(), seq) :]}
        # transformers shifts the labels itself.
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, :-1]}


def resolve(spec: str) -> ModelSource:
    """The model that `spec` names: `llama-3.1-8b`, `path/config.json` or its folder, `model.py:build`.

    Raises:
        InputError: nothing of that name, or a file that cannot be read.
    """
    if entry := by_name().get(spec):
        return ConfigSource(spec, spec, "zoo", entry.config, entry.batch, entry.seq)
    path, _, function = spec.rpartition(":")
    if path.endswith(".py") or spec.endswith(".py"):
        from .user_code import CodeSource

        return CodeSource(spec, *((path, function) if path.endswith(".py") else (spec, "build")))
    file = Path(spec)
    if file.is_dir() or file.suffix == ".json":
        return _from_config(spec, file / "config.json" if file.is_dir() else file)
    raise InputError(_unknown(spec))


def _from_config(spec: str, file: Path) -> ModelSource:
    try:
        config = parsed_json(file.read_text(encoding=ENCODING))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f'{file}: neither a configuration of transformers, which has a "model_type", nor a recorded profile of a known '
            "format (docs/profiles.md lists them)"
        )
    parent = file.resolve().parent.name
    name = parent if file.name == "config.json" and parent else file.stem
    return ConfigSource(spec, name, "config", config, 32, default_seq(config))


def default_seq(config: Config) -> int:
    """The model's own longest, up to 4,096 and a multiple of 128; 512 when the file does not say."""
    from .zoo._shrink import position_offset, size_of

    if "image_size" in config or "hidden_sizes" in config or "depths" in config:
        return 1
    longest = size_of(config, "seq") or 512
    longest = min(longest - position_offset(config), _LONGEST_DEFAULT)
    return longest // 128 * 128 if longest >= 128 else longest


def _unknown(spec: str) -> str:
    count = len(by_name())
    owner, slash, rest = spec.partition("/")
    if slash and owner and rest and "/" not in rest and not spec.startswith((".", "~")):
        near = nearest(rest.lower(), by_name())
        use = f"use {near}, or give" if near else "give"
        return f'"{spec}" is a hub name and meshwright downloads nothing: {use} a local config.json'
    if near := nearest(spec, by_name()):
        return f'no model "{spec}": did you mean {near}? ("meshwright models" lists {count})'
    return f'no model "{spec}": "meshwright models" lists {count}; a local config.json or model.py:build will do too'
