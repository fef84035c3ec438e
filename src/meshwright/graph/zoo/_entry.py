"""One model of the zoo: what it is called, how big it is, where its sizes come from, how it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._shrink import Shrink

Config: TypeAlias = Mapping[str, object]
"""A configuration as its JSON file says it."""
Inputs: TypeAlias = "dict[str, Tensor]"
"""Example inputs by the name of the argument that takes them; dim 0 of each is the samples."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    family: str
    parameters: int
    """Counted by the closed form of the family, ties once."""
    batch: int
    """Samples a step, when none is given."""
    seq: int
    """Tokens a sample, when none is given; 1 for a model without a sequence."""
    source: str
    """Where the sizes come from."""
    config: Config = field(default_factory=dict)
    """`model_type` says who builds it: a class of transformers, or a module of ours."""

    @property
    def text(self) -> bool:
        """It reads tokens and predicts tokens."""
        return self.seq > 1

    def build(
        self,
        batch: int,
        seq: int = 0,
        dtype: str = "float32",
        *,
        device: str = "meta",
        shrink: Shrink | None = None,
        attention: str = "meshwright",
    ) -> tuple[nn.Module, Inputs]:
        """The module in training mode with its loss inside, and inputs of zeros; seq 0 = the entry's own."""
        from ._own import own

        if made := own().get(str(self.config["model_type"])):
            return made.build(self.config, batch, seq or self.seq, dtype, device, shrink)
        from ._transformers import build

        return build(self.config, batch, seq or self.seq, dtype, device=device, shrink=shrink, attention=attention)
