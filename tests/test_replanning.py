"""Which devices two clusters share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.cluster import Cluster, resolve
from meshwright.errors import InputError
from meshwright.replanning import check_changed, stays


def test_the_first_stay_where_nothing_is_said() -> None:
    assert stays(resolve("a100x8"), resolve("a100x4")) == {d: d for d in range(4)}
    assert stays(resolve("a100x16"), resolve("a100x8")) == {d: d for d in range(8)}
    assert stays(resolve("a100x8"), resolve("a100x16")) == {d: d for d in range(8)}


def test_a_replaced_device_leaves_the_numbers_of_others() -> None:
    assert stays(resolve("a100x16"), resolve("a100x16"), [3]) == {d: d for d in range(16) if d != 3}


def test_the_node_that_lost_a_device_goes() -> None:
    assert stays(resolve("h100x32"), resolve("h100x24"), [9]) == {
        **{d: d for d in range(8)},
        **{d: d - 8 for d in range(16, 32)},
    }


def test_the_rest_of_one_node_moves_up() -> None:
    assert stays(resolve("a100x8"), resolve("a100x4"), [1, 2]) == {0: 0, 3: 1, 4: 2, 5: 3}


def test_other_types_share_nothing() -> None:
    assert stays(resolve("a100x8"), resolve("h100x8")) == {}


def mixed(*kinds: str) -> Cluster:
    parts = {k: resolve(f"{k}x1").types[0] for k in ("a100", "h100")}
    base = resolve("a100x8")
    device = tuple(("a100", "h100").index(k) for k in kinds)
    return replace(base, name="mixed", types=tuple(parts.values()), device=device, count=len(kinds))


@given(
    st.lists(st.sampled_from(["a100", "h100"]), min_size=1, max_size=16),
    st.lists(st.sampled_from(["a100", "h100"]), min_size=1, max_size=16),
    st.data(),
)
def test_as_many_of_each_type_stay_as_can(old: list[str], new: list[str], data: st.DataObject) -> None:
    lost = data.draw(st.sets(st.integers(0, len(old) - 1)))
    found = stays(mixed(*old), mixed(*new), lost)
    assert len(set(found.values())) == len(found) and not lost & set(found)
    assert all(old[a] == new[b] for a, b in found.items())
    for kind in ("a100", "h100"):
        left = sum(k == kind for d, k in enumerate(old) if d not in lost)
        assert sum(old[d] == kind for d in found) == min(left, new.count(kind))


def test_what_cannot_be_lost_and_what_has_not_changed() -> None:
    with pytest.raises(InputError, match=r"^--lost 8: a100x8 has devices 0 to 7$"):
        stays(resolve("a100x8"), resolve("a100x4"), [8])
    with pytest.raises(
        InputError, match=r"^a100x8 is the cluster that the plan is for, so nothing moves: give another"
    ):
        check_changed(resolve("a100x8"), resolve("a100x8"), ())
    check_changed(resolve("a100x8"), resolve("a100x8"), (3,))
