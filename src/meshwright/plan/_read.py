"""The parts of a plan from decoded JSON; the inverse of what `serial` writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar, cast, get_args

from ..cluster.model import MOST_DEVICES, Mesh
from ..cost.base import Collective
from ..errors import InputError
from ._fields import Fields, integer, listed, one_of, reference, shown, text
from .model import (
    AS_VALUES,
    Action,
    ActionKind,
    Cut,
    InputLike,
    Layout,
    OpSharding,
    RecomputeAt,
    Row,
    Schedule,
    Stage,
    Storage,
    SubDim,
    SumProgram,
    SumStep,
    Weights,
)
from .schedules.text import parse_action

T = TypeVar("T")
WEIGHTS = ("flush", "update_every", "reads", "stash", "sync_every", "distance")
_RANGE = re.compile(r"(-?\d{1,9}):(-?\d{1,9})(?::(-?\d{1,9}))?")


def devices(value: object, where: str) -> Sequence[int]:
    if isinstance(value, str):
        return _range(value, where)
    found: list[int] = []
    for item in listed(value, where, lambda item, _: item):
        found.extend(_range(item, where) if isinstance(item, str) else [integer(item, where)])
    return tuple(found)


def _range(value: str, where: str) -> range:
    found = _RANGE.fullmatch(value.replace(" ", ""))
    numbers = [int(word) for word in found.groups() if word is not None] if found else []
    if not numbers or numbers[2:] == [0]:
        raise InputError(f'{where} = "{value}" is no range: write "0:64" or "0:64:8"')
    if len(range(*numbers)) > MOST_DEVICES:
        raise InputError(f'{where} = "{value}" names more than {MOST_DEVICES:,} devices')
    return range(*numbers)


def input_like(value: object, where: str) -> InputLike:
    pair = listed(value, where, lambda item, _: item)
    if len(pair) != 2:
        raise InputError(f"{where} must be [shape, dtype], not {len(pair)} values")
    return tuple(listed(pair[0], f"{where}[0]", integer)), text(pair[1], f"{where}[1]")


def mesh(value: object, where: str) -> Mesh:
    fields = Fields(value, where)
    own = devices(fields.get("devices", []), fields.at("devices"))
    axes = tuple(fields.listed("axes", text))
    shape = tuple(fields.listed("shape", integer))
    fields.close()
    if len(axes) != len(shape) or len(set(axes)) != len(axes) or prod(shape) != len(own):
        raise InputError(
            f"{where}: axes {list(axes)} of shape {list(shape)} must be distinct and hold {len(own)} devices"
        )
    return Mesh(own, axes, shape)


def cut(value: object, where: str) -> Cut:
    if isinstance(value, str):
        return Cut(value)
    fields = Fields(value, where)
    found = Cut(fields.text("axis"), tuple(fields.listed("weights", integer)))
    fields.close()
    return found


def layout(value: object, where: str) -> Layout:
    fields = Fields(value, where)
    dims = fields.listed("dims", lambda dim, at: tuple(listed(dim, at, _sub_dim)))
    found = Layout(tuple(dims), tuple(fields.listed("partial", text)))
    fields.close()
    return found


def _sub_dim(value: object, where: str) -> SubDim:
    items = listed(value, where, lambda item, _: item)
    if not items:
        raise InputError(f"{where} is empty: a sub-dimension is its size and its cuts")
    return integer(items[0], where), tuple(cut(item, where) for item in items[1:])


def sharding(value: object, where: str) -> OpSharding:
    fields = Fields(value, where)
    cuts = fields.mapped("cuts", lambda item, at: tuple(listed(item, at, cut)))
    backward = fields.mapped("backward", _gradient_cuts)
    variant, kept = fields.text("variant", ""), tuple(fields.listed("kept", text))
    found = OpSharding(cuts, variant, kept, {_operand(k, fields.at("backward")): own for k, own in backward.items()})
    fields.close()
    return found


def _gradient_cuts(value: object, where: str) -> dict[str, tuple[Cut, ...]]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, not {shown(value)}")
    return {factor: tuple(listed(item, f"{where}.{factor}", cut)) for factor, item in value.items()}


def _operand(key: str, where: str) -> int:
    if not key.isdecimal():
        raise InputError(f"{where} must be by operands, counted from 0, not {shown(key)}")
    return int(key)


def storage(layouts: list[Layout]) -> Callable[[object, str], Storage]:
    """Decoder of a storage whose layouts are numbers in `layouts`."""

    def decode(value: object, where: str) -> Storage:
        fields = Fields(value, where)
        of = reference(layouts, "layouts")
        parts = [fields.get(name) for name in ("param", "grad", "state")]
        param, grad, state = (None if part is None else of(part, where) for part in parts)
        found = Storage(param, grad, state, tuple(fields.listed("home", integer)), fields.number("resident", 1.0))
        fields.close()
        return found

    return decode


def table(value: object, where: str) -> dict[str, int]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, not {shown(value)}")
    return {key: integer(item, f"{where}.{key}") for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class Pools:
    """The interned values that stages refer to."""

    meshes: list[Mesh]
    layouts: list[Layout]
    shardings: list[OpSharding]
    storages: list[Storage]
    tables: list[dict[str, int]]
    sets: list[frozenset[str]]

    def stage(self, value: object, where: str) -> Stage:
        fields = Fields(value, where)

        def entries(name: str, pool: list[T], what: str) -> dict[str, T]:
            number = fields.get(name)
            if number is None:
                return {}
            own = reference(self.tables, "tables")(number, fields.at(name))
            return {key: reference(pool, what)(index, f"tables[{number}].{key}") for key, index in own.items()}

        found = Stage(
            ops=tuple(fields.listed("ops", text)),
            mesh=reference(self.meshes, "meshes")(fields.get("mesh"), fields.at("mesh")),
            shardings=entries("shardings", self.shardings, "shardings"),
            layouts=entries("layouts", self.layouts, "layouts"),
            gradients=entries("gradients", self.layouts, "layouts") or AS_VALUES,
            storage=entries("storage", self.storages, "storages"),
            recompute=self._set(fields.get("recompute", []), fields.at("recompute")),
            recompute_at=cast(
                RecomputeAt,
                one_of(fields.get("recompute_at", "block"), fields.at("recompute_at"), get_args(RecomputeAt)),
            ),
            recompute_blocks=fields.integer("recompute_blocks", 0),
            keep_last=fields.integer("keep_last", 0),
            offload=frozenset(fields.listed("offload", text)),
            deal=fields.text("deal", ""),
            pipe=fields.integer("pipe", 0),
            sums=tuple(fields.listed("sums", _sum_program)),
        )
        fields.close()
        return found

    def _set(self, value: object, where: str) -> frozenset[str]:
        """A number in `sets`, or the names themselves."""
        if isinstance(value, int) and not isinstance(value, bool):
            return reference(self.sets, "sets")(value, where)
        return frozenset(listed(value, where, text))


def _sum_program(value: object, where: str) -> SumProgram:
    fields = Fields(value, where)
    found = SumProgram(tuple(fields.listed("axes", text)), tuple(fields.listed("steps", _sum_step)))
    fields.close()
    return found


def _sum_step(value: object, where: str) -> SumStep:
    fields = Fields(value, where)
    kind = cast(Collective, one_of(fields.text("kind"), fields.at("kind"), get_args(Collective)))
    found = SumStep(kind, tuple(fields.listed("axes", text)), tuple(fields.listed("at_zero", text)))
    fields.close()
    return found


def schedule(value: object, where: str) -> Schedule:
    fields = Fields(value, where)
    found = Schedule(
        name=fields.text("name"),
        micro_batches=fields.integer("micro_batches", 1),
        args=fields.mapped("args", _argument),
        rows=tuple(fields.listed("rows", _row)),
        weights=_weights(fields.get("weights", {}), fields.at("weights")),
    )
    fields.close()
    return found


def _argument(value: object, where: str) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{where} must be a number or a text, not {shown(value)}")
    return value


def _weights(value: object, where: str) -> Weights:
    fields = Fields(value, where)
    default = Weights()
    reads = one_of(fields.get("reads", default.reads), fields.at("reads"), ("newest", "previous", "entry"))
    found = Weights(
        flush=fields.flag("flush", default.flush),
        update_every=fields.integer("update_every", default.update_every),
        reads=cast(Literal["newest", "previous", "entry"], reads),
        stash=fields.flag("stash", default.stash),
        sync_every=fields.integer("sync_every", default.sync_every),
        distance=fields.integer("distance", default.distance),
    )
    fields.close()
    return found


def _row(value: object, where: str) -> Row:
    fields = Fields(value, where)
    own = devices(fields.get("devices", []), fields.at("devices"))
    actions = tuple(fields.listed("actions", _action))
    fields.close()
    return Row(tuple(own), actions)


def _action(value: object, where: str) -> Action | tuple[Action, Action]:
    if isinstance(value, str):
        try:
            return parse_action(value)
        except InputError as error:
            raise InputError(f"{where}: {error.message}") from error
    items = listed(value, where, lambda item, _: item)
    if len(items) == 2:
        return _listed_action(items[0], where), _listed_action(items[1], where)
    return _listed_action(items, where)


def _listed_action(value: object, where: str) -> Action:
    items = listed(value, where, lambda item, _: item)
    if len(items) != 5:
        raise InputError(f"{where} must be [kind, on, micro-batch, span, peer], not {len(items)} values")
    kind = cast(ActionKind, one_of(items[0], where, get_args(ActionKind)))
    on = items[1] if isinstance(items[1], str) else integer(items[1], where)
    j, span, peer = (integer(item, where) for item in items[2:])
    return Action(kind, on, j, span, peer)
