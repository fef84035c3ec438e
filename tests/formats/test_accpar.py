"""AccPar's descriptions of networks: read without loss, refused with file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.formats.accpar import parse, read, recognises, resnet, write
from meshwright.graph.validate import validate_graph

TEXT = """\
num_layers 3
a CONV
in_ch 3
in_fmap_h 8
in_fmap_w 6
kernel 5
out_ch 16
out_fmap_h 4
out_fmap_w 3
pool 2
b FC
in_ch 192
out_ch 10
c FC
in_ch 192
out_ch 10
reads a
"""


def test_sizes_are_those_of_the_layers() -> None:
    problem = parse(TEXT, "f", batch=4, devices=8, element_bytes=2)
    graph = problem.graph
    validate_graph(graph)
    assert graph.tensor["a:weight"].nbytes == 2 * 3 * 16 * 25
    assert graph.tensor["input"].nbytes == 2 * 4 * 3 * 48
    assert graph.tensor["a:out"].nbytes == 2 * 4 * 16 * 12
    assert graph.ops[2].inputs == ("a:out", "c:weight")
    assert [f.size for f in graph.ops[1].rule.factors] == [4, 192, 10]
    assert problem.cluster.count == 8 and problem.recipe.samples == 4 and problem.cost.unit == "element"


def test_what_is_written_reads_the_same(data_folder: Path) -> None:
    assert parse(write(parse(TEXT, "f")), "g").graph == parse(TEXT, "f").graph
    for name in ("Alexnet.txt", "Vgg11.txt"):
        file = data_folder / "accpar" / name
        assert write(read(file)).split() == file.read_text().split()
    shortcuts = parse(resnet(18), "f")
    assert "reads conv3 conv2\n" in write(shortcuts) and "reads" not in resnet(18)
    assert parse(write(shortcuts), "g").graph == shortcuts.graph


@pytest.mark.parametrize(("depth", "skips", "over"), [(18, 8, 2), (34, 16, 2), (50, 16, 3)])
def test_networks_of_a_resnets_depth_have_shortcuts(depth: int, skips: int, over: int) -> None:
    graph = parse(resnet(depth), "f").graph
    far = [i - min(graph.producer[t] for t in op.inputs if t in graph.producer) for i, op in enumerate(graph.ops) if i]
    assert far.count(over) == skips and set(far) == {1, over}
    assert all(len(op.inputs) == 2 for op in parse(resnet(depth), "f", skip=0).graph.ops)


def test_two_kinds_of_accelerators() -> None:
    problem = parse(TEXT, "f", devices=(2, 4), flops=(1e12, 3e12), bandwidth=1e9)
    assert [problem.cluster.type_of(d).name for d in range(6)] == ["kind0"] * 2 + ["kind1"] * 4
    assert problem.cost.unit == "s"
    assert problem.cost.rates == {"kind0": (1e12, 1e9), "kind1": (3e12, 1e9)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("num_layers 3", "num_layers 4"), "num_layers is 4, but 3 layers follow"),
        (("kernel 5", "kernel five"), "f:6: kernel is five, wanted a whole number of 1 or more"),
        (("kernel 5", "kernel 0"), "f:6: kernel is 0"),
        (("kernel 5\n", ""), "f:6: layer a wants \"kernel NUMBER\" here, found 'out_ch 16'"),
        (("b FC", "b POOL"), "f:11: 'b POOL' is no layer: wanted NAME CONV or NAME FC"),
        (("b FC", "a FC"), "f:11: layer a stands twice"),
        (("reads a", "reads c"), "f: layer c reads c, which is no layer before it"),
        (("out_ch 10\nreads a\n", ""), "f: end of file: layer c wants \"out_ch NUMBER\" here, found 'nothing'"),
    ],
)
def test_what_is_wrong_is_named(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse(TEXT.replace(*change), "f")
    assert said in error.value.message


def test_settings_that_no_array_has_are_refused() -> None:
    with pytest.raises(InputError, match="devices is 0"):
        parse(TEXT, "f", devices=0)
    with pytest.raises(InputError, match="batch is 0"):
        parse(TEXT, "f", batch=0)
    with pytest.raises(InputError, match="flops is"):
        parse(TEXT, "f", devices=(1, 1))
    with pytest.raises(InputError, match="skip is 1"):
        parse(TEXT, "f", skip=1)
    with pytest.raises(InputError, match="not 19"):
        resnet(19)


def test_only_texts_that_begin_so_are_recognised() -> None:
    assert recognises(TEXT) and recognises(resnet(34))
    assert not recognises("") and not recognises('{"num_layers": 3}') and not recognises("node1 -- x")
