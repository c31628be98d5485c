"""Functions, classes, methods and properties that nothing but tests uses are deleted."""

from __future__ import annotations

import json
import re

from vulture import Vulture

CALLED_BY_LIBRARIES = {
    *("_generate_and_score_completions", "create_optimizer", "create_scheduler"),  # TRL
    *("create_model_card", "on_train_begin", "on_step_end", "on_log", "on_save"),  # transformers
    *("_repr_html_", "kernel_spec"),  # IPython and nbclient
    "grpo_loss",  # nothing calls it: a page to read, which a test holds against TRL's
}
DECORATORS = ["@*.register", "@*validator", "@app.*", "@*.get", "@*.post", "@section"]


def test_every_function_is_used_by_the_kit_a_notebook_or_a_page(root):
    found = Vulture(ignore_decorators=DECORATORS)
    found.scavenge([str(root / name) for name in ("memalpha_kit", "tools", "benchmarks")])
    cells = [
        "".join(cell["source"])
        for path in (root / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
    ]
    pages = [path.read_text() for path in (*root.glob("*.md"), *(root / "docs").glob("*.md"))]
    named = set(re.findall(r"\w+", "\n".join(cells + pages))) | CALLED_BY_LIBRARIES
    kinds = ("function", "class", "method", "property")
    unused = [
        f"{item.filename.name}: {item.name}"
        for item in found.get_unused_code(min_confidence=60)
        if item.typ in kinds and item.name not in named and "memalpha_kit" in item.filename.parts
    ]
    assert unused == []
