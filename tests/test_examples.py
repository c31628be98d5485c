"""All sources from made-up raw files: every one is built."""

from __future__ import annotations

from memalpha_kit.data import dataset, examples
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.settings import load_profile
from memalpha_kit.tasks import TASKS


def test_every_source_of_the_paper_is_built(tmp_path):
    """What the report says of `LEAKY` is tested with the command `data check`."""
    folders = examples.build_examples(load_profile("ci"), tmp_path)
    wanted = {name for name in SOURCES if TASKS[name].role != "ours"}
    assert set(folders) == wanted | {examples.LEAKY}
    for name, folder in folders.items():
        found = dataset.read(folder)
        assert found.name == name and (found.train or found.test)
        assert not dataset.shared_groups(found.train, found.test) or name == examples.LEAKY
