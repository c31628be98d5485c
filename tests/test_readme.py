"""README and records agree: the numbers of the first page are those of the recorded seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from memalpha_kit.figures.curves import table_behaviour, table_lengths
from memalpha_kit.notebooks import repository

ROOT = repository()
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = ROOT / "reports" / "recorded" / "miniature"


def readme_row(name: str) -> list[str]:
    """Cells of the README's table row that starts with `name`."""
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")[1:]]


def shown(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return pd.read_csv(RECORDED / "results.csv")


@pytest.mark.parametrize(
    ("row", "column", "sign"),
    [
        ("QA before GRPO", "warm_start", ""),
        ("QA after GRPO", "grpo", ""),
        ("paired gain", "gain", "+"),
    ],
)
def test_the_readme_shows_the_recorded_answers(results, row, column, sign):
    table = table_lengths(results)
    cells = [
        shown(t[column], t[f"{column}_low"], t[f"{column}_high"], sign) for _, t in table.iterrows()
    ]
    assert readme_row(row) == cells


def test_the_readme_shows_the_recorded_corrections(results):
    table = table_behaviour(results)
    updated = table[(table.what == "corrections updated") & (table.stage == "grpo")]
    cells = [shown(t.share, t.low, t.high) for _, t in updated.iterrows()]
    assert readme_row("corrections handled by a correct update") == cells


def test_ten_seeds_are_recorded_and_the_command_beside_them_is_the_readmes(results):
    seeds = sorted(results.seed.unique())
    assert seeds == list(range(10))
    assert f"`memalpha seeds --profile laptop --seeds {' '.join(map(str, seeds))}`" in README


def test_every_path_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / Path(link)).exists()] == []


def test_the_readmes_python_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # our own text, not a model's
    assert "Pixel" in capsys.readouterr().out


def test_the_readme_is_read_in_one_go_and_points_to_the_rest():
    assert len(README.splitlines()) <= 250
    for section in ("## The notebooks", "## What each thing needs", "docs/extend.md"):
        assert section in README
