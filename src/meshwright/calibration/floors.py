"""Seconds in which the host issues one transformer layer, and those of a step besides its layers, on a GPU.

A model so thin that its device is idle most of the time, of few and of more layers: what one layer more takes is the floor
of a layer, what no layer takes is the fixed time of a step (loss, optimizer, its reading).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..graph.source import ConfigSource
from ..graph.zoo.gpt import config

LAYERS = (2, 8)
WIDTH, TOKENS, VOCABULARY = 64, 64, 512
ROUNDS = 15


def floors(device: torch.device, compiled: bool) -> Mapping[str, float]:
    """Constants of a generation of software: floor_forward, floor_backward and fixed, seconds.

    Raises:
        RuntimeError: torch.compile does not work here.
    """
    spent = {layers: _thin(device, layers, compiled) for layers in LAYERS}
    few, many = LAYERS
    forward, backward = ((spent[many][k] - spent[few][k]) / (many - few) for k in (0, 1))
    fixed = spent[few][2] - few * (forward + backward)
    return {k: max(v, 1e-7) for k, v in (("floor_forward", forward), ("floor_backward", backward), ("fixed", fixed))}


def _thin(device: torch.device, layers: int, compiled: bool) -> tuple[float, float, float]:
    """Medians of (forward, backward, whole step), seconds."""
    source = ConfigSource("thin", "thin", "config", config(layers, WIDTH, 1, TOKENS, VOCABULARY), 1, TOKENS)
    module, _ = source.build(1, TOKENS, "bfloat16", device=str(device), attention="sdpa")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device=device)
    run: Callable[..., Any] = torch.compile(module) if compiled else module
    times = []
    for k in range(ROUNDS + 3):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        loss = run(input_ids=ids, labels=ids).loss
        torch.cuda.synchronize(device)
        middle = time.perf_counter()
        loss.backward()
        torch.cuda.synchronize(device)
        end = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        if k >= 3:
            times.append((middle - began, end - middle, time.perf_counter() - began))
    forward, backward, whole = np.median(np.array(times), axis=0).tolist()
    return forward, backward, whole
