"""Splits without leaks, the published draws, merges and folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter as Tally

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memalpha_kit.cli import main
from memalpha_kit.data import dataset
from memalpha_kit.data.build import RECIPES
from memalpha_kit.data.dataset import Dataset, merge, shared_groups, split
from memalpha_kit.data.instances import save_instances
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.files import held, sha256
from memalpha_kit.records import QA, make_instance
from memalpha_kit.release.data import split_release


def instance(name, source="squad", groups=(), question=None):
    """An instance whose only chunk is `name`, with a question of its own."""
    asked = QA("q0", question or f"What is {name}?", ("x",))
    metadata = {"groups": list(groups)} if groups else {}
    return make_instance(source, [name], [asked], metadata=metadata)


def named(instances):
    """The names that `instance` was given."""
    return [one.chunks[0] for one in instances]


def many(*names, source="squad"):
    return tuple(instance(name, source) for name in names)


def test_the_release_split_gives_the_worked_example():
    train, test = split_release(many(*map(str, range(10))), 0.9)
    assert named(train) == list("732856940") and named(test) == ["1"]


def test_sampling_gives_the_worked_example_and_is_that_of_pandas():
    rows = many(*map(str, range(9)))
    assert named(dataset.sample(rows, 4, 42)) == list("7150")
    for seed in (0, 7, 42):
        frame = pd.DataFrame({"name": named(rows)}).sample(n=5, random_state=seed)
        assert named(dataset.sample(rows, 5, seed)) == list(frame["name"])
    assert dataset.sample(rows, 9, 42) == list(rows) == dataset.sample(rows, None, 42)


A = Dataset("A", many("a0", "a1", "a2"), many("ta"))
B = Dataset("B", many("b0", "b1"), many("tb"))


def test_a_merge_gives_the_worked_example(tmp_path):
    merged = merge([A, B], "AB", limit=2)
    assert named(merged.train) == ["b0", "a1", "b1", "a0"] and named(merged.test) == ["ta", "tb"]
    dataset.save(tmp_path / "AB", merged)
    ids = [row["instance_id"] for row in pq.read_table(tmp_path / "AB/train.parquet").to_pylist()]
    assert ids == [0, 1, 2, 3]


def test_the_counts_of_the_recipes_are_those_of_the_paper():
    sums = {name: sum(recipe.instances.values()) for name, recipe in RECIPES.items()}
    counts = {"balanced": 562, "balanced_release": 567, "full": 4139, "memoryagentbench": 112}
    assert sums == counts
    assert {n for n, recipe in RECIPES.items() if recipe.compat != "fixed"} == {"balanced_release"}
    full = {"squad": 294, "hotpotqa": 2185, "perltqa": 31, "lme_train": 50, "ttl_train": 400}
    for name, n in (full | {"booksum": 1542}).items():  # nine tenths of all that there are
        assert len(split_release(range(n), 0.9)[0]) == RECIPES["full"].instances[name]


def test_nothing_that_belongs_together_is_on_both_sides():
    """The published split leaves most articles on both sides of this chain of neighbours."""
    chain = [instance(str(i), groups=[f"a{i // 3}", f"a{(i + 1) // 3}"]) for i in range(0, 300, 3)]
    books = [instance(f"b{i}", groups=[f"book {i // 5}"]) for i in range(200)]
    for seed in range(5):
        train, test = split(chain + books, 0.9, seed)
        assert not shared_groups(train, test)
        assert 25 <= len(test) <= 30 and len(train) + len(test) == 300
    assert shared_groups(*split_release(chain + books, 0.9))


def test_the_side_of_an_instance_depends_on_the_seed_alone():
    rows = many(*map(str, range(50)))
    assert split(rows, 0.9, 3) == split(rows, 0.9, 3) != split(rows, 0.9, 4)
    train, test = split(rows, 0.9, 3)
    assert [i for i in rows if i in train] == train and [i for i in rows if i in test] == test


def test_without_named_groups_the_questions_are_the_group():
    """Published ttl_train rows: all instances of a source ask the same questions."""
    same = [instance(str(i), question="Why?") for i in range(10)]
    assert [len(part) for part in split(same, 0.9, 0)] == [10, 0]
    assert named(split([*same, instance("other")], 0.9, 0)[1]) == ["other"]


def test_every_source_is_split_on_its_own():
    """A corpus whose instances all hang together is never the test part of another one."""
    whole = [instance(str(i), "x", groups=["one"]) for i in range(20)]
    loose = [instance(str(i), "y") for i in range(20)]
    train, test = split([*whole, *loose], 0.9, 0)
    assert Tally(i.source for i in train) == {"x": 20, "y": 18}
    assert Tally(i.source for i in test) == {"y": 2}


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [([1], 1), ([], 0), ([20], 0), ([12, 8], 8), ([10, 10], 10), ([19, 1], 1)],
)
def test_large_groups_leave_a_test_part_where_they_can(sizes, held_out):
    names = [(str(g), i) for g, size in enumerate(sizes) for i in range(size)]
    train, test = split([instance(f"{g}/{i}", groups=[g]) for g, i in names], 0.95, 0)
    assert len(test) == held_out and len(train) + len(test) == sum(sizes)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("rule", [split, split_release])
def test_a_ratio_outside_0_and_1_is_refused(rule, ratio):
    with pytest.raises(InputError, match="train ratio: expected a number from 0 to 1"):
        rule(many("a"), ratio, 0)


TTL = Dataset("ttl", many("a", "b", "c", source="x") + many("d", "e", source="y"), ())


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"limits": {"ttl": 4}}, {"squad": 3, "x": 3, "y": 1}),
        ({"limits": {"x": 1}}, {"squad": 3, "x": 1, "y": 2}),
        ({"limit": 2, "limits": {"ttl": 5}}, {"squad": 2, "x": 3, "y": 2}),
        ({"limits": {"ttk": 1}}, "limit: expected a part or source, found 'ttk'; did you"),
        ({"limit": 0}, "limit: expected at least 1, found 0"),
    ],
)
def test_limits_hold_per_part_or_per_source_inside_one(limits, counts):
    if isinstance(counts, str):
        with pytest.raises(InputError, match=counts):
            merge([TTL, A], "m", **limits)
    else:
        assert Tally(i.source for i in merge([TTL, A], "m", **limits).train) == counts


LEFT, RIGHT = (instance(name, groups=["squad:Oxygen"]) for name in "ab")
LEAKY = Dataset("ttl_train", (LEFT,), (), {"settings": {"compat": "release"}})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [Dataset("A", (LEFT,), ()), Dataset("B", (), (RIGHT,))],
            "without a common group, found 1, e.g. 'squad:Oxygen'",
        ),
        ([LEAKY], "ttl_train: expected a part built without --compat rel"),
        ([A, A], "m: train: expected an instance once"),
    ],
)
def test_a_merge_that_leaks_is_refused_unless_the_release_is_asked_for(parts, message):
    with pytest.raises(InputError, match=message):
        merge(parts, "m")
    assert merge(parts, "m", compat="release").name == "m"


WHOLE = Dataset("squad", many("a", "b"), many("c"), {"name": "squad", "seed": 0})
OTHER = Dataset("squad", WHOLE.test, WHOLE.train, {"name": "squad", "seed": 1})


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_data_set_comes_back_equal(tmp_path):
    for _ in range(2):  # also over an earlier one
        dataset.save(tmp_path / "new" / "squad", WHOLE)
        assert os.listdir(tmp_path / "new") == ["squad"]
        assert sorted(content(tmp_path / "new" / "squad")) == sorted(dataset.FILES)
    back = dataset.read(tmp_path / "new" / "squad")
    assert (back.name, back.train, back.test) == ("squad", WHOLE.train, WHOLE.test)
    hashes = back.card["data_sha256"]
    assert hashes["test.parquet"] == sha256(tmp_path / "new/squad/test.parquet")


def test_a_test_part_in_several_files_is_one_data_set_for_every_command(tmp_path, capsys):
    parts = many("x", "y")
    for n, part in enumerate(parts):
        save_instances(tmp_path / f"data/test-0000{n}-of-00002.parquet", [part])
    assert dataset.load_data(tmp_path) == list(parts)
    out = tmp_path / "e.jsonl"
    said = ["write", "--data", str(tmp_path), "--writer", "keep_sentences", "--out", str(out)]
    assert main(said) == main(said) == 0
    assert "2 episodes, 0 of them new" in capsys.readouterr().out


def test_a_published_file_without_columns_or_names_is_read(tmp_path):
    folder = tmp_path / "booksum"
    folder.mkdir()
    pq.write_table(pa.table({}), folder / "train.parquet")
    rows = {"chunks": ['["a"]'], "questions_and_answers": ['[{"question": "Q", "answer": "x"}]']}
    pq.write_table(pa.table(rows), folder / "test.parquet")
    read = dataset.read(folder)
    assert read.train == () and read.test[0].source == "booksum"
    assert dataset.read(folder / "test.parquet") == Dataset("booksum", (), read.test)
    (folder / "test.parquet").rename(folder / "train-0.parquet")
    assert dataset.read(folder / "train-0.parquet").train == read.test


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(InputError, match="expected a folder with train.parquet or test.parquet"):
        dataset.read(tmp_path)
    save_instances(tmp_path / "test.parquet", WHOLE.test)
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(InputError, match="card.json: expected an object, found list"):
        dataset.read(tmp_path)


def test_an_empty_test_part_names_the_training_part(tmp_path):
    dataset.save(tmp_path / "a", Dataset("a", many("x", "y"), (), {}))
    with pytest.raises(InputError, match="found none; .*train.parquet is the training part"):
        dataset.load_data(tmp_path / "a")


def test_an_instance_that_occurs_twice_in_a_part_is_refused_on_loading(tmp_path):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        save_instances(tmp_path / name, WHOLE.train)
    with pytest.raises(InputError, match=f"train: expected an instance once, found {LEFT.source}/"):
        dataset.read(tmp_path)


def test_a_folder_with_anything_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="or an earlier data set, found thesis.tex"):
        dataset.save(tmp_path, WHOLE)
    with pytest.raises(InputError, match="expected a folder or nothing, found a file"):
        dataset.save(tmp_path / "thesis.tex", WHOLE)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("step", ["card", "swap"])
def test_a_write_that_fails_leaves_the_old_data_set(tmp_path, monkeypatch, step):
    dataset.save(tmp_path / "squad", WHOLE)
    before = content(tmp_path / "squad")
    rename = type(tmp_path).rename

    def fail(path, target):
        if isinstance(target, dict) or path.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    place = (dataset, "save_json") if step == "card" else (type(tmp_path), "rename")
    monkeypatch.setattr(*place, fail)
    with pytest.raises(DiskError, match="squad: expected to write a folder, found: No space"):
        dataset.save(tmp_path / "squad", OTHER)
    assert os.listdir(tmp_path) == ["squad"] and content(tmp_path / "squad") == before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_dataset import OTHER, dataset

rename, seen = Path.rename, []

def kill_before(path, target):
    seen.append(path)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = kill_before
dataset.save(Path(sys.argv[1]), OTHER)
"""


@pytest.mark.parametrize(("renames", "finished"), [(1, False), (2, True)])
@pytest.mark.parametrize("command", [dataset.read, dataset.check_free])
def test_an_interrupted_swap_is_finished_or_undone_by_the_next_command(
    tmp_path, root, renames, finished, command
):
    """Killed before the first rename the old one stays, before the second the new one comes."""
    folder = tmp_path / "squad"
    dataset.save(folder, WHOLE)
    arguments = [sys.executable, "-c", KILLED, folder, root / "tests", str(renames)]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(os.listdir(tmp_path)) == 2
    command(folder)
    assert os.listdir(tmp_path) == ["squad"]
    assert dataset.read(folder).parts == (OTHER if finished else WHOLE).parts


SAVED = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
from test_dataset import OTHER, WHOLE, dataset
print(flush=True); input()
for number in range(20):
    dataset.save(Path(sys.argv[1]), WHOLE if number % 2 else OTHER)
"""


def test_processes_that_save_into_one_folder_at_once_take_turns(tmp_path, root):
    """Twenty times each; whoever comes last leaves a whole data set, and nobody fails."""
    argv = [sys.executable, "-c", SAVED, tmp_path / "squad", root / "tests"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    both = [subprocess.Popen(argv, **pipes) for _ in range(2)]
    for one in both:
        one.stdout.readline()
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.wait() for one in both] == [0, 0]
    assert os.listdir(tmp_path) == ["squad"]
    assert dataset.read(tmp_path / "squad").parts == WHOLE.parts


def test_a_data_set_is_saved_below_a_folder_that_a_run_holds(tmp_path):
    """As notebook 04 does under `memalpha run --profile small`, which holds runs/small."""
    with held(tmp_path):
        dataset.save(tmp_path / "data", WHOLE)
        dataset.save(tmp_path / "data", OTHER)
    assert dataset.read(tmp_path / "data").parts == OTHER.parts


def test_what_a_running_process_writes_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        half = tmp_path / f".squad.{other.pid}.new"
        half.mkdir()
        dataset.save(tmp_path / "squad", WHOLE)
        assert half.exists()
        other.communicate(b"\n")
    dataset.check_free(tmp_path / "squad")
    assert not half.exists()
