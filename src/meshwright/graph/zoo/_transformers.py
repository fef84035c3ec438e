"""Modules of the transformers library from a configuration alone: which class, which attention, which inputs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from ...errors import InputError, Unsupported
from ._entry import Config, Inputs
from ._shrink import Shrink, learned_positions, position_offset, size_of, smaller

if TYPE_CHECKING:
    from torch import nn

# The loss that a class computes from `labels`, told by the end of its name.
_TASKS = {
    "ForCausalLM": "tokens",
    "LMHeadModel": "tokens",
    "ForMaskedLM": "tokens",
    "ForConditionalGeneration": "tokens",
    "ForSequenceClassification": "class",
    "ForImageClassification": "image",
}
# Where to look for a class with a loss when the file names none, or a body without a head.
_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_MAPPINGS = (
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    _CAUSAL,
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
)


def build(
    config: Config,
    batch: int,
    seq: int,
    dtype: str,
    *,
    device: str = "meta",
    shrink: Shrink | None = None,
    attention: str = "meshwright",
    capacity: str | float = "no-drop",
) -> tuple[nn.Module, Inputs]:
    """The module in training mode, without a cache of keys and values, and inputs of zeros.

    Args:
        seq: tokens a sample; `shrink.seq` wins over it.
        capacity: see `register_experts`.
        attention: "meshwright" where it computes the same as the model's own, else the library's next best.

    Raises:
        InputError: the configuration is not one that its class accepts, or the sequence is too long for it.
    """
    import torch

    settings, seq = configure(config, seq, shrink)
    name = architecture(config)
    cls = _class(name)
    if cls.main_input_name not in ("input_ids", "pixel_values"):
        raise Unsupported(
            f"config.json: {name} reads {cls.main_input_name}: models of token ids or of images are planned"
        )
    _choose(cls, settings, seq, attention, capacity)
    with torch.device(device):
        try:
            module = cls(settings).to(getattr(torch, dtype)).train()
        except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
            raise InputError(f"config.json: {name} refuses these values: {_first_line(error)}") from error
        _tell_loss(module)
        return module, _inputs(settings, task(name), batch, seq, dtype)


def set_forms(module: Any, seq: int, own: bool = False) -> None:
    """Makes a model of the library the one that `build` would make of its configuration: attention and experts that a plan
    can cut (unless its `own` are to stay), no cache of keys and values."""
    if not own:
        _choose(type(module), module.config, seq, "meshwright")
    set_own(module)


def set_own(module: Any, attention: str = "") -> None:
    """Makes a model of the library compute its loss and nothing besides, with its own attention or an "eager" one."""
    module.config.use_cache = False
    if attention == "eager" and type(module)._can_set_attn_implementation():
        module.config._attn_implementation = "eager"
    _tell_loss(module)


def inputs_of(module: Any, seq: int) -> Inputs:
    """Two samples that a model of the library can be trained on, on the meta device.

    Raises:
        InputError: the sequence is too long for it.
    """
    import torch

    check_length(module.config.to_dict(), seq)
    dtype = str(module.dtype).removeprefix("torch.")
    with torch.device("meta"):
        return _inputs(module.config, task(type(module).__name__), 2, seq, dtype)


def _choose(cls: Any, settings: Any, seq: int, attention: str, capacity: str | float = "no-drop") -> None:
    settings._attn_implementation = _attention(cls, settings.to_dict(), seq, attention)
    if attention in ("meshwright", "eager") and cls._can_set_experts_implementation():
        from ..transformers_hooks import register_experts

        if size_of(settings.to_dict(), "experts"):
            # The library's grouped products have no float64 form, which an exact comparison needs.
            ours = attention == "meshwright"
            settings._experts_implementation = register_experts(capacity, seq) if ours else "eager"


def _tell_loss(module: Any) -> None:
    """transformers tells the loss by the class's name, and not by this one."""
    if type(module).__name__.endswith("LMHeadModel"):
        module.loss_type = "ForCausalLM"


def configure(config: Config, seq: int, shrink: Shrink | None) -> tuple[Any, int]:
    """A configuration object of the library, and the sequence it is built for."""
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # token ids beyond a scaled-down vocabulary are no news
    try:
        kind = config.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise InputError(f'config.json: model_type is "{kind}", which the installed transformers does not know')
        given = {k: v for k, v in config.items() if k not in ("transformers_version", "torch_dtype", "dtype")}
        full = CONFIG_MAPPING[kind](**given).to_dict()
        if shrink is not None:
            given = smaller(full, given, shrink, seq)
            seq = shrink.seq or seq
        # T5 shifts labels to the right, starting with this token; configurations of old files lack it.
        if full.get("is_encoder_decoder") and full.get("decoder_start_token_id") is None:
            given["decoder_start_token_id"] = given["pad_token_id"] = 0
        settings = CONFIG_MAPPING[kind](**given)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"config.json: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(level)
    settings.use_cache = False
    check_length(settings.to_dict(), seq)
    return settings, seq


def check_length(full: Config, seq: int) -> None:
    limit = size_of(full, "seq") - position_offset(full)
    if learned_positions(full) and seq > limit:
        raise InputError(f"the model has positions for {limit:,} tokens, not {seq:,}: use --seq {limit} or less")


def architecture(config: Config) -> str:
    """The class to build: the first of `architectures` that computes a loss, else by the model's type."""
    named = config.get("architectures")
    for name in named if isinstance(named, list) else []:
        if task(name):
            return cast(str, name)
    from transformers.models.auto import modeling_auto

    # A masked model is also listed as a causal one, for those who set is_decoder.
    mappings = _MAPPINGS if not config.get("is_decoder") else (_CAUSAL, *_MAPPINGS)
    for mapping in mappings:
        found = getattr(modeling_auto, mapping).get(config.get("model_type"))
        found = found[0] if isinstance(found, tuple) else found
        if isinstance(found, str) and task(found):
            return found
    raise Unsupported(
        f'config.json: nothing that computes a loss is known for model_type "{config.get("model_type")}"; '
        "language models, encoders with a classifier, and image classifiers are"
    )


def task(name: str) -> str:
    return next((kind for end, kind in _TASKS.items() if name.endswith(end)), "")


def targets(full: Config, seq: int) -> int:
    """Tokens that are predicted for a sample of `seq`: all, but of an encoder-decoder a quarter.

    Raffel et al. 2020 (section 3.1.4) predict 114 tokens for inputs of 512.
    """
    return max(1, seq // 4) if full.get("is_encoder_decoder") else seq


def vocabulary(settings: Any) -> int:
    return int(settings.get_text_config().vocab_size)


def _class(name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise InputError(f"config.json: the installed transformers has no class {name}")
    return found


def _attention(cls: Any, full: Config, seq: int, wanted: str) -> str:
    """Our attention passes no mask, so it stands in only where the causal flag says all there is to say."""
    if not cls._supports_sdpa or full.get("attn_logit_softcapping") or wanted == "eager":
        return "eager"
    if wanted != "meshwright":
        return wanted
    chunk = full.get("attention_chunk_size")
    if not cls._can_set_attn_implementation() or (isinstance(chunk, int) and 0 < chunk < seq):
        return "sdpa"
    from ..transformers_hooks import register_attention

    return str(register_attention())


@contextlib.contextmanager
def one_sequence_a_sample() -> Iterator[None]:
    """While traced, the library looks for several sequences packed in a sample; outside of it finds none, as here."""
    from transformers import masking_utils

    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def _inputs(settings: Any, kind: str, batch: int, seq: int, dtype: str) -> Inputs:
    import torch

    if kind == "image":
        if not hasattr(settings, "num_channels"):
            raise Unsupported(
                f'config.json: model_type "{settings.model_type}" describes its images in a part of its own; '
                "language models, encoders with a classifier, and classifiers of images alone are planned"
            )
        side, channels = getattr(settings, "image_size", 224), settings.num_channels
        pixels = torch.zeros(batch, channels, side, side, dtype=getattr(torch, dtype))
        return {"pixel_values": pixels, "labels": torch.zeros(batch, dtype=torch.int64)}
    labels = (batch,) if kind == "class" else (batch, targets(settings.to_dict(), seq))
    return {
        "input_ids": torch.zeros(batch, seq, dtype=torch.int64),
        "labels": torch.zeros(labels, dtype=torch.int64),
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip() or json.dumps(type(error).__name__)
    return text.splitlines()[0]
