"""The notebook runner on toy notebooks: order, parameters, failures, what is left on disk."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import nbformat
import pandas as pd
import papermill
import pytest

from memalpha_kit import notebooks
from memalpha_kit import progress as shown
from memalpha_kit.errors import DiskError, InputError
from memalpha_kit.figures import style
from memalpha_kit.files import held
from memalpha_kit.notebooks import Context, NotebookError, context, run
from memalpha_kit.settings import Profile

PARAMETERS = 'profile: str = "laptop"  # which YAML\noverrides: list = []\nroot: str = ""\n'
SETUP = (
    "from memalpha_kit.notebooks import context\n"
    "here = context({name!r}, profile, overrides, root)\n"
)


def save_notebook(folder, name, *cells, parameters=PARAMETERS):
    """A notebook without kernelspec, as an editor may leave it."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in (SETUP.format(name=name), *cells)]
    folder.mkdir(exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[first, *rest])
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def toy(tmp_path):
    """A folder of two notebooks; the second reads what the first wrote."""
    folder = tmp_path / "notebooks"
    save_notebook(
        folder,
        "01_first",
        "print('steps', here.profile.grpo.steps)\n"
        "(here.report_dir / 'steps.txt').write_text(str(here.profile.grpo.steps))",
    )
    save_notebook(
        folder,
        "02_second",
        "import os, sys\n"
        "words = here.made_by('01_first', 'steps.txt').read_text(), os.environ['GLIBC_TUNABLES']\n"
        "(here.report_dir / 'copy.txt').write_text(' '.join((*words, sys.executable)))",
    )
    return tmp_path


def files(folder):
    """Names of all files in `folder`, sorted."""
    return sorted(path.name for path in folder.iterdir())


def test_notebooks_run_in_order_with_the_parameters_and_hand_over_by_files(
    toy, capsys, monkeypatch
):
    kernels = toy / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    broken = {"argv": ["no-such-python", "{connection_file}"], "display_name": "x"}
    (kernels / "kernel.json").write_text(json.dumps({**broken, "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(toy / "jupyter"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")

    report = run("ci", overrides=["grpo.steps=7"], root=toy, notebooks=toy / "notebooks")

    second = toy / "reports" / "02_second" / "ci-grpo.steps=7"
    assert report == second / "02_second.html"
    assert "<html" in report.read_text()
    text, tunables, executable = (second / "copy.txt").read_text().split(" ", 2)
    assert (text, tunables) == ("7", "glibc.malloc.check=0")  # what a user has set stays
    assert os.path.realpath(executable) == os.path.realpath(notebooks.sys.executable)
    assert files(second) == ["02_second.html", "02_second.ipynb", "copy.txt"]
    executed = nbformat.read(second / "02_second.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells)
    assert str(toy) not in json.dumps(executed.metadata)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] 01_first"
    assert "steps 7" in lines
    assert lines[-1].startswith("report: ") and lines[-1].endswith("02_second.html")


def test_a_kernel_that_is_stopped_prints_no_error_of_its_own(toy, capfd):
    said = "get_ipython().kernel.log.error('KeyboardInterrupt caught in kernel.')"
    save_notebook(toy / "notebooks", "03_third", said)
    run("ci", only=["03"], root=toy, notebooks=toy / "notebooks")
    assert "caught in kernel" not in "".join(capfd.readouterr())


def test_a_failing_cell_or_a_kernel_that_dies_is_one_line_and_leaves_a_copy_marked_failed(toy):
    folder = toy / "notebooks"
    save_notebook(folder, "03_third", "raise ValueError('first line\\nsecond line')")
    report = toy / "reports" / "03_third" / "ci"
    report.mkdir(parents=True)
    (report / "03_third.html").write_text("of an earlier run")
    with pytest.raises(NotebookError) as caught:
        run("ci", only=["03"], root=toy, notebooks=folder)
    message = str(caught.value)
    assert message.startswith("03_third.ipynb: cell [4]: ValueError: first line second line")
    assert "03_third.failed.ipynb" in message and "\n" not in message
    assert files(report) == ["03_third.failed.ipynb"]
    assert files(toy / "reports") == ["03_third"]  # what `only` does not name does not run
    save_notebook(folder, "04_fourth", "import os\nos._exit(9)")
    with pytest.raises(NotebookError, match="04_fourth.ipynb: the kernel died"):
        run("ci", only=["04"], root=toy, notebooks=folder)
    assert not (toy / "reports" / "04_fourth" / "ci" / "04_fourth.ipynb").exists()


def test_a_missing_hand_over_names_the_notebook_and_the_command_that_makes_all(toy, monkeypatch):
    command = re.escape(f"memalpha run --profile ci --set seed=1 --root {toy}")
    with pytest.raises(NotebookError, match=f"notebook 01_first makes it, .*: {command}"):
        run("ci", ["02"], ["seed=1"], root=toy, notebooks=toy / "notebooks")
    monkeypatch.chdir(toy)
    (toy / "own.yaml").write_text("extends: ci\n")
    assert f"--profile {toy / 'own.yaml'}" in context("02_second", "own.yaml", root=toy).command
    here = Context("02_second", Profile("ci"), toy)
    with pytest.raises(InputError, match="policy: not there; notebook 01_first makes it"):
        here.made_by("01_first", toy / "runs" / "policy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "05_fifth.ipynb: unknown parameter 'overrides'; did you mean 'overides'"),
        ("{", "05_fifth.ipynb: expected a notebook, found"),
    ],
)
def test_a_notebook_that_cannot_run_is_refused_before_any_other_does(toy, text, message):
    parameters = PARAMETERS.replace("overrides", "overides")
    save_notebook(toy / "notebooks", "05_fifth", parameters=parameters)
    if text:
        (toy / "notebooks" / "05_fifth.ipynb").write_text(text)
    with pytest.raises(InputError, match=message):
        run("ci", root=toy, notebooks=toy / "notebooks")
    assert not (toy / "reports").exists()


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ("papermill.iorw.write_ipynb", "01_first/ci: expected to write, found: No space left"),
        ("os.fsync", "01_first.html: expected to write .*No space left"),
    ],
)
def test_a_full_disk_leaves_no_report_that_looks_complete(toy, monkeypatch, writes, message):
    monkeypatch.setattr(writes, Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=message):
        run("ci", only=["01"], root=toy, notebooks=toy / "notebooks")
    assert "01_first.ipynb" not in files(toy / "reports" / "01_first" / "ci")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["3_third"]}, "unknown notebook '3_third'"),
        ({"only": ["01_frist"]}, "unknown notebook '01_frist'; did you mean '01_first'?"),
        ({"profile": "labtop"}, "did you mean 'laptop'"),
        ({"overrides": ["grpo.step=1"]}, "did you mean 'grpo.steps'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_runs(toy, arguments, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        run(**{"profile": "ci", **arguments}, root=toy, notebooks=toy / "notebooks")
    assert not (toy / "reports").exists()


def test_a_context_names_and_makes_its_folders(tmp_path):
    here = context("01_first", "ci", ["seed=3"], tmp_path)
    assert here.profile.seed == 3
    assert here.report_dir == tmp_path / "reports" / "01_first" / "ci-seed=3"
    assert here.runs_dir == tmp_path / "runs" / "ci-seed=3"
    assert here.report_dir.is_dir() and here.runs_dir.is_dir() and here.data_dir.is_dir()
    assert here == Context("01_first", here.profile, tmp_path, here.command)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "ci"),
        (["seed=0"], "ci"),  # the profile's own value
        (["seed=1"], "ci-seed=1"),
        (["grpo.steps=9", "seed=1"], "ci-seed=1,grpo.steps=9"),
        (["seed=1", "grpo.steps=5", "grpo.steps=9"], "ci-seed=1,grpo.steps=9"),
        (["memory.core=true"], "ci-memory.core=true"),
        (["advantage.grouping=instance"], "ci-advantage.grouping=instance"),
    ],
)
def test_a_folder_is_named_after_what_differs_from_the_profile(overrides, name):
    assert notebooks.named_profile("ci", overrides).name == name


def test_settings_that_make_no_good_folder_name_get_a_hash():
    names = {
        notebooks.named_profile("ci", [override]).name
        for override in ("evaluation.lengths=[1, 3]", "evaluation.lengths=[1, 5]")
    }
    assert len(names) == 2 and all(re.fullmatch(r"ci-[0-9a-f]{12}", name) for name in names)


def test_files_of_one_name_and_other_settings_have_folders_of_their_own(tmp_path):
    names = {}
    for folder, steps in (("one", 5), ("two", 6)):
        for name, text in (("ci", "extends: ci\n"), ("mine", "")):
            path = tmp_path / folder / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}grpo: {{steps: {steps}}}\n")
            names[folder, name] = notebooks.named_profile(str(path)).name
    assert names["one", "ci"] == "ci-grpo.steps=5"
    assert len({"ci", *names.values()}) == 5
    same = tmp_path / "same" / "ci.yaml"
    same.parent.mkdir()
    same.write_text("extends: ci\n")
    assert notebooks.named_profile(str(same)).name == "ci"


def test_a_table_and_a_figure_are_saved_and_shown_and_a_card_ends_the_notebook(tmp_path, capsys):
    here = context("01_first", "ci", root=tmp_path)
    table = pd.DataFrame({"a": [1, 2]})
    figure, _ = style.panels(3, 2, 1)
    assert here.save("numbers", table) is table and here.save("drawn", figure) is figure
    here.finish([here.report_dir / "numbers.csv"], {"note": "x"})
    assert "run.json" in capsys.readouterr().out
    assert {"drawn.png", "numbers.csv", "run.json"} <= set(files(here.report_dir))
    assert json.loads((here.report_dir / "run.json").read_text())["note"] == "x"


def test_a_report_is_written_by_one_process_at_a_time_until_it_is_finished(tmp_path):
    """As two JupyterLabs with the same notebook open: the second is told, the first goes on."""
    here = context("01_first", "ci", root=tmp_path)
    assert context("01_first", "ci", root=tmp_path) == here, "cells can be run again"
    call = f"context('01_first', 'ci', [], {str(tmp_path)!r})"
    command = [sys.executable, "-c", f"from memalpha_kit.notebooks import context; {call}"]
    second = subprocess.run(command, capture_output=True, text=True)
    assert "found another process at work on it; if the notebook is open in Jup" in second.stderr
    here.finish()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_the_last_report_stays_while_an_open_notebook_holds_its_folder(toy):
    report = toy / "reports" / "01_first" / "ci"
    with held(report):
        (report / "01_first.html").write_text("of an earlier run")
        with pytest.raises(InputError, match="process at work on it; if the notebook is open"):
            run("ci", ["01"], root=toy, notebooks=toy / "notebooks")
    assert files(report) == ["01_first.html"]
    with pytest.raises(DiskError, match="html: expected to write into it, .* `root` names"):
        context("01_first", "ci", root=report / "01_first.html")


def test_two_runs_at_once_under_the_same_settings_are_refused_and_others_go_on(toy):
    with held(toy / "runs" / "ci"):
        with pytest.raises(InputError, match="runs/ci: expected to be alone"):
            run("ci", ["01"], root=toy, notebooks=toy / "notebooks")
        assert not (toy / "reports").exists()
        run("ci", ["01"], ["seed=1"], root=toy, notebooks=toy / "notebooks")
    assert files(toy / "reports" / "01_first") == ["ci-seed=1"]


def test_exported_formulas_need_no_network_and_links_lead_to_the_clone():
    text = r"See [words](../docs/x.md). `$5`, $A_i > 0$ and" "\n\n" r"$$\frac{a}{b}$$"
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("x = '$a$'")]
    source = nbformat.v4.new_notebook(cells=cells)
    made = notebooks.for_reading(source, "../../..").cells
    assert "](../../../docs/x.md)" in made[0].source and "`$5`" in made[0].source
    assert made[0].source.count("<math") == 2 and "<mfrac>" in made[0].source
    assert made[1].source == "x = '$a$'" and source.cells[0].source == text


def test_the_repository_is_found_from_anywhere_and_no_clone_is_a_clear_error(
    root, tmp_path, monkeypatch
):
    for folder in (tmp_path, root / "tests"):
        monkeypatch.chdir(folder)
        assert notebooks.repository() == root
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path / "site" / "notebooks.py"))
    with pytest.raises(InputError, match="expected a clone of the kit"):
        notebooks.repository()


@pytest.fixture
def eager(monkeypatch):
    """Bars that do not wait before they speak."""
    monkeypatch.setattr(shown, "QUIET_S", 0.0)


def test_a_plain_bar_prints_few_lines_that_say_how_far_it_is(eager, capsys):
    with shown.bar(1000, "GRPO") as bar:
        for number in range(1000):
            bar.advance(note=f"loss {number}")
    lines = capsys.readouterr().err.splitlines()
    assert 10 < len(lines) <= shown.MAX_LINES
    assert re.fullmatch(
        r"GRPO: 50/1000 \(5%\), 00:0\d so far, about 00:0\d left, loss 49", lines[0]
    )
    assert lines[-1].startswith("GRPO: 1000/1000 (100%), 00:0")
    assert all(line.isprintable() for line in lines)


def test_quick_work_says_nothing(capsys):
    assert list(shown.progress([1, 2, 3], label="reading")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_work_that_stops_early_says_where(eager, capsys):
    with pytest.raises(ValueError, match="stop"), shown.bar(10, "reading") as bar:
        bar.advance(3)
        raise ValueError("stop")
    said = capsys.readouterr()
    assert said.err.startswith("reading: 3/10 (30%), 00:00") and not said.out


def test_a_notebook_gets_progress_on_standard_output(monkeypatch, capsys):
    """There standard error is shown in red; elsewhere scripts read what a command prints."""
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", kernel)
    shown.tell("loading a model")
    assert kernel.getvalue() == "loading a model\n" and not capsys.readouterr().err


@pytest.mark.parametrize("where", ["", "notebooks", "docs"])
def test_plain_papermill_writes_into_the_clone_wherever_it_is_called(root, tmp_path, where):
    """The runner is a convenience: `papermill notebook.ipynb out.ipynb -p profile ci` works too."""
    clone = tmp_path / "clone"
    for name in ("notebooks", "memalpha_kit", "docs"):
        (clone / name).mkdir(parents=True)
    save_notebook(clone / "notebooks", "01_first", "(here.report_dir / 'x.txt').write_text('x')")
    path = os.path.relpath(clone / "notebooks" / "01_first.ipynb", clone / where)
    command = [sys.executable, "-m", "papermill", path, str(tmp_path / "out.ipynb")]
    command += ["-p", "profile", "ci", "-k", "python3", "--language", "python"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=clone / where, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert (clone / "reports" / "01_first" / "ci" / "x.txt").is_file()
    assert files(tmp_path) == ["clone", "out.ipynb"]


def test_a_batch_over_three_seeds_by_papermill_alone_keeps_three_results(toy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(notebooks.__file__)))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")  # papermill alone sets none
    for seed in range(3):
        parameters = {"profile": "ci", "overrides": [f"seed={seed}"], "root": str(toy)}
        for name in ("01_first", "02_second"):
            paths = (toy / "notebooks" / f"{name}.ipynb", toy / f"{name}_{seed}.ipynb")
            kernel = {"kernel_name": "python3", "language": "python", "progress_bar": False}
            papermill.execute_notebook(*map(str, paths), parameters, **kernel)
    for name in ("01_first", "02_second"):
        assert files(toy / "reports" / name) == ["ci", "ci-seed=1", "ci-seed=2"]
