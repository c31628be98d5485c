"""Commands of training on real models: warm-start, train, plan, export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Context, Option

from memalpha_kit.cli.options import NONE, Overrides, ProfileName, with_fields
from memalpha_kit.settings import load_profile
from memalpha_kit.training.plan import Assumptions

GO_ON = "go on from the last checkpoint; without it an earlier run in the folder is replaced"

SHORT: dict[str, Any] = {"card": "cpu", "chunks": 1.0, "questions": 3.6, "chunk_tokens": 112}
SHORT |= {"instruction_tokens": 44, "shown_tokens": 0, "reply_tokens": 65}
"""For profiles with short prompts: about what profile small reads and writes, on one CPU core."""


def warm_start(
    data: Annotated[
        list[Path],
        Option(metavar="DIR...", help="data sets whose training parts the teacher reads"),
    ],
    out: Annotated[
        Path, Option(metavar="RUN", help="folder of the run; its policy/ is the result")
    ],
    profile: ProfileName = "small",
    overrides: Overrides = NONE,
    episodes: Annotated[
        list[Path],
        Option(
            metavar="FILE.jsonl...", help="a teacher's, of `memalpha write` [default: a rule's]"
        ),
    ] = NONE,
    resume: Annotated[bool, Option("--resume", help=GO_ON)] = False,
) -> None:
    """Supervised training of a real model on a teacher's calls, before GRPO.

    \b
    memalpha models get smollm2-135m
    memalpha warm-start --profile small --data data/squad --out runs/small/warm_start
    memalpha train --profile small --data data/squad --out runs/small/grpo \\
        --set model.adapter=runs/small/warm_start/policy
    """
    from memalpha_kit.training.real import warm_start

    warm_start(load_profile(profile, overrides), list(data), out, list(episodes), resume)


def train(
    data: Annotated[
        list[Path], Option(metavar="DIR...", help="data sets whose training parts are trained on")
    ],
    out: Annotated[Path, Option(metavar="RUN", help="folder of the run and its export")],
    profile: ProfileName = "gpu",
    overrides: Overrides = NONE,
    validation: Annotated[
        list[Path],
        Option(metavar="DIR...", help="whose test parts choose the best policy [default: --data]"),
    ] = NONE,
    resume: Annotated[bool, Option("--resume", help=GO_ON)] = False,
) -> None:
    """GRPO on a real model, from built data to an exported folder that was loaded and compared.

    \b
    memalpha data merge --recipe balanced --out data/memalpha
    memalpha plan --profile gpu
    memalpha train --profile gpu --data data/memalpha --out runs/gpu/grpo [--resume]

    How the published run is started on several nodes is said in profiles/paper.yaml.
    """
    from memalpha_kit.training.real import train

    train(load_profile(profile, overrides), list(data), out, list(validation), resume)


@with_fields
def plan(
    context: Context,
    assumptions: Assumptions,
    profile: ProfileName = "laptop",
    overrides: Overrides = NONE,
    probe: Annotated[
        bool,
        Option("--probe", help="measure this machine first: miniature or small, up to a minute"),
    ] = False,
    out: Annotated[Path | None, Option(metavar="FILE", help="also save the plan as CSV")] = None,
    record_reference: Annotated[
        bool, Option("--record-reference", help="record the profile's last whole run as reference")
    ] = False,
) -> None:
    """What a profile will cost before it starts; one that cannot fit is refused with the sum."""
    from memalpha_kit import files
    from memalpha_kit.lab import plan as miniature
    from memalpha_kit.notebooks import repository
    from memalpha_kit.training.plan import plan

    loaded = load_profile(profile, overrides)
    if record_reference:
        print(miniature.record_reference(loaded, repository()))
        return
    if not loaded.model.name:
        speed = miniature.probe(load_profile("laptop")) if probe else None
        made = miniature.miniature_plan(loaded, speed)
    else:
        # the published 32 cards, and ours beside them for generation and reading
        known: dict[str, Any] = {"cards": 32, "vllm_cards": 8, "reader_cards": 8}
        known = known if loaded.model.vllm == "server" else {}
        known = SHORT if loaded.protocol.prompt == "short" else known
        sources = {name: context.get_parameter_source(name) for name in known}
        unsaid = [n for n, source in sources.items() if source and source.name == "DEFAULT"]
        assumptions = dataclasses.replace(assumptions, **{n: known[n] for n in unsaid})
        if probe:
            from memalpha_kit.training.probe import probed

            made = probed(loaded, assumptions)
        else:
            made = plan(loaded, assumptions)
    print(made.page())
    if out:
        files.save_table(out, made.table())
    made.refuse()


def export(
    checkpoint: Annotated[
        Path,
        Argument(help="a run's folder, a policy, a LoRA adapter, or global_step_<k> with shards"),
    ],
    out: Annotated[Path, Option(metavar="FOLDER", help="what is written")],
    base: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="base of an adapter; configuration and tokenizer of shards"),
    ] = None,
    dtype: Annotated[
        Literal["keep", "bfloat16", "float16", "float32"],
        Option(help="keep: shards become bfloat16"),
    ] = "keep",
) -> None:
    """A checkpoint as one Hugging Face folder, checked by loading it again."""
    from memalpha_kit.training.export import export

    made = export(checkpoint, out, base, dtype)
    print(f"{made.folder}: {made.kind}, {made.parameters:,} parameters, ", end="")
    print(f"largest difference of a log-probability {made.difference:.2g}")
