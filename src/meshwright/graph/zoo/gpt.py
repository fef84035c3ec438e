"""GPT-2, GPT-3 and the GPTs that Megatron-LM was measured on: one architecture, twenty-odd sizes."""

from __future__ import annotations

from ._entry import Config, Entry

# Radford et al. 2019, table 2; heads of 64 as in the released weights; 512 sequences a step (section 2.3).
GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
# Brown et al. 2020, table 2.1: layers, width, heads, and the batch in sequences of 2,048 tokens. Two rows of the table
# do not divide: 1.3b has 24 heads of 128 for a width of 2,048 (16 here), 13b a width of 5,140 (5,120 here).
GPT3 = {
    "gpt3-1.3b": (24, 2048, 16, 512),
    "gpt3-2.7b": (32, 2560, 32, 512),
    "gpt3-6.7b": (32, 4096, 32, 1024),
    "gpt3-13b": (40, 5120, 40, 1024),
    "gpt3-175b": (96, 12288, 96, 1536),
}
# Narayanan et al. 2021 (SC'21), table 1: layers, width, heads, batch in sequences of 2,048 tokens.
MEGATRON = {
    "megatron-1.7b": (24, 2304, 24, 512),
    "megatron-3.6b": (30, 3072, 32, 512),
    "megatron-7.5b": (36, 4096, 32, 512),
    "megatron-18b": (40, 6144, 48, 1024),
    "megatron-39b": (48, 8192, 64, 1536),
    "megatron-76b": (60, 10240, 80, 1792),
    "megatron-145b": (80, 12288, 96, 2304),
    "megatron-310b": (96, 16384, 128, 2160),
    "megatron-530b": (105, 20480, 128, 2520),
    "megatron-1t": (128, 25600, 160, 3072),
}


def config(layers: int, width: int, heads: int, seq: int, vocab: int) -> Config:
    """Dropout is off: a plan is compared with one device number by number."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_positions": seq,
        "vocab_size": vocab,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": vocab - 1,
        "eos_token_id": vocab - 1,
    }


def parameters(layers: int, width: int, seq: int, vocab: int) -> int:
    """Token and position tables (the head is tied), 12 width² of weights and 13 width of biases and norms a block."""
    return (vocab + seq) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def _entry(name: str, size: tuple[int, int, int], seq: int, vocab: int, batch: int, source: str) -> Entry:
    layers, width, heads = size
    count = parameters(layers, width, seq, vocab)
    return Entry(name, "gpt", count, batch, seq, source, config(layers, width, heads, seq, vocab))


ENTRIES = (
    *(_entry(n, size, 1024, 50257, 512, "Radford et al. 2019, table 2") for n, size in GPT2.items()),
    *(_entry(n, size[:3], 2048, 50257, size[3], "Brown et al. 2020, table 2.1") for n, size in GPT3.items()),
    *(_entry(n, size[:3], 2048, 51200, size[3], "Narayanan et al. 2021, table 1") for n, size in MEGATRON.items()),
)
