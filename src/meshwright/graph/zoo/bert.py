"""BERT: an encoder with learned positions and a masked-token head tied to the embedding."""

from __future__ import annotations

from ._entry import Config, Entry

# Devlin et al. 2019, section 3 (BERT-large) and appendix A.2 (256 sequences of 512 tokens a step).
LAYERS, WIDTH, HEADS, VOCAB, SEQ = 24, 1024, 16, 30522, 512


def config() -> Config:
    """Dropout is off: a plan is compared with one device number by number."""
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "vocab_size": VOCAB,
        "max_position_embeddings": SEQ,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def parameters() -> int:
    """Three embedding tables and a norm; 12 width² and 13 width a block; the head's dense layer, norm and bias."""
    embedding = (VOCAB + SEQ + 2) * WIDTH + 2 * WIDTH
    head = WIDTH**2 + WIDTH + 2 * WIDTH + VOCAB
    return embedding + LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + head


ENTRIES = (Entry("bert-large", "bert", parameters(), 256, SEQ, "Devlin et al. 2019, section 3", config()),)
