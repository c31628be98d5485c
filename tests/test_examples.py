"""All sources from made-up raw files: every one is built, and the report finds the known leak."""

from __future__ import annotations

import pytest

from memalpha_kit.data import check, dataset, examples
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.settings import load_profile
from memalpha_kit.tasks import TASKS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return examples.build_examples(load_profile("ci"), tmp_path_factory.mktemp("examples"))


def test_every_source_of_the_paper_is_built(folders):
    wanted = {name for name in SOURCES if TASKS[name].role != "ours"}
    assert set(folders) == wanted | {examples.LEAKY}
    for name, folder in folders.items():
        found = dataset.read(folder)
        assert found.name == name and (found.train or found.test)
        assert not dataset.shared_groups(found.train, found.test) or name == examples.LEAKY


def test_the_report_finds_the_release_leak_and_none_in_the_default(folders):
    leaks = check.tables(
        [folder for name, folder in folders.items() if "ttl" in name or name.startswith("icl_")],
        "wordpunct",
    )["leaks"]
    given = leaks.assign(share=leaks[["repeated", "shown"]].max(axis=1) / leaks.questions)
    evaluated = given[given.test.str.startswith("icl_")]
    release = evaluated[evaluated.train.str.startswith(examples.LEAKY)]
    default = evaluated[evaluated.train.str.startswith("ttl_train/")]
    assert (release.share == 1).sum() == 2  # both corpora, against their own evaluation rows
    assert len(default) and (default.share == 0).all()
