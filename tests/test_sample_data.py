"""The made-up raw files: shipped as made, true formats, text that holds up."""

from __future__ import annotations

import io
import json
import zipfile

import pyarrow.parquet as pq
import pytest

from memalpha_kit.data import dataset, examples
from memalpha_kit.data.examples import LEAKY, build_examples, write_raw
from memalpha_kit.data.sources import SOURCES, build
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.settings import BuildConfig, load_profile
from memalpha_kit.tasks import TASKS, Task
from tools import sample_data
from tools.sample_data import make_raw


def rows_of(content):
    return pq.read_table(io.BytesIO(content)).to_pylist()


def test_the_shipped_files_are_what_the_tool_makes():
    """The content is compared: another version of pyarrow writes other bytes."""
    with zipfile.ZipFile(sample_data.SAMPLES) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist()}
    made = sample_data.shipped()
    assert list(shipped) == list(made)
    for name, content in made.items():
        same = rows_of if name.endswith(".parquet") else bytes
        assert same(shipped[name]) == same(content), name
    assert sample_data.SAMPLES.stat().st_size < 500_000


def test_every_source_has_shipped_files(tmp_path):
    assert set(SOURCES) <= set(json.loads(sample_data.shipped()["index.json"]))
    (path,) = write_raw("squad", tmp_path / "squad")
    assert path == tmp_path / "squad" / "squad_train-v1.1.json" and path.is_file()
    *_, asked = write_raw("text", tmp_path)
    assert len(build("text", tmp_path / "notes", BuildConfig(questions=str(asked)), seed=0)) == 2
    with pytest.raises(InputError, match="source: .* found 'squat'; did you mean 'squad'"):
        write_raw("squat", tmp_path)
    with pytest.raises(DiskError, match="squad_train"):
        write_raw("squad", path)


def test_every_source_of_the_paper_is_built(tmp_path):
    """What the report says of `LEAKY` is tested with the command `data check`."""
    folders = build_examples(load_profile("ci"), tmp_path)
    assert set(folders) == {name for name in SOURCES if TASKS[name].role != "ours"} | {LEAKY}
    for name, folder in folders.items():
        found = dataset.read(folder)
        assert found.name == name and (found.train or found.test)
        assert not dataset.shared_groups(found.train, found.test) or name == LEAKY


def test_examples_leave_out_own_sources_and_with_a_warning_what_comes_to_nothing(
    tmp_path, monkeypatch, caplog
):
    names = ("squad", "hotpotqa", "mine")
    monkeypatch.setitem(TASKS, "mine", Task("mine", "contains"))
    monkeypatch.setattr(examples, "SOURCES", names)
    small = load_profile("ci", ["data.chunk_max_tokens=512"])
    assert set(build_examples(small, tmp_path)) == {"squad", LEAKY}
    (warning,) = [record.getMessage() for record in caplog.records if "left out" in record.msg]
    assert warning.startswith("hotpotqa is left out:") and "too many chunks" in warning


@pytest.mark.parametrize("source", ["squad", "hotpotqa", "lme_train"])
def test_a_made_up_answer_stands_in_the_chunk_that_is_its_evidence(tmp_path, source):
    make_raw(tmp_path, source, seed=3)
    for instance in build(source, tmp_path, BuildConfig(exclude="none"), seed=0):
        for qa in instance.questions:
            chunk = "".join(instance.chunks) if qa.chunk is None else instance.chunks[qa.chunk]
            gold = qa.answers[0].removeprefix("the ")
            assert gold in ("yes", "no") or gold in chunk
