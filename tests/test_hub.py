"""Downloads: pinned, recorded, verified, whole or not at all. No test reaches a network."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memalpha_kit import files as store
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


class Hub:
    """A hub that holds these files; counts what is asked of it."""

    def __init__(self, files, sums=None):
        self.held, self.sums, self.fetched = files, sums or {}, []

    def files(self, repo, revision):
        assert revision == REVISION
        return {path: self.sums.get(path) for path in self.held}

    def fetch(self, repo, revision, path, folder):
        self.fetched.append(path)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.held[path])
        return target


TEST = parquet([public(i) for i in range(112)])
EMPTY = parquet([], pa.schema([]))
FLAT = {"train.parquet": EMPTY, "test.parquet": TEST, "README.md": b"card"}


def get(out, client, revision=REVISION, name=EVALUATION, **more):
    return hub.download(name, revision, out, client=client, **more)


def test_files_are_fetched_checked_and_recorded(tmp_path):
    client = Hub(FLAT)
    manifest = get(tmp_path, client)
    assert sorted(client.fetched) == ["test.parquet", "train.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "hub.json",
        "test.parquet",
        "train.parquet",
    ]
    recorded = json.loads((tmp_path / "hub.json").read_text())
    assert recorded | {"out": str(tmp_path)} == manifest and recorded["revision"] == REVISION
    assert recorded["files"]["test.parquet"] == {
        "sha256": hashlib.sha256(TEST).hexdigest(),
        "bytes": len(TEST),
        "rows": 112,
    }
    assert "not verified" in recorded["revision_status"]


def test_the_second_call_verifies_and_asks_nobody(tmp_path):
    get(tmp_path, Hub(FLAT))
    client = Hub({})
    assert get(tmp_path, client)["files"].keys() == {"train.parquet", "test.parquet"}
    assert not client.fetched


def test_a_file_that_was_changed_is_an_error_and_stays(tmp_path):
    get(tmp_path, Hub(FLAT))
    (tmp_path / "test.parquet").write_bytes(b"changed")
    with pytest.raises(InputError, match="test.parquet: expected the file of the first download"):
        get(tmp_path, Hub(FLAT))
    assert (tmp_path / "test.parquet").read_bytes() == b"changed"


def test_a_file_that_is_gone_is_fetched_again_and_must_be_the_same(tmp_path):
    get(tmp_path, Hub(FLAT))
    (tmp_path / "test.parquet").unlink()
    other = FLAT | {"test.parquet": parquet([public(i + 1) for i in range(112)])}
    with pytest.raises(InputError, match="to have the file of the first download, found another"):
        get(tmp_path, Hub(other))
    with pytest.raises(InputError, match="found none"):
        get(tmp_path, Hub({"train.parquet": EMPTY}))
    get(tmp_path, Hub(FLAT))
    assert (tmp_path / "test.parquet").read_bytes() == TEST


def test_another_revision_does_not_mix_into_a_folder(tmp_path):
    get(tmp_path, Hub(FLAT))
    with pytest.raises(InputError, match=f"revision: expected {'f' * 40}, found {REVISION}"):
        get(tmp_path, Hub(FLAT), revision="f" * 40)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123abc", REVISION.upper()])
def test_only_a_whole_commit_is_a_revision(tmp_path, revision):
    with pytest.raises(InputError, match="revision: expected a commit's 40 hex digits, found"):
        get(tmp_path, Hub(FLAT), revision=revision)
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_is_refused_with_the_closest_name(tmp_path):
    with pytest.raises(InputError, match="did you mean 'YuWangX/Memalpha'"):
        get(tmp_path, Hub(FLAT), name="YuWangX/Memalfa")


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
        (
            FLAT | {"test.parquet": parquet([public(0)])},
            "test: expected 112 rows as published, found 1",
        ),
        ({"README.md": b"card"}, r"expected \*.parquet, found README.md"),
        ({}, "found no files"),
        ({"../test.parquet": TEST}, "expected a path inside the data set, found '../test.parquet'"),
        ({"a\\b.parquet": TEST}, "expected a path inside the data set"),
        ({"test.parquet": TEST, "data/test.parquet": TEST}, "expected one file test.parquet"),
    ],
)
def test_what_fails_a_check_leaves_nothing_behind(tmp_path, files, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message) as caught:
        get(out, Hub(files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert not out.exists() or not list(out.iterdir())


def test_the_sum_of_the_hub_is_compared_where_it_gives_one(tmp_path):
    get(tmp_path / "a", Hub(FLAT, {"test.parquet": hashlib.sha256(TEST).hexdigest()}))
    with pytest.raises(
        InputError, match="test.parquet: expected sha256 aaaaaaaaaaaa as on the hub"
    ):
        get(tmp_path / "b", Hub(FLAT, {"test.parquet": "a" * 64}))


def test_other_numbers_of_rows_are_accepted_on_request(tmp_path):
    get(tmp_path, Hub(FLAT | {"test.parquet": parquet([public(0)])}), any_rows=True)
    assert (tmp_path / "test.parquet").exists()


def test_a_dry_run_writes_nothing_and_asks_nobody(tmp_path):
    done = hub.download(EVALUATION, None, tmp_path / "out", dry_run=True)
    lines = "\n".join(hub.describe(done))
    assert not (tmp_path / "out").exists()
    assert "not verified: the kit was made without a network" in lines
    assert "none given: a commit's 40 hex digits are needed" in lines
    assert "train 0, test 112" in lines and "chunks, questions_and_answers" in lines


def test_the_lines_about_a_download_name_its_files(tmp_path):
    assert f"test.parquet: {len(TEST)} bytes, 112 rows" in "\n".join(
        hub.describe(get(tmp_path, Hub(FLAT)))
    )


HALVES = [parquet([public(i) for i in part]) for part in (range(50), range(50, 112))]
LAYOUTS = {
    "flat": FLAT,
    "folder per split": {"train/0.parquet": EMPTY, "test/0.parquet": TEST},
    "below data": {"data/train-00000-of-00001.parquet": EMPTY, "data/test.parquet": TEST},
    "shards": {
        "data/test-00000-of-00002.parquet": HALVES[0],
        "data/test-00001-of-00002.parquet": HALVES[1],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_accepted_and_read(tmp_path, layout):
    """data.md 1.4: the inner layout of the published repositories is not known."""
    get(tmp_path, Hub(LAYOUTS[layout]))
    read = dataset.read(tmp_path)
    assert [i.chunks for i in read.test] == [(f"Chunk {i}.",) for i in range(112)]
    assert read.train == ()


LISTS = {"chunks": ["Chunk 0."], "questions_and_answers": [{"question": "Q?", "answer": "a"}]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        LISTS,
        {"questions_and_answers": json.dumps([{"question": "Q?", "answers": ["a", "b"]}])},
        {"questions_and_answers": json.dumps([{"question": "Q?", "answer": 3}])},
        {"metadata": '{"data_source": "x", "metadata": "{\\"sub_source\\": \\"x\\"}"}'},
        {"metadata": '{"sub_source": NaN}'},
        {"metadata": None, "prompt": None},
        {"data_source": None},
    ],
)
def test_the_variants_of_published_rows_are_read(tmp_path, change):
    """data.md 1.5: one reader, which accepts what each of the public ones does."""
    files = FLAT | {"test.parquet": parquet([public(0, **change)])}
    get(tmp_path, Hub(files), any_rows=True)
    [instance] = store.load_instances(tmp_path / "test.parquet", "memoryagentbench")
    assert instance.chunks == ("Chunk 0.",) and instance.questions[0].answers
    assert instance.source in ("ruler_qa1_197K", "memoryagentbench")


def test_a_question_that_is_missing_is_refused_with_its_row(tmp_path):
    pairs = json.dumps([{"question": None, "answer": "a"}])
    store_file = tmp_path / "test.parquet"
    store_file.write_bytes(parquet([public(0), public(1, questions_and_answers=pairs)]))
    with pytest.raises(InputError, match=r"row 1: questions_and_answers\[0\]: question: expected"):
        store.load_instances(store_file)


def test_raw_files_lie_side_by_side_as_builders_want_them(tmp_path):
    row = {"context": "Text.", "questions": ["Q?"], "answers": [["a"]]}
    row["metadata"] = {"source": "factconsolidation_sh_6k"}
    name = "Conflict_Resolution-00000-of-00001.parquet"
    client = Hub({f"data/{name}": parquet([row]), "data/other.parquet": b"", "entity2id.json": b""})
    with pytest.raises(InputError, match="Conflict_Resolution: expected 2 or 8 rows"):
        get(tmp_path, client, name=RAW)
    get(tmp_path, client, name=RAW, any_rows=True)
    assert (tmp_path / name).exists() and not (tmp_path / "other.parquet").exists()
    assert len(build("factconsolidation_sh_6k", tmp_path, BuildConfig(), seed=0)) == 1


def test_every_raw_set_of_the_table_can_be_named(tmp_path):
    assert {RAW, EVALUATION, "YuWangX/Memalpha"} <= set(hub.hub_sets())
    for name in hub.hub_sets():
        assert hub.download(name, REVISION, tmp_path / "x", dry_run=True)["paths"]


def test_a_manifest_that_is_none_is_refused(tmp_path):
    (tmp_path / "hub.json").write_text("[]")
    with pytest.raises(InputError, match="hub.json: expected a manifest with files"):
        get(tmp_path, Hub(FLAT))


def test_the_hub_client_is_imported_on_use_only():
    code = (
        "import sys; from pathlib import Path; from memalpha_kit.data import hub\n"
        "hub.download('YuWangX/Memalpha', None, Path('x'), dry_run=True)\n"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_error_of_the_hub_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    for error in (HTTPError("no route\nto host"), OfflineModeIsEnabled("offline")):

        def fail(*args, error=error, **more):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", fail)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        for ask in (
            lambda: hub.HubClient().files(EVALUATION, REVISION),
            lambda: hub.HubClient().fetch(EVALUATION, REVISION, "a", None),
        ):
            with pytest.raises(
                InputError, match="expected an answer of the hub, found: "
            ) as caught:
                ask()
            assert "\n" not in str(caught.value)


def test_the_client_asks_for_the_data_set_at_the_revision(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile

    def tree(self, repo, **asked):
        assert asked == {"recursive": True, "revision": REVISION, "repo_type": "dataset"}
        lfs = {"oid": "a" * 64, "size": 3, "pointerSize": 1}
        yield RepoFile(path="test.parquet", size=3, oid="b", lfs=lfs)
        yield RepoFile(path="README.md", size=3, oid="c")

    def fetch(repo, path, **asked):
        assert asked == {"revision": REVISION, "repo_type": "dataset", "local_dir": tmp_path}
        return str(tmp_path / path)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", tree)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    client = hub.HubClient()
    assert client.files(EVALUATION, REVISION) == {"test.parquet": "a" * 64, "README.md": None}
    assert client.fetch(EVALUATION, REVISION, "a.parquet", tmp_path) == tmp_path / "a.parquet"
