"""How far a memory carries: the same questions while the input grows around what answers them.

    haystacks = nested(instances, (1, 4, 13), seed=0)
    rules = MemoryConfig(), ProtocolConfig()
    rows = measure(haystacks, writer("keep_sentences"), reader("best_entry"), rules)
    table_haystacks(rows)         a row per length and measure, with its interval

Instances are written one after the other, as their seconds are measured; scores are by the metric
that needs no judge.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from memalpha_kit import files
from memalpha_kit.data.haystacks import only_hay
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.memory import tokens
from memalpha_kit.method.readers import Reader
from memalpha_kit.method.rewards import mean
from memalpha_kit.method.writers import Writer, writer
from memalpha_kit.progress import bar
from memalpha_kit.records import Instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.stats import mean_interval
from memalpha_kit.tokens import counter

MEASURES = ("score", "score_of_hay", "memory_tokens", "prompt_tokens", "seconds")
"""What is measured; `score_of_hay` is that of every sentence of the hay alone, by the same reader:
what the questions bring without what answers them."""
Rules = tuple[MemoryConfig, ProtocolConfig]


def measure(
    haystacks: Mapping[int, Sequence[Instance]],
    by: Writer,
    reader: Reader,
    rules: Rules,
    seed: int = 0,
    out: Path | None = None,
    settings: Mapping[str, Any] = {},
    only: Collection[int] = (),
) -> pd.DataFrame:
    """A row per length and instance: length, instance, chunks, chunk_tokens and `MEASURES`.

    `haystacks` is from `data.haystacks.nested`, with length 1, beside which hay is told; `only`
    names those to measure. `prompt_tokens` is the mean prompt of a chunk, and
    is missing where nobody counts tokens (a writer by rule); `seconds` are of writing and asking.
    With `out`, a folder, each length is kept there under `settings`, and used again by another call
    with the same ones; others are refused.
    """
    if out:
        files.resume_or_refuse(out, settings)
    frames, shortest = [], haystacks[min(haystacks)]
    asked = {length: part for length, part in haystacks.items() if length in (only or haystacks)}
    with bar(sum(len(i.chunks) for part in asked.values() for i in part), by.name) as shown:
        for length, instances in asked.items():
            kept = out / f"length_{length}x.csv" if out else None
            if kept and kept.is_file():
                frames.append(pd.read_csv(kept))
                continue
            rows = []
            for short, instance in zip(shortest, instances, strict=True):
                rows.append({"length": length} | _measured(instance, by, reader, rules, seed))
                rows[-1]["score_of_hay"] = _of_hay(only_hay(instance, short), reader)
                shown.advance(len(instance.chunks))
            frames.append(pd.DataFrame(rows))
            if kept:
                files.save_table(kept, frames[-1])
    return pd.concat(frames, ignore_index=True).astype(dict.fromkeys(MEASURES, float))


def _measured(
    instance: Instance, by: Writer, reader: Reader, rules: Rules, seed: int
) -> dict[str, Any]:
    started, counts = time.perf_counter(), counter(rules[0].counter)
    (episode,) = ask(write([instance], by, *rules, seed=seed), [instance], reader)
    prompts = [n for step in episode.steps if (n := len(step.completion.prompt_ids))]
    return {
        "instance": instance.id,
        "chunks": len(instance.chunks),
        "chunk_tokens": sum(map(counts.count, instance.chunks)),
        "score": mean([answer.score for answer in episode.answers]),
        "memory_tokens": tokens(episode.memory, counts),
        "prompt_tokens": sum(prompts) / len(prompts) if prompts else None,
        "seconds": time.perf_counter() - started,
    }


def _of_hay(instance: Instance, reader: Reader) -> float | None:
    """The score of the questions from every sentence of the hay; None where there is none."""
    if not instance.chunks:
        return None
    episodes = write([instance], writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
    (asked,) = ask(episodes, [instance], reader)
    return mean([answer.score for answer in asked.answers])


def table_haystacks(rows: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """A row per measure and length: chunk_tokens, mean over instances, low, high, n, missing.

    Intervals are 95 %. Values that are not known are missing, and so is a mean of none.
    """
    found = []
    for measure in MEASURES:
        for length, part in rows.groupby("length"):
            one = mean_interval(part[measure].tolist(), seed, resamples)
            place = {"measure": measure, "length": length}
            place |= {"chunk_tokens": part["chunk_tokens"].mean()}
            values = {name: getattr(one, name) for name in ("mean", "low", "high", "n", "missing")}
            found.append(place | values)
    return pd.DataFrame(found).astype(dict.fromkeys(("mean", "low", "high"), float))
