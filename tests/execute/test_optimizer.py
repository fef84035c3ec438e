"""torch's optimizers on parts: the parts of the whole's update."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from meshwright.errors import InputError
from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer, made

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


RIGHT = "give a function of the parameters, such as lambda p: torch.optim.AdamW(p, 3e-4)"
OTHERS = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
WRONG: list[tuple[Any, str]] = [
    (None, f"optimizer= is None, not a function: {RIGHT}"),
    (torch.optim.SGD(OTHERS, 0.1), f"optimizer= is of type SGD, not a function: {RIGHT}"),
    (lambda p: None, f"optimizer= made None, not an optimizer of torch.optim: {RIGHT}"),
    (
        lambda p: torch.optim.SGD(OTHERS, 0.1),
        "optimizer= left out 4 of the 4 parameters that it was given and took 3 others, which a job does not train: "
        + RIGHT,
    ),
    (
        lambda p: torch.optim.SGD(p[:3], 0.1),
        "optimizer= left out 1 of the 4 parameters that it was given and took 0 others, which a job does not train: "
        + RIGHT,
    ),
]


@pytest.mark.parametrize(("make", "sentence"), WRONG, ids=["None", "instance", "makes None", "others", "subset"])
def test_an_optimizer_that_would_not_train_the_parameters_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(InputError) as told:
        made(make, [nn.Parameter(torch.zeros(2)) for _ in range(4)])
    assert told.value.message == sentence


def test_groups_of_parameters_with_rates_of_their_own_are_taken() -> None:
    params = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    optimizer = made(lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]), params)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]
