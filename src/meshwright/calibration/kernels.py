"""What `calibrate` times on one device: the kinds of work that the cost model tells apart, in shapes of training steps.

product     matrix products x · wᵀ, as linear layers run them
attention   fused causal attention by each kernel that the device has, forward, and forward with backward
light       element-wise kernels
norm        normalisations
loss        cross entropy of 16-bit logits, forward with backward
lookup      rows of an embedding, forward with backward
optimizer   AdamW with weights, gradients and moments of one dtype
grouped     products of experts, each with rows of its own
quantise    bfloat16 to fp8 with one scale: largest value, scale, cast
launch      what does nothing, so that only the call is left
copy        host to device and back
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .timing import Work

Kind = Literal[
    "product", "attention", "light", "norm", "loss", "lookup", "optimizer", "grouped", "quantise", "launch", "copy"
]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One piece of work; `make` allocates what it reads and returns what runs it."""

    name: str
    kind: Kind
    dtype: str
    sizes: tuple[int, ...]
    """product: rows, columns, depth. attention: batch, heads, tokens, head width. grouped: experts, rows each, columns,
    depth. loss: rows, classes. lookup: rows, width. Else elements."""
    make: Callable[[torch.device], Work]
    nbytes: float = 0.0
    """Moved through memory; for a product and attention: of its operands and result."""
    backward: bool = False
    kernel: str = ""
    """attention: which one ran."""


GPU_PRODUCTS = (
    (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 4096), (8192, 14336, 4096),
    (8192, 4096, 14336), (8192, 8192, 512), (8192, 8192, 128), (4096, 768, 768), (16384, 3072, 768), (16384, 768, 3072),
    (16384, 50304, 768),
)  # fmt: skip
CPU_PRODUCTS = (
    (128, 128, 128), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (512, 1024, 256), (512, 256, 1024), (1024, 2048, 256),
    (2048, 256, 512), (512, 512, 64), (64, 512, 512),
)  # fmt: skip
"""Rows, columns, depth: squares, and the shapes of small and large transformers."""
GPU_ATTENTION = ((16, 12, 1024, 64), (4, 32, 2048, 128), (2, 32, 4096, 128), (1, 32, 8192, 128))
CPU_ATTENTION = ((2, 4, 128, 64), (2, 4, 256, 64), (1, 8, 512, 64), (2, 4, 256, 128))
DEFAULT = "default"
"""The kernel of attention that torch chooses by itself."""
GPU_ELEMENTS, CPU_ELEMENTS = 2**27, 2**21
"""Of light kernels: far more than the caches hold, on a CPU about what a layer's activations are."""
COPIED = 2**28
"""Bytes between host and device."""


def every(device: torch.device) -> list[Kernel]:
    """All that could be timed on a device of this kind; nothing is allocated."""
    memory = (*_light(device), *_norms(device), *_loss(device), *_lookup(device), *_optimizer(device))
    return [*_products(device), *_attention(device), *memory, *_experts(device), *_launch(), *_copies(device)]


def kernels(device: torch.device) -> list[Kernel]:
    """Everything that this device can run, tried once each: what it refuses is left out."""
    return [k for k in every(device) if runs(k, device)]


REFUSALS = (RuntimeError, AttributeError, TypeError)
"""What torch raises where a kernel is not to be had: of memory, of a dtype, shape or backend that nothing here computes
(RuntimeError and what derives from it; seen on an H100 with torch 2.11, which itself refuses nothing that is timed), of a
function or dtype that this release does not have yet, of arguments that those which are not public had otherwise."""


def runs(kernel: Kernel, device: torch.device) -> bool:
    """Whether the device, its libraries and its memory can run this kernel."""
    try:
        kernel.make(device)()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except REFUSALS:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


# ------------------------------------------------------------------------- products


def _products(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtypes = ("bfloat16", "float16", "float32", "tfloat32", "float8_e4m3fn") if gpu else ("float32", "bfloat16")
    for dtype in dtypes:
        for m, n, k in GPU_PRODUCTS if gpu else CPU_PRODUCTS:
            if gpu and dtype in ("float16", "float32", "tfloat32") and m * n * k > 8192 * 4096 * 4096:
                continue  # says the same as the smaller ones, and takes long
            item = {"float32": 4, "tfloat32": 4, "float8_e4m3fn": 1}.get(dtype, 2)
            yield Kernel(
                f"product {dtype} {m}x{n}x{k}",
                "product",
                dtype,
                (m, n, k),
                _product_maker(dtype, m, n, k),
                float(item * (m * k + k * n + m * n)),
            )


def _product_maker(dtype: str, m: int, n: int, k: int) -> Callable[[torch.device], Work]:
    def make(device: torch.device) -> Work:
        if dtype == "float8_e4m3fn":
            return _scaled_product(device, m, n, k)
        kind = torch.float32 if dtype == "tfloat32" else getattr(torch, dtype)
        x, w = _random(device, kind, m, k), _random(device, kind, n, k)
        out = torch.empty(m, n, device=device, dtype=kind)
        if device.type != "cuda":
            return lambda: torch.mm(x, w.t(), out=out)
        narrow = dtype == "tfloat32"

        def product() -> None:
            torch.backends.cuda.matmul.allow_tf32 = narrow
            torch.mm(x, w.t(), out=out)

        return product

    return make


def _scaled_product(device: torch.device, m: int, n: int, k: int) -> Work:
    """fp8 operands with one scale each, result in bfloat16. The function is torch's own, but not yet public."""
    kind = torch.float8_e4m3fn
    x, w = _random(device, torch.bfloat16, m, k).to(kind), _random(device, torch.bfloat16, n, k).to(kind)
    one = torch.ones((), device=device, dtype=torch.float32)
    scaled: Any = torch._scaled_mm  # type: ignore[attr-defined,unused-ignore]
    return lambda: scaled(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random values: zeros cost less power, so that a GPU would run them at a higher clock than training ever sees."""
    return torch.randn(*shape, device=device, dtype=torch.float32).mul_(0.1).to(dtype)


# ------------------------------------------------------------------------- attention


def _attention(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtype = "bfloat16" if gpu else "float32"
    names = (DEFAULT, "flash", "cudnn", "efficient") if gpu else (DEFAULT,)
    for name in names:
        for b, h, s, d in GPU_ATTENTION if gpu else CPU_ATTENTION:
            for backward in (False, True):
                yield Kernel(
                    f"attention {name} {b}x{h}x{s}x{d}" + (" with backward" if backward else ""),
                    "attention",
                    dtype,
                    (b, h, s, d),
                    _attention_maker(name, dtype, b, h, s, d, backward),
                    float((2 if gpu else 4) * 4 * b * h * s * d),
                    backward,
                    name,
                )


def chosen(kernel: str) -> AbstractContextManager[Any]:
    """Makes torch run one kernel of fused attention, or refuse; its own choice if it is `DEFAULT`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    if kernel == DEFAULT:
        return nullcontext()
    found: AbstractContextManager[Any] = sdpa_kernel(getattr(SDPBackend, names[kernel]))
    return found


def _attention_maker(
    kernel: str, dtype: str, b: int, h: int, s: int, d: int, backward: bool
) -> Callable[[torch.device], Work]:
    attend = torch.nn.functional.scaled_dot_product_attention

    def make(device: torch.device) -> Work:
        q, k, v = (_random(device, getattr(torch, dtype), b, h, s, d) for _ in range(3))
        upstream = torch.ones_like(q)

        def forward() -> None:
            with chosen(kernel), torch.no_grad():
                attend(q, k, v, is_causal=True)

        def both() -> None:
            with chosen(kernel):
                out = attend(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), upstream)

        if backward:
            for x in (q, k, v):
                x.requires_grad_()
        return both if backward else forward

    return make


# ------------------------------------------------------------------------- memory


def _light(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtype, item = ("bfloat16", 2) if gpu else ("float32", 4)
    n = GPU_ELEMENTS if gpu else CPU_ELEMENTS
    functional = torch.nn.functional

    def make(run: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[torch.device], Work]:
        def made(device: torch.device) -> Work:
            x, y = (_random(device, getattr(torch, dtype), n) for _ in range(2))
            out = torch.empty_like(x)
            return lambda: run(x, y, out)

        return made

    moves: tuple[tuple[str, int, Callable[[Tensor, Tensor, Tensor], object]], ...] = (
        ("copy", 2, lambda x, y, out: out.copy_(x)),
        ("add", 3, lambda x, y, out: torch.add(x, y, out=out)),
        ("mul", 3, lambda x, y, out: torch.mul(x, y, out=out)),
        ("gelu", 2, lambda x, y, out: functional.gelu(x, approximate="tanh")),
        ("silu", 2, lambda x, y, out: functional.silu(x)),
    )
    for name, tensors, run in moves:
        yield Kernel(f"light {name} {dtype}", "light", dtype, (n,), make(run), float(tensors * item * n))


def _norms(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtype, item, rows, width = ("bfloat16", 2, 16384, 4096) if gpu else ("float32", 4, 2048, 512)
    functional = torch.nn.functional

    def layer(device: torch.device) -> Work:
        x, w, b = (_random(device, getattr(torch, dtype), *shape) for shape in ((rows, width), (width,), (width,)))
        return lambda: functional.layer_norm(x, (width,), w, b)

    def rms(device: torch.device) -> Work:
        x, w = _random(device, getattr(torch, dtype), rows, width), _random(device, getattr(torch, dtype), width)
        return lambda: functional.rms_norm(x, (width,), w)

    for name, make in (("layer_norm", layer), ("rms_norm", rms)):
        yield Kernel(f"norm {name} {dtype}", "norm", dtype, (rows, width), make, float(2 * item * rows * width))


def _loss(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtype, item = ("bfloat16", 2) if gpu else ("float32", 4)
    cross_entropy = torch.nn.functional.cross_entropy
    for rows, classes in ((16384, 50304), (4096, 128256)) if gpu else ((256, 2048),):

        def make(device: torch.device, rows: int = rows, classes: int = classes) -> Work:
            logits = _random(device, getattr(torch, dtype), rows, classes).requires_grad_()
            target = torch.zeros(rows, dtype=torch.int64, device=device)

            def both() -> None:
                torch.autograd.grad(cross_entropy(logits.float(), target), logits)

            return both

        yield Kernel(
            f"loss {dtype} {rows}x{classes}", "loss", dtype, (rows, classes), make, float(item * rows * classes)
        )


def _lookup(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtype, item = ("bfloat16", 2) if gpu else ("float32", 4)
    table, rows, width = (50304, 16384, 4096) if gpu else (2048, 2048, 512)

    def make(device: torch.device) -> Work:
        weight = _random(device, getattr(torch, dtype), table, width).requires_grad_()
        index = torch.randint(0, table, (rows,), device=device)
        upstream = torch.ones(rows, width, device=device, dtype=getattr(torch, dtype))
        return lambda: torch.autograd.grad(torch.nn.functional.embedding(index, weight), weight, upstream)

    yield Kernel(f"lookup {dtype} {rows}x{width}", "lookup", dtype, (rows, width), make, float(item * rows * width))


def _optimizer(device: torch.device) -> Iterator[Kernel]:
    gpu = device.type == "cuda"
    dtypes = ("float32", "bfloat16") if gpu else ("float32",)
    n, parts = (2**28, 16) if gpu else (2**21, 8)
    for dtype in dtypes:

        def make(device: torch.device, dtype: str = dtype) -> Work:
            kind = getattr(torch, dtype)
            weights = [torch.nn.Parameter(_random(device, kind, n // parts)) for _ in range(parts)]
            for w in weights:
                w.grad = _random(device, kind, n // parts)
            return torch.optim.AdamW(weights, lr=1e-6, fused=gpu).step

        item = 4 if dtype == "float32" else 2
        # Reads weight, gradient and two moments; writes all but the gradient.
        yield Kernel(f"optimizer adamw {dtype}", "optimizer", dtype, (n,), make, float(7 * item * n))


def _experts(device: torch.device) -> Iterator[Kernel]:
    """Grouped products and quantisation: what only GPUs have kernels for. The functions are torch's own, not all public."""
    if device.type != "cuda":
        return
    for experts, rows, n, k in ((8, 4096, 14336, 4096), (64, 512, 2048, 2048), (128, 128, 1536, 4096)):

        def grouped(device: torch.device, experts: int = experts, rows: int = rows, n: int = n, k: int = k) -> Work:
            x = _random(device, torch.bfloat16, experts * rows, k)
            w = _random(device, torch.bfloat16, experts, n, k)
            ends = torch.arange(1, experts + 1, device=device, dtype=torch.int32) * rows
            run: Any = torch._grouped_mm  # type: ignore[attr-defined,unused-ignore]
            return lambda: run(x, w.transpose(-2, -1), offs=ends)

        nbytes = float(2 * experts * (rows * k + n * k + rows * n))
        yield Kernel(
            f"grouped bfloat16 {experts}x{rows}x{n}x{k}", "grouped", "bfloat16", (experts, rows, n, k), grouped, nbytes
        )

    def quantise(device: torch.device) -> Work:
        x = _random(device, torch.bfloat16, 8192, 8192)

        def run() -> None:
            scale = 448.0 / x.abs().amax().float()
            (x * scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)

        return run

    yield Kernel("quantise bfloat16 8192x8192", "quantise", "bfloat16", (8192 * 8192,), quantise, 3.0 * 8192 * 8192)


def _launch() -> Iterator[Kernel]:
    def make(device: torch.device) -> Work:
        x = torch.zeros(1, device=device)
        return lambda: x.add_(1.0)

    yield Kernel("launch add of one element", "launch", "float32", (1,), make)


def _copies(device: torch.device) -> Iterator[Kernel]:
    if device.type != "cuda":
        return

    def pair(device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.empty(COPIED, dtype=torch.uint8).pin_memory(), torch.empty(
            COPIED, dtype=torch.uint8, device=device
        )

    def up(device: torch.device) -> Work:
        host, there = pair(device)
        return lambda: there.copy_(host, non_blocking=True)

    def down(device: torch.device) -> Work:
        host, there = pair(device)
        return lambda: host.copy_(there, non_blocking=True)

    for name, make in (("host to device", up), ("device to host", down)):
        yield Kernel(f"copy {name}", "copy", "uint8", (COPIED,), make, float(COPIED))
