"""FLOPs of captured ops equal torch's own counter on meta tensors, to the integer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import MODELS
from torch.utils.flop_counter import FlopCounterMode

from meshwright.graph.ir import Graph
from meshwright.graph.kinds import Call, Spec, kind_of
from meshwright.graph.source import resolve
from meshwright.graph.transformers_hooks import register_attention
from meshwright.graph.zoo import by_name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_forward_flops_equal_the_counter(name: str, captured: Callable[[str], Graph]) -> None:
    build, inputs = MODELS[name]
    with FlopCounterMode(display=False) as counter:
        build("meta", register_attention())(**inputs(2, "meta"))
    assert sum(op.flops for op in captured(name).ops) == counter.get_total_flops()


FULL = ("t5-large", "gnmt-8", "wrn-50-2", "wrn-101-8", "unet", "dlrm")
SLOW = ("t5-11b", "qwen3-235b", "deepseek-v3")


@pytest.mark.parametrize("name", [*FULL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_forward_flops_at_full_size_equal_the_counter(name: str) -> None:
    module, inputs = by_name()[name].build(2, dtype="bfloat16")
    with FlopCounterMode(display=False) as counter:
        module(**inputs)
    assert sum(op.flops for op in resolve(name).graph(2, cache=False).ops) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bmk,bkn->bmn", [(2, 3, 4), (2, 4, 5)]),
        ("bhsd,bhtd->bhst", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("...k,nk->...n", [(2, 3, 4), (5, 4)]),
        ("mk,kn", [(3, 4), (4, 5)]),
    ],
)
def test_einsum_flops_equal_the_counter(equation: str, shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.empty(s, device="meta") for s in shapes]
    with FlopCounterMode(display=False) as counter:
        result = torch.einsum(equation, *tensors)
    row = kind_of("einsum")
    assert row is not None
    call = Call("einsum", (equation,), (), tuple(Spec(s) for s in shapes), (Spec(tuple(result.shape)),))
    assert row.flops(call) == counter.get_total_flops()
