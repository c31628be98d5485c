"""The package as a tree with one line a file, read from the docstrings.

python -m tools.tree            prints it
python -m tools.tree --write    puts it into docs/architecture.md
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
START, END = "```text\n", "```\n"


def lines() -> Iterator[str]:
    """`file   what it is for`, ground rooms first, then every folder with its files."""
    package = ROOT / "memalpha_kit"
    files = sorted(package.rglob("*.py"), key=lambda p: (p.parent != package, p.parent, p.name))
    folder = package
    for path in files:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.split("\n\n")[0].split()).rstrip(".")
        if path.parent != folder:
            folder = path.parent
            said = first if path.name == "__init__.py" else ""
            yield f"{folder.relative_to(package).as_posix()}/".ljust(24) + said
        if path.name != "__init__.py":
            yield f"{'    ' if folder != package else ''}{path.name}".ljust(24) + first


def page() -> str:
    """docs/architecture.md with the tree as it is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    tree = "\n".join(line.rstrip() for line in lines())
    return f"{before}{START}{tree}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print("\n".join(lines()))
