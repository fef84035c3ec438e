"""Files of trainers that are no such files, or want to be more than a description of a layout."""

from __future__ import annotations

import pytest

from meshwright.errors import InputError
from meshwright.export import _megatron_layout as layout
from meshwright.export._calls import Open, calls
from meshwright.export._deepspeed_read import read as read_deepspeed
from meshwright.export._recipe import Unknown, recipe_of
from meshwright.export._shell import script
from meshwright.export._yaml import settings

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a {b: *a}", "a value holds itself"),
        ("a: &a [*a]", "a value holds itself"),
        (LAUGHS, "aliases stand for more than 100,000 values"),
        ("a: 1\nb: 2024-13-45", "month must be in 1..12"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!int x", "invalid literal"),
        ("a: 1\nb: \x07", "a character that no text holds, #x7"),
        ("a: " + "[" * 5_000, "brackets|expected"),
        ("- a", "not a mapping"),
        ("", "not a mapping"),
        ("a: 1\na: 2", "twice"),
    ],
)
def test_yaml(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        settings(text, "x.yaml")
    assert raised.value.where.startswith("x.yaml:")


def test_the_line_of_a_fault_in_yaml_is_told() -> None:
    with pytest.raises(InputError) as raised:
        settings("a: 1\nb: \x07", "x.yaml")
    assert raised.value.where == "x.yaml:2"


def test_sums_that_have_no_value_stay_open() -> None:
    (call,) = calls("f(a=8 // 0, b=2 * 4, c=10 ** 9)", "x.py", {"f": ["a", "b", "c"]})
    assert isinstance(call.arguments["a"], Open)
    assert call.arguments["b"] == 8


def test_a_recipe_repeats_nothing_a_billion_times() -> None:
    recipe = recipe_of("x.py", "cfg.a.b = 'x' * 10000000000\ncfg.a.c = ['t'] * 4\ncfg.a.d = 4 // 0\n")
    values = {s.path[-1]: s.value for s in recipe.sets}
    assert isinstance(values["b"], Unknown)
    assert isinstance(values["d"], Unknown)
    assert values["c"] == ["t"] * 4


def test_a_layout_of_stages_repeats_no_more_letters_than_layers() -> None:
    assert layout.parts("E(t|)*2t*3L") == ("Et", "t", "tttL")
    for text in ("Et*1000000000000L", "E(t*4000|)*4000L", "Et*" + "9" * 5_000 + "L"):
        with pytest.raises(ValueError, match="makes more than 4,096 letters"):
            layout.parts(text)


def test_a_shell_reckons_with_64_bits() -> None:
    commands, values = script("A=$((1 << 2))\nB=$((7 / 0))\nC=$((3 * 4))\n" + "D=9\n" + "D=$((D * D))\n" * 40)
    assert [w.text for w in values["C"]] == ["12"]
    assert "7 / 0" in values["B"][0].text
    assert len(values["D"][0].text) < 200
    assert commands is not None


@pytest.mark.parametrize("stages", ["1e999", "-1e999", "NaN", "2.5", '"²"', "[]", "true"])
def test_numbers_of_deepspeed(stages: str) -> None:
    text = f'{{"train_batch_size": 8, "pipeline": {{"stages": {stages}}}, "zero_optimization": {{"stage": 1}}}}'
    with pytest.raises(InputError, match="must be a whole number"):
        read_deepspeed("DeepSpeed", {"x.json": text}, 8)
