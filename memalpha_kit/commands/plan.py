"""`memalpha plan`: what a profile will cost before it starts."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from memalpha_kit.commands import add_profile_arguments, profile_of
from memalpha_kit.notebooks import repository
from memalpha_kit.training.plan import Assumptions

PUBLISHED = {"cards": 32, "vllm_cards": 8, "reader_cards": 8}
"""For profiles that generate on a server and read at an endpoint: the published 32 cards, and ours
beside them for generation and reading."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha plan`; one per assumption, with its default in the plan."""
    add_profile_arguments(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="miniature: measure this machine first (about 10 seconds)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also save the plan as CSV")
    parser.add_argument(
        "--record-reference",
        action="store_true",
        help="write the reference from the last whole run of this profile",
    )
    for field in dataclasses.fields(Assumptions):
        kind = {"str": str, "int": int}.get(field.type, float)
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, metavar="X", help=argparse.SUPPRESS)
    parser.epilog = "Every assumption of the plan is an option, e.g. --card l40s --reply-tokens 200"


def main(args: argparse.Namespace) -> int:
    """0 if the profile fits; InputError (exit code 2) with the sum if it does not."""
    from memalpha_kit import files as store
    from memalpha_kit.lab.plan import miniature_plan, probe, record_reference
    from memalpha_kit.settings import load_profile
    from memalpha_kit.training.plan import plan

    profile = profile_of(args)
    if args.record_reference:
        print(record_reference(profile, repository()))
        return 0
    names = [field.name for field in dataclasses.fields(Assumptions)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if profile.model.reader == "endpoint":
        given = PUBLISHED | given
    miniature = not profile.model.name
    speed = probe(load_profile("laptop")) if args.probe and miniature else None
    made = miniature_plan(profile, speed) if miniature else plan(profile, Assumptions(**given))
    for line in made.lines:
        value = (
            "" if line.value != line.value else f"{line.value:,.{2 if line.value < 100 else 0}f}"
        )
        print(f"{line.part:8} {line.what:22} {value:>18} {line.unit:9} {line.how}")
    if args.out:
        store.save_table(args.out, made.table())
    made.refuse()
    return 0
