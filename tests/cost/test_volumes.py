"""The volumes of the six schemes: the published reference case, by hand, and what is no grid."""

from __future__ import annotations

import pytest

from meshwright.cost.volumes import Scheme, grid_side, linear_volume, loss_volume, norm_volume
from meshwright.errors import InputError
from reference_cases import reference_cases

WHAT = "Elements that a rank receives for a layer of M, K, N = 32, 16, 64"
TABLE = "the published table of volumes of the schemes"
COLUMNS = ("scheme", "devices", "depth", "elements received")
SUMMA = reference_cases("summa_2d", WHAT, source=TABLE, columns=COLUMNS, rows=[("2d", 4, 1, 1152)])
TESSERACT = reference_cases("tesseract_2_5d", WHAT, source=TABLE, columns=COLUMNS, rows=[("2.5d", 8, 2, 1216)])
CUBE = reference_cases("cube_3d", WHAT, source=TABLE, columns=COLUMNS, rows=[("3d", 8, 1, 896)])
CASES: tuple[tuple[Scheme, int, int, float], ...] = (
    ("1d-column", 4, 1, 768),
    ("1d-column", 8, 1, 896),
    ("1d-row", 4, 1, 3072),
    ("1d-row", 8, 1, 3584),
    ("1d-row-sequence", 4, 1, 3072),
    ("1d-row-sequence", 8, 1, 3584),
    *(row for own in (SUMMA, TESSERACT, CUBE) for row in own),
)
"""(scheme, devices, depth, elements received) of M, K, N = 32, 16, 64."""


@pytest.mark.parametrize(("scheme", "devices", "depth", "received"), CASES)
def test_the_reference_case(scheme: Scheme, devices: int, depth: int, received: float) -> None:
    assert linear_volume(scheme, 32, 16, 64, devices, depth).received == received


def test_norms_and_losses_sum_statistics_alone() -> None:
    assert [norm_volume(32, p) for p in (4, 8)] == [192, 224]
    assert [loss_volume(32, p) for p in (4, 8)] == [144, 168]


def test_a_depth_of_one_is_two_dimensions() -> None:
    assert linear_volume("2.5d", 64, 48, 32, 16, 1) == linear_volume("2d", 64, 48, 32, 16)


def test_storage_of_the_table() -> None:
    volume = linear_volume("3d", 32, 16, 64, 8)
    assert (volume.weight, volume.operand, volume.gathered) == (128, 64, (512 + 1024) / 4)
    volume = linear_volume("2.5d", 32, 16, 64, 8, 2)
    assert (volume.weight, volume.operand) == (256, 64)


@pytest.mark.parametrize(
    ("scheme", "devices", "depth", "words"),
    [
        ("2d", 8, 1, "2d needs q² devices: 8 are none, 4 or 9 are"),
        ("3d", 4, 1, "3d needs q³ devices: 4 are none"),
        ("2.5d", 6, 2, "2.5d of depth 2 needs 2 q² devices"),
        ("2.5d", 12, 3, "depth 3 on 2 × 2 is too deep"),
        ("4d", 16, 1, 'no scheme "4d"'),
    ],
)
def test_devices_that_form_no_grid_are_refused(scheme: Scheme, devices: int, depth: int, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        grid_side(scheme, devices, depth)
