"""Captured small models, each once per run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers
from small_models import MODELS

from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph
from meshwright.graph.transformers_hooks import register_attention

warnings.filterwarnings("ignore", module="torch")
SAMPLES = 2


@pytest.fixture(scope="session")
def captured() -> Callable[[str], Graph]:
    """captured(name): the graph of a small model at SAMPLES samples, with our attention."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)

    @cache
    def graph(name: str) -> Graph:
        build, inputs = MODELS[name]
        return capture(build("meta", register_attention()), inputs(SAMPLES, "meta"), SAMPLES)

    return graph
