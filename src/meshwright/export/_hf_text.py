"""Python that users of accelerate and transformers put into their scripts, from options by dotted name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._hf_modules import VOCABULARY_LOSS
from ._hf_options import OWNERS, names


@dataclass(frozen=True, slots=True)
class Name:
    """A value that is written as it is: torch.float32, ACCUMULATION."""

    text: str


def group(options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Options of one call or section, by their own names, in the order in which it has them."""
    found = {key.removeprefix(prefix + "."): value for key, value in options.items() if key.startswith(prefix + ".")}
    known = names(prefix) if prefix in OWNERS else ()
    return dict(sorted(found.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known)))


def call(name: str, arguments: Mapping[str, Any], indent: int = 4) -> str:
    """A call with an argument a line: "Name(\\n        a=1,\\n    )"."""
    if not arguments:
        return f"{name}()"
    inner = " " * (indent + 4)
    lines = [f"{inner}{key}={_value(value, indent + 4)}," for key, value in arguments.items()]
    return "\n".join([f"{name}(", *lines, f"{' ' * indent})"])


def _value(value: Any, indent: int) -> str:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, Mapping) and value:
        inner = " " * (indent + 4)
        lines = [f"{inner}{_value(k, 0)}: {_value(v, indent + 4)}," for k, v in value.items()]
        return "\n".join(["{", *lines, f"{' ' * indent}}}"])
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def constants(micro_batch: int, micro_batches: int, samples: int, replicas: int, dtype: str) -> list[str]:
    """The batch and the type of the weights as constants of a script."""
    return [
        f"MICRO_BATCH = {micro_batch}  # samples of one micro-batch on one replica: batch_size of the DataLoader",
        f"ACCUMULATION = {micro_batches}  # micro-batches of a step on one replica",
        f"SAMPLES = {samples}  # of a step: {micro_batch} x {micro_batches} x {replicas} replicas",
        f"DTYPE = torch.{dtype}  # of the weights as they are loaded",
    ]


def loads(options: Mapping[str, Any], dtype: str) -> list[str]:
    """A function that loads the model as `DistributedConfig` cuts it."""
    config = group(options, "DistributedConfig")
    cut = uses_vocabulary_loss(config)
    style = [
        "    # Scores stay cut over the vocabulary; torch's loss_parallel sums over it.",
        "    ALL_PARALLEL_STYLES.register(",
        f'        "{VOCABULARY_LOSS}",',
        "        ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1), use_local_output=False),",
        "    )",
    ]
    arguments = {"dtype": Name(dtype), "distributed_config": Name(call("DistributedConfig", config, 8))}
    return [
        "def load(source, kind=AutoModelForCausalLM):",
        '    """The model at `source`, each rank with its part."""',
        *(style if cut else []),
        "    " + call("return kind.from_pretrained", {}, 4)[:-1],
        "        source,",
        *(f"        {key}={value.text}," for key, value in arguments.items()),
        "    )",
    ]


def uses_vocabulary_loss(config: Mapping[str, Any]) -> bool:
    rules = config.get("tp_plan")
    return isinstance(rules, Mapping) and VOCABULARY_LOSS in rules.values()


def style_imports(config: Mapping[str, Any]) -> list[str]:
    """What the registration of the style needs."""
    if not uses_vocabulary_loss(config):
        return []
    return [
        "from torch.distributed.tensor import Replicate, Shard",
        "from torch.distributed.tensor.parallel import loss_parallel",
        "from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, ColwiseParallel",
    ]


def script(head: Sequence[str], imports: Sequence[str], *parts: Sequence[str]) -> str:
    """A file: what it is, imports (a line a module, sorted), constants and functions."""
    names: dict[str, set[str]] = {}
    for line in imports:
        module, _, imported = line.removeprefix("from ").removeprefix("import ").partition(" import ")
        names.setdefault(module, set()).update(imported.split(", ") if imported else ())
    lines = [f"import {module}" for module in sorted(names) if not names[module]]
    lines += [f"from {m} import {', '.join(sorted(names[m], key=_by_case))}" for m in sorted(names) if names[m]]
    blocks = ["\n".join(['"""' + "\n".join(head) + '\n"""', "", *lines])]
    constants = [part for part in parts if part and not part[0].startswith(("def ", "class "))]
    blocks[0] += "".join("\n\n" + "\n".join(part) for part in constants)
    blocks += ["\n".join(part) for part in parts if part and part not in constants]
    return "\n\n\n".join(blocks) + "\n"


def _by_case(name: str) -> tuple[bool, str]:
    """Constants before classes before functions, as import sorters have it."""
    return not name.isupper(), name
