"""What torch's own trackers say of the user's module under fake tensors: MemTracker, and FSDPMemTracker with fully_shard.

Both follow every storage of an eager training step without computing it. Private to torch, so they stay in the benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from meshwright.graph.source import ModelSource

_OF = {
    "Parameter": "weights", "Sharded Param": "weights", "Gradient": "gradients", "Sharded Grad": "gradients",
    "Optstate": "optimizer", "OptState": "optimizer", "Activation": "activations",
}  # fmt: skip
"""Their categories -> ours; all others are work space."""


def one_device(source: ModelSource, samples: int, seq: int, dtype: str) -> Mapping[str, float]:
    """Bytes by category at the peak of a step of two micro-batches with AdamW."""
    with FakeTensorMode() as mode:
        module, inputs = _fake(mode, source, samples, seq, dtype)
        optimizer = torch.optim.AdamW(module.parameters())
        tracker = MemTracker()
        tracker.track_external(module, optimizer, *inputs.values())
        return _stepped(tracker, module, optimizer, inputs)


def sharded(source: ModelSource, samples: int, seq: int, dtype: str, ranks: int) -> Mapping[str, float]:
    """The same of one of `ranks` ranks whose blocks and root are each sharded by fully_shard."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        with FakeTensorMode() as mode:
            module, inputs = _fake(mode, source, samples, seq, dtype)
            for layer in module.model.layers:  # type: ignore[union-attr]
                fully_shard(layer, mesh=mesh)
            fully_shard(module, mesh=mesh)
            optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
            tracker = FSDPMemTracker(module, optimizer)
            tracker.track_inputs(tuple(inputs.values()))
            return _stepped(tracker, module, optimizer, inputs)
    finally:
        dist.destroy_process_group()


def _fake(
    mode: FakeTensorMode, source: ModelSource, samples: int, seq: int, dtype: str
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    with unset_fake_temporarily():
        # the attention that is captured: the library's own builds masks under fake tensors that no real run has
        module, inputs = source.build(samples, seq, dtype, device="cpu")
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(mode.from_tensor(parameter)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, mode.from_tensor(buffer))
    return module, {name: mode.from_tensor(x) for name, x in inputs.items()}


def _stepped(tracker: Any, module: Any, optimizer: Any, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
    with tracker:
        for _ in range(2):
            for _ in range(2):
                loss = module(**inputs).loss / 2
                loss.backward()
                del loss
                tracker.reset_mod_stats()  # it takes every forward for the first of a module
            optimizer.step()
            optimizer.zero_grad()
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    found: dict[str, float] = {}
    for name, nbytes in snapshot.items():
        word = str(getattr(name, "value", name))
        if word != "Total":
            ours = _OF.get(word, "workspace")
            found[ours] = found.get(ours, 0.0) + nbytes
    return found
