"""Which modules transformers cuts, and how: rules by module path, "*" for the number of a layer, from a plan's own shardings.

Styles as in transformers 5.24.0, distributed/{tensor_parallel,expert_parallel,fsdp}.py. A weight of a linear layer is [outputs,
inputs]; colwise cuts the outputs, rowwise the inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ..graph.ir import Op
from ..layouts.style import TP
from ..lower.atoms import PRODUCTS
from ._sides import Cut, cut_of, pattern, side_of
from .setup import Setup

VOCABULARY_LOSS = "colwise_vocabulary_loss"
"""A style that the written file registers: a head whose scores stay cut, for torch's loss on a cut vocabulary."""
BLOCKS = frozenset(
    {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.dense",
        "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "attention.query_key_value", "attention.dense",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.fc1", "mlp.fc2", "mlp.c_fc", "mlp.c_proj", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
        "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj",
        "shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj",
        "feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj",
    }
)  # fmt: skip
"""Layers of blocks that models of transformers 5.24.0 have rules for, by their last two names: their code reckons with a part of
the heads or features. Others (T5's SelfAttention.q) fold the whole width into heads and break on a part of it; so does attention on latents of DeepSeek V3,
for which the library has no rules and whose rotary positions fail on a part."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """How modules are cut over "tp"."""

    rules: Mapping[str, str]
    why_not: str
    """What transformers has no rule for, in one sentence; "" where `rules` say it all."""


def tensor_rules(setup: Setup) -> Cuts:
    """Rules of a plan with tp > 1 for its modules; experts that are cut over the expert are `expert_rules`."""
    rules: dict[str, str] = {}
    for path, style in _styles(setup):
        name = pattern(path)
        if style.startswith("!") or rules.get(name, style) != style:
            return Cuts({}, f"{name}: {style[1:] or 'cut otherwise in some layers'}")
        rules[name] = style
    return Cuts(rules, "")


def expert_rules(setup: Setup) -> Mapping[str, str]:
    """Rules that give each member whole experts, which tokens reach by all-to-all."""
    rules: dict[str, str] = {}
    for t in _expert_weights(setup):
        rules[pattern(t)] = "grouped_gemm"
        rules[pattern(t.rpartition(".")[0])] = "ep_dispatch_experts"
    return rules


def sharding_rules(setup: Setup) -> Mapping[str, str]:
    """What FSDP gathers together, and whether it keeps that until the backward: each layer, and each module outside of layers."""
    keep = "free_full_weight" if setup.point.reshard else "keep_full_weight"
    rules: dict[str, str] = {}
    stacks = tuple(f"{stack}." for stack in setup.model.stacks)
    head = _tied_head(setup)
    for op in setup.problem.graph.ops:
        weights = [t for t in op.inputs if setup.problem.graph.tensor[t].role == "param"]
        if op.module.startswith(stacks) and stacks:
            stack = next(s for s in stacks if op.module.startswith(s))
            rules[f"{pattern(stack[:-1])}.*"] = keep
        elif weights and op.module:
            # A tied head and its table are one group, which the library keeps from the table's forward to its backward.
            rules[pattern(op.module)] = "keep_full_weight" if op.module == head else keep
    return rules


def _tied_head(setup: Setup) -> str:
    """The module that multiplies with the weight of another module: a head tied to a table."""
    graph = setup.problem.graph
    for op in graph.ops:
        for t in op.inputs:
            if graph.tensor[t].role == "param" and op.kind in PRODUCTS and t.rpartition(".")[0] != op.module:
                return op.module
    return ""


def _expert_weights(setup: Setup) -> list[str]:
    expert = setup.expert
    found = (t for n in expert.experts for t in expert.atoms.nodes[n].inputs if expert.atoms.role[t] == "param")
    made = dict(_made_of(setup))
    through = (made[t] for n in expert.experts for t in expert.atoms.nodes[n].inputs if t in made)
    return list(dict.fromkeys([*found, *through]))


def _made_of(setup: Setup) -> Iterator[tuple[str, str]]:
    """(tensor, parameter) where a light op turns a parameter before it is read: a transpose, a cast."""
    graph, atoms = setup.problem.graph, setup.expert.atoms
    for op in graph.ops:
        weights = [t for t in op.inputs if t in graph.tensor and graph.tensor[t].role == "param"]
        if len(weights) == 1 and len(op.outputs) == 1 and op.outputs[0] in atoms.from_params:
            yield op.outputs[0], weights[0]


def _styles(setup: Setup) -> Iterator[tuple[str, str]]:
    """(path of a module or parameter, style; "!" and why there is none)."""
    graph, expert = setup.problem.graph, setup.expert
    shardings = expert.choices(setup.point.style).shardings
    experts = set(_expert_weights(setup))
    whole_experts = setup.point.ep > 1 or setup.point.whole_experts
    stacks = tuple(f"{stack}." for stack in setup.model.stacks)
    loss = any(
        c.axis == TP
        for op in graph.ops
        if op.kind == "cross_entropy_loss" and op.name in shardings
        for cuts in shardings[op.name].cuts.values()
        for c in cuts
    )
    uses = expert.uses(setup.point.style)
    seen: set[str] = set()
    for op in graph.ops:
        for t in op.inputs:
            if t in uses and (t not in seen or (op.kind in PRODUCTS and not op.module.startswith(stacks or ("?",)))):
                seen.add(t)
                yield from _style(setup, t, cut_of(setup, t), op, experts, whole_experts, loss)


def _style(
    setup: Setup, t: str, cut: Cut | None, op: Op, experts: Collection[str], whole_experts: bool, loss: bool
) -> Iterator[tuple[str, str]]:
    """Of the module in which an op reads a parameter."""
    stacks = tuple(f"{stack}." for stack in setup.model.stacks)
    module = op.module if op.kind in PRODUCTS else t.rpartition(".")[0]
    inside = bool(stacks) and module.startswith(stacks)
    if t in experts:
        if not whole_experts:
            yield t, _expert_style(cut)
            yield t.rpartition(".")[0], "moe_tp_experts"
    elif op.kind == "embedding":
        if cut is not None:
            yield op.module, "embedding_rowwise" if cut.dim == 0 else "embedding_colwise"
    elif len(setup.problem.graph.tensor[t].shape) == 2:
        if cut is not None:
            style = _linear(setup, t, op.kind, module if inside else "")
            if style == "colwise" and not inside:
                style = VOCABULARY_LOSS if loss else "colwise_gather_output"
            yield module, style
    elif cut is None and op.kind not in PRODUCTS and _partial(setup, op.name):
        yield module, "replicated_with_grad_allreduce"


def _partial(setup: Setup, name: str) -> bool:
    """Whether an op is cut over "tp": a parameter that it has whole gets a part of its gradient."""
    found = setup.expert.choices(setup.point.style).shardings.get(name)
    return found is not None and any(c.axis == TP for own in found.cuts.values() for c in own)


def _linear(setup: Setup, t: str, kind: str, block: str) -> str:
    """The style of a layer's weight; `block`: its path if it is in a block."""
    shape = "×".join(map(str, setup.problem.graph.tensor[t].shape))
    side = side_of(setup, t)
    if kind != "linear" or side is None:
        return f"!its weight ({shape}) is no torch.nn.Linear's, which alone has colwise and rowwise (GPT-2's Conv1D has neither)"
    if block and ".".join(block.split(".")[-2:]) not in BLOCKS:
        return "!no model of transformers has a rule for such a module, and its code may need its whole width"
    if side.parts > 1:
        sides = "inputs" if side.row else "outputs"
        return f"!its {sides} are {side.parts} parts that are each cut, which no style for linear layers says"
    return "rowwise" if side.row else "colwise"


def _expert_style(cut: Cut | None) -> str:
    if cut is None:
        return "!experts that stay whole while what is around them is cut"
    if cut.parts > 2:
        return f"!{cut.parts} parts that are each cut, where packed styles have 2"
    if cut.dim == 0:
        return "!cut over experts"
    packed = "packed_" if cut.parts > 1 else ""
    return f"{packed}colwise" if cut.dim == 1 else f"{packed}rowwise"
