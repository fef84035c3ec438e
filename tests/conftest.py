"""Fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def no_profile_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Clusters called local are what the package assumes, whatever was measured on the machine that runs the tests."""
    os.environ["MESHWRIGHT_PROFILES"] = str(tmp_path_factory.mktemp("profiles"))
    os.environ.pop("MESHWRIGHT_PROFILE", None)


@pytest.fixture(autouse=True, scope="session")
def ranks_on_cores() -> None:
    """Several ranks run on a machine with one GPU, too; the test of a GPU asks for it."""
    os.environ["MESHWRIGHT_DEVICE"] = "cpu"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public reference inputs (measured steps, profiles of papers); tests that need it skip without it."""
    folder = Path(os.environ.get("MESHWRIGHT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no reference data in {folder}: collect the public files that docs/data.md lists and point MESHWRIGHT_DATA at "
            "their folder"
        )
    return folder
