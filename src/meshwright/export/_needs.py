"""Conditions that several targets have."""

from __future__ import annotations

from .setup import Setup


def decoder(s: Setup) -> str:
    m = s.model
    if m.decoder:
        return ""
    what = (
        "no embedding of tokens"
        if not m.vocabulary
        else "no attention"
        if not m.heads
        else f"{len(m.stacks)} stacks of layers"
    )
    return f"a decoder: one stack of layers with attention between an embedding and a head; this model has {what}"
