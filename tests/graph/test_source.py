"""A model is named three ways; each gives a module, legal inputs and a graph, or one sentence that says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.graph.source import ConfigSource, ModelSource, resolve
from meshwright.graph.zoo import Shrink, entries

COUNT = len(entries())
NET = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.inner = nn.Linear(width, width)
    def forward(self, tokens, labels):
        x = self.inner(self.embed(tokens))
        logits = x @ self.embed.weight.t()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}
"""
BUILD = """
def build():
    ids = torch.arange(24).reshape(4, 6)
    return Net(), {"tokens": ids, "labels": ids}

def main():
    pass
"""

# Small configurations of families that are not in the zoo, as their config.json would say them.
TEXT = {"vocab_size": 101, "max_position_embeddings": 128}
DECODER = {
    **TEXT,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ENCODER = {
    **TEXT,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIGS: dict[str, dict[str, object]] = {
    "qwen2": DECODER,
    "mistral": {**DECODER, "sliding_window": 7, "head_dim": 16},
    "gemma": {**DECODER, "num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {**DECODER, "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8},
    "phi3": {**DECODER, "pad_token_id": 0},
    "opt": {
        **TEXT,
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
        "dropout": 0.0,
    },
    "gpt_neox": {**DECODER, "architectures": ["GPTNeoXForCausalLM"]},
    "falcon": {"vocab_size": 101, "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "alibi": False},
    "starcoder2": DECODER,
    "olmo2": {**DECODER, "pad_token_id": 0},
    "roberta": {**ENCODER, "max_position_embeddings": 130},
    "distilbert": {
        **TEXT,
        "n_layers": 3,
        "dim": 64,
        "hidden_dim": 96,
        "n_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "num_labels": 5,
        "architectures": ["DistilBertForSequenceClassification"],
    },
    "t5": {
        "vocab_size": 101,
        "num_layers": 3,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_heads": 4,
        "dropout_rate": 0.0,
    },
    "qwen3_moe": {
        **DECODER,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deit": {**ENCODER, "image_size": 32, "patch_size": 8, "num_labels": 5},
}
BLOCKS = {"gemma2": 2, "t5": 2}


def code(folder: Path, text: str, function: str = "build") -> str:
    file = folder / "model.py"
    file.write_text(text)
    return f"{file}:{function}"


def refusal(spec: str) -> str:
    with pytest.raises(InputError) as found:
        resolve(spec).build()
    return found.value.message


def test_a_misspelt_name_gets_the_nearest_one_and_the_count() -> None:
    assert refusal("lama-3.1-8b") == (
        f'no model "lama-3.1-8b": did you mean llama-3.1-8b? ("meshwright models" lists {COUNT})'
    )


def test_a_far_name_gets_no_guess() -> None:
    assert refusal("elephant").startswith(f'no model "elephant": "meshwright models" lists {COUNT}')


def test_a_hub_name_is_not_downloaded() -> None:
    assert refusal("meta-llama/Llama-3.1-8B") == (
        '"meta-llama/Llama-3.1-8B" is a hub name and meshwright downloads nothing: use llama-3.1-8b, '
        "or give a local config.json"
    )


def test_an_unknown_hub_name_points_to_a_config() -> None:
    assert refusal("someone/theirs") == (
        '"someone/theirs" is a hub name and meshwright downloads nothing: give a local config.json'
    )


def test_a_missing_function_is_named_with_those_that_exist(tmp_path: Path) -> None:
    assert refusal(code(tmp_path, NET + BUILD, "biuld")) == (
        'model.py has no function "biuld": it defines build and main'
    )


def test_a_wrong_return_is_shown_with_its_line(tmp_path: Path) -> None:
    text = "from torch import nn\n\ndef build():\n    width = 4\n    return nn.Linear(width, width)\n"
    assert refusal(code(tmp_path, text)) == (
        "model.py:5: build() returned a Linear: it must return (module, example_inputs)"
    )


def test_an_error_in_the_users_code_has_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "pieces.py").write_text("def make():\n    return undefined\n")
    assert refusal(code(tmp_path, "import pieces\n\ndef build():\n    return pieces.make()\n")) == (
        "pieces.py:2: NameError: name 'undefined' is not defined"
    )


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    assert refusal(code(tmp_path, "x = 1\ndef build(:\n")).startswith("model.py:2: SyntaxError: ")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("none.py:build", "none.json"):
        assert refusal(str(tmp_path / name)).endswith(": No such file or directory")


def test_a_needed_parameter_of_build_is_asked_for_by_name(tmp_path: Path) -> None:
    assert refusal(code(tmp_path, "def build(depth):\n    return None\n")) == (
        "model.py:1: build() needs depth: give each a default"
    )


def test_inputs_that_do_not_fit_forward_are_refused(tmp_path: Path) -> None:
    text = NET + "\ndef build():\n    return Net(), {'words': torch.zeros(2, 3)}\n"
    line = text.splitlines().index("    return Net(), {'words': torch.zeros(2, 3)}") + 1
    assert refusal(code(tmp_path, text)) == (
        f"model.py:{line}: the example inputs do not fit forward(tokens, labels): "
        "give one tensor for each argument, in their order or by their names"
    )


def test_a_damaged_config_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{")
    assert refusal(str(file)).startswith(f"{file}: not a JSON file")
    file.write_text('{"hidden_size": 4}')
    assert refusal(str(file)).startswith(
        f'{file}: neither a configuration of transformers, which has a "model_type", nor '
    )
    file.write_text('{"model_type": "elephant"}')
    assert "elephant" in refusal(str(file))
    file.write_text(json.dumps({"model_type": "gpt2", "n_embd": 100, "n_head": 12}))
    assert refusal(str(file)).startswith(
        "config.json: GPT2LMHeadModel refuses these values: `embed_dim` must be divisible"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "WhisperForConditionalGeneration",
            "config.json: WhisperForConditionalGeneration reads input_features: models of token ids or of images",
        ),
        (
            "CLIPForImageClassification",
            'config.json: model_type "clip" describes its images in a part of its own; language models,',
        ),
    ],
)
def test_a_config_of_other_inputs_is_refused_before_it_is_traced(tmp_path: Path, name: str, sentence: str) -> None:
    from meshwright.errors import Unsupported

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": name.partition("For")[0].lower(), "architectures": [name]}))
    with pytest.raises(Unsupported) as found:
        resolve(str(file)).build(2)
    assert found.value.message.startswith(sentence)


def test_a_sequence_beyond_the_position_table_is_refused() -> None:
    with pytest.raises(InputError) as found:
        resolve("gpt2").build(2, 2048)
    assert found.value.message == "the model has positions for 1,024 tokens, not 2,048: use --seq 1024 or less"


@pytest.mark.parametrize("inputs", ["(ids, ids)", "[ids, ids]", "{'labels': ids, 'tokens': ids}"])
def test_code_takes_tuples_lists_and_dicts_and_another_batch(tmp_path: Path, inputs: str) -> None:
    text = NET + f"\ndef build():\n    ids = torch.arange(24).reshape(4, 6)\n    return Net(), {inputs}\n"
    source = resolve(code(tmp_path, text))
    assert (source.kind, source.name, source.default_batch, source.default_seq, source.text) == (
        "code", "model", 4, 6, True,
    )  # fmt: skip
    module, found = source.build(7, device="cpu")
    assert {name: tuple(x.shape) for name, x in found.items()} == {"tokens": (7, 6), "labels": (7, 6)}
    assert found["tokens"][4].tolist() == found["tokens"][0].tolist()
    assert module(**found)["loss"].isfinite()
    graph = source.graph(3, dtype="float32", cache=False)
    assert graph.samples == 3
    assert graph.tensor["tokens"].shape == (3, 6)


def test_a_single_tensor_is_an_input_too(tmp_path: Path) -> None:
    text = (
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.inner = nn.Linear(8, 8)\n"
        "    def forward(self, x):\n        return self.inner(x).square().mean()\n\n"
        "def build():\n    return Net(), torch.zeros(4, 8)\n"
    )
    source = resolve(code(tmp_path, text))
    assert not source.text
    assert resolve(code(tmp_path, text)).graph(2, dtype="float32", cache=False).inputs == ("x",)


def test_parameters_of_build_are_filled_in(tmp_path: Path) -> None:
    text = NET + (
        "\ndef build(batch=2, seq=6, width=16):\n"
        "    ids = torch.zeros(batch, seq, dtype=torch.int64)\n    return Net(width), (ids, ids)\n"
    )
    module, inputs = resolve(code(tmp_path, text)).build(3, 5, shrink=Shrink(width=8))
    assert tuple(inputs["tokens"].shape) == (3, 5)
    assert tuple(module.inner.weight.shape) == (8, 8)


def test_another_sequence_needs_a_parameter(tmp_path: Path) -> None:
    source = resolve(code(tmp_path, NET + BUILD))
    with pytest.raises(InputError, match=r"have 6 tokens, not 9: give build\(\) a parameter called seq"):
        source.build(2, 9)


def test_forward_may_import_what_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "late_part.py").write_text("def twice(x):\n    return x * 2\n")
    plain = "x = self.inner(self.embed(tokens))"
    text = NET.replace(plain, f"import late_part\n        {plain}\n        x = late_part.twice(x)")
    graph = resolve(code(tmp_path, text + BUILD)).graph(4, dtype="float32", cache=False)
    assert [op.kind for op in graph.ops].count("mul") == 1


THIRD = """
import torch
from torch import nn


class Third(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.side, self.head = nn.Embedding(20, 8), nn.Linear(5, 8), nn.Linear(8, 20)

    def forward(self, tokens, feats, labels):
        x = self.head(self.embed(tokens) + self.side(feats).unsqueeze(1))
        return nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten())


def build(batch=4, seq=6):
    tokens = torch.arange(batch * seq).reshape(batch, seq) % 20
    return Third(), (tokens, torch.zeros(batch, 5), tokens)
"""


def test_text_becomes_inputs_of_every_text_model(tmp_path: Path) -> None:
    import torch

    tokens = torch.arange(14).reshape(2, 7)
    for spec, shifted in (("gpt2", 0), ("user-net", 1), (code(tmp_path, NET + BUILD), 1)):
        first, labels = resolve(spec).text_inputs(tokens, torch.Generator()).values()
        assert first.tolist() == tokens[:, :-1].tolist()
        assert labels.tolist() == tokens[:, shifted : 6 + shifted].tolist()


def test_a_text_model_may_read_more_than_text_the_same_in_every_process_and_cut(tmp_path: Path) -> None:
    import torch

    from meshwright.execute.training.samples import Samples

    file = tmp_path / "third.py"
    file.write_text(THIRD)
    source = resolve(f"{file}:build")
    whole, again = (Samples(source, 4, 1, 6, 3).batch(2)[0] for _ in range(2))
    halves, later = Samples(source, 2, 2, 6, 3).batch(2), Samples(source, 4, 1, 6, 3).batch(3)[0]
    assert {name: tuple(x.shape) for name, x in whole.items()} == {"tokens": (4, 6), "feats": (4, 5), "labels": (4, 6)}
    assert torch.equal(whole["tokens"][:, 1:], whole["labels"][:, :-1])
    for name, x in whole.items():
        assert torch.equal(x, again[name])
        assert torch.equal(x, torch.cat([half[name] for half in halves]))
    assert not torch.equal(whole["feats"], later["feats"])


def test_random_inputs_are_legal_and_follow_the_seed(tmp_path: Path) -> None:
    import torch

    small = Shrink(blocks=1, width=32, heads=2, kv_heads=2, vocab=40, seq=8, image=32)
    cases = [(resolve(name), small) for name in ("gpt2", "bert-large", "vit-l16", "user-net")]
    cases.append((resolve(code(tmp_path, NET + BUILD)), Shrink()))
    for source, shrink in cases:
        drawn = [source.random_inputs(3, 0, torch.Generator().manual_seed(seed), shrink=shrink) for seed in (5, 5, 6)]
        module, _ = source.build(3, device="cpu", shrink=shrink)
        output = module(**drawn[0])
        assert (output["loss"] if isinstance(output, dict) else output.loss).isfinite()
        for name, x in drawn[0].items():
            assert torch.equal(x, drawn[1][name])
        assert any(not torch.equal(x, drawn[2][name]) for name, x in drawn[0].items())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_config_alone_is_enough_and_captured_means_the_same_as_eager_attention(kind: str, tmp_path: Path) -> None:
    import torch

    from meshwright.graph.replay import execute_graph

    file = tmp_path / "config.json"
    file.write_text(json.dumps({**CONFIGS[kind], "model_type": kind}))
    source = resolve(str(file))
    assert isinstance(source, ConfigSource)
    graph = source.graph(2, 16, "float32", cache=False)
    module, _ = source.build(2, 16, device="cpu", attention="eager")
    inputs = source.random_inputs(2, 16, torch.Generator().manual_seed(1))
    values = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
        **inputs,
    }
    known = {name: x.detach() for name, x in values.items() if name in graph.tensor}
    wanted = float(module(**inputs).loss.detach())
    assert float(execute_graph(graph, known)[graph.loss]) == pytest.approx(wanted, rel=2e-6)
    assert max(run.count for run in graph.runs) == BLOCKS.get(kind, 3)


def test_a_folder_with_a_config_is_called_like_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIGS["qwen2"], "model_type": "qwen2"}))
    for spec in (folder, folder / "config.json"):
        source = resolve(str(spec))
        assert (source.name, source.kind, source.default_seq, source.text) == ("my-qwen", "config", 128, True)


def test_resolving_loads_no_torch(tmp_path: Path) -> None:
    specs = ["llama-3.1-8b", code(tmp_path, NET + BUILD)]
    program = (
        "import sys\nfrom meshwright.graph.source import resolve\n"
        f"for s in {specs!r}: resolve(s).identity()\n"
        "print(resolve('gpt2').default_seq, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1024", "False", "False"]


def test_every_source_is_a_model_source(tmp_path: Path) -> None:
    for spec in ("gpt2", code(tmp_path, NET + BUILD)):
        assert isinstance(resolve(spec), ModelSource)
