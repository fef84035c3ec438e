"""Files that were cut off, changed or written by other programs: one sentence, whatever is wrong with them."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pytest

from meshwright.errors import InputError
from meshwright.formats import piper
from meshwright.formats._arrays import Arrays
from meshwright.formats._fields import Fields, load
from meshwright.formats.detect import format_of

CHOICE = {"id": "vanilla", "timePerSample": 1.0, "parameterSize": 0.0, "memoryUsageA": 1.0, "memoryUsageB": 1.0}
DOCUMENT = {
    "maxDevices": 2,
    "maxMemoryPerDevice": 1e9,
    "bandwidth": 1e9,
    "mbsInBatch": 4,
    "nodes": [{"id": k, "name": "op", "TMPCs": {"1": [CHOICE]}} for k in range(2)],
    "edges": [{"sourceId": 0, "destId": 1, "communicationCost": 8.0}],
}


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_compressed_file_with_a_flipped_bit(ending: str, pack: object, tmp_path: Path) -> None:
    whole = pack(json.dumps(DOCUMENT).encode())  # type: ignore[operator]
    file = tmp_path / f"profile.json{ending}"
    drawn = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[drawn.randrange(len(damaged))] ^= 1 << drawn.randrange(8)
        file.write_bytes(damaged[: drawn.randrange(len(damaged)) if drawn.random() < 0.3 else None])
        format_of(file)
        try:
            load(file)
        except InputError as error:
            assert str(file) in error.message


def test_arrays_with_changed_bytes(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, a=np.arange(50), b=np.zeros((3, 3)))
    whole, drawn = file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(drawn.randrange(1, 4)):
            damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
        file.write_bytes(damaged[: drawn.randrange(len(damaged)) if drawn.random() < 0.3 else None])
        format_of(file)
        try:
            Arrays(file)
        except InputError as error:
            assert "cannot be read" in error.message


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode())
    assert format_of(file) == "piper"
    assert piper.read(file).cluster.count == 2


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), "²", True, None])
def test_numbers_that_none_can_use(value: object) -> None:
    fields = Fields({"x": value}, "file.json")
    for read in (fields.number, fields.whole):
        with pytest.raises(InputError, match=r"file\.json: x is"):
            read("x")
    with pytest.raises(InputError, match=r"degrees of 1 or more as keys"):
        piper.parse({**DOCUMENT, "nodes": [{"id": 0, "TMPCs": {"²": [CHOICE]}}], "edges": []}, "file.json")
