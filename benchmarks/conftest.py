"""What every benchmark is given: `meter`, which times ours and the plain way by turns.

    def bench_search(meter):
        meter.versus("search", "5,000 entries", ours, plain, want=("ratio", ">=", 200))

pytest-benchmark takes the times of ours; the plain way runs before each of its rounds, so that
both see the same machine, and each pair of results must be equal. Seconds are the process's own
processor seconds, so that other work on the machine counts as little as possible. `meter.add` is
for what is not a time of one function: memory, shares, tokens per second. `report.py` makes tables
of all rows.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
for _name in ("TOKENIZERS_PARALLELISM", "HF_DEACTIVATE_ASYNC_LOAD"):
    os.environ.setdefault(_name, {"TOKENIZERS_PARALLELISM": "false"}.get(_name, "1"))

Want = tuple[str, str, float]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `memalpha bench`."""
    parser.addoption("--quick", action="store_true", help="small sizes, few rounds")
    parser.addoption("--out", type=Path, default=None, help="folder of report.md and report.csv")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and where it lies in 95 % of 1,000 bootstrap samples."""
    draws = np.random.default_rng(0).choice(np.array(values), (1000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


class Meter:
    """Makes the rows of one benchmark. `quick`: the sizes are for a look."""

    def __init__(self, benchmark: Any, quick: bool, group: str) -> None:
        self.benchmark, self.quick, self.group = benchmark, quick, group
        benchmark.group = group
        self.rows: list[dict[str, Any]] = benchmark.extra_info.setdefault("rows", [])

    def add(self, what: str, size: str = "", *, want: Want | None = None, **values: Any) -> None:
        """A row with any of `ours_s`, `plain_s`, `ratio`, `low`, `high`, `value`, `unit`."""
        row = {"group": self.group, "what": what, "size": size, **values}
        if want:
            row |= {"wanted": f"{want[0]} {want[1]} {want[2]:g}", "met": _met(row, want)}
        self.rows.append(row)

    def once(self, action: Callable[[], Any]) -> Any:
        """Runs it once, timed as a whole; its rows come from `add`."""
        return self.benchmark.pedantic(action, rounds=1)

    def versus(
        self,
        what: str,
        size: str,
        ours: Callable[..., Any],
        plain: Callable[..., Any] | None = None,
        *,
        rounds: int = 15,
        per: int = 1,
        fresh: Callable[[], tuple] = lambda: (),
        settle: Callable[[], object] = lambda: None,
        same: Callable[[Any, Any], bool] = lambda a, b: a == b,
        growth: bool = False,
        want: Want | None = None,
        **values: Any,
    ) -> Any:
        """The row of `ours(*fresh())` beside `plain` of the same; what ours gave last.

        `per`: operations in a call. `settle` runs between the two, so that the plain way's rubbish
        is not in our time. The ratio is plain/ours of each round; with `growth` it is
        ours/plain, and the results, of other sizes, are not compared.
        """
        rounds, plain_s, results = min(rounds, 3) if self.quick else rounds, [], []

        def check() -> None:
            if plain and results and not growth:
                assert same(results[1], results[0]), f"{what}, {size}: the results differ"

        def prepare() -> tuple[tuple, dict]:
            check()
            results.clear()
            arguments = fresh()
            if plain:
                started = time.process_time()
                results.append(plain(*arguments))
                plain_s.append(time.process_time() - started)
            settle()
            return arguments, {}

        def timed(*arguments: Any) -> Any:
            results.append(ours(*arguments))
            return results[-1]

        last = self.benchmark.pedantic(timed, setup=prepare, rounds=rounds, warmup_rounds=1)
        ours_s = self.benchmark.stats.stats.data
        row: dict[str, Any] = {"ours_s": float(np.median(ours_s)) / per}
        if plain:
            check()
            pairs = zip(plain_s[1:], ours_s, strict=True)
            ratios = [b / a if growth else a / b for a, b in pairs]
            row |= {"plain_s": float(np.median(plain_s[1:])) / per}
            row |= dict(zip(("ratio", "low", "high"), interval(ratios), strict=True))
        self.add(what, size, want=want, **row, **values)
        return last


def _met(row: dict[str, Any], want: Want) -> bool:
    name, how, limit = want
    return row[name] >= limit if how == ">=" else row[name] <= limit


class Texts:
    """Made-up sentences; words are as unequally frequent as in a language.

    All seeds have the same words, so that a query meets those of the memory it is asked of.
    """

    def __init__(self, seed: int = 0) -> None:
        rng, self.rng = random.Random(0), random.Random(seed)
        self.words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(20_000)]
        self.weights = np.cumsum([1 / (rank + 3) for rank in range(len(self.words))]).tolist()

    def sentence(self, n_words: int = 25) -> str:
        """So many words."""
        return " ".join(self.rng.choices(self.words, cum_weights=self.weights, k=n_words))


@pytest.fixture
def meter(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Meter]:
    """See this module's first lines. The garbage collector does not look at what other benchmarks
    have left, or a row would depend on those before it."""
    group = (request.module.__doc__ or "").partition(":")[0]
    gc.collect()
    gc.freeze()
    yield Meter(benchmark, request.config.getoption("--quick"), group)
    gc.unfreeze()


@pytest.fixture
def texts() -> Texts:
    """A new generator, always of the same seed."""
    return Texts()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Adds what speed depends on."""
    machine_info |= {**report.machine(), "measured": report.measured()}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list, output_json: dict
) -> None:
    """Writes the two reports beside pytest-benchmark's own JSON."""
    rows = [row for one in output_json["benchmarks"] for row in one["extra_info"]["rows"]]
    if out := config.getoption("--out"):
        report.write(Path(out), rows, output_json["machine_info"], sys.argv[1:])
