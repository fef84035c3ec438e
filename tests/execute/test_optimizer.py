"""Our optimizers against torch's, and on parts as on the whole."""

from __future__ import annotations

import torch

from meshwright.execute.optimizer import SGD, AdamW, State


def test_adamw_is_that_of_torch() -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(7, 5))
    state, rule = State(w.detach().clone()), AdamW(lr=3e-3, weight_decay=0.1)
    theirs = torch.optim.AdamW([w], 3e-3, weight_decay=0.1)
    for _ in range(20):
        w.grad = torch.randn(7, 5)
        rule.update(state, w.grad)
        theirs.step()
        torch.testing.assert_close(state.master, w.detach(), rtol=1e-6, atol=1e-7)


def test_parts_are_updated_as_the_whole_is() -> None:
    torch.manual_seed(0)
    w, grads = torch.randn(8, 3), [torch.randn(8, 3) for _ in range(3)]
    for rule in (AdamW(), SGD()):
        whole, parts = State(w.clone()), [State(p.clone()) for p in w.split(3)]
        for g in grads:
            rule.update(whole, g)
            for part, own in zip(parts, g.split(3), strict=True):
                rule.update(part, own)
        assert torch.equal(whole.master, torch.cat([p.master for p in parts]))
