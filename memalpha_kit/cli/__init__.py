"""The command line: `memalpha COMMAND [options]`.

A command is a function: its signature is its options, its docstring its help; `options.py` has what
several share. It parses, calls and prints, and imports what is heavy only when it runs. Exit codes:
0 done; 1 the work failed or is incomplete; 2 what was asked for is wrong; 130 interrupted. Each
failure is one line on standard error; a traceback means a bug of ours.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from memalpha_kit import __version__
from memalpha_kit.cli import data, evaluation, explore, lab, memories, server, training, writing
from memalpha_kit.cli.options import NONE, Documented
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.notebooks import NotebookError
from memalpha_kit.registry import import_extensions

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
PLAIN |= {"pretty_exceptions_enable": False}
app = typer.Typer(**PLAIN)

for _function in (
    *(lab.run, lab.seeds, lab.sweep, lab.grouping, lab.audit),
    *(training.warm_start, training.train, training.plan, training.export),
    *(writing.write, evaluation.ask, evaluation.evaluate, evaluation.score),
    *(evaluation.report, evaluation.calibrate, explore.explore, explore.replay, server.serve),
    *(memories.credit, memories.lengths, lab.bench),
):
    app.command(cls=Documented)(_function)
_data = typer.Typer(help="Raw files to data sets, and what a reviewer wants to know.", **PLAIN)
for _function in (*(data.build, data.merge, data.split, data.check), data.download, data.example):
    epilog = "\b\nRaw files of each source:\n{files}" if _function is data.build else None
    _data.command(cls=Documented, epilog=epilog)(_function)
app.add_typer(_data, name="data")
_models = typer.Typer(help="Pretrained models by name.", **PLAIN)
_models.command(cls=Documented)(writing.get)
_models.callback()(lambda: None)  # a group, though it has one command
app.add_typer(_models, name="models")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"memalpha_kit {__version__}")
        raise typer.Exit


@app.callback()
def _memalpha(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="say which version this is", callback=_say_version, is_eager=True
        ),
    ] = False,
    extend: Annotated[
        list[str],
        typer.Option(metavar="MODULE", help="import your module first, which adds variants"),
    ] = NONE,
) -> None:
    """Learn to write memory: the Mem-alpha kit."""
    import_extensions(extend)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command in `argv` (by default the process's arguments)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = get_command(app)
        with command.make_context("memalpha", _spread(command, argv)) as context:
            return command.invoke(context) or 0
    except typer.Exit as stop:
        return stop.exit_code
    except typer.TyperException as error:
        return _failed(2, _sentence(error))
    except (DiskError, NotebookError) as error:
        return _failed(1, str(error))
    except InputError as error:
        return _failed(2, str(error))
    except BrokenPipeError:  # `memalpha ... | head`: nobody reads on
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _failed(1, f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush


def _spread(command: Any, argv: list[str]) -> list[str]:
    """`--seeds 0 1` as `--seeds 0 --seeds 1`, for options whose metavar ends in dots."""
    for word in argv:
        command = getattr(command, "commands", {}).get(word, command)
    several = {
        name
        for option in command.params
        if (option.metavar or "").endswith("...")
        for name in option.opts
        if name.startswith("--")
    }
    spread, name, number = [], "", 0
    for word in argv:
        if word.startswith("--"):
            name, number = word, 0
        elif name in several:
            number += 1
            if number > 1:
                spread.append(name)
        spread.append(word)
    return spread


def _sentence(error: Any) -> str:
    """What is wrong with the arguments, with the closest word that would have been right."""
    message, command = error.format_message(), getattr(getattr(error, "ctx", None), "command", None)
    if hasattr(error, "possibilities") and command:
        known = [name for option in command.params for name in option.opts]
        return f"unknown argument {error.option_name!r}{closest(error.option_name, known)}"
    if (unknown := re.match(r"No such command '(.*?)'", message)) and command:
        return f"unknown command {unknown[1]!r}{closest(unknown[1], command.commands)}"
    message = message.replace("Input should be greater than or equal to", "expected at least")
    return message.replace("Value error, ", "")


def _failed(code: int, message: str) -> int:
    print(f"memalpha: error: {' '.join(message.split())}", file=sys.stderr)
    return code
