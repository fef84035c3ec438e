"""The execution twin of the table of op kinds: how each kind runs on local parts.

Most kinds run as captured. A kind with sizes among its arguments gets local ones, a lookup in a cut vocabulary is masked,
a mean over a cut dim divides by the GLOBAL count, and kinds with a cut statistic are composites (`composites.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import Unsupported
from ...graph.ir import Slot
from .apart import apart
from .attention import attention
from .composites import batch_norm, cross_entropy, group_norm, instance_norm, layer_norm, log_softmax, rms_norm, softmax
from .randomness import global_index, keep_mask, later_key, normal, uniform
from .ranges import must_be_below
from .site import Local, Moment, Site
from .summa import stepped
from .windows import convolution, pool, rolled

Twin: TypeAlias = Callable[[Site], Local]
MEAN = 1
"""torch's enumeration of reductions: 0 none, 1 mean, 2 sum."""


def localise(site: Site) -> Local:
    """The op of `site` on local parts.

    Raises:
        Unsupported: a cut that this kind cannot run with, in one sentence.
    """
    op = site.op
    if site.instr.steps > 1:
        return stepped(site)
    twin = TWINS.get(op.kind)
    if twin is None:
        raise Unsupported(f"{op.name} is of kind {op.kind}, which has no rule for running on parts", reason="op")
    for name, cuts in site.instr.cuts:
        kind = op.rule.factor(name).kind
        if kind in ("fixed", "opaque") and any(site.view.mesh.size(c.axis) > 1 for c in cuts):
            raise Unsupported(
                f'factor "{name}" of {op.name} is {kind}: plans that cut it can be priced, not run', reason="factor"
            )
    return apart(site, localise) if site.apart else twin(site)


def _as_captured(site: Site) -> Local:
    return site.plain()


def _reshaped(site: Site) -> Local:
    shape = site.local_result()
    return lambda operands, moment: (operands[0].reshape(shape),)


def _expanded(site: Site) -> Local:
    shape = site.local_result()
    return lambda operands, moment: (operands[0].expand(shape),)


def _repeated(site: Site) -> Local:
    """Repeats may be cut, and the dim that is repeated too."""
    shape, source = site.local_result(), site.local_operand(0)
    source = (1,) * (len(shape) - len(source)) + source
    times = [n // m if m else 1 for n, m in zip(shape, source, strict=True)]
    return lambda operands, moment: (operands[0].repeat(times),)


def _interleaved(site: Site) -> Local:
    if any(isinstance(a, Slot) for a in site.op.args[1:]):
        return site.plain()
    dim = int(site.arg(2, "dim", 0) or 0) % len(site.shape(0))  # type: ignore[arg-type]
    times = site.local_result()[dim] // max(1, site.local_operand(0)[dim])
    return lambda operands, moment: (operands[0].repeat_interleave(times, dim),)


def _split(site: Site) -> Local:
    dim = int(site.arg(2, "dim", 0) or 0) % len(site.shape(0))  # type: ignore[arg-type]
    sizes = [site.local_result(k)[dim] for k in range(len(site.op.outputs))]
    return lambda operands, moment: torch.split(operands[0], sizes, dim)


def _sliced(site: Site) -> Local:
    """A slice of a whole dim is the identity, wherever that dim is cut."""
    if site.shape(0) == site.result_shape():
        return lambda operands, moment: (operands[0].view_as(operands[0]),)
    return site.plain()


def _sized(position: int) -> Twin:
    """zeros, full, new_zeros, …: the size argument is the local one."""

    def twin(site: Site) -> Local:
        return site.plain(**{f"_{position}": list(site.local_result())})

    return twin


def _created_whole(site: Site) -> Local:
    """arange, eye, …: values depend on the place, so the whole is made and the own part taken."""
    call, layout = site.plain(), site.instr.results[0]
    return lambda operands, moment: (site.own_part(call(operands, moment)[0], layout),)


def _random(site: Site) -> Local:
    """Numbers of the global element index, then moved to the distribution that is asked for."""
    kind, shape, layout = site.op.kind, site.result_shape(), site.instr.results[0]
    dtype = getattr(torch, site.graph.tensor[site.op.outputs[0]].dtype)
    first, second = (float(site.arg(k, name, default)) for k, name, default in _DISTRIBUTION.get(kind, _STANDARD))  # type: ignore[arg-type]

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        key = site.key(moment)
        index = global_index(shape, layout, site.view, site.device)
        if kind in ("randn", "randn_like", "normal_functional"):
            x = normal(key, index, later_key(key, 1)) * second + first
        elif kind == "exponential":
            x = -torch.log(uniform(key, index)) / first
        else:
            x = uniform(key, index) * (second - first) + first
        return (x.to(dtype),)

    return call


_STANDARD = ((99, "", 0.0), (99, "", 1.0))
_DISTRIBUTION = {
    "uniform": ((1, "from", 0.0), (2, "to", 1.0)),
    "normal_functional": ((1, "mean", 0.0), (2, "std", 1.0)),
    "exponential": ((1, "lambd", 1.0), (99, "", 0.0)),
}
"""Kind -> its two numbers: (position, name, default)."""


def _refused(why: str) -> Twin:
    def twin(site: Site) -> Local:
        raise Unsupported(f"{site.op.name} ({site.op.kind}) {why}", reason="integers")

    return twin


def _embedding(site: Site) -> Local:
    """A rank that holds a part of the vocabulary gives zeros for other ids; the sum completes the lookup."""
    padding = int(site.arg(2, "padding_idx", -1))  # type: ignore[arg-type]
    cut = site.operand_cut(0, 0)
    start = site.start(0, 0) if cut else 0

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        weight, ids = operands
        rows = weight.shape[0]
        if not cut:
            return (torch.embedding(weight, ids, padding),)
        must_be_below(site.shape(0)[0], ids, f"{site.op.name}: ids")
        own = ids - start
        other = (own < 0) | (own >= rows)
        if rows == 0:
            return (weight.new_zeros(*ids.shape, weight.shape[1]) + weight.sum(),)
        own = own.masked_fill(other, 0)
        silent = other | (ids == padding)
        found = torch.embedding(weight, own)
        if padding >= 0:  # a padding row is read but gets no gradient
            found = torch.where(silent.unsqueeze(-1), found.detach(), found)
        return (found.masked_fill(other.unsqueeze(-1), 0),)

    return call


def _mean(site: Site) -> Local:
    """Parts of a mean over a cut dim: local sums over the count of the whole dim."""
    dims = site.arg(1, "dim", None)
    rank = len(site.shape(0))
    reduced = (
        range(rank)
        if "dim" not in site.op.call or dims is None or dims == ()
        else [int(d) % rank for d in (dims if isinstance(dims, tuple) else (dims,))]  # type: ignore[arg-type]
    )
    if not any(site.operand_cut(0, d) for d in reduced):
        return site.plain()
    whole = prod(site.shape(0)[d] for d in reduced)
    keep = bool(site.arg(2, "keepdim", False)) if "dim" in site.op.call else False
    over = list(reduced)
    return lambda operands, moment: (operands[0].sum(over, keepdim=keep) / whole,)


def _element_loss(position: int) -> Twin:
    """mse_loss, …: a mean over cut elements is the local sum over the count of all."""

    def twin(site: Site) -> Local:
        mean = site.arg(position, "reduction", MEAN) == MEAN
        if (
            site.result_shape()
            or not mean
            or not any(site.operand_cut(k, d) for k in (0, 1) for d in range(len(site.shape(k))))
        ):
            return site.plain()
        shapes = [site.shape(k) for k in range(len(site.op.inputs))]
        whole = prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        summed = {f"_{position}": 2} if position < len(site.op.args) else {"reduction": 2}
        call = site.plain(**summed)
        return lambda operands, moment: (call(operands, moment)[0] / whole,)

    return twin


def _dropped(site: Site) -> Local:
    """Dropout by a hash of the global element index."""
    rate = float(site.arg(1, "p", 0.5))  # type: ignore[arg-type]
    if site.arg(2, "train", True) is False or rate == 0.0 or not site.dropout:
        return lambda operands, moment: (operands[0].view_as(operands[0]), *_mask_of(site, operands[0]))
    shape, layout = site.result_shape(), site.instr.results[0]

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        key = site.key(moment)
        keep = keep_mask(rate, key, global_index(shape, layout, site.view, site.device))
        out = operands[0] * keep.to(operands[0].dtype) / (1.0 - rate)
        return (out, keep) if len(site.op.outputs) == 2 else (out,)

    return call


def _mask_of(site: Site, x: Tensor) -> tuple[Tensor, ...]:
    return (torch.ones_like(x, dtype=torch.bool),) if len(site.op.outputs) == 2 else ()


def _table() -> Mapping[str, Twin]:
    rows: dict[str, Twin] = {}

    def put(names: str, twin: Twin) -> None:
        rows.update(dict.fromkeys(names.split(), twin))

    put(
        # element-wise
        "abs atan2 cos digamma elu erf gelu hardsigmoid hardswish hardtanh leaky_relu log log1p log2 log10 log_sigmoid "
        "mish pow silu sin softplus square tan clamp clamp_min clamp_max exp expm1 reciprocal relu relu6 "
        "rsqrt selu sigmoid sqrt tanh add sub rsub neg ceil floor round sign trunc fill copy zero nan_to_num "
        "threshold bitwise_and bitwise_not bitwise_or bitwise_xor eq ne lt le gt ge isfinite isinf isnan logical_and "
        "logical_not logical_or logical_xor to contiguous clone maximum minimum "
        "fmod remainder lerp addcmul addcdiv detach alias mul div floor_divide where masked_fill prelu glu "
        "acos asin atan celu complex conj copysign cosh erfc exp2 hypot imag logaddexp logit polar real sinc sinh softshrink "
        "xlogy bucketize broadcast_tensors "
        # views without sizes
        "transpose permute t mT numpy_T adjoint movedim moveaxis swapaxes swapdims expand_as select flip tril triu "
        "diagonal unfold cat stack unbind slice_scatter select_scatter pad constant_pad_nd "
        "view_as_complex view_as_real meshgrid pixel_shuffle pixel_unshuffle "
        # products, lookups, reductions without counts
        "moe_dispatch moe_combine linear matmul mm bmm mv dot addmm baddbmm einsum index _unsafe_index index_select gather scatter scatter_add "
        "index_add index_copy index_put one_hot sum amax amin logsumexp prod norm linalg_vector_norm max min var std "
        "any all argmax argmin cumsum cumprod topk sort argsort lstm gru "
        "ger outer bilinear diff logcumsumexp std_mean var_mean cosine_similarity pairwise_distance cdist _weight_norm "
        # windows whose places are whole
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d im2col upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        # operands give the sizes
        "zeros_like ones_like full_like empty_like scalar_tensor",
        _as_captured,
    )
    put(
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d",
        pool,
    )
    put("roll", rolled)
    put("view reshape flatten unflatten squeeze unsqueeze _unsafe_view", _reshaped)
    put("expand broadcast_to", _expanded)
    put("repeat tile", _repeated)
    put("repeat_interleave", _interleaved)
    put("slice narrow", _sliced)
    put("split split_with_sizes chunk tensor_split", _split)
    put("zeros ones full empty", _sized(0))
    put("arange linspace eye tril_indices triu_indices", _created_whole)
    put("rand randn rand_like randn_like uniform normal_functional exponential", _random)
    put("randint bernoulli", _refused("draws integers at random, which has no rule that is the same under every plan"))
    put("embedding", _embedding)
    put("embedding_bag _embedding_bag", _bag)
    put("mean", _mean)
    put("cross_entropy_loss", cross_entropy)
    put("nll_loss nll_loss_nd nll_loss2d", cross_entropy)
    put("mse_loss l1_loss soft_margin_loss", _element_loss(2))
    put("smooth_l1_loss huber_loss kl_div", _element_loss(2))
    put("binary_cross_entropy", _element_loss(3))
    put("binary_cross_entropy_with_logits", _element_loss(4))
    put("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", convolution)
    put("layer_norm", layer_norm)
    put("rms_norm", rms_norm)
    put("batch_norm", batch_norm)
    put("group_norm", group_norm)
    put("instance_norm", instance_norm)
    put("softmax", softmax)
    put("log_softmax", log_softmax)
    put("dropout", _dropped)
    put("scaled_dot_product_attention", attention)
    return MappingProxyType(rows)


def _bag(site: Site) -> Local:
    if site.operand_cut(0, 0):
        raise Unsupported(
            f"{site.op.name} cuts the vocabulary of an embedding bag: cut its width, or place it whole",
            reason="statistic",
        )
    return site.plain()


TWINS: Mapping[str, Twin] = _table()
