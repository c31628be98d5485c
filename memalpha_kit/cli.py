"""The command line: `memalpha COMMAND [options]`.

Exit codes: 0 done; 1 the work failed (a cell, a full disk); 2 what was asked for is wrong; 130
interrupted. Each failure is one line on standard error; a traceback means a bug of ours.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from memalpha_kit import __version__
from memalpha_kit.errors import DiskError, InputError, closest


@dataclass(frozen=True)
class Command:
    """One subcommand; `module` is imported only when it is the one asked for."""

    name: str
    help: str
    module: str


COMMANDS = (
    Command("run", "run the notebooks and write reports/", "memalpha_kit.commands.run"),
    Command("seeds", "the miniature with several seeds", "memalpha_kit.commands.seeds"),
    Command("sweep", "a grid of settings of the miniature", "memalpha_kit.commands.sweep"),
    Command("grouping", "one set of rollouts, every grouping", "memalpha_kit.commands.grouping"),
    Command("audit", "what scripted exploits earn", "memalpha_kit.commands.audit"),
    Command("export", "a checkpoint as a Hugging Face folder", "memalpha_kit.commands.export"),
    Command("train", "GRPO on a real model", "memalpha_kit.commands.train"),
    Command("plan", "what a profile will cost", "memalpha_kit.commands.plan"),
    Command("data", "raw files to instances", "memalpha_kit.commands.data"),
    Command("write", "instances to episodes", "memalpha_kit.commands.write"),
    Command("ask", "episodes to scored answers", "memalpha_kit.commands.ask"),
    Command("evaluate", "a method on a data set, resumable", "memalpha_kit.commands.evaluate"),
    Command("score", "score a run again, without a model", "memalpha_kit.commands.score"),
    Command("report", "runs side by side, beside the paper", "memalpha_kit.commands.report"),
    Command("calibrate", "a judge over labelled cases", "memalpha_kit.commands.calibrate"),
    Command("serve", "the memory server", "memalpha_kit.commands.serve"),
)


class _Parser(argparse.ArgumentParser):
    """argparse that answers an unknown option with the closest known one."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = getattr(namespace, "parser", self)._option_string_actions
            option = unknown[0].partition("=")[0]
            hint = closest(option, known) if option.startswith("-") else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return namespace

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"memalpha: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command in `argv` (by default the process's arguments)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
        return args.main(args) or 0
    except DiskError as error:
        return _failed(1, str(error))
    except InputError as error:
        return _failed(2, str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _failed(1, f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for `argv`: all commands by name, the arguments of the one asked for."""
    parser = _Parser(prog="memalpha", description="Learn to write memory: the Mem-alpha kit.")
    parser.add_argument("--version", action="version", version=f"memalpha_kit {__version__}")
    asked = next((word for word in argv if not word.startswith("-")), None)
    names = [command.name for command in COMMANDS]
    if asked is not None and asked not in names:
        raise InputError(f"unknown command {asked!r}{closest(asked, names)}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        if command.name == asked:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(main=module.main, parser=sub)
    return parser


def _failed(code: int, message: str) -> int:
    print(f"memalpha: error: {' '.join(message.split())}", file=sys.stderr)
    return code
