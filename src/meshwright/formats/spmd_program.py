"""Tensor programs with a few annotated shardings, and the factor rule of each op: the input of sharding propagation.

    {"mlp": {"mesh": [["x", 2], ["y", 4]], "shapes": {"arg0": [64, 32], …}, "returns": ["2"],
             "ops": [{"op": "dot", "operands": ["arg0", "arg1"], "result": "0",
                      "rule": {"operands": [[["i"], ["k"]], [["k"], ["j"]]], "results": [[["i"], ["j"]]],
                               "sizes": {"i": 64, "j": 128, "k": 32}, "special": {"reduction": ["k"]}}}, …],
             "given": {"arg0": [{"axes": [["x"]], "open": false}, {"axes": [], "open": false}]}, "given_out": []}}

An axis is ["x"], or ["x", pre, size] for a part of it. Value "return:k" is what the program returns as number k. Values have
4 bytes an element, and nothing in a program says how long an op takes: its plan is judged by what it moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ..cluster import resolve
from ..cluster.model import Mesh
from ..cost.analytic import Analytic
from ..errors import InputError
from ..graph.ir import Dims, Factor, FactorKind, Graph, Op, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.model import Cut, Layout
from ..plan.problem import Annotation, Problem, Recipe
from ._fields import MOST, Fields, load

PLANNER = "gspmd"
RETURN = "return"
"""Kind of the ops that name what is returned; all values of one are the same."""
KIND = "spmd."
"""In front of the op names of a program, as kinds: they are of another language than the ops of a captured model."""
_SPECIAL: Mapping[str, FactorKind] = {
    "reduction": "free", "need_replication": "fixed", "permutation": "halo", "blocked_propagation": "opaque",
}  # fmt: skip


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    if not isinstance(document, Mapping) or not document:
        return False
    own = {"mesh", "ops", "given", "given_out"}
    return all(isinstance(v, Mapping) and len(own & set(v)) >= 2 for v in document.values())


def read(path: Path | str, *, program: str | None = None, cluster: str | None = None) -> Problem:
    """The problem of one program of a file.

    Args:
        program: its name; None = the only one.
        cluster: the devices that the mesh is laid on, of which there must be as many; None = as many CPU devices.

    Raises:
        InputError: names file and field.
    """
    return parse(load(Path(path)), str(path), program, cluster=cluster)


def parse(document: Any, file: str, program: str | None, *, cluster: str | None = None) -> Problem:
    """`read`, of a parsed document."""
    if not isinstance(document, Mapping):
        raise InputError(f"{file}: the document is no object of programs by name")
    if program is None and len(document) == 1:
        program = next(iter(document))
    names = ", ".join(document)
    if program is None:
        raise InputError(f"{file}: it holds several programs, name one as program: {names}", where="program")
    if program not in document:
        raise InputError(f'{file}: no program "{program}": there are {names}', where="program")
    fields = Fields(document[program], file, program)
    mesh = _mesh(fields)
    shapes = _shapes(fields)
    rows = fields.rows("ops")
    made: set[str] = set()
    later = {row.text("result") for row in rows}
    ops = [_op(row, k, shapes, made, later) for k, row in enumerate(rows)]
    returns = fields.value.get("returns")
    if not isinstance(returns, list) or not returns or not all(isinstance(v, str) and v in shapes for v in returns):
        raise fields.wrong("returns", returns, "a list of values that have a shape")
    for k, value in enumerate(returns):
        rule = _identity(shapes[value])
        ops.append(Op(f"{RETURN}:{k}", RETURN, (value,), (f"{RETURN}:{k}",), rule))
    samples = len(mesh.devices)
    known = {**shapes, **{f"{RETURN}:{k}": shapes[value] for k, value in enumerate(returns)}}
    inputs = tuple(name for name in shapes if name not in made)
    tensors = tuple(
        Tensor(name, 4.0 * prod(shape), shape, role="input" if name in inputs else "activation")
        for name, shape in known.items()
    )
    outputs = tuple(f"{RETURN}:{k}" for k in range(len(returns)))
    graph = Graph(tuple(ops), tensors, samples, "none", inputs, outputs)
    cluster_name = cluster or f"localx{samples}"
    devices = resolve(cluster_name)
    if devices.count != samples:
        raise fields.wrong("mesh", fields.value["mesh"], f"as many devices as {cluster_name} has, {devices.count}")
    return Problem(
        replace(graph, digest=digest_of(graph)),
        devices,
        Analytic(precision="float32"),
        Recipe(samples, "sgd", 0.0, compute_dtype="float32"),
        mesh=mesh,
        annotations=tuple(_annotations(fields, known, {a: mesh.size(a) for a in mesh.axes}, len(returns))),
    )


def _mesh(fields: Fields) -> Mesh:
    found = fields.value.get("mesh")
    if not isinstance(found, list) or not found:
        raise fields.wrong("mesh", found, 'a list of axes, each [name, size], such as [["x", 2], ["y", 4]]')
    for k, axis in enumerate(found):
        if not (isinstance(axis, list) and len(axis) == 2 and isinstance(axis[0], str) and _whole(axis[1], 1)):
            raise fields.wrong(f"mesh[{k}]", axis, "a name and a size of 1 or more")
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise fields.wrong("mesh", found, "axes with names of their own")
    shape = tuple(int(n) for _, n in found)
    if prod(shape) > MOST:
        raise fields.wrong("mesh", found, f"at most {MOST:,} devices")
    return Mesh(range(prod(shape)), tuple(names), shape)


def _shapes(fields: Fields) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    rows = fields.nested("shapes")
    for name, shape in rows.value.items():
        if not isinstance(shape, list) or not all(_whole(n, 1) for n in shape):
            raise rows.wrong(name, shape, "a list of sizes of 1 or more")
        found[name] = tuple(shape)
    return found


def _op(row: Fields, k: int, shapes: Mapping[str, tuple[int, ...]], made: set[str], later: set[str]) -> Op:
    """Op number k; its result goes from `later` to `made`."""
    operands = row.value.get("operands")
    if not isinstance(operands, list) or not all(isinstance(v, str) and v in shapes for v in operands):
        raise row.wrong("operands", operands, "a list of values that have a shape")
    if any(v in later for v in operands):
        raise row.wrong("operands", operands, "values that an op before it makes, or none")
    result = row.text("result")
    if result not in shapes or result in made:
        raise row.wrong("result", result, "a value that has a shape and no other op makes")
    made.add(result)
    later.discard(result)
    name = row.text("op")
    given = row.value.get("rule")
    if given is None:
        factors: tuple[Factor, ...] = ()
        ins: tuple[Dims, ...] = tuple(((),) * len(shapes[v]) for v in operands)
        rule = Rule(factors, ins, (((),) * len(shapes[result]),))
    else:
        rule = _rule(row.nested("rule"), [shapes[v] for v in operands], shapes[result])
        if name == "convolution" and len(operands) == 2:
            rule = _with_windows(rule, [shapes[v] for v in operands], shapes[result])
    return Op(f"{k}:{name}", KIND + name, tuple(operands), (result,), rule)


def _rule(fields: Fields, operands: list[tuple[int, ...]], result: tuple[int, ...]) -> Rule:
    sizes = fields.nested("sizes")
    kinds: dict[str, FactorKind] = {}
    for special, names in fields.nested("special", {}).value.items():
        if special not in _SPECIAL:
            raise fields.wrong(f"special.{special}", names, f"one of {', '.join(_SPECIAL)}")
        if not isinstance(names, list):
            raise fields.wrong(f"special.{special}", names, "a list of factors")
        kinds |= dict.fromkeys(names, _SPECIAL[special])
    factors = tuple(Factor(name, sizes.whole(name, 1), kinds.get(name, "free")) for name in sizes.value)
    known = {f.name for f in factors}

    def tensors(field: str, shapes: list[tuple[int, ...]]) -> tuple[Dims, ...]:
        found = fields.value.get(field)
        if not isinstance(found, list) or len(found) != len(shapes):
            raise fields.wrong(field, found, f"a list of {len(shapes)} tensors")
        for t, (dims, shape) in enumerate(zip(found, shapes)):
            if not isinstance(dims, list) or len(dims) != len(shape):
                raise fields.wrong(f"{field}[{t}]", dims, f"a list of {len(shape)} dims, each a list of factors")
            for d, names in enumerate(dims):
                if not isinstance(names, list) or not set(names) <= known:
                    raise fields.wrong(f"{field}[{t}][{d}]", names, f"factors out of {', '.join(known)}")
        return tuple(tuple(tuple(names) for names in dims) for dims in found)

    return Rule(factors, tensors("operands", operands), tensors("results", [result]))


def _with_windows(rule: Rule, operands: list[tuple[int, ...]], result: tuple[int, ...]) -> Rule:
    """With the rows that a window reads of its neighbours, which the file does not say: those of a convolution that keeps a dim.

    A window of n rows reads (n - 1) // 2 below and n // 2 above. Dims that change size stay without; such an op is priced as
    if it needed none.
    """
    data, kernel = rule.operands
    sliding = [f for dim in data for f in dim if rule.factor(f).kind == "halo"]
    inside = [
        n
        for names, n in zip(kernel, operands[1])
        if not any(f in dim for f in names for dim in (*data, *rule.results[0]))
    ]
    halos: dict[str, tuple[int, int]] = {}
    for f, n in zip(sliding, inside):
        before = [size for names, size in zip(data, operands[0]) if f in names]
        after = [size for names, size in zip(rule.results[0], result) if f in names]
        if before == after:
            halos[f] = ((n - 1) // 2, n // 2)
    return replace(rule, factors=tuple(replace(f, halo=halos.get(f.name, f.halo)) for f in rule.factors))


def _identity(shape: tuple[int, ...]) -> Rule:
    factors = tuple(Factor(f"d{k}", n) for k, n in enumerate(shape))
    dims = tuple((f.name,) for f in factors)
    return Rule(factors, (dims,), (dims,))


def _annotations(
    fields: Fields, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], returns: int
) -> list[Annotation]:
    given = fields.nested("given", {})
    rows = [(name, given, name, dims) for name, dims in given.value.items()]
    out = fields.value.get("given_out", [])
    if not isinstance(out, list) or len(out) not in (0, returns):
        raise fields.wrong("given_out", out, f"an empty list, or one of {returns} shardings, one a returned value")
    rows += [(f"{RETURN}:{k}", fields, f"given_out[{k}]", dims) for k, dims in enumerate(out)]
    found = []
    for name, at, field, dims in rows:
        if name not in shapes:
            raise at.wrong(field, dims, "a sharding of a value that has a shape")
        if not isinstance(dims, list) or len(dims) != len(shapes[name]):
            raise at.wrong(field, dims, f"one sharding for each of the {len(shapes[name])} dims")
        cuts, opened = [], []
        for d, dim in enumerate(dims):
            row = Fields(dim, at.file, f"{at.where}.{field}[{d}]")
            cuts.append(((0, tuple(Cut(_axis(row, axis, sizes)) for axis in row.value.get("axes", []))),))
            if row.flag("open", False):
                opened.append(d)
        place = f"{at.file}: {at.where}.{field}"
        found.append(Annotation(name, Layout(tuple(cuts)), tuple(opened), where=place))
    return found


def _axis(row: Fields, axis: Any, sizes: Mapping[str, int]) -> str:
    """As a plan's annotations name it: "x", or "x:(1)2" for a part."""
    whole = isinstance(axis, list) and len(axis) == 1 and axis[0] in sizes
    part = isinstance(axis, list) and len(axis) == 3 and axis[0] in sizes and _whole(axis[1], 1) and _whole(axis[2], 1)
    if not whole and not (part and sizes[axis[0]] % (axis[1] * axis[2]) == 0):
        raise row.wrong("axes", axis, f'axes of the mesh, ["{next(iter(sizes))}"], or parts of one, ["x", pre, size]')
    return str(axis[0]) if whole else f"{axis[0]}:({axis[1]}){axis[2]}"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
