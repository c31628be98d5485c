"""The files that describe the project agree with each other."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
DESIGN = (
    *("jupyterlab", "papermill", "ipywidgets", "pandas", "pyarrow", "matplotlib", "seaborn"),
    *("rank-bm25", "torch", "transformers", "trl", "unsloth", "vllm"),
)
PYTHONS = ("3.11", "3.12")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines):
    """Requirements by canonical name; options such as `--constraint` are left out."""
    parsed = [Requirement(line) for line in lines if not line.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


core = requirements(project["dependencies"])
extras = {name: requirements(lines) for name, lines in project["optional-dependencies"].items()}
everything = {**core, **extras["gpu"], **extras["dev"]}


def pins(python):
    """Pinned versions by canonical name, from the constraints of one Python version."""
    path = ROOT / "env" / f"constraints-py{python.replace('.', '')}.txt"
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    split = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s=]+)", line).groups() for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in split}


def conda(name):
    """The pip section of a conda environment file: its lines, options included."""
    content = yaml.safe_load((ROOT / "env" / name).read_text())
    assert any(str(line).startswith("python=") for line in content["dependencies"])
    return next(line["pip"] for line in content["dependencies"] if isinstance(line, dict))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_inside_its_bounds(python):
    pinned = pins(python)
    for name, requirement in everything.items():
        assert pinned[name] in requirement.specifier, f"{requirement}: pinned {pinned[name]}"


@pytest.mark.parametrize("requirement", everything.values(), ids=str)
def test_every_requirement_has_a_lower_bound_that_was_tested_and_an_upper_bound(requirement):
    bounds = {spec.operator: spec.version for spec in requirement.specifier}
    assert set(bounds) == {">=", "<"}
    tested = min(pins(python)[canonicalize_name(requirement.name)] for python in PYTHONS)
    assert tested.release[: len(Version(bounds[">="]).release)] == Version(bounds[">="]).release


def test_the_python_versions_with_constraints_are_the_supported_ones():
    assert project["requires-python"] == ">=3.11,<3.13"
    found = sorted(path.name for path in (ROOT / "env").glob("constraints-*.txt"))
    assert found == [f"constraints-py{python.replace('.', '')}.txt" for python in PYTHONS]


def test_the_conda_files_list_what_pyproject_lists():
    cpu, gpu = requirements(conda("environment.yml")), requirements(conda("environment-gpu.yml"))
    assert {str(r) for r in cpu.values()} == {str(r) for r in (core | extras["dev"]).values()}
    assert {str(r) for r in gpu.values()} == {str(r) for r in everything.values()}


@pytest.mark.parametrize("name", ["environment.yml", "environment-gpu.yml"])
def test_the_conda_files_use_the_constraints_of_their_python(name):
    content = yaml.safe_load((ROOT / "env" / name).read_text())
    python = next(line for line in content["dependencies"] if str(line).startswith("python="))
    constraints = f"constraints-py{python.removeprefix('python=').replace('.', '')}.txt"
    assert f"--constraint {constraints}" in conda(name)
    assert (ROOT / "env" / constraints).is_file()


@pytest.mark.parametrize("name", DESIGN)
def test_every_package_of_the_design_appears(name):
    assert name in everything
    assert (name in extras["gpu"]) == (name in ("unsloth", "vllm"))
    assert all(name in pins(python) for python in PYTHONS)


def test_the_cpu_set_needs_nothing_of_the_gpu_set():
    assert not set(extras["gpu"]) & (set(core) | set(extras["dev"]))


NEEDS_NOTHING = {*sys.stdlib_module_names, "_typeshed"}  # the latter is of type checkers


def test_every_third_party_package_that_the_kit_imports_is_required():
    names = {"yaml": "pyyaml"}  # imported under another name than installed
    for path in (ROOT / "memalpha_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module]
            else:
                continue
            for top in {name.partition(".")[0] for name in found} - NEEDS_NOTHING:
                required = canonicalize_name(names.get(top, top))
                assert top == "memalpha_kit" or required in everything, f"{path}: {top}"


def test_the_licence_is_apache_2_0():
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


def test_the_console_script_resolves():
    module, _, function = project["scripts"]["memalpha"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_ci_runs_what_a_person_runs():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script and "make test" in script


def test_make_help_names_every_target_of_the_readme():
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    for target in ("reproduce", "test", "lab", "clean", "env"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs_and_with_a_parameters_cell(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    for line in ('profile: str = "laptop"', "overrides: list = []", 'root: str = ""'):
        assert line in source, f"{path.name}: the parameters cell lacks {line}"
