"""Tables of runs: averages recomputed, paired tests, verdicts beside the paper."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from memalpha_kit import files as store
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation import paper, tables
from memalpha_kit.evaluation.methods import METHODS
from memalpha_kit.evaluation.paper import Claim, verdict
from memalpha_kit.evaluation.tables import AVERAGE, Bootstrap
from memalpha_kit.stats import detectable, holm, sign_flip

QUICK = Bootstrap(resamples=200)
QWEN = "qwen3-32b"
MEM1_WRITER = "Qwen2.5-7B-RL-RAG-Q2-EM-Release"


def answers(scores, method="ours", source="squad", profile="fixed", **columns) -> pd.DataFrame:
    """Rows from {instance: [score of each question]}."""
    rows = [
        {
            **{"method": method, "source": source, "instance": instance, "qa": f"q{index}"},
            **{"metric": "contains", "profile": profile, "score": score},
            "status": "infra_error" if score is None else "ok",
            **{"finish": "stop", "truncated": False, "memory_tokens": 20, "chunk_tokens": 100},
            **{"prompt_tokens": 50, "completion_tokens": 5, "cost_usd": 0.5},
            **columns,
        }
        for instance, found in scores.items()
        for index, score in enumerate(found)
    ]
    return pd.DataFrame(rows)


def built(table: pd.DataFrame, **columns) -> pd.DataFrame:
    made = table[["method", "source", "instance"]].drop_duplicates()
    counts = {"chunks": 2, "calls": 4, "calls_ok": 3, "unusable": 0}
    spent = {"prompt_tokens": 10, "completion_tokens": 1, "cost_usd": 1.0}
    return made.assign(**counts | spent | columns)


def both(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


# ---- table_sources ------------------------------------------------------------------------------


def test_an_average_is_the_mean_of_its_columns():
    """0.75 (not 0.6) and 0.5, so 0.625."""
    table = both(
        answers({"i1": [1, 1, 0, 0], "i2": [1]}, source="d1"), answers({"i3": [0.5]}, source="d2")
    )
    shown = tables.table_sources(table, built(table), QUICK).set_index("source")
    assert shown.score.tolist() == [0.75, 0.5, 0.625]
    assert shown.interval.tolist() == ["instances", "questions", "within columns"]
    assert shown.questions[AVERAGE] == 6 and shown.instances[AVERAGE] == 3
    assert pd.isna(shown.low["d2"]) and pd.isna(shown.low[AVERAGE])  # one question: no spread


def row_of(table: pd.DataFrame, source: str = "squad", **columns) -> pd.Series:
    rows = tables.table_sources(table, built(table, **columns), QUICK)
    return rows.set_index("source").loc[source]


def test_a_missing_score_is_counted_bounded_and_never_0():
    table = both(answers({"a": [1, None], "b": [1, 1]}), answers({"c": [0, 1]}, source="booksum"))
    row, average = row_of(table), row_of(table, AVERAGE)
    assert (row.score, row.missing, row.error_rate) == (1.0, 1, 0.25)
    assert (row.if_all_0, row.if_all_1) == (0.75, 1.0)
    assert (average.if_all_0, average.if_all_1) == (0.625, 0.75)
    other = both(answers({"a": [1]}), answers({"b": [None]}, source="hotpotqa"))
    assert row_of(other).score == 1.0
    assert pd.isna(row_of(other, AVERAGE).score)  # it would be one over other columns


def test_a_question_that_a_method_cannot_be_asked_is_no_error():
    table = answers({"a": [1, None], "b": [1, 1]}, "gold-chunk")
    table.loc[table.score.isna(), ["status", "prompt_tokens"]] = ["skipped", None]
    row = row_of(table)
    assert (row.skipped, row.missing, row.error_rate, row.score) == (1, 0, 0.0, 1.0)
    assert row.if_all_0 == 1.0 and row.prompt_tokens == 170
    nobody = row_of(table.assign(status="skipped", score=None))
    assert nobody.instances == 2 and pd.isna(nobody.memory_tokens) and pd.isna(nobody.compression)


def test_tokens_are_means_over_instances_and_costs_are_sums_of_what_is_known():
    table = both(
        answers({"a": [1, 0, 1]}, memory_tokens=10, chunk_tokens=100),
        answers({"b": [1]}, memory_tokens=90, chunk_tokens=100),
    )
    row = row_of(table)
    assert (row.memory_tokens, row.chunk_tokens, row.compression) == (50, 100, 0.5)
    assert (row.prompt_tokens, row.completion_tokens, row.cost_usd) == (220, 22, 4.0)
    assert (row.calls, row.calls_per_chunk, row.call_success) == (8, 2.0, 0.75)
    silent = row_of(table, calls=0, calls_ok=0)
    assert (silent.calls, silent.calls_per_chunk) == (0, 0.0) and pd.isna(silent.call_success)
    unknown = row_of(answers({"a": [1, 0]}, cost_usd=None))
    assert pd.isna(unknown.cost_usd) and unknown.prompt_tokens == 110
    failed = answers({"a": [1, None]})
    failed["prompt_tokens"] = failed["prompt_tokens"].astype(float).where(failed.score.notna())
    assert row_of(failed).prompt_tokens == 60  # it does not hide the others


def test_what_a_notebook_shows_has_no_average_over_fewer_sources_and_no_pair_without_a_test(
    monkeypatch,
):
    first = both(answers({"a": [1.0], "b": [0.0]}), answers({"c": [1.0]}, source="trec"))
    other = answers({"a": [0.0], "b": [0.0]}, "other")
    made = both(first, other)
    monkeypatch.setattr(tables.scores, "frames", lambda found: (made, built(made)))
    shown = tables.compared({"ours": [], "other": []}, QUICK)
    averages = shown["sources"][shown["sources"].source == AVERAGE]
    assert averages.method.tolist() == ["ours"]
    assert shown["pairs"].p.notna().all() and set(shown["pairs"].method) == {"other"}
    assert tables.compared({}) == {}


def test_two_profiles_in_one_table_are_refused():
    table = both(answers({"a": [1]}), answers({"a": [1]}, "b", profile="release-agent"))
    with pytest.raises(InputError, match="expected one profile for all runs, found fixed, release"):
        tables.table_sources(table, built(table))


def test_rollouts_of_an_instance_share_its_voice_and_a_seed_gives_one_table():
    table = answers({"a#0": [1, 0], "a#1": [1, 1], "b#0": [0, 0], "b#1": [0, 0]})
    first, second = (tables.table_sources(table, built(table), QUICK) for _ in range(2))
    assert (first.score[0], first.instances[0], first.questions[0]) == (0.375, 2, 8)
    assert first.equals(second)


# ---- intervals and tests ------------------------------------------------------------------------


def test_p_counts_all_sign_flips_of_few_units():
    """Three equal gains: 2 of the 8 flips are as far from 0 as what was seen."""
    gains, units = [0.5, 0.5, 0.5], list("abc")
    assert sign_flip(gains, ["s"] * 3, units, 0) == 2 / 8
    assert sign_flip([0, 0, 0], ["s"] * 3, units, 0) == 1.0
    assert sign_flip([-1, -0.4, 0.4, 1], ["s"] * 4, range(4), 0) == 1.0  # a sum of rounding alone
    assert sign_flip([0.5], ["s"], ["a"], 0) is None
    ten_each = ["a"] * 10 + ["b"] * 10  # about one memory: one piece of evidence, not ten
    assert sign_flip([1.0] * 20, ["s"] * 20, ten_each, 0) == 0.5


def test_p_of_many_units_is_small_where_there_is_a_difference_and_never_0():
    rng = np.random.default_rng(1)
    gains = rng.normal(0.5, 1, 100)
    p = sign_flip(gains, ["s"] * 100, list(range(100)), 0)
    assert 0 < p < 0.01
    same = [sign_flip(rng.normal(0, 1, 30), ["s"] * 30, range(30), 0, n=500) for _ in range(60)]
    assert sum(p < 0.05 for p in same) <= 8  # expected 3


def test_the_detectable_difference_is_found_in_80_per_cent_of_the_cases():
    rng = np.random.default_rng(2)
    n = 40
    effect = detectable(rng.normal(0, 1, 4000), ["s"] * 4000, range(4000)) * (4000 / n) ** 0.5
    trials = [
        sign_flip(rng.normal(effect, 1, n), ["s"] * n, range(n), 0, n=400) for _ in range(200)
    ]
    assert 0.7 < np.mean([p < 0.05 for p in trials]) < 0.9
    assert detectable([0.0] * 9, ["s"] * 9, range(9)) is None  # without spread
    assert detectable([0.1, 0.2], ["s"] * 2, range(2)) is None


# ---- pairs --------------------------------------------------------------------------------------


def test_methods_are_compared_on_the_questions_that_both_answered():
    table = both(
        answers({"a": [1, 1, None], "b": [0, 1]}, "first"),
        answers({"a": [1, None, 1], "b": [0, 0]}, "second"),
    )
    (row,) = tables.table_pairs(table, QUICK).to_dict("records")
    assert (row["questions"], row["units"]) == (3, 2)
    assert (row["score_against"], row["score"], row["difference"]) == (0.75, 0.5, -0.25)


def test_several_sources_get_an_average_row_in_which_each_weighs_the_same():
    parts = [
        answers({"a": [right] * 8}, method, source)
        for source, first, second in (("squad", 0, 1), ("hotpotqa", 0, 0))
        for method, right in (("first", first), ("second", second))
    ]
    table = tables.table_pairs(both(*parts), QUICK)
    assert table.source.tolist() == ["squad", "hotpotqa", AVERAGE]
    assert table.difference.tolist() == [1.0, 0.0, 0.5]
    assert table.units.tolist() == [8, 8, 16]
    assert table.p[0] == 2 / 2**8 and table.p_holm[0] == 3 * table.p[0]
    # by hand: sorted 0.01, 0.03, 0.04 times 3, 2, 1 and never decreasing
    assert holm([0.04, None, 0.01, 0.03]) == [0.06, None, 0.03, 0.06]


def test_a_method_that_was_asked_something_else_is_left_out_of_the_pairs():
    table = both(
        answers({"i1": [1], "i2": [0]}, "bm25"),
        answers({"i1": [0], "i2": [0]}, "memory"),
        answers({"j1": [1]}, "mem1", source="hotpotqa"),
    )
    assert tables.table_pairs(table, QUICK).method.unique().tolist() == ["memory"]
    assert tables.table_pairs(table[table.method != "memory"], QUICK).empty
    assert tables.table_pairs(table[table.method == "memory"], QUICK).empty


# ---- the paper ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "low", "high", "printed", "n", "expected"),
    [
        (0.60, 0.55, 0.65, 0.62, 100, "reproduced"),
        (0.60, 0.55, 0.65, 0.6504, 100, "reproduced"),  # rounding
        (0.60, 0.55, 0.65, 0.66, 100, "cannot tell"),  # outside, but the paper's is uncertain too
        (0.60, 0.55, 0.65, 0.68, 100, "not reproduced"),
        (0.60, 0.55, 0.65, 0.52, 100, "not reproduced"),
        (0.60, 0.45, 0.75, 0.62, 100, "cannot tell"),  # too wide
        (0.60, 0.45, 0.75, 0.10, 100, "not reproduced"),
        (0.60, 0.55, 0.65, 0.62, 4, "cannot tell"),
        (0.60, None, None, 0.62, 1, "cannot tell"),
        (None, None, None, 0.62, 100, "cannot tell"),
        (0.60, 0.55, 0.65, None, 100, "cannot tell"),
        (1.0, 1.0, 1.0, 0.95, 30, "cannot tell"),  # all alike: not seen in 30 may be 1 in 10
        (1.0, 1.0, 1.0, 0.85, 30, "not reproduced"),
        (1.0, 1.0, 1.0, 1.0, 30, "reproduced"),
    ],
)
def test_verdicts(ours, low, high, printed, n, expected):
    said, why = verdict(ours, low, high, printed, n)
    assert said == expected and why


def test_a_verdict_says_how_far_our_interval_reaches_towards_the_printed_score():
    why = "printed +0.080 away, our interval +0.050"
    assert verdict(0.6, 0.55, 0.65, 0.68, 100) == ("not reproduced", why)


def test_no_verdict_with_failures_or_another_model():
    assert verdict(0.6, 0.55, 0.65, 0.6, 100, missing=1)[1] == "1 questions have no score"
    assert verdict(0.6, 0.55, 0.65, 0.6, 100, doubt="another model")[0] == "cannot tell"


def test_the_papers_averages_that_its_columns_do_not_give():
    """Recomputed from the printed columns."""
    with pytest.raises(InputError, match="'table5'"):
        paper.paper_results("table5")
    found = paper.paper_averages(paper.paper_results())
    differ = found[found.differs].astype(object).fillna("")
    assert {
        (row.table, row.method, row.beta, row.gamma, row.score_printed, row.score_recomputed)
        for row in differ.itertuples()
    } == {
        (1, "Mem-alpha", 0.05, 0.1, 0.642, 0.619),
        (3, "Mem-alpha", 0.05, 0.1, 0.642, 0.619),
        (4, "Mem-alpha", 0.05, 0.1, 0.642, 0.619),
        (1, "MemAgent", "", "", 0.236, 0.226),
        (2, "Long-Context", "", "", 0.461, 0.48),
        (2, "RAG-Top2", "", "", 0.502, 0.532),
        (3, "Qwen3-4B", "", "", 0.389, 0.391),
        (4, "Mem-alpha", 0.0, 0.1, 0.63, 0.62),
        (4, "Mem-alpha", 0.2, 0.1, 0.525, 0.515),
        (9, "Mem-alpha", 0.05, 0.0, 0.445, 0.443),
        (9, "Mem-alpha", 0.2, 0.1, 0.351, 0.382),
    }


def test_ours_beside_the_papers():
    printed = paper.paper_results("table1")
    columns = printed[(printed.method == "RAG-Top2") & (printed.dataset != AVERAGE)]
    table = both(
        *(
            answers({f"i{i}": [s] for i in range(10)}, "bm25", source, memory_tokens=9000)
            for source, s in zip(columns.source, columns.score, strict=True)
        )
    )
    ours = tables.table_sources(table, built(table), QUICK)
    shown = paper.table_paper(
        ours, printed, Claim("RAG-Top2"), {"squad": "another metric"}
    ).set_index("dataset")
    assert shown.verdict["HotpotQA"] == "reproduced"
    assert shown.why["SQuAD"] == "another metric"
    assert (shown.printed[AVERAGE], shown.compared_with[AVERAGE]) == (0.567, 0.5666)
    assert shown.why[AVERAGE] == "some columns are not alike"
    assert shown.memory_ktok["SQuAD"] == 9.0
    alike = paper.table_paper(ours, printed, Claim("RAG-Top2"))
    assert alike.verdict.unique().tolist() == ["reproduced"] and len(alike) == 8


@pytest.mark.parametrize(
    ("said", "writer", "row", "doubt"),
    [
        (("bm25", "qwen/qwen3-32b"), "", "RAG-Top2", ""),
        (("long-context", "Qwen/Qwen3-32B"), "", "Long-Context", ""),
        (("long-context", "gpt-4o-mini"), "", "Long-Context", "answered by gpt-4o-mini"),
        (("memagent", "BytedTsinghua-SIA/RL-MemoryAgent-14B"), "", "MemAgent", ""),
        (("memory", QWEN), "YuWangX/Memalpha-4B", "Mem-alpha", ""),
        (("memory", QWEN), "Qwen/Qwen3-4B", "Qwen3-4B", ""),
        (("memory", QWEN), "keep_sentences", "Mem-alpha", "memory written by keep_sentences"),
        (("memory", None), "gpt-4.1-mini", "gpt-4.1-mini", "answered by no model"),
        # a search with 20 chunks is no "RAG-Top2"; the release's own runs have a row too
        (("bm25", QWEN, {"top_k": 2, "window": 30_000, "temperature": 0.0}), "", "RAG-Top2", ""),
        (("bm25", QWEN, {"top_k": 20}), "", "RAG-Top2", "top_k is 20, the paper's 2"),
        (("long-context", QWEN, {"window": 126_000}), "", "Long-Context", "window is 126000, the"),
        (("memory", QWEN, {"reader": "agentic"}), "Memalpha-4B", "Mem-alpha", "reader is agentic"),
        (("memory", QWEN, {"memory": {"core": False}}), "Memalpha-4B", "Mem-alpha", "memory.core"),
        (("mem1", QWEN, {"window": 30_000}), "", "MEM1", "summaries by qwen3-32b"),
        (("mem1", QWEN, {"write_model": f"Mem-Lab/{MEM1_WRITER}"}), "", "MEM1", ""),
        (("mem1", QWEN, {"rollouts": "sha256:00"}), "", "MEM1", ""),
        (("release-qwen3-32b-bm25", QWEN, {"top_k": 2}), "", "RAG-Top2", ""),
        (
            ("release-agent-agentic", QWEN, {"reader": "agentic"}),
            *("Memalpha-4B", "Mem-alpha", "reader is agentic"),
        ),
    ],
)
def test_a_run_stands_beside_a_row_of_the_paper_or_gets_no_verdict(said, writer, row, doubt):
    method, model, more = (*said, {})[:3]
    found = paper.claim({"method": {"method": method, "model": model, **more}}, writer)
    assert found.method == row and found.doubt.startswith(doubt)
    assert bool(found.doubt) == bool(doubt)
    weights = (0.05, 0.1) if row == "Mem-alpha" else (None, None)  # the paper's main run
    assert (found.beta, found.gamma) == weights


def test_what_is_published_is_what_the_methods_do_by_default():
    assert paper.claim({"method": {"method": "closed-book"}}) is None  # a floor
    for name, wanted in paper.PUBLISHED.items():
        flat = store.flat(asdict(METHODS[name].Settings()))
        assert {key: flat[key] for key in wanted} == wanted


def test_other_metrics_and_other_data_are_doubts():
    table = both(
        answers({f"i{i}": [1] for i in range(30)}, "bm25", metric="contains@release"),
        answers({f"i{i}": [1] for i in range(3)}, "bm25", source="hotpotqa",
                metric="contains@release"),
        answers({"i0": [1]}, "bm25", source="booksum", metric="keywords"),
    )  # fmt: skip
    found = paper.doubts(table, Claim("RAG-Top2"), 1)
    assert found == {
        "hotpotqa": "3 instances, the paper had 219",
        "booksum": "scored by keywords, the paper by keywords@release",
    }


def test_an_average_over_fewer_columns_is_not_compared():
    table = answers({f"i{i}": [0.762] for i in range(10)}, "bm25")
    ours = tables.table_sources(table, built(table), QUICK)
    shown = paper.table_paper(ours, paper.paper_results(1), Claim("RAG-Top2")).set_index("dataset")
    assert shown.verdict["SQuAD"] == "reproduced"
    assert shown.why[AVERAGE] == "not all columns of the paper were run"
    assert shown.why["PubMed"] == "no score of ours"


def test_markdown_shows_unknown_cells_blank():
    table = pd.DataFrame([{"name": "a|b", "score": 0.5, "tokens": 12345, "cost": None}])
    assert tables.markdown(table) == (
        "| name | score | tokens | cost |\n"
        "| --- | --- | --- | --- |\n"
        "| a\\|b | 0.500 | 12345 |  |\n"
    )
