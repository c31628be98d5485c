"""One Markdown and one CSV report of benchmark rows, with the machine they were measured on."""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLUMNS = (
    *("group", "what", "size", "ours_s", "plain_s", "ratio", "low", "high"),
    *("value", "unit", "wanted", "met", "measured"),
)
LIBRARIES = (
    *("numpy", "torch", "transformers", "trl", "tokenizers", "pyarrow", "pandas", "httpx"),
    *("openai", "rank-bm25", "immutables", "rouge-score", "matplotlib", "pydantic"),
)


LEGEND = """\
Times are medians, in the process's own processor seconds where nothing else is said, as other work
may share the machine. The ratio is plain / ours, round by round: median and 95 % bootstrap
interval, none of a single round. Where it says `beside` it is ours / plain, of two sizes or of
more and less work. Both ways gave equal results in every round, or the run would have failed. The
last column is the commit that was measured and how busy the machine was when the run began (load
average)."""


def machine() -> dict[str, Any]:
    """Processor, cores, vector instructions, and the versions of libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.+)", text)
    flags = re.search(r"flags\s*: (.+)", text)
    vector = [f for f in (flags[1].split() if flags else ()) if re.match("avx|amx|sse4_2|fma$", f)]
    return {
        "processor": name[1] if name else platform.processor(),
        "cores": os.cpu_count(),
        "vector_flags": " ".join(vector),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def measured() -> str:
    """The commit of this clone, with a + for changes that are not committed, and the load."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip()

    changes = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{git('rev-parse', '--short', 'HEAD')}{changes}, load {os.getloadavg()[0]:.1f}"


def shown(seconds: Any) -> str:
    """Seconds in the unit that a person would choose.

    >>> shown(0.0000123), shown(0.25), shown(None)
    ('12.3 µs', '250 ms', '')
    """
    if seconds in (None, ""):
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def _line(row: Mapping[str, Any]) -> str:
    ratio = row.get("ratio")
    times = f"{ratio:.3g}" if ratio is not None else ""
    value = row.get("value")
    other = f"{value:,.4g} {row.get('unit', '')}" if value is not None else ""
    if row.get("low") is not None:
        ends = f" [{row['low']:.3g}, {row['high']:.3g}]"
        times, other = (times + ends, other) if times else (times, other + ends)
    cells = [row["what"], row.get("size", ""), shown(row.get("ours_s")), shown(row.get("plain_s"))]
    met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
    cells += [times, other, row.get("wanted", ""), met, row.get("measured", "")]
    return "| " + " | ".join(cells) + " |"


def markdown(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], argv: str) -> str:
    """The report as a page."""
    lines = ["# What it costs", "", f"`memalpha bench{argv}`", ""]
    lines += [f"- {name.replace('_', ' ')}: {about[name]}" for name in machine()]
    lines += ["", LEGEND]
    for group, some in groupby(rows, lambda row: row["group"]):
        lines += ["", f"## {group}", ""]
        lines += ["| what | size | ours | plain | ratio | value | wanted | met | measured |"]
        lines += ["| --- | --- | ---: | ---: | --- | ---: | --- | --- | --- |", *map(_line, some)]
    return "\n".join(lines) + "\n"


def write(
    out: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], argv: Sequence[str]
) -> None:
    """`report.md` and `report.csv` in the folder `out`.

    Rows that were not measured this time are kept as they are there, so that some can be measured
    again; the machine is that of the last time.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "report.csv"
    known = {_name(row): row for row in (_read(file) if file.exists() else [])}
    known |= {_name(row): {**row, "measured": about["measured"]} for row in rows}
    rows = sorted(known.values(), key=lambda row: row["group"])  # stable: rows stay in order
    told = " --quick" if "--quick" in argv else ""
    (out / "report.md").write_text(markdown(rows, about, told), encoding="utf-8")
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["group"], row["what"], row.get("size", "")


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a report, numbers as numbers; what is empty is left out."""
    with open(file, newline="", encoding="utf-8") as opened:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(opened)]
    for row in rows:
        row |= {k: float(row[k]) for k in COLUMNS[3:9] if k in row}
        row |= {"met": row["met"] == "True"} if "met" in row else {}
    return rows
