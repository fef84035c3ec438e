"""How far stacks of software differ, by kind of work: fitted to published steps, and again without each source in turn.

A stack's steps, predicted by constants that its source had no part in, are off by what it does slower (a factor on
everything and one on each kind of work, each normally distributed in its logarithm) and by noise. The spreads make the
errors of all stacks most likely, around guesses that count for little: empirical Bayes, as in a ridge regression whose
weights are not chosen but fitted. With spreads so fitted, what three steps do not tell stays as it is.

    python -m meshwright.validation priors FOLDER     writes calibration/priors.toml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..calibration.stack import EVERYTHING, TERMS, Prior, Worth
from ..graph.ir import Floats
from .fit import CLIP, MOST_ROWS
from .parameters import Values
from .plans import Case
from .prediction import played, stack_of
from .worth import Stacks

GUESSES = {"noise": 0.07, EVERYTHING: 0.08} | {t.name: t.spread for t in TERMS}
MOST_ROUNDS = 60
LEAST = 1e-3
"""Of a step, whatever the noise: keeps covariances regular."""
DOUBT = 0.7
"""Standard deviation of the logarithm of a spread around its guess."""


def fit_priors(cases: Sequence[Case], fitted: Mapping[str, Values]) -> dict[str, Prior]:
    """ "all" and each source of `fitted` -> spreads fitted on all rows, and on all but that source's."""
    seen: list[tuple[str, tuple[Floats, Floats]]] = []
    for stack in sorted({stack_of(c.row) for c in cases}):
        own = [c for c in cases if stack_of(c.row) == stack]
        own = own[:: -(-len(own) // MOST_ROWS)]
        values = fitted.get(stack[0], fitted["all"])
        stacks = Stacks(values, own)
        seconds = np.array([p.step_seconds for p in played(own, values)])
        steps = Worth(seconds, np.array([stacks.worth(c) for c in own]))
        seen.append((stack[0], (slopes(steps), np.log(np.array([c.row.seconds for c in own]) / seconds))))
    found = {"all": likeliest([pair for _, pair in seen])}
    for source in sorted(fitted.keys() - {"all"}):
        found[source] = likeliest([pair for name, pair in seen if name != source], found["all"])
    return found


def slopes(steps: Worth) -> Floats:
    """Change [factor, step] of the logarithm of each step with that of `EVERYTHING` and of each term."""
    return steps.slopes({EVERYTHING: 1.0} | {t.name: 1.0 for t in TERMS})


def likeliest(stacks: Sequence[tuple[Floats, Floats]], start: Prior | None = None) -> Prior:
    """The spreads that make the errors of stacks most likely.

    Args:
        stacks: per stack `slopes`, and measured over predicted seconds as logarithms [step].
        start: where to begin.
    """
    names, guess = list(GUESSES), torch.tensor(list(GUESSES.values()), dtype=torch.float64).log()
    changes = [torch.from_numpy(change) for change, _ in stacks]
    errors = [torch.from_numpy(np.clip(error, -CLIP, CLIP)) for _, error in stacks]
    x = torch.zeros(len(names), dtype=torch.float64)
    if start is not None:
        x = (
            torch.tensor([start.noise, *(start.spreads[n] for n in names[1:])], dtype=torch.float64).log() - guess
        ) / DOUBT
    x.requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=MOST_ROUNDS, line_search_fn="strong_wolfe")

    def unlikely() -> torch.Tensor:
        search.zero_grad()
        spreads = (guess + DOUBT * x).exp()
        total = 0.5 * (x @ x)
        for change, error in zip(changes, errors, strict=True):
            scaled = spreads[1:, None] * change
            root = torch.linalg.cholesky(
                scaled.T @ scaled + (spreads[0] ** 2 + LEAST**2) * torch.eye(len(error), dtype=torch.float64)
            )
            off = torch.linalg.solve_triangular(root, error[:, None], upper=False)
            total = total + len(error) ** -0.5 * ((off * off).sum() / 2 + root.diagonal().log().sum())
        total.backward()  # type: ignore[no-untyped-call]
        return total

    search.step(unlikely)  # type: ignore[no-untyped-call]
    noise, *spreads = (guess + DOUBT * x.detach()).exp().tolist()
    return Prior(noise, dict(zip(names[1:], spreads, strict=True)))


def write(found: Mapping[str, Prior], file: Path) -> None:
    lines = [
        "# How far stacks of software differ in each kind of work, and steps from a stack that is known: standard deviations of",
        "# logarithms, fitted by validation/priors.py on all sources of published steps, and on all but the one named.",
        "",
    ]
    for name, prior in found.items():
        values = {"noise": prior.noise, **prior.spreads}
        lines += [f'["{name}"]', *(f"{k} = {v:.4g}" for k, v in values.items()), ""]
    file.write_text("\n".join(lines), encoding="utf-8")
