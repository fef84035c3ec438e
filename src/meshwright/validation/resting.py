"""What stays allocated between two steps of Megatron-LM, whose tests are the only source that reads it.

Besides weights, gradients, optimizer state and the work space of libraries:

inputs       every chunk that another stage feeds keeps the input of its last micro-batch, and its gradient
             (`TransformerBlock.set_input_tensor`), until the next step gives it another
gradients    where gradients are summed in 16 bits the optimizer's float32 copy of those that it updates, until they are zeroed
scores       its own attention, through the score matrix, multiplies into one buffer for all layers (`get_global_memory_buffer`)
"""

from __future__ import annotations

from ..graph.ir import ITEM_BYTES
from ..simulate import Simulation
from ..simulate.price import Pricer
from .plans import Case

HELD = ("weights", "gradients", "optimizer")


def resting(case: Case, simulation: Simulation, lane: int) -> float:
    """Bytes of a device of one lane of the simulated step."""
    problem, program, row = case.problem, case.program, case.row
    recipe = problem.recipe
    held = simulation.peak_by[lane]
    pricer = Pricer(problem.graph, problem.cluster, problem.cost, recipe)
    found = sum(held.get(part, 0.0) for part in HELD) + pricer.workspace
    stages = set(simulation.lanes[lane].stages)
    for t in program.transfers:
        if t.dst in stages:
            found += (
                t.nbytes
                * (1 + t.grad)
                * (program.local_samples(program.stages[t.src].mesh, t.samples) if t.samples is not None else 1)
            )
    if ITEM_BYTES[recipe.grad_dtype] < ITEM_BYTES[recipe.param_dtype]:
        master = ITEM_BYTES[recipe.param_dtype]
        found += held.get("optimizer", 0.0) * master / (master + recipe.state_bytes)
    if row.attention == "unfused" and row.engine == "torch":
        found += (
            ITEM_BYTES[recipe.compute_dtype] * row.micro_batch * row.model.heads * row.model.seq**2 / (row.tp * row.cp)
        )
    return found
