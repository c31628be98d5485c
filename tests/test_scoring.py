"""One scorer: statuses, the judge, and where the profiles differ."""

import dataclasses

import pytest

from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import InputError
from memalpha_kit.evaluation.scoring import RULES, Item, Scored, parity, score_all
from memalpha_kit.lab import miniature, world
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.judges import Verdict
from memalpha_kit.method.metrics import METRICS
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.writers import writer
from memalpha_kit.records import QA, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tasks import JUDGED, SCORING, TASKS, Task, metric_of

PROFILES = ("fixed", "release-agent", "release-baseline", "release-training", "memoryagentbench")
FIXED, A, B, T, M = PROFILES


def score(source, prediction, gold, profile=FIXED, judge=None):
    [scored] = score_all([Item(source, prediction, gold)], profile, judge)
    return scored


# --- The table -----------------------------------------------------------------------------------

TREC, NLU_SOURCE = "icl_trec_coarse_6600shot_balance", "icl_nlu_8296shot_balance"
TABLE = [  # source, fixed, A, B, T
    ("squad", "contains", "contains@release", "contains@release", "contains@release"),
    ("hotpotqa", "contains", "contains@release", "contains@release", "contains@release"),
    ("perltqa", "perltqa", "perltqa@release", "perltqa@release", "perltqa@release"),
    ("booksum", "keywords", *["keywords@release"] * 2, "keywords@release-training"),
    ("infbench_sum_eng_shots2", "keywords", *["keywords@release"] * 2, "rouge_l@release"),
    ("pubmed-rct", "label", "label@release", "label@release", "label@release"),
    (TREC, "label", "label@release", "label@release-baseline", "label@release-training"),
    ("ttl_train", "label", "substring@release", "substring@release", "label@release"),
    ("test_time_learning", "label", "substring@release", "label@release", "substring@release"),
    ("lme_train", "judge", "judge@release", "substring@release", "judge@release"),
    ("longmemeval_s*", "judge", "judge@release", "judge@release", "substring@release"),
    ("ruler_qa1_197K", "substring", "substring@release", "contains@release", "substring@release"),
    ("infbench_qa_eng_shots2", "rouge_l", *["rouge_l@release"] * 3),
]


@pytest.mark.parametrize(("source", "fixed", "a", "b", "t"), TABLE, ids=lambda v: v)
def test_every_source_has_the_metrics_of_the_table(source, fixed, a, b, t):
    assert [metric_of(source, profile) for profile in PROFILES[:4]] == [fixed, a, b, t]


PUBLISHED = set(SOURCES) - {"text", "locomo"}  # for which the published scorers have a metric


@pytest.mark.parametrize("name", sorted(PUBLISHED | {"miniature"}))
def test_no_source_of_the_kit_is_missing_and_every_metric_exists(name):
    names = [metric_of(name, profile) for profile in PROFILES[:4]]
    if TASKS[name].role == "eval":
        names.append(metric_of(name, M))
    assert set(names) <= {*METRICS.names(), *JUDGED}
    assert metric_of(name, judged=False) in METRICS
    assert {stand_in for stand_in in JUDGED.values() if stand_in} <= {*METRICS.names()}


def test_without_a_judge_a_source_is_scored_by_the_metric_of_its_own_row(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", Task("mine", "rouge_l", judge="judge"))
    monkeypatch.setitem(TASKS, "bare", Task("bare", "", judge="judge"))
    assert (metric_of("mine"), metric_of("mine", judged=False)) == ("judge", "rouge_l")
    assert metric_of("bare", judged=False) == metric_of("longmemeval", judged=False) == "substring"


def test_every_profile_says_which_metric_and_what_is_compared():
    assert SCORING.names() == RULES.names() == PROFILES
    assert metric_of("miniature") == miniature.METRIC and world.SOURCE == "miniature"


def test_the_published_scorers_disagree_on_nine_of_the_sixteen_reported_columns():
    """2 of 7 of the validation and 7 of 9 of the benchmark, agents against baselines."""
    validation = ["squad", "hotpotqa", "perltqa", "pubmed-rct", "booksum", TREC, NLU_SOURCE]
    evaluated = [name for name, row in TASKS.items() if row.role == "eval"]
    benchmark = [name for name in evaluated if not name.startswith("factconsolidation")]
    assert (len(validation), len(benchmark)) == (7, 9)
    differ = [metric_of(name, A) != metric_of(name, B) for name in validation + benchmark]
    assert (sum(differ[:7]), sum(differ[7:])) == (2, 7)


@pytest.mark.parametrize(
    ("source", "profile", "message"),
    [
        ("squat", "fixed", "did you mean 'squad'"),
        ("icl_trec_coarse", "fixed", "'icl_trec_coarse'; did you mean 'trec_coarse'"),
        ("squad", "release", "found 'release'; did you mean 'release-"),
        ("squad", M, "source squad: profile memoryagentbench has no metric for it"),
    ],
)
def test_an_unknown_source_or_profile_is_refused_with_the_closest(source, profile, message):
    with pytest.raises(InputError, match=message):
        score(source, "x", ("x",), profile)


# --- Profiles on the worked examples ------------------------------------------------------------

FOUR = "Ahab, Pequod, Queequeg, white whale"
EXAMPLES = [  # source, prediction, gold, score under each profile that has a metric
    # what is cut from a reply is of the profile, not of the metric
    ("pubmed-rct", "<think>x</think>\n\n5", "5", (1, 1, 1, 1)),
    ("pubmed-rct", "x</think>5", "5", (1, 1, 1, 0)),
    ("pubmed-rct", "<think>abc", "5", (0, 0, 0, 0)),
    ("pubmed-rct", "<think>a</think>5</think>6", "5", (0, 1, 1, 1)),  # two answers
    # labels; in training a list as gold never equals
    (NLU_SOURCE, r"\boxed{7}", "7", (1, 1, 1, 1, 0)),
    (NLU_SOURCE, r"\boxed{17}", "7", (0, 0, 1, 0, 0)),
    (NLU_SOURCE, "The label is seven.\n\n" + r"\boxed{7}", "7", (1, 1, 0, 1, 0)),
    (NLU_SOURCE, "Label: 7", "7", (0, 0, 1, 0, 0)),
    (NLU_SOURCE, r"Use \boxed{label}. \boxed{7}", "7", (1, 0, 1, 0, 0)),
    (NLU_SOURCE, r"\boxed{7}", ("7",), (1, 1, 1, 0, 0)),
    (NLU_SOURCE, "7", ("7",), (1, 1, 1, 0, 1)),
    (NLU_SOURCE, "Answer: 7", ("7",), (0, 0, 1, 0, 1)),
    # several golds: the released baselines know the first only
    ("ruler_qa1_197K", "City of Light", ("Paris", "City of Light"), (1, 1, 0, 1, 1)),
    ("ruler_qa1_197K", "U.S.A.", ("USA",), (1, 1, 0, 1, 1)),
    ("squad", "City of Light", ("Paris", "City of Light"), (1, 0, 0, 0)),
    ("booksum", "Ahab hunts the whale aboard the Pequod", FOUR, (0.5, 0.5, 0.5, 0.5)),
    ("booksum", "ahab and starbuck", "Ahab,Starbuck", (1, 0, 0, 1)),
    ("booksum", "the artist sailed", ("art", "sail", "sea"), (2 / 3, 2 / 3, 2 / 3, None)),
    ("booksum", "nothing", "", (None, 1, 1, 1)),
    ("perltqa", "She has a Bachelor in Art.", "Bachelor; Art", (1, 0, 0, 0)),
    ("perltqa", "He plays tennis", "Chess; ", (0, 0.5, 0.5, 0.5)),
    ("infbench_sum_eng_shots2", "the cat", ("cat", "mat"), (0.5, 0.5, 0.5, 2 / 3, None)),
    # an unclosed thought is the word "Empty" in the release, and no answer here
    ("squad", "<think>hm", "Empty", (0, 1, 1, 1)),
    # LongMemEval without a judge: the metric that stands in
    ("longmemeval_s*", "gold", ("Gold",), (1, 1, 1, 1, 1)),
]


@pytest.mark.parametrize(("source", "prediction", "gold", "expected"), EXAMPLES)
def test_the_same_answer_under_every_profile(source, prediction, gold, expected):
    scores = [score(source, prediction, gold, p).score for p in PROFILES[: len(expected)]]
    assert scores == [x if x is None else pytest.approx(x) for x in expected]


# --- Statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("Paris", ("Paris",), (1.0, "ok")),
        ("Lyon", ("Paris",), (0.0, "ok")),
        ("It is Paris, written after the <think> tag.", ("Paris",), (1.0, "ok")),
        ("", ("Paris",), (0.0, "no_answer")),
        ("<think>x", ("Paris",), (0.0, "no_answer")),
        (None, ("Paris",), (None, "infra_error")),
        ("Paris", ("",), (None, "data_error")),
        ("Paris", (), (None, "data_error")),
        ("Paris", ("The",), (0.0, "ok")),
        ("", ("",), (None, "data_error")),
        (None, ("",), (None, "data_error")),  # asking again would not help
    ],
)
def test_a_status_says_why_there_is_a_score_or_none(prediction, gold, expected):
    found = score("ruler_qa1_197K", prediction, gold)
    assert (found.score, found.status) == expected
    assert found.score is None or type(found.score) is float


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("source", ["ruler_qa1_197K", "longmemeval_s*", "infbench_sum_eng_shots2"])
def test_a_failed_model_is_never_scored_under_any_profile(source, profile):
    for judge in (None, lambda asked: [Verdict(True)] * len(asked)):
        found = score(source, None, ("Empty",), profile, judge)
        assert (found.score, found.status) == (None, "infra_error")


# --- The judge -----------------------------------------------------------------------------------

LME = "longmemeval_s*"


class Rule:
    """Right if the answer is "yes"; cannot read "hm". Keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, asked):
        self.seen.append([item.prediction for item in asked])
        said = [{"hm": None}.get(item.prediction, item.prediction == "yes") for item in asked]
        return [Verdict(valid, reply="r") for valid in said]


def test_a_judge_is_asked_once_and_only_about_what_needs_it():
    judge = Rule()
    said = ["<think>a</think>yes", "no", "hm", "<think>x", "", None]
    asked = [Item(LME, text, ("gold",), "Q?") for text in said]
    asked += [Item("squad", "gold", ("gold",)), Item(LME, "yes", ("",))]
    found = score_all(asked, judge=judge)
    assert judge.seen == [["yes", "no", "hm"]]
    assert [s.score for s in found] == [1.0, 0.0, None, 0.0, 0.0, None, 1.0, None]
    errors = "judge_error", "no_answer", "no_answer", "infra_error", "ok", "data_error"
    assert [s.status for s in found] == ["ok", "ok", *errors]
    assert [s.metric for s in found] == ["judge"] * 6 + ["contains", "judge"]
    assert [s.judge_reply for s in found[:4]] == ["r", "r", "r", ""]


def test_in_the_release_the_judge_is_shown_the_word_empty():
    judge = Rule()
    found = score(LME, "<think>x", ("gold",), A, judge)
    assert judge.seen == [["Empty"]] and (found.metric, found.score) == ("judge@release", 0.0)


def test_what_stands_in_for_a_judge_is_named_and_a_summary_score_needs_one():
    names = [score(LME, "gold", ("Gold",), profile).metric for profile in PROFILES]
    assert names == ["substring", *["substring@release"] * 3, "substring"]
    none = score("infbench_sum_eng_shots2", "the cat", ("cat", "mat"), M)
    assert none == Scored(None, "judge_error", "infbench_f1@memoryagentbench")
    share = score("infbench_sum_eng_shots2", "x", ("cat",), M, lambda asked: [Verdict(0.686)])
    assert (share.score, share.status) == (0.686, "ok")


def test_a_judge_that_failed_or_loses_an_item_gives_no_score_under_any_profile():
    """The release's judge says False when its call fails; that is no verdict."""
    for profile in (FIXED, A, B):
        found = score(LME, "x", ("gold",), profile, lambda asked: [Verdict(False, error="timeout")])
        assert (found.score, found.status) == (None, "judge_error")
    with pytest.raises(ValueError, match="shorter"):
        score(LME, "x", ("gold",), judge=lambda asked: [])


# --- Episodes and parity --------------------------------------------------------------------------

RULER = make_instance(
    "ruler_qa1_197K",
    ["Paris is called the City of Light."],
    [QA("q0", "What is Paris called?", ("Light city", "City of Light")), QA("q1", "Who?", ("X",))],
)
NLU = make_instance(
    NLU_SOURCE,
    ["Sentence: a b\nLabel: 7"],
    [QA("q0", "Sentence: a b", ("7",)), QA("q1", "Sentence: a", ("1",))],
)


def answered(instance, *predictions):
    return [
        Item(instance.source, text, qa.answers, qa.question, instance.id, qa.id)
        for qa, text in zip(instance.questions, predictions, strict=True)
    ]


def test_parity_shows_where_the_profiles_disagree_on_the_same_answers():
    table = parity(
        answered(RULER, "It is the City of Light.", "x")
        + answered(NLU, r"\boxed{17}", None)
        + answered(NLU, "So:\n" + r"\boxed{7}", r"\boxed{1}")
    )
    assert len(table) == 10
    ruler = table[table.source == RULER.source].set_index("profile")
    assert ruler.score.to_dict() == dict(zip(PROFILES, [1, 1, 0.5, 1, 1], strict=True))
    assert ruler.below.to_dict() == dict(zip(PROFILES, [0, 0, 1, 0, 0], strict=True))
    assert ruler.loc[B].example == (
        "'It is the City of Light.' for 'Light city | City of Light': 0.00, fixed 1.00"
    )
    nlu = table[table.source == NLU.source].set_index("profile")
    assert (nlu.questions == 4).all() and (nlu.missing == 1).all()
    assert nlu.loc["fixed", ["score", "above", "below", "example"]].tolist() == [2 / 3, 0, 0, ""]
    assert nlu.loc[A, "score"] == 2 / 3
    assert nlu.loc[B, ["score", "above", "below"]].tolist() == [2 / 3, 1, 1]  # 17 counts, box lost
    assert nlu.loc[T, ["score", "above", "below"]].tolist() == [0, 0, 2]
    assert nlu.loc[M, ["score", "above", "below"]].tolist() == [0, 0, 2]


def test_parity_means_over_instances_and_leaves_out_profiles_without_a_metric():
    golds = [("a", 1), ("a", 1), ("a", 0), ("a", 0), ("b", 1)]
    asked = [Item("squad", "x" if hit else "y", "x", instance=name) for name, hit in golds]
    table = parity(asked).set_index("profile")
    assert list(table.index) == list(PROFILES[:4])
    assert (table.score == 0.75).all() and len(parity([])) == 0


def test_asking_without_a_metric_scores_as_the_table_says():
    for name in ("miniature", "longmemeval"):
        instance = dataclasses.replace(NLU, source=name)
        episodes = write([instance], writer("silent"), MemoryConfig(), ProtocolConfig())
        [asked] = ask(episodes, [instance], BestEntry())
        assert [answer.score for answer in asked.answers] == [0.0, 0.0]
