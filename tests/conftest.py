"""Fixtures that more than one test file uses."""

from __future__ import annotations

import math
import os
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch is imported by any test: one thread a process, and no pools of helper threads, so
# that nothing can wait for a thread that is not scheduled (a test once hung in CI).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_progress(monkeypatch) -> None:
    """However slow the machine is, no line of progress stands between those that are compared."""
    monkeypatch.setattr("memalpha_kit.progress.QUIET_S", math.inf)


@pytest.fixture(autouse=True)
def no_extensions(monkeypatch) -> None:
    """No process that a test starts imports what another test imported."""
    monkeypatch.setattr("memalpha_kit.registry._EXTENSIONS", {})


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """The folder of a random policy of the tiny world."""
    import tiny_policy

    return tiny_policy.saved(tmp_path_factory.mktemp("policy") / "policy")


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


def package_source(name: str) -> Path:
    """Folder of a GPU package's source, to be read: installed, or in MEMALPHA_<NAME>_SOURCE."""
    variable, spec = f"MEMALPHA_{name.upper()}_SOURCE", find_spec(name)
    if named := os.environ.get(variable):
        return Path(named) / name
    if not spec:
        pytest.skip(f"{name} is not installed (pip install -e .[gpu], or set {variable})")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def unsloth_source() -> Path:
    """The file of Unsloth that rewrites TRL's trainer."""
    return package_source("unsloth") / "models" / "rl_replacements.py"


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The folder of vLLM's package."""
    return package_source("vllm")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of a small real language model, which is not part of the repository.

    MEMALPHA_REAL_MODEL names it; by default it is what `memalpha models get smollm2-135m` makes.
    """
    folder = Path(os.environ.get("MEMALPHA_REAL_MODEL") or ROOT / "models" / "smollm2-135m")
    if not (folder / "config.json").is_file():
        how = "memalpha models get smollm2-135m, or set MEMALPHA_REAL_MODEL"
        pytest.skip(f"no model in {folder} ({how})")
    return folder


@pytest.fixture
def one_line_pools(monkeypatch) -> None:
    """One lead-in of each kind and one acknowledgement, so that chunks can be written by hand."""
    from memalpha_kit.data.sources import frames

    monkeypatch.setattr(frames, "DOCUMENT_LEAD_INS", ("Notes:",))
    monkeypatch.setattr(frames, "CLASSIFICATION_LEAD_INS", ("Examples:",))
    monkeypatch.setattr(frames, "ACKNOWLEDGEMENTS", ("Stored.",))
    monkeypatch.setattr(frames, "BOOK_REQUEST", "KEEP {date}")


@pytest.fixture
def identity_draws(monkeypatch) -> None:
    """Shuffles of a build leave the order as it is; days of a book are 2 and then 1 apart."""
    from memalpha_kit.data.sources import building

    class Identity(random.Random):
        steps = iter((2, 1))

        def shuffle(self, items):
            pass

        def randint(self, low, high):
            return low if low == high else next(self.steps)

    monkeypatch.setattr(building.Job, "rng", lambda job, *key: Identity(0))
