"""What double buffering hides of SUMMA: while one step's blocks are multiplied, the next one's come.

q steps of compute c and broadcasts b take b + (q − 1) · max(b, c) + c: of the broadcasts (q − 1) · min(b, c) are hidden, as
far as the cost model lets prefetched operands run beside products (`overlap("sharded")`). Sums of gradients are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..graph.ir import Floats, Phase
from ..lower.program import Instr

Fetched = Callable[[Instr], Floats]
"""Seconds [n] of one broadcast."""
Spent = Callable[[Instr, Phase], Floats]
"""Seconds [n] of all steps of a product."""


def hidden(instrs: Sequence[Instr], samples: int, fetched: Fetched, spent: Spent, share: Floats | float) -> Floats:
    """Seconds [samples] of the broadcasts of one list that nobody waits for."""
    found = np.zeros(samples)
    products = {i.on: i for i in instrs if i.kind == "compute" and i.steps > 1}
    first = {
        (i.on, i.dim2): i for i in instrs if i.kind == "panel" and i.collective == "broadcast" and i.on in products
    }
    for name, product in products.items():
        waits: list[tuple[Phase, list[Instr]]]
        coming = {k: i for (on, k), i in first.items() if on == name}
        if product.phase == "forward":
            waits = [("forward", list(coming.values()))]
        else:  # the gradient of one operand needs the blocks of the other
            phases: tuple[Phase, Phase] = ("weight_grad", "input_grad")
            waits = [(phases[k], [i]) for k, i in coming.items()]
        for phase, blocks in waits:
            one = np.sum([fetched(i) for i in blocks], axis=0)
            found += (product.steps - 1) * np.minimum(one, spent(product, phase) / product.steps)
    unseen: Floats = share * found
    return unseen
