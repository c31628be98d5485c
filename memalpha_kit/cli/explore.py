"""Commands that look at episodes: explore, replay."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from memalpha_kit.cli.options import DataPath, FirstN

if TYPE_CHECKING:
    from memalpha_kit.records import Instance

Paths = Annotated[
    list[Path],
    Argument(metavar="EPISODES...", help="files of episodes, folders of evaluations or trainings"),
]
Data = Annotated[
    DataPath | None, Option(metavar="PATH", help="the data set that they are about, for chunks")
]


def explore(
    episodes: Paths,
    data: Data = None,
    html: Annotated[
        Path | None, Option(metavar="FILE.html", help="the page [default: beside the first]")
    ] = None,
    instances: FirstN = None,
) -> None:
    """Episodes to look at, chunk by chunk, in one HTML file that needs no server and no network.

    Several files stand side by side, e.g. before and after training. Weights of the rewards are
    those that a training was run with, else the paper's.
    """
    from memalpha_kit.explorer import html_page, view
    from memalpha_kit.explorer.recordings import load_recordings
    from memalpha_kit.files import write_bytes

    found, known = load_recordings(episodes), _instances(data)
    if instances:  # all rollouts of the first ones
        names = [list(dict.fromkeys(e.instance for e in one.episodes))[:instances] for one in found]
        found = [
            replace(one, episodes=[e for e in one.episodes if e.instance in first])
            for one, first in zip(found, names, strict=True)
        ]
    shown = view(found, known)
    page = html_page(shown).encode()
    first = episodes[0]
    out = html or (first / "explorer.html" if first.is_dir() else first.with_suffix(".html"))
    write_bytes(out, page)
    n_chunks = sum(len(episode["steps"]) for episode in shown["episodes"])
    size = f"{len(page) / 1e6:.1f} MB"
    print(f"{len(shown['episodes'])} episodes, {n_chunks} chunks, {size}; open it in a browser")
    print(out)
    if any(step["chunk"] is None for episode in shown["episodes"] for step in episode["steps"]):
        said = "memalpha: some chunks are not known; --data PATH names the data set"
        print(said, file=sys.stderr)


def _instances(data: Path | None) -> list[Instance]:
    from memalpha_kit.data.dataset import load_data

    return load_data(data) if data else []


def replay(episodes: Paths, data: Data = None) -> int:
    """Read every reply and apply its calls again; report whatever is not as it was recorded.

    With --data the answers are scored again, and the rewards of a training made again with its
    weights. Exit code 1: something differs.
    """
    from memalpha_kit.explorer.replay import replay as again

    made = again(episodes, _instances(data))
    for line in made.differences:
        print(line)
    said = f"{len(made.differences)} differences" if made.differences else "no difference"
    print(f"{made.episodes} episodes replayed, {made.rewarded} rewarded again: {said}")
    return int(bool(made.differences))
