"""Profile `small` from end to end: a pretrained model before warm start, after it, and after GRPO.

    memalpha models get smollm2-135m
    python benchmarks/small.py --seeds 0 1 2 --runs runs/small_seeds --out reports/recorded/small
    python benchmarks/small.py --set model.backend=unsloth --out reports/small_card   # on a card

Everything is resumable: what lies in `--runs` is not made again. The text is documents (SQuAD) and
dated dialogues (LongMemEval), as many chunks of each, from the raw files in `--raw`, else made up.
Training reads single chunks with what is asked about them. A test memory is of a held-out article,
or of the part of a held-out dialogue around what is asked, `--chunks` chunks; it is written at the
temperature of the rollouts and greedily, and read by the rule `best_entry`. `--validation` looks at
other texts than those: settings are chosen there. Floors: every sentence; the first and the last
one of each chunk; and sentences drawn at random, or the first ones, of as many tokens as each
seed's memory after GRPO.

    results.csv       stage, measure, value, low, high, n; gains are article by article
    articles.csv      a row per stage, seed and article: what the intervals are made of
    curves.csv        a row per seed and step of GRPO
    warm_start.csv    a row per few steps of the warm start
    transcripts.json  for some held-out chunks, what each stage of the first seed wrote
    run.json          settings, versions, command, seconds
    adapter.zip       the first seed's adapter in 16 bits
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memalpha_kit import files  # noqa: E402
from memalpha_kit.data import dataset  # noqa: E402
from memalpha_kit.data.build import build_source  # noqa: E402
from memalpha_kit.data.raw import matches  # noqa: E402
from memalpha_kit.data.sources import SOURCES  # noqa: E402
from memalpha_kit.evaluation.memories import draw  # noqa: E402
from memalpha_kit.method.calls import render_calls  # noqa: E402
from memalpha_kit.method.episode import ask, write  # noqa: E402
from memalpha_kit.method.memory import INSERT, tokens  # noqa: E402
from memalpha_kit.method.model_writers import ModelWriter  # noqa: E402
from memalpha_kit.method.readers import reader  # noqa: E402
from memalpha_kit.method.writers import (  # noqa: E402
    ScriptedReplies,
    ScriptedWriter,
    Writer,
    keep_sentences,
    writer,
)
from memalpha_kit.models.decode import fast  # noqa: E402
from memalpha_kit.models.local import Sampling  # noqa: E402
from memalpha_kit.records import Episode, Instance, ToolCall, make_instance  # noqa: E402
from memalpha_kit.settings import Profile, load_profile  # noqa: E402
from memalpha_kit.stats import Interval, mean_interval, nested_interval  # noqa: E402
from memalpha_kit.tokens import counter  # noqa: E402
from memalpha_kit.training import real  # noqa: E402
from memalpha_kit.training.backends import load_model, start  # noqa: E402
from tools.sample_data import make_raw  # noqa: E402

TRAIN_RATIO = 0.8
BEFORE, WARM, GRPO, RANDOM = "before", "warm start", "GRPO", "random sentences"
KINDS = {"squad": "documents", "lme_train": "dialogues"}
MEASURES = ("qa", "qa of documents", "qa of dialogues", "valid calls", "memory tokens", "calls")
DIALOGUES = {"chunk_max_tokens": 90, "dialogue_reserve_tokens": 45}  # about two turns a chunk


def built(profile: Profile, raw: Path, runs: Path) -> list[Path]:
    """Folders of documents and of dialogues, with as many chunks of each to train on.

    Beside each stands a folder, `..._validation`, whose test part no other one has.
    """
    folders = {name: runs / "data" / kind for name, kind in KINDS.items()}
    if not all((folder / "card.json").is_file() for folder in folders.values()):
        sets = [built_source(name, profile, raw, runs) for name in KINDS]
        few = min(len(trained.train) for trained, _ in sets)
        for trained, validation in sets:
            train = tuple(dataset.sample(trained.train, few, profile.seed))
            folder = folders[trained.name]
            dataset.save(folder.with_name(f"{folder.name}_validation"), validation)
            dataset.save(folder, replace(trained, train=train))
    return list(folders.values())


def built_source(
    name: str, profile: Profile, raw: Path, runs: Path
) -> tuple[dataset.Dataset, dataset.Dataset]:
    """Single chunks with questions to train on and whole instances to test on, and others to
    choose settings with.
    """
    config, seed = profile.data, profile.seed
    if name == "lme_train":
        config = replace(config, **DIALOGUES)
    if not matches(raw, SOURCES[name].files[0]):
        raw = runs / "raw" / name
        make_raw(raw, name, seed, factor=6 if name == "lme_train" else 1)
        config = replace(config, exclude="none")  # made-up questions are those of the made-up test
    data = build_source(name, raw, config, seed, TRAIN_RATIO)
    train, validation = dataset.split(data.train, TRAIN_RATIO, seed)
    train = train if name == "squad" else [part for one in train for part in windows(one, 1)]
    return replace(data, train=tuple(train)), replace(data, train=(), test=tuple(validation))


def windows(instance: Instance, size: int) -> Iterator[Instance]:
    """For each question the `size` chunks around its evidence, as an instance."""
    for qa in instance.questions:
        if qa.chunk is not None:
            last = len(instance.chunks) - size
            before = random.Random(qa.id).randrange(size)
            start = max(0, min(qa.chunk - before, last))
            chunks = instance.chunks[start : start + size]
            about = {"groups": instance.metadata["groups"], "titles": [qa.id]}
            asked = [replace(qa, chunk=qa.chunk - start)]
            yield make_instance(instance.source, chunks, asked, metadata=about)


def held_out(folders: Sequence[Path], size: int) -> list[Instance]:
    """Held-out instances of `size` chunks at most: articles, and as many parts of dialogues."""
    documents, dialogues = (dataset.read(folder).test for folder in folders)
    whole = articles(documents, size)
    parts = [part for instance in dialogues for part in windows(instance, size)]
    return whole + dataset.sample(parts, len(whole), 0)


def articles(instances: Sequence[Instance], limit: int) -> list[Instance]:
    """The chunks of each article as one instance, at most `limit` of them."""

    def title(instance: Instance) -> str:
        return instance.metadata["titles"][0]

    joined = []
    for _, group in groupby(sorted(instances, key=title), title):
        parts = list(group)[:limit]
        asked = [replace(q, chunk=i) for i, part in enumerate(parts) for q in part.questions]
        joined.append(make_instance("squad", [part.chunks[0] for part in parts], asked))
    return joined


def policy(profile: Profile, adapter: Path | None, temperature: float) -> ModelWriter:
    """The model as a writer, with an adapter or as it is."""
    model = replace(profile.model, adapter=str(adapter or ""))
    lm = fast(load_model(model, real.base_folder(model), profile.seed, batch_size=64))
    sampling = Sampling(temperature, profile.protocol.max_reply_tokens)
    return ModelWriter(lm, profile.memory, profile.protocol, sampling)


def rules(profile: Profile, test: Sequence[Instance]) -> Iterator[tuple[str, list[Episode]]]:
    """(name, episodes) of writers by rule."""
    rules, wire = (profile.memory, profile.protocol), profile.protocol.wire
    yield "keep_sentences", write(test, writer("keep_sentences", wire), *rules)
    for name, part in (("first", slice(1)), ("last", slice(-1, None))):
        one = ScriptedWriter(name, lambda request, part=part: keep_sentences(request)[part], wire)
        yield f"{name} sentence of each chunk", write(test, one, *rules)


def as_large(
    profile: Profile, test: Sequence[Instance], sizes: Sequence[int]
) -> Iterator[tuple[str, list[Episode]]]:
    """(name, episodes) of sentences in memories of so many tokens, drawn at random or in order."""
    rules, wire = (profile.memory, profile.protocol), profile.protocol.wire
    count = counter(profile.memory.counter).count
    for name, seed in ((RANDOM, profile.seed), ("lead sentences", None)):
        episodes = []
        for instance, size in zip(test, sizes, strict=True):
            parts = draw(instance, size, count, seed)
            replies = [render_calls(map(_insert, part), wire) for part in parts]
            episodes += write([instance], ScriptedReplies(replies, name), *rules)
        yield name, episodes


def _insert(text: str) -> ToolCall:
    return ToolCall(INSERT, {"memory_type": "semantic_memory", "content": text})


def measured(
    profile: Profile, stage: str, episodes: list[Episode], test: Sequence[Instance]
) -> pd.DataFrame:
    """A row per article or part of a dialogue."""
    count, rows = counter(profile.memory.counter), []
    for episode in ask(episodes, test, reader("best_entry")):
        calls, answers = episode.calls, episode.answers
        valid = sum(call.status == "ok" for call in calls)
        score = sum(answer.score for answer in answers) / len(answers)
        values = {
            "qa": score,
            f"qa of {KINDS[episode.source]}": score,
            "valid calls": valid / len(calls) if calls else None,
            "memory tokens": tokens(episode.memory, count),
            "calls": len(calls),
        }
        known = {"stage": stage, "seed": profile.seed, "article": episode.instance}
        rows.append(known | dict.fromkeys(MEASURES) | values)
    return pd.DataFrame(rows)


def written(profile: Profile, by: Writer, test: Sequence[Instance], file: Path) -> list[Episode]:
    """Episodes of a writer, kept in a file."""
    from memalpha_kit.method.saved import load_episodes, save_episodes

    if not file.is_file():
        save_episodes(file, write(test, by, profile.memory, profile.protocol, seed=profile.seed))
    return load_episodes(file)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means with intervals over articles, and differences to GRPO: by seed, and over the seeds.

    What several seeds did has an interval of two levels, seeds and articles.
    """
    rows = []
    for stage, part in table.groupby("stage", sort=False):
        for name in MEASURES:
            rows.append((stage, name, interval(part[name], part["seed"])))
    compared = {
        "gain of GRPO": (WARM, GRPO),
        "gain of GRPO, greedy": (f"{WARM}, greedy", f"{GRPO}, greedy"),
        "GRPO over random sentences": (RANDOM, GRPO),
    }
    for label, stages in compared.items():
        one, other = (table[table["stage"] == stage] for stage in stages)
        pairs = one.merge(other, on=["seed", "article"], suffixes=(" before", " after"))
        gains = pd.DataFrame({m: pairs[f"{m} after"] - pairs[f"{m} before"] for m in MEASURES})
        for name in MEASURES[:-1] if len(pairs) else ():
            for seed, own in gains.groupby(pairs["seed"]):
                rows.append((f"{label}, seed {seed}", name, mean_interval(own[name], 0)))
            if pairs["seed"].nunique() > 1:
                rows.append((label, name, interval(gains[name], pairs["seed"])))
    return pd.DataFrame(
        [(stage, name, i.mean, i.low, i.high, i.n) for stage, name, i in rows],
        columns=["stage", "measure", "value", "low", "high", "n"],
    )


def interval(values: pd.Series, seeds: pd.Series) -> Interval:
    """The mean over articles of one seed, or over the seeds and their articles."""
    one = seeds.nunique() == 1
    return mean_interval(list(values), 0) if one else nested_interval(values, seeds, 0)


def main() -> None:
    """Runs what is missing and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/small_seeds"))
    parser.add_argument("--out", type=Path, default=Path("reports/small_seeds"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--profile", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--chunks", type=int, default=4, help="of a test memory's text")
    parser.add_argument("--stages", nargs="+", default=[BEFORE, WARM, GRPO])
    parser.add_argument("--validation", action="store_true", help="tests on other texts")
    options = parser.parse_args()
    started, profile = time.time(), load_profile(options.profile, options.set)
    torch.set_num_threads(profile.threads)
    start(profile.model)  # Unsloth, if it is asked for, before what it patches
    data = built(profile, options.raw, options.runs)
    looked_at = [d.with_name(f"{d.name}_validation") for d in data] if options.validation else data
    test = held_out(looked_at, options.chunks)
    found: list[pd.DataFrame] = []
    shown = [0, 1, -2, -1]
    transcripts: dict[str, list[str]] = {"chunks": [test[i].chunks[0] for i in shown]}
    for seed in options.seeds:
        own = replace(profile, seed=seed)
        for stage in options.stages:
            if stage == BEFORE and seed != options.seeds[0]:
                continue  # the same model
            for name, episodes in staged(own, stage, data, options, test):
                found.append(measured(own, name, episodes, test))
                if seed == options.seeds[0]:
                    transcripts[name] = [episodes[i].steps[0].completion.text for i in shown]
                print(summary(found[-1]).round(3).to_string(), flush=True)
                report(options, found, transcripts)
    for name, episodes in rules(profile, test):
        found.append(measured(profile, name, episodes, test))
    for part in [part for part in found if part["stage"].iloc[0] == GRPO]:
        own = replace(profile, seed=int(part["seed"].iloc[0]))
        for name, episodes in as_large(own, test, part["memory tokens"].astype(int)):
            found.append(measured(own, name, episodes, test))
    report(options, found, transcripts)
    inputs = [folder / name for folder in data for name in ("train.parquet", "test.parquet")]
    facts = {"command": " ".join(sys.argv), "machine": machine(), "seconds": seconds(options)}
    files.run_card(options.out, profile, started, inputs, facts)
    best = options.runs / f"seed_{options.seeds[0]}" / "grpo" / "policy"
    if best.is_dir():
        packed(best, profile.model.name, options.out / "adapter.zip")


def staged(
    profile: Profile,
    stage: str,
    data: list[Path],
    options: argparse.Namespace,
    test: Sequence[Instance],
) -> Iterator[tuple[str, list[Episode]]]:
    """What a stage writes of the test instances, sampled and greedily; trained if need be."""
    runs = options.runs / f"seed_{profile.seed}"
    folder = runs / stage.replace(" ", "_").lower()
    adapter = folder / "policy" if stage != BEFORE else None
    if adapter and not adapter.is_dir():
        begun = time.time(), time.process_time()
        if stage == WARM:
            real.warm_start(profile, data, folder, resume=True)
        else:
            learned = runs / "warm_start" / "policy"
            real.train(real.on_top(profile, learned), data, folder, resume=True)
        spent = {"wall": time.time() - begun[0], "processor": time.process_time() - begun[1]}
        files.save_json(folder / "seconds.json", {name: round(s) for name, s in spent.items()})
    for suffix, heat in (("", profile.grpo.temperature), (", greedy", 0.0)):
        part = "validation" if options.validation else "test"
        file = folder / f"{part}{suffix[2:]}.jsonl"
        by = None if file.is_file() else policy(profile, adapter, heat)
        yield stage + suffix, written(profile, by, test, file)


def seconds(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """What every stage of training took, loading and export included, if it was not interrupted."""
    found = sorted(options.runs.glob("seed_*/*/seconds.json"))
    return {" ".join(file.parts[-3:-1]): files.load_json(file) for file in found}


def packed(adapter: Path, base: str, file: Path) -> None:
    """The adapter in 16 bits, without a folder of this machine in it, in a file below 2 MB."""
    weights = load_file(adapter / "adapter_model.safetensors")
    config = files.load_json(adapter / "adapter_config.json") | {"base_model_name_or_path": base}
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("adapter_config.json", json.dumps(config, indent=1))
        narrow = {name: value.bfloat16() for name, value in weights.items()}
        archive.writestr("adapter_model.safetensors", save(narrow))


def machine() -> str:
    """Cores and processor of this machine, as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {(name or [platform.machine()])[0]}"


def report(options: argparse.Namespace, found: list, transcripts: dict) -> None:
    """Writes what is known so far."""
    table = pd.concat(found, ignore_index=True)
    files.save_table(options.out / "articles.csv", table.round(4))
    files.save_table(options.out / "results.csv", summary(table).round(4))
    files.save_json(options.out / "transcripts.json", transcripts)
    for name, source in (("warm_start.csv", "warm_start"), ("curves.csv", "grpo")):
        logs = {s: options.runs / f"seed_{s}" / source / "metrics.csv" for s in options.seeds}
        rows = [pd.read_csv(f).assign(seed=s) for s, f in logs.items() if f.is_file()]
        if rows:
            files.save_table(options.out / name, pd.concat(rows))


if __name__ == "__main__":
    main()
