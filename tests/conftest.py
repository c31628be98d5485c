"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real raw files, which are not part of the repository.

    MEMALPHA_REAL_DATA names it; by default it lies beside the repository.
    """
    named = os.environ.get("MEMALPHA_REAL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "real"
    if not folder.is_dir():
        pytest.skip(f"no real raw files in {folder} (set MEMALPHA_REAL_DATA)")
    return folder
