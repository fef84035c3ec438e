"""Encoders and encoder-decoders of measured rows: what is captured computes what their shapes say."""

from dataclasses import replace

import pytest

from meshwright.validation.columns import Columns, Refused
from meshwright.validation.encoders import Encoder, EncoderDecoder, encoder_decoder
from meshwright.validation.models import Graphs, Shape
from meshwright.validation.shapes import shape_of

CASES = ({"other": "swiglu=1"}, {}, {"kv_heads": "4"})
BERT = Encoder(5, 128, 4, 512, 1024, 64, 64)


@pytest.mark.parametrize(
    "model",
    [
        BERT,
        replace(BERT, masked=12),
        EncoderDecoder(2, 128, 4, 32, 256, False, 512, 64),
        EncoderDecoder(2, 128, 4, 16, 256, True, 512, 64),
    ],
)
def test_a_captured_model_computes_what_its_shape_says(model: Shape) -> None:
    graph = Graphs().of(model)
    flops = sum(op.flops for op in graph.ops)
    assert (3 * flops / graph.samples - model.masked_flops) / model.flops == pytest.approx(1, rel=0.001)


def test_an_encoder_is_stretched_to_its_depth() -> None:
    assert [run.count for run in Graphs().of(BERT).runs] == [5]


def test_a_decoder_of_another_length_than_captured_is_refused() -> None:
    columns = {"hidden": "64", "heads": "4", "seq_len": "512", "other": "dec_seq=64; enc_layers=2; dec_layers=2"}
    with pytest.raises(Refused, match="two lengths"):
        encoder_decoder(Columns(columns), 1)


def test_a_gated_gpt_and_one_with_shared_keys_are_captured_as_such() -> None:
    columns = {
        "family": "gpt", "layers": "4", "hidden": "64", "heads": "4", "kv_heads": "2", "vocab": "512", "seq_len": "32",
    }  # fmt: skip
    assert [getattr(shape_of(Columns({**columns, **more}), 1), "style", "") for more in CASES] == [
        "llama",
        "nemotron",
        "gpt",
    ]
