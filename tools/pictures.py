"""Screenshots of the explorer for the README: `python -m tools.pictures` (needs Chromium).

What is seen is notebook 00: its four rollouts of one conversation, played by running its cells.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.browser import Browser

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
CELL = """
from dataclasses import replace
from pathlib import Path
from memalpha_kit import explorer
group = [
    replace(play.episodes[0], id=f"{instance.id}#{n}", rollout=n, writer=name)
    for n, (name, play) in enumerate(zip(rollouts, plays))
]
Path("page.html").write_text(explorer.show(group, [instance], judge=judge).page, "utf-8")
"""


def main() -> None:
    """Runs the notebook, opens the page that its last cell writes, and saves the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.read(ROOT / "notebooks" / "00_ten_minutes.ipynb", as_version=4)
        parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
        parameters.source += f"\nroot = {folder!r}"
        notebook.cells.append(nbformat.v4.new_code_cell(CELL))
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
        page = (Path(folder) / "page.html").as_uri()
        for dark in (False, True):
            with Browser(1200, 1040, dark) as browser:
                browser.open(page, "document.body.dataset.took")
                step(browser, IMAGES / f"explorer{'_dark' if dark else ''}.png")


def step(browser: Browser, path: Path) -> None:
    """Chunk 3, where calls fail and an entry changes, with the history of that entry."""
    browser.choose("#chunk", 3)
    browser.click("[data-card=memory] .entry[data-kind=changed]")
    browser.value("scrollTo(0, 0)")
    browser.screenshot(path)


if __name__ == "__main__":
    main()
