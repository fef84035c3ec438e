"""AccPar (Song et al., HPCA 2020): a type of partition for each layer, level by level of an array that is halved again and again.

At each level every layer is cut in one of three dims: its samples (I), its inputs (II) or its outputs (III); what that makes
the two halves exchange inside a layer and between two layers are the two tables of `cost.accpar_elements`. One level is decided
exactly, then every layer shrinks by its type and the next level is decided for each half (sections 3 and 5 of the paper).

    accpar        all three types, exact on networks of several paths: shortcuts and joins are edges of the same cost graph
    accpar-code   the original program (linghaosong/AccPar, MIT): the shortcut of a ResNet is charged between a layer and the
                  type that the greedy predecessors trace back to, except where the one before is of type I, so that values
                  come out too low and types are sometimes not the best. `claimed` is its value, `value` what its types cost.
    hypar         types I and II (arXiv 1901.02067)
    owt           one weird trick (arXiv 1404.5997): convolutions I, others II
    data          all I

Equal accelerators: the objective is the sum over levels of the elements that one half receives, per pair of halves.
Two kinds of accelerators (section 4): the first level divides every layer unequally, so that both halves take equally long,
and the objective is the sum over levels of these seconds, of the slower kind below the first. Below it each kind decides for itself:
where that differs, the plan holds every layer twice (`_accpar_halves`). On captured models both kinds take the same types, each layer
waiting for the slower. With `ratio` = "group" one ratio, that of the FLOP/s, holds for all layers, so that no tensor has to be moved between two
ratios; the paper's tables, of a ratio for each layer ("layer"), do not charge that: lowering gathers such a tensor and cuts it
again. With "equal" halves each layer waits for the slower.

On captured models the layers are products and convolutions with weights; additions, attentions and the like are joins that may be
cut on rows or columns or be copied. A type needs a dim of two equal halves; a layer with none computes copies. Compute is the
same for all types of equal halves and left out, memory is no part of the method: a plan that does not fit is refused in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from ..cost.accpar_elements import ROWS, TYPE_I, TYPE_II, AccParElements
from ..cost.recorded import Recorded
from ..cost.untimed import Untimed
from ..errors import Infeasible, InputError
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate.fits import fits
from ._accpar_code import code_level
from ._accpar_halves import split_decided, split_plan
from ._accpar_levels import Elements, Price, Seconds, Slower, best, cost
from ._accpar_net import Net
from ._accpar_problem import array_of, checked, decided, net_of, plan_of, weights_of
from ._checked import word
from .base import Planner
from .registry import register
from .types import Info, Json, Run

Method = Literal["accpar", "accpar-code", "hypar", "owt", "data"]
Ratio = Literal["layer", "group", "equal"]


@register
class AccPar(Planner):
    """A type for each layer and level, and unequal halves where accelerators differ.

    Args:
        method: "accpar", or one of the baselines above.
        ratio: where accelerators differ, a share for each "layer", one for the "group", or "equal" halves, which run.
    """

    info = Info(
        name="accpar",
        title="AccPar: Tensor Partitioning for Heterogeneous Deep Learning Accelerators",
        year=2020,
        reference="doi:10.1109/HPCA47549.2020.00036",
        decides=frozenset({"shards"}),
        handles=frozenset({"dag", "heterogeneous", "memory"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(self, *, method: Method = "accpar", ratio: Ratio = "layer") -> None:
        word("accpar", "method", method, get_args(Method))
        word("accpar", "ratio", ratio, get_args(Ratio))
        self.method = method
        self.ratio = ratio

    def search(self, problem: Problem, run: Run) -> Json:
        """Level by level, each exactly; a bound is proved where there is one level only."""
        descent = _Descent(problem, self.ratio)
        array = descent.array
        if self.method == "accpar-code" and (array.kinds or not isinstance(problem.cost, AccParElements)):
            raise InputError(
                "accpar: method accpar-code counts elements of a description of a network on equal accelerators only"
            )
        levels: list[Json] = []
        types: list[list[tuple[int, ...]]] = []
        shares: list[float] = []
        pairs = 0.0
        for h in range(array.levels):
            run.tick(0, "levels", h, array.levels)
            net, prices = descent.net, descent.prices()
            decisions = [self._decide(net, price) for price in prices]
            own = [t for t, _ in decisions]
            value = max(cost(net, price, t) for price, t in zip(prices, own))
            digits = list(dict.fromkeys(map(_digits, own)))
            level: dict[str, Json] = {"types": digits[0] if len(digits) == 1 else [*map(_digits, own)], "value": value}
            if self.method == "accpar-code":
                level["claimed"] = decisions[0][1]
            elif array.levels == 1 and self.method == "accpar":
                run.bound(value)
            if isinstance(prices[0], Seconds) and h == 0 and len(array.kinds) == 2:
                shares, clipped = _shares(net, prices[0], own[0])
                level |= {"shares": list(shares), "clipped": [net.names[v] for v in clipped]}
                shares = [_written(x) for x in shares]
            levels.append(level)
            types.append(own)
            pairs += 2**h * value
            descent.down(own, shares)
        if all(len(set(own)) == 1 for own in types):
            plan = plan_of(problem, descent.net, array, [own[0] for own in types], shares)
        else:
            plan = split_plan(problem, descent.net, array, types[0][0], shares, types[1:])
        if not isinstance(problem.cost, AccParElements | Recorded | Untimed):
            over = fits(problem, plan)
            if over:
                raise Infeasible(f"{over}; accpar takes no account of memory")
        total = self.objective(problem, plan)
        run.offer(total, lambda: plan)
        run.tick(1, "levels", array.levels, array.levels)
        return {"levels": levels, "sum_of_levels": total, "sum_of_all_pairs": pairs}

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Elements (or seconds) of all levels: each level of one pair of halves.

        Raises:
            Unsupported: not one stage over an array that halves, or a layer that is not cut though it could be.
        """
        return sum(self._values(problem, plan))

    def unit_of(self, problem: Problem) -> str:
        return "s" if array_of(problem).kinds else "element"

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """Plans whose halves take equally long, where they are unequal: the bound is over types, not over ratios."""
        net, array = net_of(problem), array_of(problem)
        price = _Descent(problem, self.ratio).prices()[0] if len(array.kinds) == 2 and array.levels else None
        if not isinstance(price, Seconds):
            return True
        types, shares = _decided(problem, net, plan)
        return bool(np.allclose(_shares(net, price, types[0][0])[0], shares, atol=1e-6))

    def _values(self, problem: Problem, plan: Plan) -> list[float]:
        """What each level of a plan costs."""
        descent = _Descent(problem, self.ratio)
        types, shares = _decided(problem, descent.net, plan)
        found = []
        for h, own in enumerate(types):
            net, prices = descent.net, descent.prices()
            each = own if len(own) == len(prices) else [own[0]] * len(prices)
            for t in each:
                checked(net, t)
            unequal = h == 0 and len(descent.array.kinds) == 2
            found.append(
                max(
                    _at_shares(net, price, t, shares) if unequal and isinstance(price, Seconds) else cost(net, price, t)
                    for price, t in zip(prices, each)
                )
            )
            descent.down(each, shares)
        return found

    def _decide(self, net: Net, price: Price) -> tuple[tuple[int, ...], float]:
        """(types, the value that the method claims for them)."""
        if self.method == "accpar-code" and isinstance(price, Elements):
            return code_level(net)
        allowed = [self._allowed(net, v) for v in range(len(net))]
        types, found = best(net, price, allowed)
        return types, found.value

    def _allowed(self, net: Net, v: int) -> tuple[int, ...]:
        """Types that the method takes and the layer can have; those that it can have, if there are no others."""
        able = net.parts.types(v)
        if net.join[v]:
            wanted = {ROWS} if self.method == "data" else set(able)
        else:
            own = {"hypar": {TYPE_I, TYPE_II}, "data": {TYPE_I}, "owt": {TYPE_I} if net.conv[v] else {TYPE_II}}
            wanted = own.get(self.method, set(able))
        return tuple(t for t in able if t in wanted) or able


class _Descent:
    """From level to level: what is left of the network in a half, of each kind of accelerators."""

    def __init__(self, problem: Problem, ratio: Ratio) -> None:
        self.net, self.array, self.ratio = net_of(problem), array_of(problem), ratio
        self.level = 0
        self.sides = [self.net.sizes] * max(1, len(self.array.kinds))
        self.apart = isinstance(problem.cost, AccParElements)
        """Each kind decides for itself below the first level."""

    def prices(self) -> list[Price]:
        """Of each decision of this level."""
        array, width = self.array, self.array.element_bytes
        if not array.kinds:
            return [Elements(self.net.sizes)]
        halves = array.halves(self.level)
        if len(array.kinds) == 2 and self.level == 0:
            first, second = halves[0]
            shares = {"layer": None, "group": first[0] / (first[0] + second[0]), "equal": 0.5}
            return [Seconds(self.net.sizes, first, second, width, shares[self.ratio])]
        each = [Seconds(own, one, other, width, 0.5) for own, (one, other) in zip(self.sides, halves)]
        return [*each] if self.apart else [Slower(tuple(each))]

    def down(self, types: Sequence[Sequence[int]], shares: Sequence[float]) -> None:
        """Into a half, after the types of each decision."""
        if len(self.sides) == 2 and self.level == 0:
            first = np.array(shares)
            self.sides = [self.net.sizes.shrunk(types[0], first), self.net.sizes.shrunk(types[0], 1.0 - first)]
        else:
            each = types if len(types) == len(self.sides) else [types[0]] * len(self.sides)
            self.sides = [own.shrunk(t) for own, t in zip(self.sides, each)]
        self.net = replace(self.net, sizes=self.sides[0], parts=self.net.parts.halved(types[0]))
        self.level += 1


def _decided(problem: Problem, net: Net, plan: Plan) -> tuple[list[list[tuple[int, ...]]], list[float]]:
    """(per level the types of each decision, shares of the first half) of any plan."""
    if plan.rewritten is not None:
        top, shares, below = split_decided(net, plan)
        return [[top], *below], shares
    types, shares = decided(problem, net, plan)
    return [[own] for own in types], shares


def _digits(types: Sequence[int]) -> str:
    """0, 1, 2 = I, II, III as the original prints them; of joins and copies r, c, -."""
    return "".join("012rc-"[t] for t in types)


def _shares(net: Net, price: Seconds, types: Sequence[int]) -> tuple[list[float], list[int]]:
    """(share of the first half per layer, layers that no share balances)."""
    shares, clipped = [], []
    for v, before in enumerate(net.reads):
        share, none = price.balance(v, 1.0 if before else 0.0)
        at = (types[before[0]] if before else 0, types[v])
        shares.append(float(share[at]) if price.share is None else price.share)
        if price.share is None and none[at]:
            clipped.append(v)
    return shares, clipped


def _written(share: float) -> float:
    """The share that the weights of a plan say."""
    weights = weights_of(share)
    return weights[0] / sum(weights) if weights else 0.5


def _at_shares(net: Net, price: Seconds, types: Sequence[int], shares: Sequence[float]) -> float:
    """What a level costs at given shares."""
    total = 0.0
    for v, before in enumerate(net.reads):
        row = types[before[0]] if before else 0
        total += float(price.times(v, shares[v], 1.0 if before else 0.0)[row, types[v]])
        total += sum(float(price.also(v)[types[u], types[v]]) for u in before[1:])
    return total
