"""What runs again, and what is kept in 8 bits, of measured rows with experts."""

from dataclasses import replace

from meshwright.layouts.again import recomputed
from meshwright.layouts.expert import expert_of
from meshwright.lower import lower
from meshwright.validation.columns import Columns
from meshwright.validation.models import Graphs
from meshwright.validation.moe import Latent, Sparse
from meshwright.validation.plans import Case, Cases
from meshwright.validation.settings import recompute_of
from validation.test_moe import SMALL, row

LATENT = Sparse(7, 256, 4, 4, 0, 1, 512, 8, 2, 256, 256, 1024, 128, Latent(64, 32, 32, 16, 32))


def kept(case: Case) -> float:
    """Bytes of activations of a layer of experts, of one sample."""
    segment = next(s for s in case.program.stages[0].segments if s.count > 1)
    return segment.kept.activations[1]


def test_words_of_megatron_name_modules() -> None:
    raw = Columns({"other": "recompute_modules=[mla_up_proj  mhc  mlp]", "recompute": "selective"})
    assert recompute_of(raw, {}, "overlapped") == "mla_up_proj+mlp+"
    assert recompute_of(Columns({"other": "recompute_modules=[]"}), {}, "overlapped") == "none"


def test_up_projections_run_again_and_their_results_are_not_kept() -> None:
    graph = Graphs().of(LATENT)
    names = recomputed(expert_of(graph).atoms.folded, "mla_up_proj+")
    products = {graph.ops[graph.position[n]].module.rpartition(".")[2] for n in names if n.endswith("linear")}
    assert products == {"q_b_proj", "kv_b_proj"}
    plain, again = (Cases().of(row(LATENT, recompute=how)) for how in ("none", "mla_up_proj+"))
    queries_keys_values = LATENT.heads * (2 * (32 + 16) + 32) * LATENT.seq * 2.0
    assert kept(plain) - kept(again) >= 0.9 * queries_keys_values


def test_what_products_alone_read_is_kept_in_their_width() -> None:
    case = Cases().of(row(SMALL))
    narrow = replace(case.problem.recipe, kept_dtype="float8_e4m3fn")
    less = replace(case, program=lower(case.problem.graph, case.plan, narrow))
    tokens = SMALL.seq * SMALL.chosen
    of_experts = tokens * (SMALL.hidden + SMALL.expert_ffn)  # a byte less each: what the experts' two layers read
    assert of_experts <= kept(case) - kept(less) <= 2 * of_experts
