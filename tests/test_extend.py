"""docs/extend.md: its modules are imported and its examples hold, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys

PAGE = "docs/extend.md"


def blocks(root):
    """(name of the module or "", code) of the page's Python blocks, in order."""
    for code in re.findall(r"```python\n(.*?)```", (root / PAGE).read_text(), flags=re.S):
        named = re.match(r"# (my_\w+)\.py", code)
        yield named[1] if named else "", code


def test_the_page_runs_as_it_stands(root, tmp_path):
    """In a process of its own: what it registers is nobody else's."""
    script = []
    for name, code in blocks(root):
        if name:
            (tmp_path / f"{name}.py").write_text(code)
        script.append(f"import {name}" if name else code)
    env = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"}
    how = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], cwd=tmp_path, env=env, **how)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_module_of_the_page_is_short(root):
    modules = {name: code for name, code in blocks(root) if name}
    assert len(modules) == 7
    assert all(8 <= len(code.splitlines()) <= 20 for code in modules.values())
