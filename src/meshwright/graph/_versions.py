"""In-place writes without in-place ops: every write makes a new version, views are made again where they are read.

y = x[:, 1:]          slice(x) -> y
y.add_(1)             add(y, 1) -> y'        x' = slice_scatter(x, y')        other views of x are stale
z = x * 2             reads x'
w = v + 1             v = x.t() was stale: transpose(x') -> v', and v' is read
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch.fx import Node

from ..errors import CaptureError
from ._builder import Builder, Form, reshape_to, source_of
from .ir import Slot
from .kinds import Call, Spec
from .kinds._views import order_of


@dataclass(frozen=True, slots=True)
class _View:
    """How a tensor is a view of another: result `place` of this op on `parent`."""

    node: Node
    form: Form
    parent: str
    place: int
    specs: tuple[Spec, ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass
class Versions:
    builder: Builder
    _view: dict[str, _View] = field(default_factory=dict)
    _members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Root -> its views."""
    _newest: dict[str, str] = field(default_factory=dict)
    _stale: set[str] = field(default_factory=set)

    def root(self, name: str) -> str:
        while name in self._view:
            name = self._view[name].parent
        return name

    def viewed(
        self,
        node: Node,
        form: Form,
        parent: str,
        results: list[str],
        specs: list[Spec],
        strides: list[tuple[int, ...]],
    ) -> None:
        """Remembers that `results` are views of `parent`."""
        for i, name in enumerate(results):
            self._view[name] = _View(node, form, parent, i, tuple(specs), tuple(strides))
            self._members[self.root(parent)].add(name)

    def current(self, name: str) -> str:
        """What reading `name` gives now: its newest version, or its view of the newest version of its parent."""
        while name in self._newest:
            name = self._newest[name]
        if name not in self._stale:
            return name
        view = self._view[name]
        parent = self.current(view.parent)
        made = self.builder.emit(view.node, view.form, [parent], view.specs, view.strides)
        self.viewed(view.node, view.form, parent, made, list(view.specs), list(view.strides))
        self._newest[name] = made[view.place]
        return made[view.place]

    def write(self, node: Node, target: str, made: str) -> str:
        """`made` is what `target` holds from now on; so do its root and all other views. Returns the new version."""
        root = self.root(target)
        for name in self._members.pop(root, set()):
            self._stale.add(name)
        child, value = target, made
        while child != root:
            view = self._view[child]
            value = self._written_back(node, view, value)
            child = view.parent
        if value != root:
            self._newest[root] = value
        if target != root:
            self._newest[target] = made
            self._stale.discard(target)
        return made

    def _written_back(self, node: Node, view: _View, value: str) -> str:
        """The parent with `value` in the place of its view."""
        builder, kind, parent = self.builder, view.form.kind, view.parent
        spec = builder.spec(parent)
        look: Call = view.form.look()
        if kind in ("slice", "select"):
            form = Form(f"{kind}_scatter", f"aten.{kind}_scatter.default", (Slot(0), Slot(1), *view.form.args[1:]))
            return builder.emit(node, form, [parent, value], [spec])[0]
        if kind in ("view", "squeeze", "unsqueeze"):
            return builder.emit(node, reshape_to(spec.shape), [value], [spec])[0]
        if kind in ("transpose", "permute", "t"):
            order = order_of(Call(kind, look.args, look.kwargs, (spec,), ()))
            back = tuple(order.index(d) for d in range(len(order)))
            form = Form("permute", "aten.permute.default", (Slot(0), back))
            return builder.emit(node, form, [value], [spec])[0]
        if kind in ("detach", "alias"):
            return value
        raise CaptureError(
            f"a {kind} of a tensor is written in place at {source_of(node)}, which cannot be taken apart: write a new "
            "tensor there",
            where=source_of(node),
        )
