"""torch's optimizers on parts: the parts of the whole's update."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer

RULES: tuple[MakeOptimizer, ...] = (SGD(), SGD(0.05, momentum=0.9, weight_decay=0.1, nesterov=True), AdamW(lr=3e-3))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_parts_are_updated_as_the_whole_is(rule: MakeOptimizer) -> None:
    torch.manual_seed(0)
    w, grads = torch.randn(8, 3), [torch.randn(8, 3) for _ in range(3)]
    whole, parts = nn.Parameter(w.clone()), [nn.Parameter(p.clone()) for p in w.split(3)]
    optimizers = pickle.loads(pickle.dumps(rule))([whole]), rule(parts)
    for g in grads:
        whole.grad = g
        for part, own in zip(parts, g.split(3), strict=True):
            part.grad = own
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(whole, w)
    assert torch.equal(whole, torch.cat(parts))
