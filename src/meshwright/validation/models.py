"""Graphs of the dense transformers of measured rows: three blocks are captured, the others are copies of the middle one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

from ..graph.ir import Graph, Op, Run, Tensor
from ..graph.serial import digest_of
from ..graph.source import ConfigSource
from ..graph.zoo import Config
from .graphs import graph_of

SAMPLES = 2
"""Captured batch: a dim of size 1 would have no factor."""


def padded(vocab: int, tp: int) -> int:
    """Words after padding so that they split evenly, as Megatron-LM pads."""
    return ceil(vocab / (128 * tp)) * 128 * tp


class Shape(Protocol):
    """What a measured model is, whatever its kind; hashable, equal where the models are."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice, causal attention halved, no recompute."""

    @property
    def masked_flops(self) -> float:
        """FLOPs of one sample on scores that a causal mask hides: `flops` leaves them out, some sources count them."""

    @property
    def capacity(self) -> str | float:
        """Room of an expert, see `ConfigSource`."""

    def shortened(self) -> Shape:
        """The model with as few blocks as `stretched` needs: what is captured."""

    def config(self, layers: int) -> Config:
        """A configuration of the transformers library with `layers` blocks."""


@dataclass(frozen=True, slots=True)
class Dense:
    """The shape of a decoder-only transformer. ffn = width of the feed-forward layer."""

    style: str
    """"gpt" (biases, learned positions, tied head), "llama" (gated, rotary, own head) or "nemotron" (squared ReLU)."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    seq: int

    @property
    def capacity(self) -> str | float:
        return "no-drop"

    def shortened(self) -> Dense:
        """Three blocks: first, middle and last."""
        return replace(self, layers=3)

    def config(self, layers: int) -> Config:
        """A configuration of the transformers library with `layers` blocks."""
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        if self.style == "gpt":
            return {
                "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": layers, "n_embd": self.hidden,
                "n_head": self.heads, "n_inner": self.ffn, "n_positions": self.seq, "vocab_size": self.vocab,
                "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
                **ends,
            }  # fmt: skip
        sizes: dict[str, object] = {
            "num_hidden_layers": layers, "hidden_size": self.hidden, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.ffn, "vocab_size": self.vocab,
            "max_position_embeddings": self.seq, "tie_word_embeddings": False, **ends,
        }  # fmt: skip
        if self.style == "nemotron":
            return {"model_type": "nemotron", "architectures": ["NemotronForCausalLM"], **sizes}
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes}

    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice, causal attention halved, no recompute."""
        kv = self.hidden * self.kv_heads / self.heads
        gates = 2 if self.style == "llama" else 1
        layer = 2 * self.hidden * (self.hidden + kv) + (1 + gates) * self.hidden * self.ffn
        attention = self.seq * self.hidden
        return 3.0 * self.seq * (self.layers * (2 * layer + 2 * attention) + 2 * self.hidden * self.vocab)

    @property
    def masked_flops(self) -> float:
        """See `Shape`."""
        return 3.0 * self.layers * 2 * self.seq * self.seq * self.hidden


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model whose weights stand still while low-rank adapters beside some of its products learn (LoRA)."""

    base: Dense
    rank: int
    beside: tuple[str, ...]
    """Last names of the products that have an adapter."""

    @property
    def layers(self) -> int:
        return self.base.layers

    @property
    def hidden(self) -> int:
        return self.base.hidden

    @property
    def heads(self) -> int:
        return self.base.heads

    @property
    def seq(self) -> int:
        return self.base.seq

    @property
    def vocab(self) -> int:
        return self.base.vocab

    @property
    def flops(self) -> float:
        """See `Shape`: no gradients of weights, so of products two thirds; what the adapters compute is left out."""
        scores = self.base.masked_flops
        return scores + (self.base.flops - scores) * 2.0 / 3.0

    @property
    def masked_flops(self) -> float:
        return self.base.masked_flops

    @property
    def capacity(self) -> str | float:
        return self.base.capacity

    def shortened(self) -> Adapted:
        return replace(self, base=self.base.shortened())

    def config(self, layers: int) -> Config:
        return self.base.config(layers)


class Graphs:
    """Graphs by shape."""

    def __init__(self) -> None:
        self._captured: dict[Shape, Graph] = {}
        self._known: dict[Shape, Graph] = {}

    def of(self, model: Shape) -> Graph:
        if model not in self._known:
            short = model.shortened()
            if short not in self._captured:
                self._captured[short] = graph_of(source_of(short))
            self._known[model] = stretched(self._captured[short], model.layers - short.layers)
        return self._known[model]


def source_of(model: Shape) -> ConfigSource:
    """What a model is captured from."""
    config = model.config(model.layers)
    if isinstance(model, Adapted):
        from .adapters import AdapterSource

        return AdapterSource(
            "measured", "measured", "config", config, SAMPLES, model.seq, rank=model.rank, beside=model.beside
        )
    masked = getattr(model, "masked", model.seq)
    if masked < model.seq:
        from .encoders import MaskedSource

        return MaskedSource("measured", "measured", "config", config, SAMPLES, model.seq, masked=masked)
    return ConfigSource("measured", "measured", "config", config, SAMPLES, model.seq, model.capacity)


def stretched(graph: Graph, more: int) -> Graph:
    """`graph`, whose last run has three blocks, with so many `more`, which are the middle block under new names.

    Raises:
        ValueError: no runs, another number of blocks, or fewer than none to make.
    """
    if not more:
        return graph
    if not graph.runs or graph.runs[-1].count != 3 or more < 0:
        raise ValueError(f"a graph whose last run has three blocks is stretched, not {graph.runs} by {more} blocks")
    run, count = graph.runs[-1], 3 + more
    first, length = run.first, run.length
    path = re.sub(r"\.\d+$", "", run.name)  # of a second run in one list of modules: "model.layers.3"
    ops = list(graph.ops[: first + 2 * length])
    middle, tail = graph.ops[first + length : first + 2 * length], graph.ops[first + 3 * length :]
    tensors: dict[str, Tensor] = {}
    by_name = graph.tensor
    moved = _Moved(path, middle)
    for b in range(2, count):
        names = moved.by(b - 1)
        ops += [_renamed(op, names) for op in middle]
        for old, new in names.items():
            if old in by_name and new not in by_name and new not in tensors:
                t = by_name[old]
                tensors[new] = Tensor(new, t.nbytes, t.shape, t.dtype, t.role, t.frozen)
    names = _Moved(path, tail).by(more)
    ops += [_renamed(op, names) for op in tail]
    made = replace(
        graph,
        ops=tuple(ops),
        tensors=(*graph.tensors, *tensors.values()),
        runs=(*graph.runs[:-1], Run(run.name, first, length, count)),
    )
    return replace(made, digest=digest_of(made))


class _Moved:
    """The names in `ops` under the number of a later block of the run."""

    def __init__(self, run: str, ops: Sequence[Op]) -> None:
        pattern = re.compile(re.escape(run) + r"\.(\d+)(?=[./]|$)")
        self._run = run
        self._parts: dict[str, list[str]] = {}
        for op in ops:
            for name in (op.name, op.module, *op.inputs, *op.outputs, *op.saved):
                if name not in self._parts:
                    self._parts[name] = pattern.split(name)

    def by(self, blocks: int) -> dict[str, str]:
        """Name -> the same name so many blocks later."""
        found = {}
        for name, parts in self._parts.items():
            new = parts[0]
            for number, text in zip(parts[1::2], parts[2::2], strict=True):
                new += f"{self._run}.{int(number) + blocks}{text}"
            found[name] = new
        return found


def _renamed(op: Op, names: Mapping[str, str]) -> Op:
    return Op(
        names[op.name], op.kind, tuple([names[n] for n in op.inputs]), tuple([names[n] for n in op.outputs]), op.rule,
        op.flops, tuple([names[n] for n in op.saved]), op.saved_extra, op.phase, op.of, names[op.module], op.colocate,
        op.runs_on, op.after, op.call, op.args, op.kwargs, op.source,
    )  # fmt: skip
