"""Profile `small` from end to end: a pretrained model before warm start, after it, and after GRPO.

    memalpha models get smollm2-135m
    python benchmarks/small.py --runs runs/small --out reports/recorded/small [--raw data/raw]

Everything is resumable: what lies in `--runs` is not made again. Raw files are SQuAD's in `--raw`,
else the kit's made-up ones. Training reads single chunks; the test memories are of held-out
articles, up to `--chunks` chunks each, written at the temperature of the rollouts and greedily, and
read by the rule `best_entry`. Floors: every sentence; the first one of each chunk; and sentences
drawn at random, or the first ones, of as many tokens as the memory after GRPO.

    results.csv       stage, measure (qa, valid_calls, memory_tokens, calls), value, low, high, n
    articles.csv      a row per stage and article: what the intervals are made of
    curves.csv        a row per step of GRPO
    warm_start.csv    a row per few steps of the warm start
    transcripts.json  for two held-out chunks, what each stage wrote
    run.json          settings, versions, seconds
    adapter.zip       the trained adapter in 16 bits
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from memalpha_kit.data import dataset, examples  # noqa: E402
from memalpha_kit.data.build import build_source  # noqa: E402
from memalpha_kit.data.raw import matches  # noqa: E402
from memalpha_kit.data.sources.squad import FILES  # noqa: E402
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
from memalpha_kit.stats import mean_interval, paired_interval  # noqa: E402
from memalpha_kit.tokens import counter  # noqa: E402
from memalpha_kit.training import real  # noqa: E402
from memalpha_kit.training.backends import load_model  # noqa: E402

TRAIN_RATIO = 0.8
BEFORE, WARM, GRPO = "before", "warm start", "GRPO"
MEASURES = ("qa", "valid_calls", "memory_tokens", "calls")


def built(profile: Profile, raw: Path, runs: Path) -> Path:
    """The data set, from real raw files if there are some."""
    folder = runs / "data"
    if not (folder / "card.json").is_file():
        if not matches(raw, *FILES):
            raw = runs / "raw"
            examples.write_raw("squad", raw)
        made = build_source("squad", raw, profile.data, profile.seed, TRAIN_RATIO)
        dataset.save(folder, made)
    return folder


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


def floors(profile: Profile, test: Sequence[Instance], sizes: Sequence[int]) -> Iterator[tuple]:
    """(name, episodes) of what needs no model; `sizes` are tokens of each instance's memory."""
    rules = (profile.memory, profile.protocol)
    wire = profile.protocol.wire
    yield "keep_sentences", write(test, writer("keep_sentences", wire), *rules)
    first = ScriptedWriter("first", lambda request: keep_sentences(request)[:1], wire)
    yield "first sentence of each chunk", write(test, first, *rules)
    count = counter(profile.memory.counter).count
    for name, seed in (("random sentences", profile.seed), ("lead sentences", None)):
        episodes = []
        for instance, size in zip(test, sizes, strict=True):
            parts = draw(instance, size, count, seed)
            replies = [render_calls(map(_insert, part), wire) for part in parts]
            episodes += write([instance], ScriptedReplies(replies, name), *rules)
        yield name, episodes


def _insert(text: str) -> ToolCall:
    return ToolCall(INSERT, {"memory_type": "semantic_memory", "content": text})


def measured(profile: Profile, stage: str, episodes: list[Episode], test: Sequence[Instance]):
    """A row per article."""
    count, rows = counter(profile.memory.counter), []
    for episode in ask(episodes, test, reader("best_entry")):
        calls, answers = episode.calls, episode.answers
        valid = sum(call.status == "ok" for call in calls)
        values = {
            "qa": sum(answer.score for answer in answers) / len(answers),
            "valid_calls": valid / len(calls) if calls else None,
            "memory_tokens": tokens(episode.memory, count),
            "calls": len(calls),
        }
        rows.append({"stage": stage, "article": episode.instance, **values})
    return pd.DataFrame(rows)


def written(profile: Profile, by: Writer, test: Sequence[Instance], file: Path) -> list[Episode]:
    """Episodes of a writer, kept in a file."""
    from memalpha_kit.method.saved import load_episodes, save_episodes

    if not file.is_file():
        save_episodes(file, write(test, by, profile.memory, profile.protocol, seed=profile.seed))
    return load_episodes(file)


def summary(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Means with intervals over articles, and what GRPO gains, article by article."""
    rows = []
    for stage, part in table.groupby("stage", sort=False):
        for name in MEASURES:
            rows.append((stage, name, mean_interval(list(part[name]), seed), len(part)))
    for suffix in ("", ", greedy"):
        pair = [table[table["stage"] == stage + suffix] for stage in (WARM, GRPO)]
        if all(map(len, pair)):
            for name in MEASURES[:3]:
                gain = paired_interval(*(list(part[name]) for part in pair), seed)
                rows.append((f"gain of GRPO{suffix}", name, gain, len(pair[0])))
    return pd.DataFrame(
        [(stage, name, i.mean, i.low, i.high, n) for stage, name, i, n in rows],
        columns=["stage", "measure", "value", "low", "high", "n"],
    )


def main() -> None:
    """Runs what is missing and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/small"))
    parser.add_argument("--out", type=Path, default=Path("reports/small"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--profile", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--chunks", type=int, default=4, help="of a held-out article")
    parser.add_argument("--stages", nargs="+", default=[BEFORE, WARM, GRPO])
    options = parser.parse_args()
    started, profile = time.time(), load_profile(options.profile, options.set)
    torch.set_num_threads(profile.threads)
    runs = options.runs
    data = [built(profile, options.raw, runs)]
    test = articles(dataset.read(data[0]).test, options.chunks)
    found: list[pd.DataFrame] = []
    transcripts: dict[str, list[str]] = {"chunks": [i.chunks[0] for i in test[:2]]}
    for stage in options.stages:
        adapter = None
        folder = runs / stage.replace(" ", "_").lower()
        if stage == WARM:
            adapter = folder / "policy"
            if not adapter.is_dir():
                real.warm_start(profile, data, folder, resume=True)
        if stage == GRPO:
            adapter = folder / "policy"
            if not adapter.is_dir():
                learned = runs / "warm_start" / "policy"
                real.train(real.on_top(profile, learned), data, folder, resume=True)
        for suffix, heat in (("", profile.grpo.temperature), (", greedy", 0.0)):
            file = folder / f"test{suffix[2:]}.jsonl"
            by = None if file.is_file() else policy(profile, adapter, heat)
            episodes = written(profile, by, test, file)
            found.append(measured(profile, stage + suffix, episodes, test))
            transcripts[stage + suffix] = [e.steps[0].completion.text for e in episodes[:2]]
            report(options.out, found, transcripts, profile, runs)
            print(summary(found[-1], profile.seed).round(3).to_string(), flush=True)
    sizes = [int(size) for size in found[-2]["memory_tokens"]]
    for name, episodes in floors(profile, test, sizes):
        found.append(measured(profile, name, episodes, test))
    report(options.out, found, transcripts, profile, runs)
    steps = pd.read_csv(runs / "grpo" / "timings.csv").head(profile.grpo.steps)["step_s"]
    warm = files.load_json(runs / "warm_start" / "run.json")["duration_s"]
    facts = {"warm_start_s": warm, "grpo_s": round(steps.sum(), 1), "machine": machine()}
    inputs = [data[0] / name for name in ("train.parquet", "test.parquet")]
    files.run_card(options.out, profile, started, inputs, facts)
    packed(runs / "grpo" / "policy", profile.model.name, options.out / "adapter.zip")


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


def report(out: Path, found: list, transcripts: dict, profile: Profile, runs: Path) -> None:
    """Writes what is known so far."""
    table = pd.concat(found, ignore_index=True)
    files.save_table(out / "articles.csv", table.round(4))
    files.save_table(out / "results.csv", summary(table, profile.seed).round(4))
    files.save_json(out / "transcripts.json", transcripts)
    for name, source in (("warm_start.csv", "warm_start"), ("curves.csv", "grpo")):
        if (file := runs / source / "metrics.csv").is_file():
            steps = pd.read_csv(file)
            last = profile.grpo.steps if source == "grpo" else profile.warm_start.steps
            files.save_table(out / name, steps[steps["step"] <= last])


if __name__ == "__main__":
    main()
