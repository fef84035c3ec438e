"""torchtitan's settings as people have them: recipes of any shape, flags, TOML of older releases, the later main's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.export._torchtitan_words import dealt
from meshwright.export.base import Read
from meshwright.export.model import Model
from meshwright.export.outcome import priced
from meshwright.export.reading import setup_from
from meshwright.export.registry import load
from meshwright.export.rows import ROWS, setup_of_row

MODEL = Model(tuple(f"model.layers.{n}" for n in range(8)), ("model.layers",), 8, 4, 0, 256, 64, False, (), ())
EXPERTS = Model(tuple(f"model.layers.{n}" for n in range(8)), ("model.layers",), 8, 4, 8, 256, 64, False, (), ())


def read(text: str, name: str = "settings", model: Model = MODEL, world: int = 16, **files: str) -> Read:
    return load("torchtitan").read(
        {name: text, **{k.replace("_csv", ".csv"): v for k, v in files.items()}}, model, world
    )


def words(text: str, **more: Any) -> Mapping[str, Any]:
    return read(text, **more).words


def recipe(body: str) -> str:
    return f"""
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.models.llama3.config_registry import llama3_8b, llama3_70b
from torchtitan.trainer import Trainer

{body}
"""


def test_a_config_written_as_one_expression() -> None:
    found = words(
        recipe("""
BATCH = 2
STAGES = [["tok_embeddings", *[f"layers.{i}" for i in range(3)]], [f"layers.{i}" for i in range(3, 8)] + ["norm", "lm_head"]]

def mine() -> Trainer.Config:
    spec = model_registry("8B")
    return Trainer.Config(
        model_spec=spec,
        optimizer=default_adamw(lr=3e-4),
        training=TrainingConfig(local_batch_size=BATCH * 8, global_batch_size=64, seq_len=64, steps=-1),
        parallelism=ParallelismConfig(
            data_parallel_shard_degree=-1, tensor_parallel_degree=2, pipeline_parallel_degree=2, pipeline_parallel_microbatch_size=BATCH,
            module_fqns_per_model_part=STAGES,
        ),
        activation_checkpoint=FullAC.Config(),
    )
""")
    )
    assert {k: found[k] for k in ("dp", "tp", "pp", "zero", "micro_batch", "samples", "counts", "schedule", "recompute", "sequence")} == {
        "dp": 4, "tp": 2, "pp": 2, "zero": 1, "micro_batch": 2, "samples": 64, "counts": (3, 5), "schedule": "1f1b", "recompute": "full",
        "sequence": True,
    }  # fmt: skip


def test_a_recipe_changed_field_by_field_after_another() -> None:
    found = read(
        recipe("""
def basis() -> Trainer.Config:
    config = llama3_70b()
    config.training.global_batch_size = 128
    return config

def mine() -> Trainer.Config:
    config = basis()
    config.parallelism.context_parallel_degree = 2
    config.activation_checkpoint = None
    config.training.local_batch_size = 4
    return config
""")
    )
    # llama3_70b sets tp 8, seq 8192 and FullAC; a batch of 8
    assert {k: found.words[k] for k in ("dp", "tp", "cp", "zero", "reshard", "micro_batch", "samples", "recompute")} == {
        "dp": 1, "tp": 8, "cp": 2, "zero": 3, "reshard": True, "micro_batch": 4, "samples": 128, "recompute": "none",
    }  # fmt: skip
    assert found.ignored["training.seq_len"] == "8,192 positions: the model was captured with 64, and is priced so"
    assert found.lines["tp"] == "parallelism.tensor_parallel_degree 8 (torchtitan's llama3_70b)"


def test_a_section_that_is_written_anew_forgets_what_the_base_had() -> None:
    text = recipe("""
def mine() -> Trainer.Config:
    config = llama3_70b()
    config.parallelism = ParallelismConfig(data_parallel_replicate_degree=2)
    return config
""")
    found = words(text)
    assert (found["tp"], found["dp"], found["zero"], found["replicate"]) == (1, 16, 3, 2)


def test_flags_in_any_order_and_spelling_over_a_base() -> None:
    text = """
#!/bin/bash
torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_8b \\
  --parallelism.tensor-parallel-degree=4 --parallelism.no-enable-sequence-parallel \\
  --training.local_batch_size 2 --training.global_batch_size 32 \\  # eight rounds
  activation_checkpoint:full --compile.enable
"""
    found = read(text, name="run.sh")
    assert {k: found.words[k] for k in ("dp", "tp", "sequence", "zero", "micro_batch", "samples", "recompute")} == {
        "dp": 4, "tp": 4, "sequence": False, "zero": 3, "micro_batch": 2, "samples": 32, "recompute": "full",
    }  # fmt: skip
    assert found.lines["tp"].endswith("(run.sh:4)")


def test_flags_over_a_recipe_override_it() -> None:
    text = recipe("""
def train() -> Trainer.Config:
    config = llama3_8b()
    config.parallelism = ParallelismConfig(tensor_parallel_degree=2)
    return config
""")
    files = {
        "recipe.py": text,
        "launch.sh": "torchrun -m torchtitan.train --module recipe --config train --parallelism.tensor_parallel_degree 4",
    }
    found = load("torchtitan").read(files, MODEL, 16)
    assert (found.words["tp"], found.words["dp"], found.words["samples"]) == (4, 4, 4)


def test_toml_of_older_releases() -> None:
    text = """
[model]
name = "llama3"
flavor = "8B"

[training]
batch_size = 2
seq_len = 64
data_parallel_shard_degree = -1
tensor_parallel_degree = 2

[experimental]
pipeline_parallel_degree = 2

[activation_checkpoint]
mode = "selective"
selective_ac_option = "2"
"""
    with pytest.raises(InputError) as refused:
        read(text.replace("tensor_parallel_degree", "tensor_parallell_degree"), name="run.toml")
    assert str(refused.value).startswith('torchtitan has no option "training.tensor_parallell_degree"')
    assert refused.value.where == "run.toml:10"
    found = read(text, name="run.toml")
    assert {k: found.words[k] for k in ("dp", "tp", "pp", "zero", "micro_batch", "counts")} == {
        "dp": 4, "tp": 2, "pp": 2, "zero": 1, "micro_batch": 1, "counts": (4, 4),
    }  # fmt: skip
    assert found.ignored["activation_checkpoint"].startswith("selective_ac_option = '2': what it keeps is not known")


def test_the_later_main_counts_tokens() -> None:
    text = recipe("""
def mine() -> Trainer.Config:
    return Trainer.Config(
        training=TrainingConfig(num_tokens_per_microbatch_per_dp_rank=2 * 64, num_tokens_per_train_step=64 * 64, max_context_length=64),
        parallelism=ParallelismConfig(pipeline_parallel_degree=2, num_pp_microbatches=4, pipeline_parallel_schedule="interleaved1f1b"),
        activation_checkpoint=None,
    )
""")
    found = words(text)
    assert {k: found[k] for k in ("dp", "pp", "micro_batch", "samples", "schedule", "chunks", "counts", "args")} == {
        "dp": 8, "pp": 2, "micro_batch": 2, "samples": 64, "schedule": "interleaved", "chunks": 2, "counts": (2, 3, 2, 1), "args": {"v": 2},
    }  # fmt: skip
    deferred = words(
        text.replace("pipeline_parallel_degree=2, num_pp_microbatches=4, ", "fsdp_defer_gradient_reduction=True, ")
    )
    assert (deferred["zero"], deferred["pp"]) == (1, 1)
    with pytest.raises(
        InputError, match=r"training\.local_batch_size is an option of torchtitan 0\.3\.0, training\.num_tokens"
    ):
        read(text.replace("max_context_length=64", "local_batch_size=2"))


def test_settings_that_no_plan_says_are_named_with_what_is_assumed() -> None:
    text = "--training.enable_cpu_offload --compile.enable_async_tensor_parallel --parallelism.enable_fsdp_symm_mem --optimizer.lr 1e-3"
    assert set(read(text).ignored) >= {
        "training.enable_cpu_offload", "compile.enable_async_tensor_parallel", "parallelism.enable_fsdp_symm_mem",
    }  # fmt: skip
    assert read(text).ignored["training.enable_cpu_offload"] == (
        "True: priced with parameters, gradients and optimizer states on the devices"
    )


def test_options_of_the_recipe_s_own_are_named_and_passed_over() -> None:
    found = read("--parallelism.tensor_parallel_degree 2 --fancy.thing 3 --parallelism.my_own_switch")
    assert found.words["tp"] == 2
    assert found.ignored["fancy.thing"] == "no option of torchtitan: taken as the recipe's own"
    assert "parallelism.my_own_switch" in found.ignored


def test_a_table_beside_the_recipe_and_one_that_is_missing() -> None:
    text = "--parallelism.pipeline_parallel_degree 4 --parallelism.pipeline_parallel_schedule ZBVZeroBubble --training.local_batch_size 8 "
    text += "--parallelism.pipeline_parallel_schedule_csv /somewhere/table.csv --parallelism.pipeline_parallel_layers_per_stage 1 "
    text += "--parallelism.pipeline_parallel_first_stage_less_layers 0 --parallelism.pipeline_parallel_last_stage_less_layers 0"
    from meshwright.export._torchtitan_schedules import table
    from meshwright.plan.model import Schedule

    found = words(text, table_csv=table(Schedule("v-min", 8), 8))
    assert (found["schedule"], found["chunks"], found["counts"]) == ("v-min", 2, (1,) * 8)
    with pytest.raises(InputError, match=r"its schedule is in /somewhere/table\.csv: give that file too"):
        read(text)
    with pytest.raises(InputError) as refused:
        read(text, table_csv="0F0,0X0\n")
    assert refused.value.where == "table.csv, line 1"


def test_a_user_s_interleaved_zero_bubble_is_priced_by_its_rows() -> None:
    """A schedule of torch's without a name here: it becomes a table of its own, and a plan that stands."""
    setup = setup_of_row(next(r for r in ROWS if r.words == "chunks"))
    text = "--parallelism.pipeline_parallel_degree 4 --parallelism.pipeline_parallel_schedule InterleavedZeroBubble "
    text += "--training.local_batch_size 32 --training.seq_len 64 activation_checkpoint:none"
    text += " --parallelism.pipeline_parallel_first_stage_less_layers 0 --parallelism.pipeline_parallel_last_stage_less_layers 0"
    exporter = load("torchtitan")
    found = exporter.read({"run.sh": text}, setup.model, 16)
    from meshwright.simulate.simulator import simulate

    own = setup_from(setup.problem, exporter, found)
    assert own.layout.schedule.name == "custom"
    assert own.layout.parts == setup.layout.parts
    price = simulate(setup.problem, own.plan(), detail=False)
    assert 0 < price.step_seconds < simulate(setup.problem, setup.plan(), detail=False).step_seconds * 1.5


REFUSED: tuple[tuple[str, str, str], ...] = (
    ("--parallelism.tensor_parallel_degree 3", "= 15, but there are 16 devices", ""),
    ("--parallelism.tensor_parallel_degree 0", "it must be 1 or more", "settings:1"),
    ("--parallelism.tensor_parallel_degree two", "it must be a whole number", "settings:1"),
    ("--parallelism.tensor_parralel_degree 2", "did you mean parallelism.tensor_parallel_degree?", "settings:1"),
    ("--paralelism.tensor_parallel_degree 2", "did you mean parallelism?", "settings:1"),
    ("--training.local_batch_size 3 --training.global_batch_size 64", "64 is no multiple of local_batch_size 3 × 16", "settings:1"),
    ("--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_schedule 2F2B", 'no schedule "2F2B": torch has', "settings:1"),
    ("--parallelism.pipeline_parallel_degree 4 --training.local_batch_size 2", "at least as many micro-batches as stages: 2 for 4", ""),
    ("--parallelism.pipeline_parallel_degree 2 --training.local_batch_size 4 --training.global_batch_size 64", "with a flush in between", "settings:1"),
    ("--parallelism.pipeline_parallel_split_points a,b", "is an option of older releases: list the modules", "settings:1"),
    ("--parallelism.fsdp_reshard_after_forward sometimes", "it is default, always or never", "settings:1"),
    ("--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_layers_per_stage 3", "4 stages for 2 ranks", ""),
    ("--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_layers_per_stage 1", "10 stages for 2 ranks", ""),
    ("--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_layers_per_stage 4", "3 stages do not divide", ""),
    ("--parallelism.pipeline_parallel_degree 2 --parallelism.module_fqns_per_model_part \"[['layers.1'],['layers.0']]\"", "they begin at 0", "settings:1"),
    ("nothing of the kind", "no recipe, no --section.option flags and no TOML sections", "settings"),
)  # fmt: skip


@pytest.mark.parametrize(("text", "sentence", "where"), REFUSED, ids=[r[1][:30] for r in REFUSED])
def test_what_is_wrong_is_said_with_its_place(text: str, sentence: str, where: str) -> None:
    with pytest.raises(InputError) as refused:
        read(text)
    assert sentence in str(refused.value)
    assert where in refused.value.where


RECIPES = (
    ("def mine():\n    return Trainer.Config(training=TrainingConfig(seq_len=pick()))", "", ""),
    (
        "def mine():\n    return Trainer.Config(training=TrainingConfig(local_batch_size=pick()))",
        "is pick(), not a plain value",
        "r.py:8",
    ),
    ("x = 1", "no function that returns a Trainer.Config", "r.py"),
    (
        "def a():\n    return Trainer.Config()\ndef b():\n    return Trainer.Config()",
        "2 recipes, a, b: give a file with one",
        "r.py",
    ),
    ("def a(:", "not Python", "r.py:7"),
)


@pytest.mark.parametrize(("body", "sentence", "where"), RECIPES, ids=[r[1] for r in RECIPES])
def test_recipes_that_cannot_be_read(body: str, sentence: str, where: str) -> None:
    if not sentence:
        assert read(recipe(body), name="r.py").words["micro_batch"] == 8
        return
    with pytest.raises(InputError) as refused:
        read(recipe(body), name="r.py")
    assert sentence in str(refused.value)
    assert refused.value.where == where


def test_a_recipe_is_never_executed(tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    body = f"open({str(mark)!r}, 'w')\ndef mine():\n    open({str(mark)!r}, 'w')\n    return Trainer.Config()"
    read(recipe(body), name="r.py")
    assert not mark.exists()


def test_a_base_that_is_elsewhere_is_named() -> None:
    text = recipe(
        "from mine import base\ndef train():\n    config = base()\n    config.training.local_batch_size = 2\n    return config"
    )
    assert read(text, name="r.py").ignored["base"].startswith("a recipe that is not in the file")


def test_experts_over_ranks_of_tensor_parallelism() -> None:
    text = (
        "--parallelism.expert_parallel_degree 8 --parallelism.tensor_parallel_degree 2 --training.disable_cuda_graphs"
    )
    found = words(text, model=EXPERTS)
    assert (found["ep"], found["whole_experts"], found["dp"]) == (8, True, 8)
    assert "no effect: the model has no experts" in read(text).ignored["parallelism.expert_parallel_degree"]
    with pytest.raises(InputError, match="expert_parallel_degree 2 takes a part of the 4 ranks"):
        read("--parallelism.expert_parallel_degree 2 --parallelism.tensor_parallel_degree 4", model=EXPERTS)


@given(layers=st.integers(1, 200), stages=st.integers(2, 32), first=st.integers(0, 4), last=st.integers(0, 4))
@settings(max_examples=300)
def test_layers_are_dealt_whole_and_as_even_as_they_are_weighed(
    layers: int, stages: int, first: int, last: int
) -> None:
    try:
        counts = dealt(layers, stages, first, last)
    except ValueError:
        assert (layers + first + last) // stages < max(1, first, last)
        return
    assert sum(counts) == layers
    assert min(counts) >= 0
    weighed = [n + first * (s == 0) + last * (s == stages - 1) for s, n in enumerate(counts)]
    assert max(weighed) - min(weighed) <= 1
    assert weighed == sorted(weighed, reverse=True)


def test_files_of_it_are_told_from_others() -> None:
    kind = type(load("torchtitan"))
    for text in (recipe(""), "--parallelism.tensor_parallel_degree 2", "[parallelism]\ntensor_parallel_degree = 2\n"):
        assert kind.recognises(text)
    for text in (
        "--tensor-model-parallel-size 8 --sequence-parallel", '{"zero_optimization": {"stage": 3}}',
        "distributed_type: FSDP\nparallelism_config:\n  parallelism_config_tp_size: 2\n", "ici_tensor_parallelism: 4\n",
    ):  # fmt: skip
        assert not kind.recognises(text)


COPIES = "--parallelism.data_parallel_replicate_degree 16 --parallelism.data_parallel_shard_degree 1 "


@pytest.mark.parametrize(
    ("options", "each", "version"),
    [
        ("--training.local_batch_size 2 --training.global_batch_size 128 --training.seq_len 64", True, "0.3.0"),
        ("--training.local_batch_size 8 --training.global_batch_size 128 --training.seq_len 64", False, "0.3.0"),
        (
            "--training.num_tokens_per_microbatch_per_dp_rank 128 --training.num_tokens_per_train_step 8192",
            True,
            "main",
        ),
        (
            "--training.num_tokens_per_microbatch_per_dp_rank 128 --training.num_tokens_per_train_step 8192 "
            "--parallelism.fsdp_defer_gradient_reduction",
            False,
            "main",
        ),
    ],
)
def test_copies_that_are_summed_at_every_micro_batch_are_priced_so(options: str, each: bool, version: str) -> None:
    base = setup_of_row(ROWS[0])
    found = read(COPIES + options, model=base.model)
    assert found.version == version
    setup = setup_from(base.problem, load("torchtitan"), found)
    assert setup.sums_each == each
    once, told = priced(replace(setup, sums_each=False)), priced(setup, detail=True)
    assert (told.step_seconds > once.step_seconds) == each
    assert sum(told.seconds_by.values()) == pytest.approx(told.step_seconds)
    assert all(sum(lane.values()) == pytest.approx(told.step_seconds) for lane in told.lane_seconds)


def test_the_model_of_a_recipe_has_our_name() -> None:
    one = "def mine() -> Trainer.Config:\n    config = llama3_8b()\n    {}\n    return config\n"
    assert read(recipe(one.format("config.training.seq_len = 64"))).model == "llama-3.1-8b"
    assert (
        read(recipe(one.format('config.model_spec = model_registry("70B", attn_backend="flex")'))).model
        == "llama-3.1-70b"
    )
    assert read(recipe(one.format('config.model_spec = model_registry("1B")'))).model == "llama3 1B"
    assert read(COPIES).model == ""


def test_another_way_to_lay_tensors_out_is_said() -> None:
    told = read(COPIES + "--parallelism.spmd_backend partial_dtensor").ignored
    assert told["parallelism.spmd_backend"] == "partial_dtensor: priced with collectives of spmd_types"
