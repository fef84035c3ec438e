"""GSPMD: a few annotations shard a whole program (Xu et al., arXiv 2105.04663; propagation as in Shardy).

    annotations (a recipe, a file, Problem.annotations)
      → propagate            every tensor gets axes of the mesh, to a fixed point
      → partition each op    one choice where its tensors disagree; these points are reported
      → refine the mesh      parts of an axis become axes
      → plan                 OpSharding of every op, Layout of every tensor, Storage of parameters; lowering makes the
                             collectives, and the backward by duality

A tensor program that was read from a file is propagated as it is; a captured model with its dims split at the borders of
all reshapes (`_spmd_values`).

Pipelining inside SPMD (§3.3 of the paper) stacks equal blocks on a dim that one mesh axis cuts, and shifts micro-batches
along it. Here that axis cuts the blocks into stages, run as schedule gpipe; as interleaved where each device has several
(the paper's circular form). What stands before the blocks is of the first stage, what stands behind them of the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Literal, get_args

from ..cluster.model import Mesh
from ..errors import InputError
from ..graph.ir import Graph
from ..layouts.expert import expert_of
from ..layouts.units import Units
from ..lower.atoms import Atoms
from ..lower.atoms import refine as atoms_of
from ..lower.choices import unfoldable
from ..lower.fold import fold
from ..lower.memo import memo
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Annotation, Problem
from ..simulate.fits import fits
from ._annotate import annotated, of_atoms, of_dims, unequal_runs
from ._axes import parts
from ._checked import word
from ._moved import moved_bytes
from ._propagate import Sharding, Strategy, propagate
from ._recipes import Recipe, annotations_of, mesh_of
from ._spmd_plan import Conflict, Entries, at_the_border, entries_of, shown, told
from ._spmd_values import Program, by_atoms, by_dims
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class GSPMD(Planner):
    """Completion of annotations.

    Args:
        recipe: annotations for a whole model, besides those of the problem; None: dp, if the problem has none.
        strategy: aggressive (each tensor takes what it can), basic (all tensors of an op or none), or one after the other.
        pipeline: a mesh axis over which the blocks are cut into stages; "" = none.
        rounds: stages of each device along it (the circular form).
        micro_batches: of a step; None: the fewest that fit; with a pipeline at least four a stage.
        recompute: which ops of the blocks run again for the backward: none, the light ones, all.
    """

    info = Info(
        name="gspmd",
        title="Propagation of sharding annotations",
        year=2021,
        reference="arXiv 2105.04663",
        decides=frozenset({"shards", "replicas", "stages", "schedule"}),
        handles=frozenset({"annotations", "mesh", "dag"}),
        goals=frozenset({"time", "memory"}),
        family="tensor",
    )
    unit = "byte"

    def __init__(
        self,
        *,
        recipe: Recipe | None = None,
        strategy: Strategy = "aggressive",
        pipeline: str = "",
        rounds: int = 1,
        micro_batches: int | None = None,
        recompute: Literal["none", "light", "full"] = "none",
    ) -> None:
        word("gspmd", "recipe", recipe, get_args(Recipe))
        word("gspmd", "strategy", strategy, get_args(Strategy))
        word("gspmd", "recompute", recompute, ("none", "light", "full"))
        if rounds < 1 or (micro_batches is not None and micro_batches < 1):
            raise InputError(f"gspmd: rounds = {rounds} and micro_batches = {micro_batches} must be at least 1")
        if rounds > 1 and not pipeline:
            raise InputError(f"gspmd: rounds = {rounds} go round a pipeline: name its mesh axis as pipeline")
        self.recipe, self.strategy = recipe, strategy
        self.pipeline, self.rounds, self.micro_batches = pipeline, rounds, micro_batches
        self.recompute = recompute

    def search(self, problem: Problem, run: Run) -> Json:
        if all(not op.call for op in problem.graph.ops):
            return self._program(problem, run)
        return self._model(problem, run)

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Bytes that all devices together receive in one step."""
        return moved_bytes(problem, plan)

    # ---- tensor programs

    def _program(self, problem: Problem, run: Run) -> Json:
        graph, mesh = problem.graph, problem.mesh
        if mesh is None:
            raise InputError(
                "gspmd propagates annotations over a mesh with named axes, and this problem has none: plan a captured model or a "
                "tensor program, or give Problem.mesh"
            )
        if self.recipe is not None or self.pipeline:
            raise InputError("a recipe and a pipeline are for captured models: a tensor program brings its annotations")
        sizes = {a: mesh.size(a) for a in mesh.axes}
        program = by_dims(graph)
        said = annotated(graph, mesh, problem.annotations)
        given = {program.number[t]: of_dims(graph.tensor[t].shape, a, sizes) for t, a in said.items()}
        state = propagate(program.values, given, self.strategy)
        final = at_the_border(graph, program, state, said, sizes)
        entries = entries_of(graph, mesh, atoms_of(fold(graph)), program, final, split=False)
        stage = Stage(
            tuple(op.name for op in graph.ops),
            entries.refined.mesh,
            entries.shardings,
            entries.layouts,
            entries.storage,
        )
        plan = Plan(graph.digest, problem.recipe.samples, (stage,), Schedule("1f1b", 1))
        run.offer(self.objective(problem, plan), lambda: plan)
        run.tick(1, "propagate", 1, 1)
        return told(graph, program, state, final, entries, sizes)

    # ---- captured models

    def _model(self, problem: Problem, run: Run) -> Json:
        graph = problem.graph
        recipe = self.recipe or (None if problem.annotations else "dp")
        mesh = mesh_of(problem, recipe)
        inner = self._inside(mesh)
        wishes = (*(annotations_of(problem, inner, recipe) if recipe else ()), *problem.annotations)
        said = annotated(graph, inner, wishes)
        plain = unfoldable(graph) | unequal_runs(graph, said)
        best: tuple[Completed, Plan] | None = None
        counts = self._counts(problem, mesh, _sample_ways(graph, inner, said))
        for k, m in enumerate(counts):
            completed = complete(graph, inner, said, problem.recipe.samples / m, self.strategy, plain)
            stages, schedule = self._stages(completed, mesh, m)
            plan = Plan(graph.digest, problem.recipe.samples, stages, schedule)
            best = completed, plan
            run.tick(1, "micro-batches", k + 1, len(counts))
            if len(counts) == 1 or fits(problem, plan) is None:
                break
        assert best is not None
        completed, plan = best
        run.offer(self.objective(problem, plan), lambda: plan)
        sizes = {a: inner.size(a) for a in inner.axes}
        final = {
            t: shown(completed.state[v].lists(), sizes)
            for t, v in completed.program.number.items()
            if t in graph.tensor and completed.state[v].axes()
        }
        conflicts = completed.entries.conflicts
        return {
            "recipe": recipe or "",
            "annotated": len(said),
            "final": dict(final),
            "conflicts": [asdict(c) for c in conflicts],
            "notes": list(_notes(graph, conflicts)),
        }

    def _inside(self, mesh: Mesh) -> Mesh:
        """The mesh of one stage of the pipeline: the first."""
        if not self.pipeline:
            return mesh
        if self.pipeline not in mesh.axes:
            raise InputError(
                f'no axis "{self.pipeline}" for the pipeline: the mesh has {", ".join(mesh.axes)}', where="pipeline"
            )
        return _slice(mesh, self.pipeline, 0)

    def _counts(self, problem: Problem, mesh: Mesh, ways: int) -> list[int]:
        """Numbers of micro-batches to try, each of at least a sample for each of the `ways` that it is cut in."""
        samples, p = problem.recipe.samples, mesh.size(self.pipeline) if self.pipeline else 1
        if self.micro_batches is not None:
            if samples % self.micro_batches:
                raise InputError(f"{self.micro_batches} micro-batches do not divide the batch of {samples}")
            if samples // self.micro_batches < ways:
                raise InputError(
                    f"{self.micro_batches} micro-batches of the batch of {samples} have {samples // self.micro_batches} samples "
                    f"each, which annotations cut in {ways}: use at most {max(1, samples // ways)}, or a smaller mesh"
                )
            return [self.micro_batches]
        if samples < ways:
            raise InputError(
                f"annotations cut the samples in {ways}, and the batch has {samples}: use a batch of {ways}, or a smaller mesh"
            )
        least = min(4 * p, samples) if p > 1 else 1
        able = [m for m in range(1, samples // ways + 1) if samples % m == 0 and (self.rounds == 1 or m % p == 0)]
        if not able:
            raise InputError(
                f"no number of micro-batches of the batch of {samples}, cut in {ways}, is a multiple of the {p} stages"
            )
        return [m for m in able if m >= least] or able[-1:]

    def _stages(self, completed: Completed, mesh: Mesh, m: int) -> tuple[tuple[Stage, ...], Schedule]:
        entries, units = completed.entries, Units(completed.atoms.folded)
        again = expert_of(completed.atoms.folded.graph).recomputed(self.recompute)

        def stage(first: int, stop: int, own: Mesh) -> Stage:
            refined = entries.refined.mesh
            return Stage(
                units.ops(first, stop), replace(refined, devices=own.devices), entries.shardings, entries.layouts,
                entries.storage, again,
            )  # fmt: skip

        if not self.pipeline:
            return (stage(0, len(units), mesh),), Schedule("1f1b", m)
        p = mesh.size(self.pipeline)
        cuts = _even_cuts(units, p * self.rounds)
        ends = [0, *cuts, len(units)]
        stages = tuple(stage(a, b, _slice(mesh, self.pipeline, s % p)) for s, (a, b) in enumerate(pairwise(ends)))
        if self.rounds == 1:
            return stages, Schedule("gpipe", m)
        return stages, Schedule("interleaved", m, {"v": self.rounds})


def _sample_ways(graph: Graph, mesh: Mesh, said: Mapping[str, Annotation]) -> int:
    """In how many parts annotations of inputs cut the samples, at most."""
    sizes = {a: mesh.size(a) for a in mesh.axes}
    cut = [of_dims(graph.tensor[t].shape, said[t], sizes).dims[:1] for t in graph.inputs if t in said]
    return max((parts(dims[0].axes) for dims in cut if dims), default=1)


def _slice(mesh: Mesh, axis: str, index: int) -> Mesh:
    """The part of a mesh at one coordinate."""
    k = mesh.axes.index(axis)
    devices = tuple(d for q, d in enumerate(mesh.devices) if mesh.coordinates(q)[axis] == index)
    return Mesh(devices, mesh.axes[:k] + mesh.axes[k + 1 :], mesh.shape[:k] + mesh.shape[k + 1 :])


def _even_cuts(units: Units, stages: int) -> list[int]:
    """Where stages of equally many blocks of the longest run begin, but for the first.

    Raises:
        InputError: the blocks do not fall into as many equal stages.
    """
    pieces = units.folded.pieces
    longest = max((p.count for p in pieces if p.run), default=0)
    if not longest or longest % stages:
        able = ", ".join(str(d) for d in range(2, longest + 1) if longest % d == 0) or "none"
        raise InputError(
            f"{longest} equal blocks do not fall into {stages} equal stages: pipeline × rounds may be {able}",
            where="pipeline",
        )
    piece = next(k for k, p in enumerate(pieces) if p.run and p.count == longest)
    first = units.piece.index(piece)
    return [first + s * longest // stages for s in range(1, stages)]


def _notes(graph: Graph, conflicts: Sequence[Conflict]) -> Iterator[str]:
    """Where activations are converted because the tensors of an op disagree; that stored weights are gathered is no news."""
    moved = [c for c in conflicts if graph.tensor[c.tensor].role != "param"]
    if moved:
        c = moved[0]
        times = "once" if len(moved) == 1 else f"{len(moved)} times"
        yield (
            f"the tensors of an op disagree {times}, so activations are converted there: first at {c.op}, where {c.tensor} "
            f"rests {c.rests} and is used as {c.computes}"
        )


class Completed:
    """A captured model with every tensor sharded."""

    def __init__(self, atoms: Atoms, program: Program, state: Sequence[Sharding], entries: Entries) -> None:
        self.atoms, self.program, self.state, self.entries = atoms, program, state, entries


def complete(
    graph: Graph,
    mesh: Mesh,
    said: Mapping[str, Annotation],
    micro_batch: float,
    strategy: Strategy,
    plain: frozenset[str],
) -> Completed:
    """Every tensor of a captured model sharded.

    Args:
        said: tensor -> its annotation.
        micro_batch: samples.
        plain: runs of blocks that are not alike; any whose blocks come out unlike are added.
    """
    sizes = {a: mesh.size(a) for a in mesh.axes}
    while True:
        atoms = _atoms(graph, plain)
        program = by_atoms(atoms, micro_batch / graph.samples)
        given = {program.number[t]: of_atoms(atoms, t, a, sizes) for t, a in said.items() if t in program.number}
        state = propagate(program.values, given, strategy)
        unlike = _unlike(atoms, program, state)
        if not unlike:
            return Completed(atoms, program, state, entries_of(graph, mesh, atoms, program, state, split=True))
        plain |= unlike


def _atoms(graph: Graph, plain: frozenset[str]) -> Atoms:
    found: Atoms = memo(graph, ("spmd", plain), lambda: atoms_of(fold(graph, plain)))
    return found


def _unlike(atoms: Atoms, program: Program, state: Sequence[Sharding]) -> frozenset[str]:
    """Runs whose blocks do not leave what they read as they found it."""
    folded = atoms.folded
    found: set[str] = set()
    for read, made in folded.carries:
        entry = folded.name(read)
        if entry not in program.number or made not in program.number:
            continue
        if state[program.number[entry]].lists() != state[program.number[made]].lists():
            at = folded.graph.producer[made]
            found |= {r.name for r in folded.graph.runs if r.first <= at < r.first + r.length * r.count}
    return frozenset(found)
