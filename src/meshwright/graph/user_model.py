"""A user's own module with the loss of their own loop: what its batches look like, and its graph.

The module is never touched: what is captured is a copy of its structure, whose parameters are on the meta device. The loss
is part of the copy's forward, so every name in the graph is the module's own.

    batch            the model is given                                   loss(output, batch)
    dict             without a loss all of it, else what forward names    the dict
    (x, y, …)        forward's arguments without default, in order        the tuple
    tensor           forward's first argument                             the tensor
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import CaptureError, InputError
from .blocks import with_runs
from .capture import capture
from .hazards import watched
from .ir import Graph
from .zoo import Inputs

Batch: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Any, Any], Tensor]
Like: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
"""Per input: (shape, dtype), a dim of -k holding k elements a sample."""
EXTRA = "batch_"
"""Names of the entries of a tuple that only the loss reads: "batch_1", by position."""


@dataclass(frozen=True)
class Feed:
    """How the batches of a loop become the named inputs of a graph, and back."""

    form: Literal["dict", "tuple", "tensor"]
    names: tuple[str, ...]
    """Of all entries, in order."""
    model: tuple[str, ...]
    """Of those that the module's forward is given."""

    @staticmethod
    def of(module: nn.Module, batch: Batch, loss: Loss | None) -> Feed:
        """What a batch like `batch` is to `module`.

        Raises:
            InputError: entries that are no tensors, or that forward does not take.
        """
        parameters = inspect.signature(module.forward).parameters.values()
        takes = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        entries = _entries(batch)
        if isinstance(batch, Mapping):
            names = tuple(entries)
            given = names if loss is None or not takes else tuple(n for n in names if n in takes)
            odd = [n for n in given if n not in takes and not anything]
            feed = Feed("dict", names, given)
        else:
            needed = [p.name for p in parameters if p.default is p.empty and p.name in takes]
            given = tuple((takes if loss is None else needed)[: len(entries)])
            names = given + tuple(f"{EXTRA}{k}" for k in range(len(given), len(entries)))
            odd = list(names[len(given) :]) if loss is None else []
            feed = Feed("tensor" if isinstance(batch, Tensor) else "tuple", names, given)
        if odd or not given:
            raise InputError(
                f"the batch does not fit forward({', '.join(takes)}) of {type(module).__name__}: give a dict by the names of "
                "the arguments, or a tuple in their order, and a loss if some entries are for the loss alone"
            )
        return feed

    @staticmethod
    def named_like(module: nn.Module, names: Sequence[str], loss: Loss | None) -> Feed:
        """Of a model whose inputs are known by name."""
        blank = torch.empty(0)
        if any(n.startswith(EXTRA) for n in names):
            return Feed.of(module, (blank,) * len(names), loss)
        return Feed.of(module, dict.fromkeys(names, blank), loss)

    def named(self, batch: Batch) -> dict[str, Tensor]:
        """The entries of a batch by name.

        Raises:
            InputError: of another form, or with other entries.
        """
        entries = _entries(batch)
        if not isinstance(batch, Mapping):
            if len(entries) != len(self.names):
                raise InputError(
                    f"the batch has {len(entries)} entries, the model and its loss read {_listed(self.names)}"
                )
            return dict(zip(self.names, entries.values(), strict=True))
        missing = [n for n in self.names if n not in entries]
        odd = [n for n in entries if n not in self.names]
        if missing or odd:
            what = f"has no {_listed(missing)}" if missing else f"has {_listed(odd)}, which was not there in planning"
            raise InputError(f"the batch {what}: the model and its loss read {_listed(self.names)}")
        return {n: entries[n] for n in self.names}

    def batch(self, named: Mapping[str, Tensor]) -> Batch:
        """The same entries as the loss expects them."""
        if self.form == "dict":
            return {n: named[n] for n in self.names}
        values = tuple(named[n] for n in self.names)
        return values if self.form == "tuple" else values[0]


def _entries(batch: Batch) -> dict[str, Tensor]:
    if isinstance(batch, Tensor):
        found: dict[str, Any] = {"0": batch}
    elif isinstance(batch, Mapping):
        found = dict(batch)
    elif isinstance(batch, (tuple, list)):
        found = {str(k): x for k, x in enumerate(batch)}
    else:
        raise InputError(f"a batch is a tensor, a tuple of tensors or a dict of tensors, not a {type(batch).__name__}")
    for name, x in found.items():
        if not isinstance(x, Tensor):
            raise InputError(f'entry "{name}" of the batch is a {type(x).__name__}: every entry must be a tensor')
    return found


def like(named: Mapping[str, Tensor]) -> Like:
    """What one example batch says of all: dims 0 that are as long as that of the first entry count the samples.

    Raises:
        InputError: no entry with dims.
    """
    samples = next((x.shape[0] for x in named.values() if x.dim()), 0)
    if not samples:
        raise InputError("the example batch has no samples: dim 0 of its first entry counts them")
    return {
        name: (
            tuple(-1 if d == 0 and n == samples else int(n) for d, n in enumerate(x.shape)),
            str(x.dtype).removeprefix("torch."),
        )
        for name, x in named.items()
    }


def blank(inputs: Like, samples: int, device: str = "meta") -> Inputs:
    """Zeros for inputs of so many samples."""
    return {
        name: torch.zeros([-n * samples if n < 0 else n for n in shape], dtype=getattr(torch, dtype), device=device)
        for name, (shape, dtype) in inputs.items()
    }


def resized(named: Mapping[str, Tensor], inputs: Like, samples: int) -> Inputs:
    """So many samples by repeating those of an example; on its device."""
    found = {}
    for name, x in named.items():
        by_sample = x.dim() > 0 and inputs[name][0][0] < 0
        found[name] = x[torch.arange(samples, device=x.device) % x.shape[0]] if by_sample else x
    return found


def is_transformers(module: nn.Module) -> bool:
    """Whether the module is a model of the transformers library, without loading that."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def twin_of(module: nn.Module, dtype: str = "") -> nn.Module:
    """A copy of the module's structure: parameters on the meta device, buffers shared, floats in `dtype` if given.

    Raises:
        InputError: a module that Python cannot copy.
    """
    wanted = getattr(torch, dtype) if dtype else None

    def cast(x: Tensor) -> Tensor:
        return x.to(wanted) if wanted is not None and x.is_floating_point() else x

    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(cast(p.detach().to("meta")), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = cast(b.detach())
    kept = list(memo.values())  # deepcopy trusts ids: nothing may be freed meanwhile
    try:
        twin = copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied, which capturing needs ({type(error).__name__}: {error}): keep "
            "tensors in parameters and buffers"
        ) from error
    del kept
    return twin.train()


def graph_of(
    module: nn.Module,
    feed: Feed,
    inputs: Like,
    samples: int,
    *,
    loss: Loss | None = None,
    dtype: str = "",
    as_built: bool = False,
    train: bool = True,
) -> Graph:
    """The graph of `module` and its loss at so many samples; the module stays as it is.

    Args:
        as_built: a transformers model keeps its own attention and experts, instead of forms that a plan can cut.
        train: in training mode, else in evaluation mode.

    Raises:
        CaptureError: the module does what no graph can say; names module, file and line.
    """
    twin = twin_of(module, dtype)
    given = blank(inputs, samples)
    if dtype:
        given = {n: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for n, x in given.items()}
    with contextlib.ExitStack() as stack:
        if is_transformers(twin):
            from .zoo._transformers import one_sequence_a_sample, set_forms

            tokens = next((x for x in given.values() if x.dim() == 2 and x.dtype == torch.int64), None)
            set_forms(twin, int(tokens.shape[1]) if tokens is not None else 1, own=as_built)
            if "position_ids" not in given:
                stack.enter_context(one_sequence_a_sample())
        if loss is not None:
            join(twin, feed, loss)
        seen = stack.enter_context(watched(twin))
        graph = capture(twin, given, samples, train=train)
    return with_runs(seen.checked(graph))


def join(twin: nn.Module, feed: Feed, loss: Loss) -> None:
    """Makes the loss the end of the twin's forward."""
    if isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None:
        raise InputError("the loss has parameters of its own: make it a part of the model, so that they are trained")
    own = type(twin)

    def forward(self: nn.Module, **named: Tensor) -> Tensor:
        output = own.forward(self, **{n: named[n] for n in feed.model})
        value = loss(output, feed.batch(named))
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"the loss returned a {type(value).__name__}: loss(output, batch) must return one number"
            )
        return value

    twin.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
