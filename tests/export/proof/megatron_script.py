"""Runs in the environment of Megatron-Core: command lines in, what its own argument check, groups and schedules make of them out.

A request is {"options": true} (all options), or {"argv": […], "world": n, "env": {…}}: arguments parsed and checked, its
TransformerConfig built, process groups of all ranks, and the order of forwards and backwards of every pipeline rank.
With the wheel of 0.16.1, which has no megatron.training, {"layout": …, "pp": …, "layers": …} and {"config": …} are answered.
"""

import argparse
import json
import logging
import os
import sys
import warnings

import torch

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.cuda.get_device_capability = lambda *_: (9, 0)  # grouped products ask for the device

from megatron.core import parallel_state  # noqa: E402
from megatron.core.pipeline_parallel import schedules  # noqa: E402
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout  # noqa: E402


def options() -> list:
    """(name, values it takes, field, true or false)."""
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    return [
        (name, action.nargs, action.dest, type(action).__name__)
        for action in parser._actions
        for name in action.option_strings
    ]


def checked(argv: list, world: int, env: dict) -> dict:
    from megatron.training import arguments

    arguments.get_device_arch_version = lambda: 9
    for name in ("CUDA_DEVICE_MAX_CONNECTIONS",):
        os.environ.pop(name, None)
    os.environ.update(env)
    sys.argv = ["pretrain_gpt.py", *argv]
    args = arguments.parse_args()
    args.world_size, args.rank = world, 1  # rank 0 prints
    args = arguments.validate_args(args)
    config = arguments.core_transformer_config_from_args(args)
    layout = config.pipeline_model_parallel_layout
    return {
        "dp": args.data_parallel_size,
        "chunks": args.virtual_pipeline_model_parallel_size or 1,
        "sequence": config.sequence_parallel,
        "layers": layout and [[part.count(kind) for kind in _kinds()] for part in _in_order(layout)],
        "counts": None if layout else counts(config),
        "etp": config.expert_tensor_parallel_size,
        "recompute": [
            config.recompute_granularity,
            config.recompute_method,
            config.recompute_num_layers,
            config.recompute_modules,
        ],
        "context": config.cp_comm_type,
        "grads_in_fp32": args.accumulate_allreduce_grads_in_fp32,
        "groups": groups(args, world),
        "orders": orders(args, config),
    }


def counts(config: object) -> list:
    """Layers of each stage where no layout says them."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    pp, chunks = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
    return [
        get_num_layers_to_build(config, vp_stage=v if chunks else None, pp_rank=rank)
        for v in range(chunks or 1)
        for rank in range(pp)
    ]


def _kinds() -> list:
    from megatron.core.transformer.enums import LayerType

    return [LayerType.embedding, LayerType.decoder, LayerType.loss]


def _in_order(layout: PipelineParallelLayerLayout) -> list:
    """Parts in order of stages."""
    return [rank[v] for v in range(layout.virtual_pipeline_model_parallel_size) for rank in layout.layout]


def groups(args: argparse.Namespace, world: int) -> dict:
    """Axis -> groups of ranks, from its own initialize_model_parallel on a process group that does nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            order="tp-cp-ep-dp-pp" if not args.use_tp_pp_dp_mapping else "tp-cp-ep-pp-dp",
            create_gloo_process_groups=False,
        )
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    order = "tp-cp-ep-dp-pp" if not args.use_tp_pp_dp_mapping else "tp-cp-ep-pp-dp"
    tp, pp, cp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.context_parallel_size
    ep, etp = args.expert_model_parallel_size, args.expert_tensor_parallel_size
    dense = parallel_state.RankGenerator(
        tp=tp, ep=1, dp=world // (tp * pp * cp), pp=pp, cp=cp, order=order, rank_offset=0
    )
    sparse = parallel_state.RankGenerator(
        tp=etp, ep=ep, dp=world // (etp * ep * pp), pp=pp, cp=1, order=order, rank_offset=0
    )
    found = {axis: dense.get_ranks(axis) for axis in ("tp", "cp", "dp", "pp", "dp-cp")}
    return found | {"ep": sparse.get_ranks("ep"), "expert tp": sparse.get_ranks("tp")}


def orders(args: argparse.Namespace, config: object) -> list:
    """Of each pipeline rank: ["F" or "B", chunk, micro-batch] in the order of forward_backward_pipelining_with_interleaving, and
    of the one without; its own functions say how many forwards come first and which micro-batch is which."""
    pp, chunks = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size or 1
    m = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    if pp == 1:
        return []

    class Group:
        def __init__(self, rank: int) -> None:
            self.of = rank

        def size(self) -> int:
            return pp

        def rank(self) -> int:
            return self.of

    class Talk:
        def __init__(self, rank: int) -> None:
            self.pp_group = Group(rank)
            self.virtual_pipeline_model_parallel_size = chunks if chunks > 1 else None

    group = config.microbatch_group_size_per_vp_stage
    table = schedules.get_schedule_table(m, chunks, group)
    forwards = [(chunk, micro) for micro, chunk in table]
    backwards = [(chunks - 1 - chunk, micro) for micro, chunk in table]
    found = []
    for rank in range(pp):
        total, _, first, _ = schedules.get_pp_rank_microbatches(m, chunks, group, p2p_communicator=Talk(rank))
        order = [["F", *forwards[k]] for k in range(first)]
        for k in range(total):
            if first + k < total:
                order.append(["F", *forwards[first + k]])
            order.append(["B", *backwards[k]])
        found.append(order)
    return found


def layout(text: str, pp: int, layers: int) -> dict:
    parsed = PipelineParallelLayerLayout(text, pp)
    parsed.validate_layer_layout(layers, None)
    return {"layers": [[part.count(kind) for kind in _kinds()] for part in _in_order(parsed)]}


def config(fields: dict) -> dict:
    from megatron.core.transformer import TransformerConfig

    types = {"bf16": torch.bfloat16}
    TransformerConfig(**{k: types.get(v, v) if k.endswith("dtype") else v for k, v in fields.items()})
    return {}


def answer(request: dict) -> object:
    try:
        if "options" in request:
            return options()
        if "layout" in request:
            return layout(request["layout"], request["pp"], request["layers"])
        if "config" in request:
            return config(request["config"])
        return checked(request["argv"], request["world"], request["env"])
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    asked, out = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr  # it prints much
    found = [answer(request) for request in asked]
    print(json.dumps(found, default=str), file=out)
