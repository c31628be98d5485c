"""The pages of docs/: the tree is the tree, and what they name is there."""

from __future__ import annotations

import re

import pytest

from tools import tree

PAGES = (
    *("architecture.md", "differences.md", "extend.md", "guarantees.md", "glossary.md"),
    "public_commands.md",
)


def test_the_tree_shows_every_file_with_the_first_line_of_its_docstring():
    found = "run `python -m tools.tree --write`"
    assert tree.PAGE.read_text() == tree.page(), found


def test_every_module_says_what_it_is_for(root):
    silent = [line for line in tree.lines() if line.strip().endswith(".py")]
    assert not silent


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_link_of_a_page_is_there(root, page):
    text = (root / "docs" / page).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (root / "docs" / link).exists(), link
    ours = [*(root / "memalpha_kit").rglob("*"), *root.glob("*/*")]
    names = {path.name for path in ours}
    for name in re.findall(r"`(?:[a-z_]+/)+([a-z_0-9]+\.(?:py|yaml|csv|md))`", text):
        assert name in names or name in PUBLISHED, name


PUBLISHED = {"generation.py", "naive.py", "ray_trainer.py", "main_ppo.py", "utils.py"}
"""Files of the published code that pages name with a folder."""


@pytest.mark.parametrize(("page", "least"), [("differences.md", 100), ("guarantees.md", 40)])
def test_every_test_that_a_page_names_exists(root, page, least):
    tests = "\n".join(path.read_text() for path in (root / "tests").glob("*.py"))
    text = (root / "docs" / page).read_text()
    named = set(re.findall(r"(test_[a-z0-9_]{12,})(?![a-z0-9_]*\.py)", text))
    assert len(named) > least
    assert sorted(name for name in named - {"test_time_learning"} if name not in tests) == []
