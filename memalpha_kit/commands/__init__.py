"""One file per subcommand of `memalpha`: `add_arguments(parser)` and `main(args) -> exit code`.

A new command is a module here and a line in `cli.COMMANDS`. Heavy imports stay inside `main`.
"""

from __future__ import annotations

import argparse

from memalpha_kit.settings import Profile, load_profile, profile_names


def add_profile_arguments(parser: argparse.ArgumentParser, default: str = "laptop") -> None:
    """Adds `--profile` and `--set`, which mean the same in every command."""
    parser.add_argument(
        "--profile",
        default=default,
        metavar="NAME",
        help=f"{', '.join(profile_names())}, or a YAML file (default: {default})",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. grpo.steps=10; may be repeated",
    )


def profile_of(args: argparse.Namespace) -> Profile:
    """The profile that `--profile` and `--set` ask for. Raises InputError for a wrong name."""
    return load_profile(args.profile, args.overrides)
