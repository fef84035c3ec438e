"""From what was timed to the constants of the cost model: each by the form in which the model uses it.

    product     most likely share of the peak, depth and launch of `cost.matmul`, around the constants of the device's family
    attention   share of the 16-bit peak of a forward with its backward, causal work counted once
    light       bytes over seconds, over the bandwidth of the device; norm: the same
    launch      seconds of a kernel that does nothing

A device that no preset names has the best rates that were measured for its peak and its bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cluster.model import DeviceType
from ..cost import losses, matmul
from ..cost.analytic import FLASH_BACKWARD
from ..cost.constants import Family, family
from ..graph.ir import ITEM_BYTES, Floats
from .kernels import DEFAULT, Kernel
from .posterior import Guess, most_likely
from .profile import with_constants
from .timing import Timing

FORMATS = {"bfloat16": "gemm_16", "float16": "gemm_16", "float32": "gemm_32", "float8_e4m3fn": "gemm_8"}
"""dtype of a product -> the constant that it speaks of; where two speak of one, the first that was measured counts."""
NOISE = 0.05
"""Of one product around the model's form: on published operator profiles it errs by 7 to 12 % with fixed constants."""
BEST = 0.98
SMALL_HEAD = 64


@dataclass(frozen=True, slots=True)
class Timed:
    kernel: Kernel
    timing: Timing


@dataclass(frozen=True, slots=True)
class Deduced:
    device: DeviceType
    family: Mapping[str, float]
    """Constants that replace those of the device's family."""
    predicted: Mapping[str, float]
    """Kernel -> seconds by these constants."""


def deduce(timed: Sequence[Timed], device: DeviceType, *, known: bool) -> Deduced:
    """Constants of a device.

    Args:
        device: as its preset has it, or with what a bare machine is assumed to have.
        known: whether its peak and its bandwidth are from a data sheet; else they are what was measured.
    """
    if not known:
        device = _as_measured(timed, device)
    base = family(device.family)
    memory = _bandwidth(timed, "light") / device.bandwidth
    norm = _bandwidth(timed, "norm") / device.bandwidth
    found = {name: min(share, BEST) for name, share in (("memory", memory), ("norm", norm)) if share}
    predicted: dict[str, float] = {}
    attention, seconds = _attention(timed, device)
    found |= attention
    predicted |= seconds
    products, seconds = _products(timed, device, with_constants(base, found), trusted=known)
    found |= products
    predicted |= seconds
    predicted |= _memory_bound(timed, device, memory, norm)
    return Deduced(device, found, predicted)


def _memory_bound(timed: Sequence[Timed], device: DeviceType, memory: float, norm: float) -> dict[str, float]:
    """Seconds of what moves bytes, as the cost model counts them."""
    found = {}
    for t in timed:
        kind, size = t.kernel.kind, t.kernel.sizes
        elements = float(np.prod(size))
        item = float(ITEM_BYTES[t.kernel.dtype]) if t.kernel.dtype in ITEM_BYTES else 0.0
        nbytes = {
            "light": t.kernel.nbytes,
            "norm": t.kernel.nbytes * memory / norm if norm else 0.0,
            "loss": sum(losses.BYTES["plain"].values()) * elements,
            "lookup": 5.0 * item * elements,
            "optimizer": t.kernel.nbytes,
        }.get(kind, 0.0)
        if nbytes and memory:
            found[t.kernel.name] = nbytes / (device.bandwidth * memory)
    return found


def _as_measured(timed: Sequence[Timed], device: DeviceType) -> DeviceType:
    """The device with the best rates that were measured; what was not measured stays as assumed."""
    best: dict[str, float] = {}
    for t in timed:
        if t.kernel.kind == "product":
            m, n, k = t.kernel.sizes
            best[t.kernel.dtype] = max(best.get(t.kernel.dtype, 0.0), 2.0 * m * n * k / t.timing.low)
    if "bfloat16" in best:  # a CPU computes both 16-bit formats alike
        best.setdefault("float16", best["bfloat16"])
    rates = [t.kernel.nbytes / t.timing.low for t in timed if t.kernel.kind == "light"]
    return replace(device, peak={**device.peak, **best}, bandwidth=max(rates, default=device.bandwidth))


def _bandwidth(timed: Sequence[Timed], kind: str) -> float:
    """Bytes/s: median over the kernels of a kind; 0 without any."""
    rates = [t.kernel.nbytes / t.timing.seconds for t in timed if t.kernel.kind == kind]
    return float(np.median(rates)) if rates else 0.0


# ------------------------------------------------------------------------- attention


def _attention(timed: Sequence[Timed], device: DeviceType) -> tuple[dict[str, float], dict[str, float]]:
    """Constants, and seconds of the kernel that they are of; of the others nothing is said."""
    every = [t for t in timed if t.kernel.kind == "attention"]
    names = list(dict.fromkeys(t.kernel.kernel for t in every))
    if not names:
        return {}, {}
    kernel = DEFAULT if DEFAULT in names else names[0]
    whole = [t for t in every if t.kernel.kernel == kernel and t.kernel.backward]
    wide = [_share(t, device) for t in whole if t.kernel.sizes[3] > SMALL_HEAD]
    small = [_share(t, device) for t in whole if t.kernel.sizes[3] <= SMALL_HEAD]
    share = _middle(wide or small)
    head = min(1.0, _middle(small) / share) if wide and small else 1.0
    best = max(_middle([_share(t, device) for t in every if t.kernel.kernel == n and t.kernel.backward]) for n in names)
    constants = {
        "attention_flash": min(share, BEST),
        "attention_modern": min(max(share, best), BEST),
        "small_head": head,
    }
    if device.kind == "cpu":  # one kernel whatever the generation
        constants["attention_first"] = constants["attention_modern"] = constants["attention_flash"]
    predicted = {}
    for t in (t for t in every if t.kernel.kernel == kernel):
        factor = 1.0 + FLASH_BACKWARD if t.kernel.backward else 1.0
        rate = device.peak[t.kernel.dtype] * share * (head if t.kernel.sizes[3] <= SMALL_HEAD else 1.0)
        predicted[t.kernel.name] = factor * _causal_flops(t.kernel) / rate
    return constants, predicted


def _causal_flops(kernel: Kernel) -> float:
    """Two products over half of the scores."""
    b, h, s, d = kernel.sizes
    return 2.0 * b * h * s * s * d


def _share(t: Timed, device: DeviceType) -> float:
    return (1.0 + FLASH_BACKWARD) * _causal_flops(t.kernel) / t.timing.seconds / device.peak[t.kernel.dtype]


def _middle(values: Sequence[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


# ------------------------------------------------------------------------- products


def _products(
    timed: Sequence[Timed], device: DeviceType, base: Family, *, trusted: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the peak by format, depth and launch; and seconds of every product by them."""
    used: dict[str, str] = {}
    for dtype, constant in FORMATS.items():
        if any(t.kernel.kind == "product" and t.kernel.dtype == dtype for t in timed) and dtype in device.peak:
            used.setdefault(constant, dtype)
    chosen = [t for t in timed if t.kernel.kind == "product" and t.kernel.dtype in used.values()]
    if not chosen:
        return {}, {}
    spread = 0.5 if trusted else 1.0
    guesses = [Guess(c, getattr(base, c), spread, BEST) for c in used]
    guesses += [Guess("depth", base.depth, 1.0), Guess("launch", base.launch, 1.0)]
    by_dtype = {dtype: [t for t in chosen if t.kernel.dtype == dtype] for dtype in used.values()}

    def predict(values: Mapping[str, float]) -> Floats:
        constants = with_constants(base, values)
        return np.concatenate([seconds_of(rows, device, constants) for rows in by_dtype.values()])

    rows = [t for found in by_dtype.values() for t in found]
    found = most_likely(predict, np.array([t.timing.seconds for t in rows]), guesses, NOISE)
    constants = with_constants(base, found.values)
    predicted = {t.kernel.name: float(seconds_of([t], device, constants)[0]) for t in rows}
    predicted |= {t.kernel.name: _grouped(t, device, constants) for t in timed if t.kernel.kind == "grouped"}
    return dict(found.values), predicted


def _grouped(t: Timed, device: DeviceType, constants: Family) -> float:
    """A batch of products."""
    batch, m, n, k = (np.array([float(x)]) for x in t.kernel.sizes)
    return float(matmul.seconds(_rates(t.kernel.dtype, device, constants), batch, m, n, k)[0])


def seconds_of(products: Sequence[Timed], device: DeviceType, constants: Family) -> Floats:
    """What the cost model says of products of one dtype on one device."""
    rates = _rates(products[0].kernel.dtype, device, constants)
    m, n, k = (np.array([t.kernel.sizes[i] for t in products], np.float64) for i in range(3))
    return matmul.seconds(rates, np.ones(len(m)), m, n, k)


def _rates(dtype: str, device: DeviceType, constants: Family) -> matmul.Rates:
    item = max(2.0, float(ITEM_BYTES.get(dtype, 4)))
    return matmul.Rates(
        device.peak[dtype] * float(getattr(constants, FORMATS[dtype])), device.bandwidth * constants.memory, constants.sms, item,
        constants.depth, constants.launch,
    )  # fmt: skip
