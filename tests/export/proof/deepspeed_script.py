"""Runs in DeepSpeed's environment: what is asked of it by name goes in, what its own code says comes out."""

import json
import sys

import torch
from deepspeed.module_inject import auto_ep_config
from deepspeed.runtime import config as ds_config
from deepspeed.runtime import engine as ds_engine
from deepspeed.runtime import utils as ds_utils
from deepspeed.runtime.pipe import schedule as ds_schedule
from deepspeed.runtime.sequence_parallel import ulysses_sp


class World:
    """Ranks that are not there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_rank(self, group=None) -> int:
        return 0

    def get_world_size(self, group=None) -> int:
        return self.size


class Replicas:
    """What an engine tells the configuration of its replicas."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_data_parallel_world_size(self) -> int:
        return self.size


def configuration(case: dict) -> dict:
    """DeepSpeedConfig of a file, on so many ranks of which so many are replicas of samples."""
    ds_config.dist = World(case["world"])
    mpu = Replicas(case["replicas"]) if case["replicas"] != case["world"] and not case["sequence"] else None
    found = ds_config.DeepSpeedConfig(case["config"], mpu)
    ep = found.expert_parallel_config
    tp = max(found.tensor_parallel_config.autotp_size, 1)
    sp = case["config"].get("sequence_parallel_size", 1)
    auto_ep_config.validate_autoep_config(
        ep, case["world"], case["pp"], tp, sp, zero_stage=int(found.zero_optimization_stage)
    )
    partition = found.tensor_parallel_config.get_partition_config_object()
    sides = {}
    for name in case["weights"] if partition is not None else []:
        spec = partition.find_matching_spec(name)
        sides[name] = spec.partition_type.value if spec is not None else ""
    zero = found.zero_config
    return {
        "batch": found.train_batch_size,
        "micro_batch": found.train_micro_batch_size_per_gpu,
        "steps": found.gradient_accumulation_steps,
        "stage": int(zero.stage),
        "overlap": zero.overlap_comm,
        "reuse": zero.max_reuse_distance,
        "persistence": zero.param_persistence_threshold,
        "tp": tp,
        "ep": ep.autoep_size if ep.enabled else 1,
        "pipeline": found.pipeline,
        "bf16": found.bfloat16_config.enabled,
        "autocast": str(found.torch_autocast_dtype) if found.torch_autocast_enabled else "",
        "sums": str(ds_config.DtypeEnum(found.grad_accum_dtype).value),
        "sides": sides,
        "wrapper": wrapper(found, case),
    }


def wrapper(found, case: dict) -> str:
    """Which of its optimizers the engine would take."""
    engine = ds_engine.DeepSpeedEngine.__new__(ds_engine.DeepSpeedEngine)
    torch.nn.Module.__init__(engine)
    engine._config, engine.global_rank, engine.pipeline_parallelism = found, 0, case["pp"] > 1
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    ds_engine.is_zero_supported_optimizer = lambda _: True
    return str(engine._do_optimizer_sanity_check(optimizer))


def experts(case: dict) -> str:
    """Whether AutoEP deals so many experts over so many ranks."""
    spec = auto_ep_config.MoELayerSpec.__new__(auto_ep_config.MoELayerSpec)
    for name in auto_ep_config.MoELayerSpec.__dataclass_fields__:
        object.__setattr__(spec, name, None)
    for name, value in (
        ("num_experts", case["experts"]),
        ("moe_module_name", "layers.0.mlp"),
        ("score_apply", "post"),
        ("top_k", 2),
    ):
        object.__setattr__(spec, name, value)
    settings = {"enabled": True, "autoep_size": case["ranks"]}
    auto_ep_config.validate_autoep_post_detection(auto_ep_config.parse_autoep_config(settings), [spec])
    return ""


def ulysses(case: dict) -> str:
    """Whether Ulysses exchanges so many heads over so many ranks."""
    ulysses_sp.dist = World(case["ranks"])
    ulysses_sp.register_all_to_all_group = lambda group: ""
    ulysses_sp.importlib.metadata.version = lambda name: "5.24.0"
    ulysses_sp.UlyssesSPAttentionHF(
        None, 1, case["heads"], 8, case["kv_heads"], 1, None, local_seq_length=8, global_seq_length=8 * case["ranks"]
    )
    return ""


def stages(case: dict) -> list:
    """Ends of stages by its own arithmetic."""
    deal = (
        ds_utils.partition_balanced
        if case["balanced"]
        else lambda weights, n: ds_utils.partition_uniform(len(weights), n)
    )
    return [int(x) for x in deal(case["weights"], case["stages"])][1:]


def order(case: dict) -> list:
    """F and B with their micro-batches, of each stage, in the order of its schedule."""
    found = []
    for stage in range(case["stages"]):
        schedule = ds_schedule.TrainSchedule(case["micro_batches"], case["stages"], stage)
        row, seen = [], {"F": 0, "B": 0}
        for commands in schedule:
            for command in commands:
                kind = {"ForwardPass": "F", "BackwardPass": "B"}.get(command.name)
                if kind:
                    row.append([kind, seen[kind]])
                    seen[kind] += 1
        found.append(row)
    return found


def code(case: dict) -> str:
    """Whether the written code defines what it says, with DeepSpeed's names as they are."""
    names: dict = {"__file__": case["file"], "__name__": "model"}
    exec(compile(case["text"], case["file"], "exec"), names)
    return ",".join(sorted(n for n in names if n in ("pipeline", "ulysses", "recompute", "Before", "After", "CONFIG")))


ASKED = {
    "configuration": configuration, "experts": experts, "ulysses": ulysses, "stages": stages, "order": order, "code": code,
}  # fmt: skip


def answer(what: str, case: dict) -> dict:
    try:
        return {"answer": ASKED[what](case)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    found = [answer(what, case) for what, case in asked]
    print()
    print(json.dumps(found, default=str))
