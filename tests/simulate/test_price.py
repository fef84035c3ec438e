"""Prices of hand-made stages, every figure by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.cluster.model import Mesh
from meshwright.lower.program import Instr, Kept, Kernel, Param, Segment, StageCode, tensor_of
from meshwright.plan.model import Layout
from meshwright.plan.problem import Recipe
from meshwright.simulate.price import KINDS, PARTS, Pricer, exposed

from .small import Rates, chain, cluster

NONE = Layout(())
MESH = Mesh(range(8), ("dp", "tp"), (4, 2))
LINEAR, RELU = "layers.0/linear", "layers.0/relu"


FRESH = 16 * 16 * 4
"""Bytes of the gradient of the block's weights that its backward makes before it is added to that of other micro-batches."""


def compute(op, phase="forward", outputs=(), sizes=(1.0, 16.0, 16.0), group=-1):
    return Instr("compute", op, phase, outputs=outputs, sizes=sizes, group=group)


def segment(**fields) -> Segment:
    plain = Segment(
        "layers", 1, 2, 0, 1,
        forward=(compute(LINEAR), compute(RELU, sizes=(1.0, 16.0), group=0)),
        rerun=(),
        backward=(
            compute(RELU, "backward", ("∂layers.0/linear",), (1.0, 16.0), 0),
            compute(LINEAR, "backward", ("∂start", "∂layers.0.weight")),
        ),
        kernels=(Kernel((0.0, 128.0), (0.0, 192.0), ("dp",)),),
        kept=Kept((8.0, 64.0), (0.0, 0.0), (0.0, 192.0)),
        samples=("dp",),
    )  # fmt: skip
    return replace(plain, **fields)


def pricer(cost=None, graph=None) -> Pricer:
    return Pricer(graph or chain(), cluster(8), cost or Rates(), Recipe(64, compute_dtype="float32"))


def parts(row) -> dict[str, float]:
    return {name: x for name, x in zip(PARTS, row, strict=True) if x}


def test_names_of_values_lead_to_their_tensor():
    assert [tensor_of(v) for v in ("x", "∂x", "x!", "x@2", "∂x@1", "x@new.dp")] == ["x"] * 6


def test_heavy_ops_are_priced_at_local_sizes_and_kernels_by_their_bytes():
    found = pricer().segment(segment(), MESH, np.array([4, 8, 9]))
    # 4, 8, 9 samples over dp = 4 are 1, 2, 3 on the fullest device; product 2·16·16 FLOPs a sample at 1e6, bytes at 1e6.
    for row, local in enumerate((1, 2, 3)):
        assert parts(found.forward[row]) == pytest.approx({"compute": local * (512e-6 + 128e-6)})
        assert parts(found.backward[row]) == pytest.approx({"compute": local * (2 * 512e-6 + 192e-6)})
    assert found.kept.tolist() == [72, 136, 200]
    assert found.buffers.tolist() == [[192, 192 + FRESH], [384, 384 + FRESH], [576, 576 + FRESH]]


def test_a_gradient_that_does_not_flow_is_not_priced():
    only = compute(LINEAR, "backward", ("∂layers.0.weight",))
    found = pricer().segment(segment(backward=(only,), kernels=(), forward=(compute(LINEAR),)), MESH, np.array([4]))
    assert parts(found.backward[0]) == pytest.approx({"compute": 512e-6})


def test_what_runs_again_is_forward_work_of_the_backward():
    plain = pricer().segment(segment(), MESH, np.array([4]))
    whole = pricer().segment(segment(rerun=segment().forward), MESH, np.array([4]))
    assert whole.backward[0].sum() == pytest.approx(plain.backward[0].sum() + plain.forward[0].sum())
    light = pricer().segment(segment(rerun=segment().forward[1:]), MESH, np.array([4]))
    assert light.backward[0].sum() == pytest.approx(plain.backward[0].sum() + 128e-6)


def reduce(nbytes: float, samples=("dp",), kind="all_reduce", axes=("tp",), on=LINEAR) -> Instr:
    return Instr("collective", on, collective=kind, axes=axes, nbytes=nbytes, samples=samples)


def test_communication_hides_under_its_share_of_the_compute():
    # share 0.5, two ranks: an all-reduce of n bytes takes n · 1/2 · 2 / 1e6 s beside 640 µs of compute.
    for nbytes, shown in ((200, 100e-6), (1000, 680e-6)):
        code = segment(forward=(*segment().forward, reduce(nbytes)))
        found = pricer(Rates(share=0.5)).segment(code, MESH, np.array([4]))
        assert parts(found.forward[0]) == pytest.approx({"compute": 640e-6, "all_reduce": shown})
    assert exposed(np.array([0.0]), np.array([1.0]), 0.9) == 0


def test_gradients_hide_in_the_backward_by_a_share_of_their_own_what_runs_again_does_not():
    """Of the backward's 1,152 µs and the 640 µs that run again 90 % hide gradients; nothing hides activations."""

    class Late(Rates):
        def overlap(self, kind: str) -> float:
            return {"gradient": 0.9}.get(kind, 0.0)

    ahead, again, back = reduce(200), reduce(400), reduce(600)
    code = segment(forward=(*segment().forward, ahead), backward=(*segment().backward, back))
    found = pricer(Late()).segment(replace(code, rerun=(*segment().forward, again)), MESH, np.array([4]))
    assert parts(found.forward[0]) == pytest.approx({"compute": 640e-6, "all_reduce": 200e-6})
    seen = 400e-6 + (1 - 0.9) * 600e-6
    assert parts(found.backward[0]) == pytest.approx({"compute": 640e-6 + 1216e-6, "all_reduce": seen})
    # Experts' tokens are waited for.
    code = segment(backward=(*segment().backward, reduce(600, kind="all_to_all")))
    assert parts(pricer(Late()).segment(code, MESH, np.array([4])).backward[0])["all_to_all"] == pytest.approx(300e-6)


def test_several_kinds_share_what_is_visible_in_proportion():
    code = segment(forward=(*segment().forward, reduce(600), reduce(1200, kind="all_gather")))
    found = parts(pricer(Rates(share=0.5)).segment(code, MESH, np.array([4])).forward[0])
    # all-reduce 600 µs, all-gather 600 µs; 1,200 − 0.5 · 640 = 880 µs are seen
    assert found == pytest.approx({"compute": 640e-6, "all_reduce": 440e-6, "all_gather": 440e-6})


def test_gathers_of_parameters_hide_on_their_own_and_count_as_buffers():
    gather = reduce(1024, None, "all_gather", ("dp",), "layers.0.weight")
    code = segment(forward=(gather, *segment().forward))
    found = pricer(Rates(share=0.5)).segment(code, MESH, np.array([4]))
    assert parts(found.forward[0]) == pytest.approx({"compute": 640e-6, "all_gather": 768e-6 - 320e-6})
    assert found.gathered[0] == 1024


def test_the_parameters_of_a_neighbour_arrive_while_a_block_runs():
    gather = reduce(1024, None, "all_gather", ("dp",), "layers.0.weight")
    block = segment(forward=(gather, *segment().forward))
    small = segment(name="", forward=(replace(gather, nbytes=100), *segment().forward))
    none = segment(name="")
    for segments, gathered in (
        ((block,), 1024),
        ((block, none), 1024),
        ((small, block, none), 1124),
        ((small, replace(block, count=2), none), 2048),
        ((small, block, block, none), 2048),
    ):
        found = pricer().stage(stage(*segments), [4])
        assert found.buffers[0].tolist() == [192 + gathered, 192 + gathered + FRESH]


def test_the_host_sets_a_floor_for_a_block():
    found = pricer(Rates(floor=1e-3)).segment(segment(rerun=segment().forward), MESH, np.array([4]))
    assert parts(found.forward[0]) == pytest.approx({"compute": 640e-6, "launch": 360e-6})
    # Backward issues its own ops and, again, all of the forward's.
    assert found.backward[0].sum() == pytest.approx(2e-3)


def stage(*segments: Segment, **fields) -> StageCode:
    return StageCode(0, MESH, segments, **({"params": (), "grads": (), "update": ()} | fields))


def test_a_stage_is_its_segments_times_their_counts():
    p = pricer(Rates(floor=1e-4))
    one = p.segment(segment(), MESH, np.array([4]))
    found = p.stage(stage(replace(segment(), count=5), segment(name="", backward=())), [4])
    tail = p.segment(segment(name="", backward=()), MESH, np.array([4]))
    assert found.forward[0] == pytest.approx(5 * one.forward[0] + tail.forward[0])
    assert found.backward[0] == pytest.approx(5 * one.backward[0] + tail.backward[0])
    assert found.kept[0] == 5 * one.kept[0] + tail.kept[0]


def test_many_micro_batches_at_once_cost_what_each_costs_alone():
    code = stage(segment(forward=(*segment().forward, reduce(600))))
    together = pricer().stage(code, [1, 3, 4, 64])
    for row, size in enumerate([1, 3, 4, 64]):
        alone = pricer().stage(code, [size])
        for field in ("forward", "backward", "kept", "buffers", "nbytes"):
            assert (getattr(together, field)[row] == getattr(alone, field)[0]).all(), field


def test_a_block_is_priced_once_whatever_its_count_and_place():
    cost = Rates()
    p = pricer(cost)
    block = segment()
    p.stage(stage(block), [4])
    calls = cost.calls
    for count, first in ((3, 0), (9, 7), (1, 2)):
        p.stage(stage(replace(block, count=count, block=first)), [4])
    assert cost.calls == calls > 0
    p.stage(stage(block), [8])
    assert cost.calls == 2 * calls


def weights(count: int, deferred=("dp",)) -> Param:
    return Param("layers.0.weight", count, NONE, NONE, NONE, deferred, (256.0, 128.0, 64.0))


def test_static_bytes_and_the_optimizer_follow_from_elements_and_recipe():
    code = stage(segment(), params=(weights(3),))
    same = pricer().stage(code, [4])
    # state is cut further than the weight, so there is a master copy even in one dtype
    assert (same.weights, same.gradients, same.state) == (3 * 256 * 4, 3 * 128 * 4, 3 * 64 * (8 + 4))
    one = replace(weights(3), elements=(64.0, 64.0, 64.0))
    assert pricer().stage(stage(segment(), params=(one,)), [4]).state == 3 * 64 * 8
    # gradient read; weight and two moments read and written
    assert same.optimizer == pytest.approx(3 * 64 * (4 + 2 * 12) / 1e6)
    mixed = Pricer(chain(), cluster(8), Rates(), Recipe(64)).stage(code, [4])
    assert (mixed.weights, mixed.gradients, mixed.state) == (3 * 256 * 2, 3 * 128 * 4, 3 * 64 * 12)
    # … the master copy too, and the bfloat16 copy written: 30 bytes
    assert mixed.optimizer == pytest.approx(3 * 64 * 30 / 1e6)


def test_sums_and_gathers_at_the_end_are_one_bucket_each():
    update = (
        Instr("collective", "layers.0.weight", "update", collective="reduce_scatter", axes=("dp",), nbytes=1024),
        Instr("update", "layers.0.weight", "update"),
        Instr("collective", "layers.0.weight", "update", collective="all_gather", axes=("dp",), nbytes=512),
    )
    found = pricer().stage(stage(segment(), params=(weights(3),), update=update), [4])
    at = {k: i for i, k in enumerate(KINDS)}
    assert found.sums[at["reduce_scatter"]] == pytest.approx(3 * 1024 * 0.75 / 1e6)
    assert found.gathers[at["all_gather"]] == pytest.approx(3 * 512 * 0.75 / 1e6)
    assert found.sums.sum() + found.gathers.sum() == pytest.approx(3 * (1024 + 512) * 0.75e-6)
    assert found.step_calls[at["reduce_scatter"]] == found.step_calls[at["all_gather"]] == 3


def test_gradients_that_rest_cut_are_scattered_with_every_micro_batch():
    scatter = Instr("collective", "layers.0.weight", "backward", collective="reduce_scatter", axes=("dp",), nbytes=4096)
    code = segment(forward=(replace(compute(LINEAR), inputs=("start", "layers.0.weight")), segment().forward[1]))
    plain = pricer(Rates(share=0.0)).stage(stage(replace(code, count=3)), [4])
    cut = pricer(Rates(share=0.0)).stage(stage(replace(code, count=3), params=(weights(3),), grads=(scatter,)), [4])
    assert cut.backward[0].sum() == pytest.approx(plain.backward[0].sum() + 3 * 4096 * 0.75e-6)
    assert cut.calls[KINDS.index("reduce_scatter")] == 3
    assert cut.buffers[0, 1] == plain.buffers[0, 1] - FRESH + 4096  # the sum's own buffer holds the fresh gradient


def test_tied_weights_are_summed_over_their_stages_not_over_an_axis():
    tied = replace(weights(1), shared=(3,))
    update = (Instr("collective", "layers.0.weight", "update", collective="all_reduce", axes=("stages",), nbytes=64),)
    found = pricer().stage(stage(segment(), params=(tied,), update=update), [4])
    assert found.tied == (((0, 3), 64.0),)
    assert found.sums.sum() == 0


def test_the_slowest_type_of_a_mixed_mesh_sets_the_pace():
    even = cluster(8)
    slow = replace(even.types[0], name="slow")

    class Mixed(Rates):
        def compute(self, op, sizes, device, phase, variant=""):
            return super().compute(op, sizes, device, phase, variant) * (3.0 if device.name == "slow" else 1.0)

    mixed = replace(even, types=(*even.types, slow), device=(0, 0, 0, 0, 0, 0, 0, 1))
    one = Pricer(chain(), mixed, Mixed(), Recipe(64)).segment(
        segment(kernels=(), forward=(compute(LINEAR),)), MESH, np.array([4])
    )
    assert parts(one.forward[0]) == pytest.approx({"compute": 3 * 512e-6})


def test_work_space_and_unfused_kernels_are_what_the_cost_model_says():
    from meshwright.cost.base import OpMemory

    class Roomy(Rates):
        def variants(self, op, sizes):
            return ("", "fused")

        def memory(self, op, sizes, variant=""):
            rows = sizes[:, 0].astype(float)
            return OpMemory(0 * rows, rows * (10 if variant == "fused" else 25), 64.0 * rows + 1000)

    plain = pricer(Roomy()).segment(segment(), MESH, np.array([8]))
    # 2 samples: result 16 floats a sample; kept 8 + 2 · 64 and 2 · (25 − 10)
    assert plain.buffers[0].tolist() == [1000, 1000 + FRESH]
    assert plain.kept[0] == 136 + 30
    again = pricer(Roomy()).segment(segment(rerun=segment().forward), MESH, np.array([8]))
    assert again.kept[0] == 136 and again.buffers[0].tolist() == [1000, 1030 + FRESH]


def test_buckets_of_the_runtime_are_there_all_the_time_up_to_what_there_is_to_send():
    plain = pricer().stage(stage(segment(), params=(weights(3),)), [4])
    for bucket, elements in ((100.0, 100), (1e9, 3 * 128)):
        recipe = Recipe(64, compute_dtype="float32", bucket=bucket)
        found = Pricer(chain(), cluster(8), Rates(), recipe).stage(stage(segment(), params=(weights(3),)), [4])
        # two for gradients, one for weights, four bytes each
        assert (found.buffers - plain.buffers).tolist() == [[elements * 12.0] * 2]
