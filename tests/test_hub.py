"""Downloads: pinned, recorded, verified, whole or not at all. No test reaches a network."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_rows import bench_row

from memalpha_kit.data import dataset, hub
from memalpha_kit.data.sources import build
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig

REVISION = "0123456789abcdef" * 2 + "01234567"
EVALUATION = "YuWangX/Memalpha-Memoryagentbench"
RAW = "ai-hyz/MemoryAgentBench"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 65000000\n"


def parquet(rows, schema=None):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def public(i, **change):
    """A row as the published sets have it."""
    pairs = [{"question": "Who keeps bees?", "answer": ["Nora"]}]
    return {
        "instance_id": i,
        "prompt": "Read.",
        "chunks": json.dumps([f"Chunk {i}."]),
        "questions_and_answers": json.dumps(pairs),
        "data_source": "ruler_qa1_197K",
        "metadata": json.dumps({"sub_source": "ruler_qa1_197K"}),
        "num_chunks": 1,
        "num_questions": 1,
    } | change


TEST = parquet([public(i) for i in range(112)])
EMPTY = parquet([], pa.schema([]))
FLAT = {"train.parquet": EMPTY, "test.parquet": TEST, "README.md": b"card"}


@pytest.fixture
def serve(monkeypatch):
    """Makes a hub hold these files; `serve.asked` counts what is asked of it."""
    import huggingface_hub

    def set_files(files):
        def listed(api, **at):
            set_files.asked += 1
            assert at["revision"] == REVISION and at["repo_type"] == "dataset"
            return list(files)

        def snapshot(allow_patterns, local_dir, **at):
            assert at["revision"] == REVISION and at["repo_type"] == "dataset"
            for path in files:
                if any(fnmatch(path, pattern) for pattern in allow_patterns):
                    target = local_dir / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files[path])

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)

    set_files.asked = 0
    return set_files


def get(out, revision=REVISION, name=EVALUATION, **more):
    return hub.download(name, revision, out, **more)


def test_files_are_fetched_checked_and_recorded(tmp_path, serve):
    serve(FLAT)
    manifest = get(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["hub.json", "test.parquet", "train.parquet"]
    assert hub.read_manifest(tmp_path) == manifest
    assert manifest["revision"] == REVISION
    facts = {"sha256": hashlib.sha256(TEST).hexdigest(), "bytes": len(TEST), "rows": 112}
    assert manifest["files"]["test.parquet"] == facts
    line = f"test.parquet: {len(TEST)} bytes, 112 rows, sha256 {facts['sha256'][:12]}"
    assert line in hub.describe(manifest)
    assert get(tmp_path) == manifest and serve.asked == 1  # the second call asks nobody


def test_a_file_that_was_changed_is_an_error_and_one_that_is_gone_is_fetched_again(tmp_path, serve):
    """What is fetched again must be what was there before."""
    serve(FLAT)
    get(tmp_path)
    changed = pytest.raises(InputError, match="test.parquet: expected the file of the first down")
    (tmp_path / "test.parquet").write_bytes(b"changed")
    with changed:
        get(tmp_path)
    assert (tmp_path / "test.parquet").read_bytes() == b"changed"
    (tmp_path / "test.parquet").unlink()
    other = parquet([public(i + 1) for i in range(112)])
    for files in (FLAT | {"test.parquet": other}, {"train.parquet": EMPTY}):
        serve(files)
        with changed:
            get(tmp_path)
    serve(FLAT)
    get(tmp_path)
    assert (tmp_path / "test.parquet").read_bytes() == TEST


def test_another_revision_does_not_mix_into_a_folder(tmp_path, serve):
    serve(FLAT)
    get(tmp_path)
    with pytest.raises(InputError, match=f"with revision = '{REVISION}', now it is 'ffff"):
        get(tmp_path, revision="f" * 40)
    (tmp_path / "hub.json").write_text("[]")
    with pytest.raises(InputError, match="hub.json: expected a manifest with files"):
        get(tmp_path)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123abc", REVISION.upper()])
def test_only_a_whole_commit_is_a_revision(tmp_path, revision):
    with pytest.raises(InputError, match="revision: expected a commit's 40 hex digits, found"):
        get(tmp_path, revision=revision)
    assert not list(tmp_path.iterdir())


def lacking(column):
    rows = [{k: v for k, v in public(i).items() if k != column} for i in range(112)]
    return FLAT | {"test.parquet": parquet(rows)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FLAT | {"test.parquet": POINTER}, "test.parquet: expected data, found a Git-LFS pointer"),
        (FLAT | {"test.parquet": TEST[:500]}, "test.parquet: expected parquet, found"),
        (lacking("chunks"), "test.parquet: expected a column 'chunks', found instance_id"),
        (lacking("metadata"), "test.parquet: expected a column 'metadata'"),
        ({"README.md": b"card"}, r"expected \*.parquet, found README.md"),
        ({}, "found nothing"),
        ({"test.parquet": TEST, "data/test.parquet": TEST}, "one file of each name, found data/"),
    ],
)
def test_what_fails_a_check_leaves_nothing_behind(tmp_path, serve, files, message):
    serve(files)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message) as caught:
        get(out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert not out.exists() or {p.name for p in out.iterdir()} <= {hub.PARTIAL}


HALVES = [parquet([public(i) for i in part]) for part in (range(50), range(50, 112))]


@pytest.mark.parametrize(
    "files",
    [
        FLAT,
        {"train/0.parquet": EMPTY, "test/0.parquet": TEST},
        {"data/train-00000-of-00001.parquet": EMPTY, "data/test.parquet": TEST},
        {f"data/test-0000{i}-of-00002.parquet": half for i, half in enumerate(HALVES)},
    ],
)
def test_every_layout_is_accepted_and_read(tmp_path, serve, files):
    """The inner layout of the published repositories is not known."""
    serve(files)
    get(tmp_path)
    read = dataset.read(tmp_path)
    assert [i.chunks for i in read.test] == [(f"Chunk {i}.",) for i in range(112)]
    assert read.train == ()


def test_raw_files_lie_side_by_side_as_builders_want_them(tmp_path, serve):
    row = bench_row("factconsolidation_sh_6k", "Text.")
    name = "Conflict_Resolution-00000-of-00001.parquet"
    serve({f"data/{name}": parquet([row]), "data/other.parquet": b"", "entity2id.json": b""})
    get(tmp_path, name=RAW)
    assert (tmp_path / name).exists() and not (tmp_path / "other.parquet").exists()
    assert len(build("factconsolidation_sh_6k", tmp_path, BuildConfig(), seed=0)) == 1


def test_default_folders_of_raw_and_processed_sets_do_not_collide():
    folders = {name: found.folder for name, found in hub.hub_sets().items()}
    assert len(set(folders.values())) == len(folders)
    assert folders["YuWangX/Memalpha"] == Path("data/memalpha")
    assert folders[RAW] == Path("data/raw/memoryagentbench")
    raw = [folder for name, folder in folders.items() if not name.startswith("YuWangX/")]
    assert all(folder.parts[:2] == ("data", "raw") for folder in raw)


def test_a_dry_run_writes_nothing_asks_nobody_and_needs_no_hub(tmp_path):
    code = (
        "import sys; from memalpha_kit.data import hub\n"
        "for name in hub.hub_sets(): print(*hub.describe(hub.download(name, None, None, True)))\n"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, timeout=60, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    assert len(done.stdout.splitlines()) == len(hub.hub_sets())
    assert "none given: a commit's 40 hex digits are needed" in done.stdout
    assert "chunks, questions_and_answers" in done.stdout
    with pytest.raises(InputError, match="did you mean 'YuWangX/Memalpha'"):
        get(tmp_path, name="YuWangX/Memalfa")


@pytest.mark.parametrize("step", ["list_repo_files", "snapshot_download"])
def test_an_error_of_the_hub_is_one_line_and_what_arrived_is_kept(
    tmp_path, serve, monkeypatch, step
):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    serve(FLAT)
    (tmp_path / hub.PARTIAL).mkdir()
    (tmp_path / hub.PARTIAL / "half").write_text("arrived")
    for kind in (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError):

        def fail(*args, kind=kind, **more):
            raise kind("no route\nto host")

        place = huggingface_hub.HfApi if step == "list_repo_files" else huggingface_hub
        monkeypatch.setattr(place, step, fail)
        with pytest.raises(InputError, match="expected an answer of the hub, found: no") as caught:
            get(tmp_path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / hub.PARTIAL / "half").read_text() == "arrived"
