"""torch's optimizers on parts: the parts of the whole's update; what they remember can be made before the first step."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from meshwright.execute.optimizer import SGD, AdamW, MakeOptimizer, memory, prepare_memory

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


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_memory_made_beforehand_changes_no_step(rule: MakeOptimizer) -> None:
    torch.manual_seed(0)
    first = [torch.randn(4, 3), torch.tensor(2.0)]
    plain, prepared = ([nn.Parameter(w.clone()) for w in first] for _ in range(2))
    optimizers = rule(plain), rule(prepared)
    prepare_memory(optimizers[1])
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(prepared, first, strict=True))
    for _ in range(3):
        for p, q in zip(plain, prepared, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(plain, prepared, strict=True):
        assert torch.equal(p, q)
        for name, x in memory(optimizers[0], p).items():
            assert torch.equal(x, memory(optimizers[1], q)[name])


def test_what_is_remembered_of_each_element_has_torchs_names() -> None:
    p, scalar = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.tensor(1.0))
    optimizer = AdamW()([p, scalar])
    assert memory(optimizer, p) == {}
    prepare_memory(optimizer)
    assert set(memory(optimizer, p)) == set(memory(optimizer, scalar)) == {"exp_avg", "exp_avg_sq"}
