"""Real raw files through the whole path, with writers and readers that need no model.

These are floors, not a method: a rule keeps everything of one kind and a reader looks it up. What a
trained writer claims on the same files must be held against them. The notebooks use this; the
command line does the same one run at a time (`memalpha data build`, `evaluate`, `report`).
"""

from __future__ import annotations

from pathlib import Path

from memalpha_kit.data import sources
from memalpha_kit.data.instances import load_instances, save_instances
from memalpha_kit.evaluation import runs
from memalpha_kit.evaluation.methods import Backends, MethodSpec
from memalpha_kit.evaluation.runs import Run
from memalpha_kit.progress import progress
from memalpha_kit.settings import Profile
from memalpha_kit.tasks import metric_of

BY_RULE, TURNS, HALF = "memory by rule", "memory of whole turns", "half of it, at random"
MAJORITY, NOTHING = "majority label", "nothing"
ORDER = (BY_RULE, TURNS, HALF, MAJORITY, NOTHING)
RULES = {"label": ("keep_examples", "label_vote")}
"""Writer and reader by the source's metric; for all others sentences and the best of them."""
SHARE = 0.5
"""How much the random memory keeps of the chunks' tokens."""


def build_real(profile: Profile, raw: Path, out: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Parquet files of the real sources whose raw files are in `raw`, and why others are not there.

    Raises InputError for raw files that are there but broken. Files of an earlier call are removed
    first, so that nobody takes one whose raw files have gone for this call's.
    """
    built, absent = {}, {}
    for path in out.glob("*.parquet"):
        path.unlink()
    for name in profile.real.sources:
        missing = sources.missing_files(name, raw)
        if missing:
            patterns = ", ".join(pattern.replace("|", " or ") for pattern in missing)
            absent[name] = f"nothing called {patterns} in {raw}"
            continue
        instances = sources.build(name, raw, profile.data, profile.seed)
        built[name] = out / f"{name}.parquet"
        save_instances(built[name], instances[: profile.real.instances])
    return built, absent


def answer_real(profile: Profile, folder: Path, out: Path) -> dict[str, list[Run]]:
    """Finished runs below `out` by name of the method, one per file of `build_real` that it suits.

    What is in `out` already is not asked again. Empty without any file.
    """
    found: dict[str, list[Run]] = {}
    for path in progress(sorted(folder.glob("*.parquet")), label="real files"):
        instances = load_instances(path)
        for name, spec in methods(instances[0].source).items():
            run, method = runs.begin(spec, Backends(), instances, out, path.stem)
            found.setdefault(name, []).append(runs.complete(run, method, instances))
    return {name: found[name] for name in ORDER if name in found}


def methods(source: str) -> dict[str, MethodSpec]:
    """What can be asked about a source without a model, by name.

    Classes are voted for by labelled samples; else the answer is the best entry, of sentences or,
    in real dialogues, of whole turns. A document in its frame is one dated turn, and an entry that
    is the whole chunk would answer whatever is asked about it.
    """
    metric = metric_of(source, judged=False)
    rule, reader = RULES.get(metric, ("keep_sentences", "best_entry"))
    found = {BY_RULE: MethodSpec("memory", {"writer": rule, "reader": reader})}
    if metric == "substring":
        found[TURNS] = MethodSpec("memory", {"writer": "keep_turns", "reader": reader})
    found[HALF] = MethodSpec("random-memory", {"share": SHARE, "reader": reader})
    if metric == "label":
        found[MAJORITY] = MethodSpec("majority-label")
    return found | {NOTHING: MethodSpec("nothing")}
