"""Runs the notebooks in order, and tells a notebook where it reads and writes.

Each notebook has one cell tagged `parameters` with exactly these names; papermill puts the values
of the run in a cell after it:

    profile: str = "laptop"  # which YAML
    overrides: list = []  # changed settings, each a text as after --set
    root: str = ""  # folder of data/, runs/ and reports/; empty: this clone

and goes on with

    here = context("03_grpo_training", profile, overrides, root)
    here.profile.grpo, here.report_dir, here.runs_dir, here.data_dir
    path = here.made_by("01_data_processing", "sources.csv")
    here.save("lengths", table)  # lengths.csv in the report folder; a figure becomes lengths.png
    here.finish([path])  # run.json beside them

Folders are named after the settings: `reports/<notebook>/laptop/` for a profile as it is, and
`reports/<notebook>/laptop-seed=1/` for one with a changed setting; `runs/` alike. So runs under
different settings never meet, and two at once under the same ones are refused.

The law: `reports/<notebook>/<settings>/<notebook>.ipynb` exists only if every cell of it ran. A
copy that stopped is `<notebook>.failed.ipynb`, one at work `<notebook>.running.ipynb`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memalpha_kit import files
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.settings import Profile, load_profile, profile_dict, profile_names

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    Shown = TypeVar("Shown", pd.DataFrame, Figure)


class NotebookError(RuntimeError):
    """A cell failed. The message is one line: notebook, cell, error and where the copy is."""


@dataclass(frozen=True)
class Context:
    """Settings and folders of one notebook; `profile.name` is the name of its folders."""

    notebook: str
    profile: Profile
    root: Path
    command: str = "memalpha run"
    """Runs all notebooks under these settings."""
    started: float = field(default_factory=time.time, compare=False)

    @property
    def report_dir(self) -> Path:
        """Where this notebook writes numbers and figures."""
        return self.root / "reports" / self.notebook / self.profile.name

    @property
    def runs_dir(self) -> Path:
        """Checkpoints and episodes under these settings."""
        return self.root / "runs" / self.profile.name

    @property
    def data_dir(self) -> Path:
        """Built data, shared by all profiles."""
        return self.root / "data"

    @property
    def recorded_dir(self) -> Path:
        """Recorded results that are kept in git, wherever this run writes."""
        return repository() / "reports" / "recorded"

    def made_by(self, notebook: str, *made: str | Path) -> Path:
        """The last of the files of another notebook's report, or paths, after all were looked for.

        Raises InputError saying how to make what is not there.
        """
        report = self.root / "reports" / notebook / self.profile.name
        for path in (report / file if isinstance(file, str) else file for file in made):
            if not path.exists():
                every = f"all notebooks run by: {self.command}"
                raise InputError(f"{path}: not there; notebook {notebook} makes it, and {every}")
        return path

    def save(self, name: str, content: Shown) -> Shown:
        """The table or figure itself, after it was saved as `name.csv` or `name.png`."""
        shown: Any = content
        if hasattr(content, "to_csv"):
            files.save_table(self.report_dir / f"{name}.csv", shown)
        else:
            from memalpha_kit.figures import style

            style.save_figure(shown, self.report_dir / f"{name}.png")
        return content

    def finish(self, inputs: Sequence[Path] = (), extra: Mapping[str, Any] | None = None) -> None:
        """Writes `run.json` (see `files.run_card`), and prints how long the notebook took.

        `inputs` are the files that the numbers came from. Another run may then use the folder.
        """
        card = files.run_card(self.report_dir, self.profile, self.started, inputs, extra)
        if lock := _LOCKS.pop(self.report_dir.resolve(), None):
            lock.__exit__(None, None, None)
        print(f"{card['duration_s']} s; settings, versions and hashes: run.json beside this report")


_OPEN = "; if the notebook is open in Jupyter, run it to its end or shut down its kernel"
_LOCKS: dict[Path, AbstractContextManager[None]] = {}
"""Report folders that notebooks of this process are writing to."""


def context(
    notebook: str, profile: str = "laptop", overrides: Sequence[str] = (), root: str | Path = ""
) -> Context:
    """The `Context` of a notebook, its folders made and its report folder held by this process.

    Raises InputError as `load_profile` does, and if another process writes this very report.
    """
    settings, place = named_profile(profile, overrides), Path(root or repository())
    own = profile.endswith((".yaml", ".yml"))  # the command may be called from another folder
    words = ["memalpha", "run", "--profile", str(Path(profile).resolve()) if own else profile]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--root", str(place.resolve())] if root and place.resolve() != repository() else []
    made = Context(notebook, settings, place, shlex.join(words))
    try:
        for folder in (made.report_dir, made.runs_dir, made.data_dir):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"expected to write into it, found: {error.strerror}; `root` names another place"
        raise DiskError(f"{place}: {found}") from error
    report = made.report_dir.resolve()
    if report not in _LOCKS:  # a cell may be run again
        lock = files.held(report, hint=_OPEN)
        lock.__enter__()
        _LOCKS[report] = lock
    return made


def named_profile(profile: str, overrides: Sequence[str] = ()) -> Profile:
    """The settings, with a name that tells which were changed: `laptop`, `laptop-seed=1`.

    The name has what differs from the profile, whatever the order of the overrides; where that is
    no good name of a folder, it has a hash instead. A file of the user's own differs from the
    kit's profile of its name, or from the defaults. Raises InputError as `load_profile` does.
    """
    changed = load_profile(profile, overrides)
    kit = load_profile(changed.name) if changed.name in profile_names() else Profile(changed.name)
    plain, now = (files.flat(profile_dict(p)) for p in (kit, changed))
    different = {key: value for key, value in now.items() if value != plain.get(key)}
    if not different:
        return changed
    said = ",".join(f"{key}={json.dumps(value)}" for key, value in different.items())
    said = said.replace('"', "")
    if len(said) > 80 or not re.fullmatch(r"[\w.,=+-]+", said):
        said = files.settings_hash(different)
    return replace(changed, name=f"{changed.name}-{said}")


def run(
    profile: str = "laptop",
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    root: Path | None = None,
    notebooks: Path | None = None,
) -> Path:
    """Path of the last HTML report, after all notebooks (or those in `only`) have run in order.

    `only` holds beginnings of notebook names. `root` is where data/, runs/ and reports/ are, by
    default the repository; `notebooks` the folder of the notebooks. Everything that can be refused
    (InputError) is refused before the first notebook starts, another run under the same settings
    too; NotebookError if a cell fails.
    """
    folder = (notebooks or repository() / "notebooks").resolve()
    root = (root or repository()).resolve()
    name = named_profile(profile, overrides).name
    paths = _selected(sorted(folder.glob("[0-9]*.ipynb")), only, folder)
    if profile.endswith((".yaml", ".yml")):  # the kernels run in the notebooks' folder
        profile = os.path.relpath(profile, folder)
    parameters = {
        "profile": profile,
        "overrides": list(overrides),
        "root": Path(os.path.relpath(root, folder)).as_posix(),
    }
    for path in paths:
        check_parameters(path, parameters)
    with files.held(root / "runs" / name):
        for number, path in enumerate(paths, start=1):
            started = time.monotonic()
            print(f"[{number}/{len(paths)}] {path.stem}", flush=True)
            report = _run_one(path, root / "reports" / path.stem / name, parameters)
            took = f"{time.monotonic() - started:.0f} s, {os.path.relpath(report)}"
            print(f"[{number}/{len(paths)}] {path.stem}: {took}")
    print(f"report: {os.path.relpath(report)}", flush=True)
    return report


def repository() -> Path:
    """The clone we are in: the first folder with notebooks/ above here, or above the package."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "notebooks").is_dir() and (folder / "memalpha_kit").is_dir():
                return folder
    raise InputError(
        f"{Path.cwd()}: expected a clone of the kit here or above, found no folder with "
        "notebooks/ and memalpha_kit/"
    )


def check_parameters(path: Path, parameters: Iterable[str]) -> None:
    """Raises InputError, naming the closest, if the notebook does not declare a parameter.

    Papermill would only warn, and the notebook would run under its own profile.
    """
    import nbformat
    import papermill

    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise InputError(f"{path}: expected a notebook, found: {error!s:.80}") from error
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "language": "python"})
    declared = papermill.inspect_notebook(notebook)
    for name in parameters:
        if name not in declared:
            raise InputError(f"{path.name}: unknown parameter {name!r}{closest(name, declared)}")


def _selected(paths: list[Path], only: Sequence[str], folder: Path) -> list[Path]:
    if not paths:
        raise InputError(f"{folder}: expected notebooks (01_*.ipynb ...), found none")
    stems = [path.stem for path in paths]
    for prefix in only:
        if not any(stem.startswith(prefix) for stem in stems):
            raise InputError(f"unknown notebook {prefix!r}{closest(prefix, stems)}")
    return [path for path in paths if not only or path.stem.startswith(tuple(only))]


def _run_one(path: Path, folder: Path, parameters: dict[str, Any]) -> Path:
    """The HTML report of one notebook; its executed copy lies beside it."""
    from nbconvert import HTMLExporter

    done, html, running, failed = (
        folder / f"{path.stem}{ending}"
        for ending in (".ipynb", ".html", ".running.ipynb", ".failed.ipynb")
    )
    with files.held(folder, hint=_OPEN):
        for stale in (done, html, failed):  # a report never mixes two runs
            stale.unlink(missing_ok=True)
    try:
        notebook = _execute(path, running, parameters, failed)
        readable = for_reading(notebook, os.path.relpath(path.parent.parent, folder))
        page, _ = HTMLExporter().from_notebook_node(readable, {"metadata": {"name": path.stem}})
        files.write_bytes(html, page.encode())
        os.replace(running, done)
    except BaseException as error:
        html.unlink(missing_ok=True)
        if running.exists():
            os.replace(running, failed)
        if isinstance(error, OSError):
            place = error.filename or folder  # a kernel writes elsewhere too
            raise DiskError(f"{place}: expected to write, found: {error.strerror}") from error
        raise
    return html


def _execute(path: Path, running: Path, parameters: dict[str, Any], failed: Path) -> Any:
    """The executed notebook, saved at `running` after every cell.

    Papermill formats its paths, so braces in them are doubled.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    kept = f"; what ran is in {os.path.relpath(failed)}"
    try:
        executed = papermill.execute_notebook(
            *(str(file).replace("{", "{{").replace("}", "}}") for file in (path, running)),
            parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_own_kernel(),
            stdout_file=sys.stdout,
            progress_bar=False,
            cwd=path.parent,
        )
    except papermill.PapermillExecutionError as error:
        what = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookError(f"{path.name}: cell [{error.exec_count}]: {what}{kept}") from error
    except DeadKernelError as error:
        raise NotebookError(f"{path.name}: the kernel died (out of memory?){kept}") from error
    for name in ("input_path", "output_path"):  # folders of this machine
        executed.metadata.papermill.pop(name, None)
    papermill.iorw.write_ipynb(executed, str(running))
    return executed


def for_reading(notebook: Any, clone: str) -> Any:
    """A copy with formulas as MathML, which browsers draw without a network, and links that work.

    `clone` is the way from the report to the clone; a notebook's own links begin at notebooks/.
    """
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        if not (text := found["block"] or found["line"]):
            return found[0]
        return convert(text, display="block" if found["block"] else "inline")

    math = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+)\$", re.DOTALL)
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = math.sub(formula, cell.source.replace("](../", f"]({clone}/"))
    return copy


def _own_kernel() -> type:
    """A kernel manager that starts this very interpreter with this very package.

    Kernelspecs are not consulted: one may be missing, or may point at another environment.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    package = str(Path(__file__).resolve().parent.parent)
    # freed memory is kept, in large pages: each step of training asks for as much (reports/LOG.md)
    kept = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    kept += ":glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=67108864"
    env = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", kept)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:  # unencrypted, each kernel prints a warning
            super().__init__(**settings, transport_encryption="auto")

        @property
        def kernel_spec(self) -> KernelSpec:
            # or kernels share one database, and an idle one that is stopped logs an error
            quiet = ["--HistoryManager.enabled=False", "--log-level=CRITICAL"]
            return KernelSpec(**get_kernel_dict(quiet), env=env)

    return OwnKernel
