"""Tokens to rows of their experts and back: exact where there is room, and groups that know nothing of each other."""

import pytest
import torch

from meshwright.graph.dispatch import moe_combine, moe_dispatch, sizes_of

EXPERTS, CHOSEN, WIDTH = 4, 2, 3


def _choices(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(EXPERTS, generator=draw)[:CHOSEN] for _ in range(count)])
    hidden = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    return hidden, index, torch.rand(count, CHOSEN, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(
    ("chosen", "experts", "positions", "group"),
    [(8, 256, 4096, (32, 1)), (2, 8, 4096, (4, 1)), (6, 160, 4096, (4096, 154)), (8, 384, 4096, (4096, 86))],
)
def test_groups_are_the_shortest_with_the_exact_even_share(
    chosen: int, experts: int, positions: int, group: tuple[int, int]
) -> None:
    assert sizes_of(1.0, chosen, experts, positions) == group


def test_with_room_every_token_gets_the_weighted_sum_of_its_experts() -> None:
    hidden, index, weights = _choices(8, 1)
    x, share = moe_dispatch(hidden, index, weights, EXPERTS, 4, 4)
    scale = torch.arange(1.0, EXPERTS + 1, dtype=torch.float64)  # expert e multiplies by e + 1
    found = moe_combine(x * scale[:, None, None] * share.unsqueeze(-1), index, 4, 4)
    torch.testing.assert_close(found, hidden * (scale[index] * weights).sum(1, keepdim=True))


def test_a_token_without_a_row_is_dropped() -> None:
    hidden = torch.ones(4, WIDTH)
    index = torch.zeros(4, 1, dtype=torch.int64)
    x, share = moe_dispatch(hidden, index, torch.ones(4, 1), EXPERTS, 4, 3)
    assert moe_combine(x * share.unsqueeze(-1), index, 4, 3)[:, 0].tolist() == [1, 1, 1, 0]


def test_groups_can_be_computed_apart() -> None:
    hidden, index, weights = _choices(8, 2)
    whole, _ = moe_dispatch(hidden, index, weights, EXPERTS, 4, 2)
    parts = [moe_dispatch(hidden[a : a + 4], index[a : a + 4], weights[a : a + 4], EXPERTS, 4, 2)[0] for a in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, index, weights = _choices(8, 3)

    def function(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        x, share = moe_dispatch(hidden, index, weights, EXPERTS, 4, 2)
        return moe_combine(x.sin() * share.unsqueeze(-1), index, 4, 2)

    assert torch.autograd.gradcheck(function, (hidden.requires_grad_(), weights.requires_grad_()))
