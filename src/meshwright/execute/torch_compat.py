"""Every use of an interface that torch does not promise to keep. Tested against the pinned torch (>= 2.13)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import fx, library

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement


def group_members(boxed: Any) -> tuple[int, ...]:
    """World ranks of the process group that a c10d operator was called with."""
    group = boxed if isinstance(boxed, dist.ProcessGroup) else dist.ProcessGroup.unbox(boxed)
    return tuple(dist.get_process_group_ranks(group))


def c10d_operators() -> dict[Any, str]:
    """c10d operator -> our name of the collective that it carries out."""
    ops = torch.ops.c10d
    return {
        ops.allreduce_.default: "all_reduce",
        ops.allreduce_coalesced_.default: "all_reduce",
        ops.allgather_.default: "all_gather",
        ops._allgather_base_.default: "all_gather",
        ops.allgather_coalesced_.default: "all_gather",
        ops.allgather_into_tensor_coalesced_.default: "all_gather",
        ops.reduce_scatter_.default: "reduce_scatter",
        ops._reduce_scatter_base_.default: "reduce_scatter",
        ops.reduce_scatter_tensor_coalesced_.default: "reduce_scatter",
        ops.alltoall_.default: "all_to_all",
        ops.alltoall_base_.default: "all_to_all",
        ops.broadcast_.default: "broadcast",
        ops.reduce_.default: "reduce",
        ops.gather_.default: "gather",
        ops.scatter_.default: "scatter",
        ops.send.default: "send",
        ops.recv_.default: "recv",
        ops.recv_any_source_.default: "recv",
    }


@contextmanager
def watched(seen: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `seen` with (our name, arguments) before each c10d operator of this process is carried out, in any mode of
    autograd. The kernel stands at a key that every call passes and no c10d operator has; other operators cost nothing."""

    def kernel(operator: Any, kind: str) -> Callable[..., Any]:
        def carried_out(keys: Any, *args: Any, **kwargs: Any) -> Any:
            seen(kind, args)
            return operator.redispatch(keys.remove(torch._C.DispatchKey.BackendSelect), *args, **kwargs)

        return carried_out

    kernels = library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    try:
        for operator, kind in c10d_operators().items():
            kernels.impl(operator, kernel(operator, kind), "BackendSelect", with_keyset=True)  # type: ignore[no-untyped-call]
        yield
    finally:
        kernels._destroy()  # type: ignore[no-untyped-call]


def strided_shard(dim: int, pieces: int) -> Placement:
    """Each of `pieces` equal pieces of a dim cut over the mesh axis."""
    from torch.distributed.tensor.placement_types import _StridedShard

    return _StridedShard(dim, split_factor=pieces)


Shape = tuple[tuple[int, ...], torch.dtype, torch.device]


def traced(call: Callable[..., tuple[torch.Tensor, ...]], operands: Sequence[Shape]) -> fx.GraphModule:
    """What `call` asks of torch, as a graph above autograd, on operands of these (sizes, dtype, device). Runs nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode(allow_non_fake_inputs=True):
        given = [torch.empty(sizes, dtype=dtype, device=device) for sizes, dtype, device in operands]
    return make_fx(call, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(*given)
