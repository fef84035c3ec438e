"""What people have for Megatron-LM, read as layouts: launch scripts, command lines, YAML; what is wrong is named with its line."""

from __future__ import annotations

from typing import Any

import pytest

from export.megatron_cases import DENSE, EXPERTS, problem, setup
from meshwright.errors import InputError
from meshwright.export._megatron_layout import counts, parts, written
from meshwright.export._megatron_options import known
from meshwright.export.base import Read
from meshwright.export.megatron import Megatron
from meshwright.export.model import model_of
from meshwright.export.reading import setup_from
from meshwright.export.setup import Setup
from meshwright.layouts.units import Units
from meshwright.simulate.simulator import simulate


def read(text: str, model: str = DENSE, world: int = 16, name: str = "train.sh") -> Read:
    return Megatron().read({name: text}, model_of(problem(model).graph), world)


def read_setup(text: str, model: str = DENSE) -> Setup:
    return setup_from(problem(model), Megatron(), read(text, model), model)


BASE = "--micro-batch-size 2 --global-batch-size 64 --bf16 --overlap-grad-reduce "

SCRIPT = """\
#!/bin/bash
# A launch script as people write them.
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS=8
NODES=${NODES:-2}
WORLD=$(($GPUS * NODES))
TP=2; PP=$((TP * 2))
DATA=$1
DISTRIBUTED="
    --nproc_per_node $GPUS \\
    --nnodes $NODES
"
MODEL=(
    --num-layers 4      # of which --num-layers 8 is another
    --num-attention-heads 8
    --group-query-attention --num-query-groups 4
    --seq-length 32 --max-position-embeddings 32
)
MODEL+=(--swiglu "--normalization RMSNorm")
PARALLEL=(
    --tensor-model-parallel-size ${TP}
    --pipeline-model-parallel-size $PP
    --sequence-parallel
    --use-distributed-optimizer
)
if [ -n "${FAST}" ]; then
    PARALLEL+=(--overlap-grad-reduce)
fi
torchrun $DISTRIBUTED \\
    pretrain_gpt.py \\
    "${MODEL[@]}" ${PARALLEL[@]} \\
    --micro-batch-size=2 --global-batch-size 64 \\
    --recompute-activations --bf16 \\
    --data-path $DATA "$@" 2>&1 | tee "log.txt"
"""


def test_a_launch_script() -> None:
    found = read(SCRIPT)
    assert found.words["tp"] == 2 and found.words["pp"] == 4 and found.words["sequence"]
    assert (found.words["zero"], found.words["recompute"], found.words["micro_batch"]) == (1, "attention", 2)
    assert (found.words["seq"], found.words["samples"], found.words["counts"]) == (32, 64, (1, 1, 1, 1))
    assert found.lines["tp"] == "--tensor-model-parallel-size 2"
    assert found.lines["micro_batch"] == "--micro-batch-size 2"
    assert "--overlap-param-gather (not given)" in found.ignored
    assert "--overlap-grad-reduce (not given)" not in found.ignored
    assert any(key.startswith("conditions of the script") for key in found.ignored)
    again = setup_from(problem(DENSE), Megatron(), found, DENSE)
    assert again.layout == setup(dp=2, tp=2, pp=4, sequence=True, zero=1, recompute="attention", micro_batch=2).layout
    assert simulate(again.problem, again.plan(), detail=False).step_seconds > 0


@pytest.mark.parametrize(
    "text",
    [
        "--pipeline-model-parallel-size 4 --tensor-model-parallel-size 2 " + BASE,
        "python pretrain_gpt.py --tensor-model-parallel-size 2\\\n --pipeline-model-parallel-size=4 " + BASE,
        "--tensor-model-parallel-size 2\n--pipeline-model-parallel-size 4\n" + BASE.replace(" --", "\n--"),
        f'srun bash -c "torchrun a/pretrain_gpt.py --tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 {BASE}"',
        'OPTIONS=" \\\n --tensor-model-parallel-size 2 \\\n --pipeline-model-parallel-size 4 \\\n '
        f'{BASE}"\nCOMMAND="python -u $DIR/pretrain_gpt.py $@ ${{OPTIONS}}"\nsrun -l sh -c "${{COMMAND}}"\nset +x',
        f"ARGS=(--tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 {BASE})",
        f"ARGS='--tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 {BASE}'\nrun.py $ARGS $MORE",
    ],
)
def test_command_lines(text: str) -> None:
    assert read_setup(text).layout == setup(dp=2, tp=2, pp=4, micro_batch=2).layout


YAML = """\
language_model:
  num_layers: 4
  num_attention_heads: 8
  num_moe_experts: null
  recompute_granularity: full
  recompute_method: block
  recompute_num_layers: 1
model_parallel:
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 2
  sequence_parallel: True
  overlap_p2p_comm: False
  bf16: True
micro_batch_size: 1
global_batch_size: 64
rampup_batch_size: [32, 32, 65324160]
use_distributed_optimizer: False
num_layers_per_virtual_pipeline_stage: null
"""


def test_a_yaml_configuration() -> None:
    found = read(YAML, name="gpt.yaml")
    assert found.words["recompute"] == "first:1" and found.words["zero"] == 0
    assert found.lines["pp"] == "pipeline_model_parallel_size: 2"
    assert "rampup_batch_size: [32, 32, 65324160]" in found.ignored and "overlap_p2p_comm: False" in found.ignored
    layout = setup_from(problem(DENSE), Megatron(), found).layout
    assert layout == setup(dp=4, tp=2, pp=2, sequence=True, recompute="first:1").layout
    with pytest.raises(
        InputError,
        match=r"gpt\.yaml:9: Megatron-LM 0\.19\.2 has no field tensor_model_paralel_size: did you mean tensor_model_parallel_size",
    ):
        read(YAML.replace("tensor_model_parallel", "tensor_model_paralel"), name="gpt.yaml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--use-megatron-fsdp", {"zero": 3}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim", {"zero": 1}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads --num-distributed-optimizer-instances 4", {"zero": 2, "replicate": 4}),
        ("--use-torch-fsdp2", {"zero": 3, "reshard": True}),
        ("--use-torch-fsdp2 --torch-fsdp2-no-reshard-after-forward", {"zero": 3, "reshard": False}),
        ("--sequence-parallel", {"sequence": False}),
        ("--context-parallel-size 2 --cp-comm-type a2a", {"cp": 2, "context": "ulysses"}),
        ("--context-parallel-size 2 --cp-comm-type allgather", {"context": "gather"}),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1", {"recompute": "full"}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 9", {"recompute": "full"}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 3", {"recompute": "first:3"}),
        ("--recompute-granularity selective --recompute-modules layernorm core_attn", {"recompute": "core_attn+layernorm+"}),
        ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1", {"chunks": 2, "schedule": "interleaved"}),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", {"counts": (1, 1, 1, 1)}),
        ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 3", {"counts": (3, 1)}),
        ("--pipeline-model-parallel-size 2 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split", {"counts": (2, 2)}),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'E|t,(t|)*2tL'", {"counts": (0, 2, 1, 1), "chunks": 2}),
    ],
)  # fmt: skip
def test_options(options: str, words: dict[str, Any]) -> None:
    found = read(f"pretrain_gpt.py {options} {BASE}")
    assert {k: found.words.get(k) for k in words} == words


def test_uneven_ends_deal_layers_to_chunks() -> None:
    """The rule of get_num_layers_to_build: ranks have their layers in equal chunks, the counted embedding takes one of the first."""
    text = "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --decoder-first-pipeline-num-layers 2 "
    assert read(text + BASE).words["counts"] == (1, 1, 1, 1)
    text = "--pipeline-model-parallel-size 2 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split "
    assert read(text + "--num-virtual-stages-per-pipeline-rank 3 " + BASE).words["counts"] == (0, 1, 1, 1, 1, 0)


def test_experts() -> None:
    text = "--tensor-model-parallel-size 2 --sequence-parallel --num-experts 8 " + BASE
    found = read(text + "--expert-model-parallel-size 4", EXPERTS)
    assert (found.words["ep"], found.words["whole_experts"]) == (4, False)
    whole = text + "--expert-model-parallel-size 4 --expert-tensor-parallel-size 1"
    assert (
        read_setup(whole, EXPERTS).layout
        == setup(EXPERTS, dp=4, ep=2, tp=2, sequence=True, whole_experts=True, micro_batch=2).layout
    )
    for more, why in (
        ("--expert-model-parallel-size 3", "ep 3 does not divide the 8 experts"),
        ("--expert-model-parallel-size 1 --expert-tensor-parallel-size 1", "lie whole on a multiple of 2 devices"),
        (
            "--tensor-model-parallel-size 8 --expert-model-parallel-size 4",
            "experts over 4 replicas are read, of which there are 2",
        ),
    ):
        with pytest.raises(InputError, match=why):
            read(text + more, EXPERTS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--tensor-model-paralel-size 2 ", r"train\.sh:2: Megatron-LM 0\.19\.2 has no option --tensor-model-paralel-size: did you mean --tensor-model-parallel-size\?"),
        ("--tensor_model_parallel_size 2 ", r"did you mean --tensor-model-parallel-size|see its --help"),
        ("--tensor-model-parallel-size --bf16 ", r"train\.sh:2: --tensor-model-parallel-size needs a value"),
        ("--tensor-model-parallel-size $TP ", r"train\.sh:2: --tensor-model-parallel-size \$TP: the script does not set it"),
        ("--tensor-model-parallel-size two ", r"a whole number of at least 1 is wanted"),
        ("--tensor-model-parallel-size 3 ", r"16 devices do not split over tp 3 × pp 1 × cp 1 = 3"),
        ("--bf16 true ", r'train\.sh:2: "true" belongs to no option'),
        ("--num-layers 32 ", r"the model has 4 layers, not 32"),
        ("--global-batch-size 50 ", r"50 samples do not split over dp 16 × micro-batch 2; use 32 or 64"),
        ("--pipeline-model-parallel-size 8 ", r"the 4 layers do not divide over 8 pipeline ranks"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ett|tL' ", r"has 3 layers, but the model has 4"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'ttE|ttL' ", r"must begin with its one E"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ett|tt' ", r"must end with its one L"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et|tt|tL' ", r"its 3 parts do not divide over 2"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ex|ttttL' ", r'"x" in the layout'),
        ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 2 --decoder-last-pipeline-num-layers 0 ", r"--decoder-last-pipeline-num-layers 0: a whole number of at least 1"),
        ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 2 ", r"the other 2 layers do not divide over the other 3 pipeline ranks"),
        ("--pipeline-model-parallel-layout 'Ett|ttL' ", r"need two pipeline ranks or more"),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --pipeline-model-parallel-layout 'Ett|ttL' ", r"not together with"),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 48 ", r"3 micro-batches are no multiple of the 2 pipeline ranks"),
        ("--recompute-granularity full ", r"needs --recompute-method uniform or block"),
        ("--cp-comm-type ring --context-parallel-size 2 ", r'"ring" is none of a2a'),
        ("--use-distributed-optimizer --num-distributed-optimizer-instances 3 ", r"3 groups do not divide the 16 replicas"),
        ("--use-tp-pp-dp-mapping --pipeline-model-parallel-size 2 --context-parallel-size 2 ", r"takes neither context parallelism"),
        ("--tensor-parallel-num-weight-shards 4 ", r"weights cut further"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(f"pretrain_gpt.py {BASE} \\\n {text}")


def test_no_options_at_all() -> None:
    with pytest.raises(InputError, match="holds no options of Megatron-LM"):
        read("echo hello")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("--fp8-format hybrid", "--fp8-format hybrid"),
        ("--context-parallel-size 2", "--cp-comm-type p2p (default)"),
        ("--tensor-model-parallel-size 2 --tp-comm-overlap --sequence-parallel", "--tp-comm-overlap"),
        ("--optimizer-cpu-offload", "--optimizer-cpu-offload"),
        ("--optimizer muon", "--optimizer muon"),
        ("--recompute-granularity selective --recompute-modules moe", "--recompute-modules moe"),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
            "--recompute-num-layers 2",
        ),
        ("--no-overlap-p2p-communication --pipeline-model-parallel-size 2", "--no-overlap-p2p-communication"),
        ("--use-legacy-models", "--use-legacy-models"),
        ("--use-distributed-optimizer", "--overlap-param-gather (not given)"),
        ("$MORE", "$MORE"),
    ],
)
def test_what_is_not_priced_is_said(options: str, key: str) -> None:
    found = read(f"pretrain_gpt.py {BASE} {options}")
    assert found.ignored[key]
    assert key not in read(f"pretrain_gpt.py {BASE}").ignored


def test_layout_strings() -> None:
    assert parts("E|(t|)*3,m|m||L") == ("E", "t", "t", "t", "m", "m", "", "L")
    assert parts("Ettt|(tt|)*2,m|L") == ("Ettt", "tt", "tt", "m", "L")
    assert parts("E(tt|t)*2L") == ("Ett", "ttt", "tL")
    for wanted in ((0, 4), (4, 0), (0, 2, 2, 0), (1, 3), (2, 1, 1)):
        found = setup(dp=4, pp=len(wanted), counts=wanted)
        assert counts(written(found.shares), 4) == wanted
        assert sum(found.layout.parts) == len(Units(found.expert.atoms.folded))
    with pytest.raises(ValueError, match="leaves its first or its last part empty"):
        counts("|Ett|ttL", 4)


def test_files_of_the_two_kinds_are_told_from_others() -> None:
    assert Megatron.recognises(SCRIPT) and Megatron.recognises(YAML)
    for text in (
        '{"zero_optimization": {"stage": 1}}',
        "cfg.model.tensor_model_parallel_size = 2",
        "fsdp_config:\n  fsdp_version: 2",
    ):
        assert not Megatron.recognises(text)


def test_the_list_of_options_has_all_that_are_read_and_written() -> None:
    options, fields = known()
    from meshwright.export._megatron_read import UNPRICED

    assert set(UNPRICED) <= fields
    for name, words in (
        ("a", {}),
        ("b", {"zero": 3}),
        ("c", {"zero": 3, "reshard": False}),
        ("d", {"dp": 8, "pp": 2, "zero": 1}),
    ):
        for s in Megatron().said(setup(**words)):  # type: ignore[arg-type]
            assert set(s.options) <= set(options), name


def test_options_of_others_and_of_earlier_versions_do_not_stop_a_file() -> None:
    line = "torchrun pretrain_gpt.py --tensor-model-parallel-size 2 --our-own 3 x --checkpoint-activations\n"
    found = read(line)
    assert found.ignored["--our-own 3 x"] == "no option of Megatron-LM 0.19.2: taken for the script's own"
    assert (found.words["tp"], found.words["recompute"]) == (2, "full")


def test_options_as_keys_of_yaml_are_read() -> None:
    text = "ENV_VARS:\n  CUDA_DEVICE_MAX_CONNECTIONS: 1\nMODEL_ARGS:\n  --tensor-model-parallel-size: 2\n"
    found = read(text + "  --sequence-parallel: true\n", name="model_config.yaml")
    assert (found.words["tp"], found.words["sequence"]) == (2, True)
    assert next(iter(found.ignored)) == "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.mark.parametrize(("option", "precision"), [("--bf16", "bfloat16"), ("--fp16", "float16"), ("", "float32")])
def test_the_precision_is_read(option: str, precision: str) -> None:
    found = read(BASE.replace("--bf16", option))
    assert found.precision == precision
    assert found.lines["precision"] == (option or "--bf16 (not given)")
