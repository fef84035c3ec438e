"""The samples of each step of a run: a function of seed and step alone, so a step is the whole position in the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InputError, Unsupported
from ...graph.source import ModelSource
from ..step.runtime import MicroBatch
from .data import Text, read_text, tokenised


class Samples:
    """Text for language models, else random inputs; the same in every process and under any cut into micro-batches."""

    def __init__(
        self, source: ModelSource, micro_batch: int, count: int, seq: int, seed: int, data: str | None = None
    ) -> None:
        """`micro_batch`: samples of one, `count` of them a step. `data`: a text file instead of the shipped book."""
        self.source, self.micro_batch, self.count, self.seq, self.seed = source, micro_batch, count, seq, seed
        self.text: Text | None = None
        if source.text:
            self.text = tokenised(read_text(data), self._vocabulary())
        elif data is not None:
            raise InputError(f"{source.name} reads no text, so it cannot be trained on {data}: leave --data out")

    def _vocabulary(self) -> int:
        module, _ = self.source.build(self.micro_batch, self.seq, device="meta")
        table = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
        if table is None:
            raise Unsupported(f"{self.source.name} has no embedding, so its tokens have no known number")
        return table.num_embeddings

    def batch(self, step: int) -> list[MicroBatch]:
        """The micro-batches of step 0, 1, …, whole."""
        total = self.micro_batch * self.count
        tokens = self.text.windows(total, self.seq, step, self.seed) if self.text is not None else None
        generator = torch.Generator()

        def drawn(begin: int, end: int) -> dict[str, Tensor]:
            if tokens is not None:
                return dict(self.source.text_inputs(tokens[begin:end], generator))
            return dict(self.source.random_inputs(end - begin, self.seq, generator))

        generator.manual_seed(self.seed * 1_000_003 + step)
        whole = drawn(0, total)
        if any(x.dim() == 0 or x.shape[0] != total for x in whole.values()):  # samples that are no rows
            generator.manual_seed(self.seed * 1_000_003 + step)
            return [drawn(k * self.micro_batch, (k + 1) * self.micro_batch) for k in range(self.count)]
        return [
            {name: x[k * self.micro_batch : (k + 1) * self.micro_batch] for name, x in whole.items()}
            for k in range(self.count)
        ]
