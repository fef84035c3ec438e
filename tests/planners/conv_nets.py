"""Convolution nets from the table of op kinds, without torch."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from meshwright.graph.ir import ITEM_BYTES, Arg, Graph, Op, Role, Slot, Tensor
from meshwright.graph.kinds import Call, Spec, kind_of
from meshwright.graph.samples import flag_samples
from meshwright.graph.serial import digest_of


class Net:
    """Collects calls; every method returns the name of what it makes."""

    def __init__(self, samples: int, dtype: str = "float32") -> None:
        self.samples, self.dtype = samples, dtype
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], role: Role, dtype: str = "") -> str:
        dtype = dtype or self.dtype
        self.tensors[name] = Tensor(name, float(prod(shape) * ITEM_BYTES[dtype]), shape, dtype, role)
        return name

    def call(
        self, name: str, kind: str, inputs: tuple[str, ...], args: tuple[Arg, ...], *shapes: tuple[int, ...]
    ) -> str:
        row = kind_of(kind)
        assert row is not None
        operands = tuple(Spec(self.tensors[t].shape, self.tensors[t].dtype) for t in inputs)
        needs = tuple(self.tensors[t].role in ("param", "activation") for t in inputs)
        made = Call(kind, args, (), operands, tuple(Spec(s, self.dtype) for s in shapes), needs)
        outputs = tuple(
            self.tensor(f"{name}.out" + (str(k) if k else ""), s, "activation") for k, s in enumerate(shapes)
        )
        saved = row.saved(made)
        kept = (*(inputs[i] for i in saved.operands), *(outputs[i] for i in saved.results))
        self.ops.append(
            Op(
                f"{name}/{kind}", kind, inputs, outputs, row.rule(made), row.flops(made), kept, saved.extra, module=name,
                call=f"aten.{kind}.default", args=args,
            )
        )  # fmt: skip
        return outputs[0]

    def images(self, channels: int, size: int) -> str:
        return self.tensor("images", (self.samples, channels, size, size), "input")

    def conv(self, name: str, x: str, out: int, kernel: int = 3, stride: int = 1) -> str:
        n, c, h, w = self.tensors[x].shape
        weight = self.tensor(f"{name}.weight", (out, c, kernel, kernel), "param")
        shape = (n, out, h // stride, w // stride)
        pad = (kernel - 1) // 2
        args: tuple[Arg, ...] = (Slot(0), Slot(1), None, (stride, stride), (pad, pad), (1, 1), 1)
        return self.call(name, "conv2d", (x, weight), args, shape)

    def relu(self, name: str, x: str) -> str:
        return self.call(name, "relu", (x,), (Slot(0),), self.tensors[x].shape)

    def add(self, name: str, x: str, y: str) -> str:
        return self.call(name, "add", (x, y), (Slot(0), Slot(1)), self.tensors[x].shape)

    def pool(self, name: str, x: str, kernel: int = 2) -> str:
        n, c, h, w = self.tensors[x].shape
        return self.call(
            name, "max_pool2d", (x,), (Slot(0), (kernel, kernel), (kernel, kernel)), (n, c, h // kernel, w // kernel)
        )

    def flatten(self, name: str, x: str) -> str:
        n, *rest = self.tensors[x].shape
        return self.call(name, "flatten", (x,), (Slot(0), 1), (n, prod(rest)))

    def linear(self, name: str, x: str, out: int) -> str:
        *lead, width = self.tensors[x].shape
        weight = self.tensor(f"{name}.weight", (out, width), "param")
        return self.call(name, "linear", (x, weight), (Slot(0), Slot(1)), (*lead, out))

    def softmax(self, name: str, x: str) -> str:
        return self.call(name, "softmax", (x,), (Slot(0), -1), self.tensors[x].shape)

    def mean(self, name: str, x: str) -> str:
        return self.call(name, "mean", (x,), (Slot(0),), ())

    def graph(self, loss: str) -> Graph:
        inputs = tuple(t.name for t in self.tensors.values() if t.role == "input")
        ops = flag_samples(self.ops, self.tensors.values(), self.samples)
        made = Graph(ops, tuple(self.tensors.values()), self.samples, inputs=inputs, outputs=(loss,), loss=loss)
        return replace(made, digest=digest_of(made))


def vgg16(samples: int = 128) -> Graph:
    """Without biases and activations, which change nothing in what is cut how."""
    net = Net(samples)
    x = net.images(3, 224)
    for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for k in range(1, count + 1):
            x = net.conv(f"conv{block}_{k}", x, width)
        x = net.pool(f"pool{block}", x)
    x = net.flatten("flatten", x)
    for k, width in enumerate((4096, 4096, 1000), 6):
        x = net.linear(f"fc{k}", x, width)
    return net.graph(net.mean("loss", net.softmax("softmax", x)))


def small_net(samples: int = 8, size: int = 16) -> Graph:
    """A residual block between a strided convolution and a classifier."""
    net = Net(samples)
    x = net.conv("stem", net.images(4, size), 8, 3, 2)
    y = net.relu("act", net.conv("first", x, 8))
    x = net.add("sum", net.conv("second", y, 8), x)
    x = net.flatten("flatten", net.pool("pool", x))
    return net.graph(net.mean("loss", net.linear("head", x, 16)))
