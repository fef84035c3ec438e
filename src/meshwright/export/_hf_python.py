"""Scripts of users of transformers and accelerate, read by their calls, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ._calls import Call, Open, calls
from ._hf_command import is_command, training_call
from ._hf_options import OWNERS, known, names
from .base import Read
from .model import Model

NOT_PRICED: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "DistributedConfig": {"fsdp_cpu_offload": (False, "priced without offload")},
    "TrainingArguments": {
        "torch_compile": (False, "priced as the plan's own kernels are"),
        "use_liger_kernel": (False, "priced without fused losses"),
        "auto_find_batch_size": (False, "priced at per_device_train_batch_size"),
    },
}
"""Owner -> setting that changes speed or memory -> (its default, what is assumed instead)."""


class Script:
    """Words as they are found, with the places that say them."""

    def __init__(self) -> None:
        self.words: dict[str, Any] = {}
        self.lines: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.given: dict[str, Any] = {}
        self.precision = ""

    def compute(self, precision: str, spelled: str) -> None:
        """Products are computed in this type."""
        self.precision = precision
        self.lines["precision"] = spelled

    def say(self, word: str, value: Any, spelled: str) -> None:
        self.words[word] = value
        self.lines[word] = spelled

    def read(self) -> Read:
        return Read(self.words, self.ignored, self.lines, self.given, precision=self.precision)


def found_calls(script: Script, text: str, file: str) -> list[Call]:
    """Calls that say something of a layout.

    Raises:
        InputError: not Python, a setting that its class has under a name nearby.
    """
    owned = {owner: names(owner) for owner in OWNERS}
    more = {
        "Accelerator": (), "TorchContextParallelConfig": ("cp_comm_strategy",), "DataLoader": ("dataset", "batch_size"),
        "activation_checkpointing_enable": (), "gradient_checkpointing_enable": (),
    }  # fmt: skip
    found = calls(text, file, {**owned, **more})
    for c in found:
        if c.name in owned:
            for name in c.arguments:
                known(c.name, name, f"{file}:{c.lines[name]}", script.ignored)
        script.given |= {f"{c.name}.{k}": v for k, v in c.arguments.items() if not isinstance(v, Open)}
    return found


def number(c: Call, name: str, default: int, file: str) -> int:
    """A whole number of at least 1, or the default where the script leaves it open.

    Raises:
        InputError: another value.
    """
    value = c.arguments.get(name)
    if value is None or isinstance(value, Open):
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{c.name}({name}={value!r}): a whole number of at least 1", where=f"{file}:{c.lines[name]}")
    return value


def read_scripts(files: Mapping[str, str], model: Model, world: int) -> Read:
    """What scripts with `DistributedConfig` and `TrainingArguments` say, or command lines that fill in the latter."""
    script = Script()
    commands = {name: text for name, text in files.items() if is_command(text)}
    sources = {name: text for name, text in files.items() if not name.endswith(".sh")} | commands
    for file, text in sources.items():
        if file in commands:
            call, unknown = training_call(text, file)
            found = [call]
            script.ignored |= unknown
        else:
            found = found_calls(script, text, file)
        last = {c.name: c for c in found}
        if config := last.get("DistributedConfig"):
            distributed(script, config, model, world, file)
        elif "TrainingArguments" in last:
            _fsdp_argument(script, last["TrainingArguments"], world)
        if training := last.get("TrainingArguments"):
            _training(script, training, file)
        _not_priced(script, found)
    if "dp" not in script.words:
        raise InputError("no DistributedConfig(…) and no TrainingArguments(…)", where=next(iter(sources), "file"))
    m = script.words.pop("m", 0)
    if m and "micro_batch" in script.words and "samples" not in script.words:
        script.say(
            "samples",
            m * script.words["micro_batch"] * script.words["dp"],
            "per_device_train_batch_size × gradient_accumulation_steps",
        )
    _whole_gradients(script, m)
    return script.read()


def distributed(script: Script, c: Call, model: Model, world: int, file: str) -> None:
    """Degrees and rules of a DistributedConfig.

    Raises:
        InputError: sizes that the library refuses.
    """
    where = f"{file}:{c.line}"
    replicate, pp = (number(c, name, 1, file) for name in ("dp_replicate_size", "pp_size"))
    fsdp = number(c, "fsdp_size", 1, file)
    derived = world // (replicate * fsdp * pp) if c.arguments.get("tp_plan") is not None else 1
    tp = number(c, "tp_size", max(1, derived), file)
    ep = number(c, "ep_size", tp if c.arguments.get("enable_expert_parallel") is True else 1, file)
    if pp > 1:
        raise InputError(f"pp_size={pp}: transformers has pipelines for generation, not for training", where=where)
    if ep > 1 and ep % tp:
        raise InputError(f"ep_size={ep} is no multiple of tp_size={tp}", where=where)
    if ep > 1 and (fsdp * tp) % ep:
        raise InputError(f"ep_size={ep} does not divide fsdp_size × tp_size = {fsdp * tp}", where=where)
    script.say("tp", tp, f"tp_size={tp}")
    script.say("dp", replicate * fsdp, f"dp_replicate_size={replicate}, fsdp_size={fsdp}")
    script.say("zero", 3 if fsdp > 1 else 0, f"fsdp_size={fsdp}")
    script.say("replicate", replicate if fsdp > 1 else 1, f"dp_replicate_size={replicate}")
    if ep > 1:
        script.say("ep", ep, f"ep_size={ep}")
        script.say("whole_experts", tp > 1, f"ep_size={ep}")
    _kept(script, c.arguments.get("fsdp_plan"), model)
    rules = c.arguments.get("tp_plan")
    if tp > 1 and not (isinstance(rules, Mapping) and any("vocabulary_loss" in str(v) for v in rules.values())):
        script.ignored["tp_plan of the head"] = (
            "priced as if the loss were computed on cut scores; here they are gathered whole"
        )
    if tp > 1 and rules == {}:
        script.ignored["tp_plan={}"] = "priced with the usual rules, not with none"


def _kept(script: Script, rules: Any, model: Model) -> None:
    """Whether layers keep their gathered weights."""
    if not isinstance(rules, Mapping):
        return
    layers = {f"{stack}.*" for stack in model.stacks} | {key for key in rules if str(key).endswith(".*")}
    said = {rules[key] for key in layers if key in rules}
    if len(said) == 1:
        style = said.pop()
        script.say("reshard", style != "keep_full_weight", f'fsdp_plan "{style}"')
    elif said:
        script.ignored["fsdp_plan"] = "priced as if every layer freed its weights after its forward"


def _training(script: Script, c: Call, file: str) -> None:
    b = number(c, "per_device_train_batch_size", 8, file)
    m = number(c, "gradient_accumulation_steps", 1, file)
    script.say("micro_batch", b, f"per_device_train_batch_size={b}")
    script.say("m", m, f"gradient_accumulation_steps={m}")
    for name, precision in (("bf16", "bfloat16"), ("fp16", "float16")):
        if c.arguments.get(name) is True:
            script.compute(precision, f"{name}=True")
    again = c.arguments.get("activation_checkpointing", c.arguments.get("gradient_checkpointing", False))
    if isinstance(again, bool):
        script.say("recompute", "full" if again else "none", f"activation_checkpointing={again}")
    accelerator = c.arguments.get("accelerator_config")
    kwargs = accelerator.get("gradient_accumulation_kwargs") if isinstance(accelerator, Mapping) else None
    every = isinstance(kwargs, Mapping) and kwargs.get("sync_each_batch") is True
    script.words["every"] = every
    if isinstance(c.arguments.get("deepspeed"), str):
        raise InputError(
            f"the layout is in DeepSpeed's file: give {c.arguments['deepspeed']} in place of this script",
            where=f"{file}:{c.lines['deepspeed']}",
        )


def _fsdp_argument(script: Script, c: Call, world: int) -> None:
    """TrainingArguments(fsdp=…): all devices, cut or whole; nothing: DDP."""
    value = c.arguments.get("fsdp", "")
    config = c.arguments.get("fsdp_config")
    config = {str(k).removeprefix("fsdp_"): v for k, v in config.items()} if isinstance(config, Mapping) else {}
    said = " ".join(value) if isinstance(value, list) else str(value or "")
    script.say("dp", world, "one replica a process")
    if not value:
        script.say("zero", 0, "no fsdp: DDP")
        return
    script.say("zero", 0 if "no_shard" in said else 3, f"fsdp={said}")
    keep = "shard_grad_op" in said or config.get("reshard_after_forward") is False
    script.say("reshard", not keep, f"fsdp={said}")
    if "offload" in said or config.get("cpu_offload"):
        script.ignored["fsdp offload"] = "priced without offload"
    if "hybrid" in said:
        script.ignored[f"fsdp={said}"] = "priced as cut over all devices, not within machines"


def _not_priced(script: Script, found: list[Call]) -> None:
    for c in found:
        for name, (default, instead) in NOT_PRICED.get(c.name, {}).items():
            if c.arguments.get(name, default) != default:
                script.ignored[f"{name}={c.arguments[name]}"] = instead


def _whole_gradients(script: Script, m: int) -> None:
    """Cut gradients of several micro-batches without `sync_each_batch`: the library keeps whole ones meanwhile."""
    every = script.words.pop("every", True)
    if not every and m > 1 and script.words.get("zero") == 3 and script.words.get("replicate", 1) == 1:
        script.ignored["no sync_each_batch"] = (
            "priced as if gradients were cut after every micro-batch; without it each device keeps whole gradients"
        )
