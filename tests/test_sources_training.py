"""The training sources: worked examples, and defects of the published code done right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from raw_rows import (
    BISCUIT,
    DOOR,
    H1,
    H2,
    ILA,
    ILA_ASKED,
    SAMPLE,
    TREES,
    WORDS,
    Scripted,
    bench_row,
    framed,
    said,
    sized,
    write,
)

from memalpha_kit.data import dataset, stages
from memalpha_kit.data.build import build_source
from memalpha_kit.data.skips import Skips
from memalpha_kit.data.sources import build, pubmed_rct
from memalpha_kit.errors import InputError
from memalpha_kit.settings import BuildConfig
from memalpha_kit.tokens import counter
from tools.sample_data import make_raw

pytestmark = pytest.mark.usefixtures("one_line_pools")


def answer_stages(monkeypatch, reply):
    """From now on stages get what `reply` has for a text."""
    client = Scripted()
    client.reply = reply
    monkeypatch.setattr(stages, "chosen", lambda config: stages.Llm(client))


CONTEXTS = (
    "Lake Orvane lies north of Tessin and freezes every winter.",
    "The Orvane ferry was built in 1911 by Mira Holt.",
    "Tessin grows blue barley and exports it by rail.",
)
ASKED = (
    (0, "When does Lake Orvane freeze?", ["every winter"]),
    (0, "What lies north of Tessin?", ["Lake Orvane"]),
    (1, "Who built the Orvane ferry?", ["Mira Holt"]),
    (2, "What does Tessin grow?", ["blue barley", "barley"]),
    (2, "How is the barley exported?", ["it is exported by rail"]),
)


def article(title, contexts, asked=()):
    """A raw SQuAD article from contexts and (context number, question, answers)."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": f"{title}-{i}-{j}", "question": q, "answers": [{"text": a} for a in golds]}
                for j, (number, q, golds) in enumerate(asked)
                if number == i
            ],
        }
        for i, context in enumerate(contexts)
    ]
    return {"title": title, "paragraphs": paragraphs}


def squad_raw(folder, *articles):
    return write(folder, "squad.json", {"data": list(articles)})


def groups_of(instances):
    return [instance.metadata.get("groups") for instance in instances]


def summary(instance):
    return [(qa.question, qa.answers[0], qa.chunk) for qa in instance.questions]


def test_squad_with_its_closed_book_filter_gives_the_worked_example(tmp_path, monkeypatch):
    """The first answer is known without the text, the last has five tokens and is not asked."""
    asked = []

    def know(question):
        asked.append(question)
        return "In every winter." if question.startswith("When does Lake") else "unknown"

    answer_stages(monkeypatch, know)
    raw = squad_raw(tmp_path, article("Orvane", CONTEXTS, ASKED))
    skips = Skips()
    [instance] = build("squad", raw, sized(22, stage="llm"), 0, skips)
    first, second = f"{CONTEXTS[0]}\n\n{CONTEXTS[1]}", CONTEXTS[2]
    assert instance.chunks == (framed("2024-01-01", first), framed("2024-01-02", second))
    assert summary(instance) == [
        ("What lies north of Tessin?", "Lake Orvane", 0),
        ("Who built the Orvane ferry?", "Mira Holt", 0),
        ("What does Tessin grow?", "blue barley", 1),
    ]
    assert groups_of([instance]) == [["squad:Orvane"]]
    assert (len(asked), sum(skips.dropped.values())) == (4, 2)


def test_a_question_whose_check_failed_is_left_out_and_counted(tmp_path, monkeypatch):
    answer_stages(monkeypatch, lambda question: None)
    raw = squad_raw(tmp_path, article("Orvane", CONTEXTS, ASKED))
    skips = Skips()
    with pytest.raises(InputError, match="expected an instance with 1 questions"):
        build("squad", raw, sized(22, stage="llm"), 0, skips)
    assert skips.dropped["questions whose closed-book check failed"] == 4


@pytest.mark.parametrize(("before", "after", "kept"), [(5, 1, 1), (6, 1, 0), (1, 4, 1), (1, 5, 0)])
def test_squad_wants_enough_questions_before_and_after_the_filter(tmp_path, before, after, kept):
    """The rules remove the long answer only, so four of five are left."""
    raw = squad_raw(tmp_path, article("Orvane", CONTEXTS, ASKED))
    config = sized(22, stage="rules", min_questions=before, min_kept_questions=after)
    refused = pytest.raises(InputError, match="expected an instance with")
    with nullcontext() if kept else refused:
        [instance] = build("squad", raw, config, seed=0)
        assert len(instance.questions) == 4


def facts(title, n):
    """An article with `n` paragraphs of four words and a question about each."""
    contexts = [f"{title} {i} is true." for i in range(n)]
    return article(title, contexts, [(i, f"Is {title} {i}?", ["true"]) for i in range(n)])


def test_squad_reads_a_repeated_context_once_and_skips_questions_without_answer(tmp_path):
    again = article("B", ["Nora keeps bees."], [(0, "Who keeps bees?", ["Nora"])])
    raw = squad_raw(tmp_path, article("A", ["Nora keeps bees."], [(0, "?", [])]), again)
    [instance] = build("squad", raw, WORDS, seed=0)
    assert instance.chunks[0].count("Nora") == 1
    assert summary(instance) == [("Who keeps bees?", "Nora", 0)]


@pytest.mark.parametrize("compat", ["fixed", "release"])
def test_what_occurs_twice_in_a_raw_file_can_be_read_again(tmp_path, compat):
    """The release asks again what stands in two contexts; a record that is there twice is one."""
    asked = [(0, "Who?", ["Mira Holt"]), (0, "Who?", ["Mira Holt"])]
    raw = article("Ferry", ["Mira Holt built it.", "In 1911 Mira Holt built it."], asked)
    for question in raw["paragraphs"][0]["qas"]:
        question["id"] = "same"
    write(tmp_path, "longmemeval.json", [BISCUIT] * 2)
    config = sized(6, 20, dialogue_close_tokens=17, dialogue_reserve_tokens=8)
    for source, folder in (("squad", squad_raw(tmp_path, raw)), ("longmemeval", tmp_path)):
        data = build_source(source, folder, replace(config, compat=compat))
        dataset.save(tmp_path / source, data)
        assert dataset.read(tmp_path / source).test == data.test
        assert source == "squad" or data.card["dropped"] == {"instances that occur twice": 1}


def test_squad_articles_do_not_straddle_instances(tmp_path):
    """An article is in one instance, unless it is too long for one."""
    raw = squad_raw(tmp_path, facts("A", 2), facts("B", 2), facts("C", 1), facts("D", 7))
    built = build("squad", raw, sized(4, max_chunks=3), seed=0)
    assert groups_of(built) == [["squad:A", "squad:C"], ["squad:B"], *[["squad:D"]] * 3]
    assert [len(instance.chunks) for instance in built] == [3, 2, 3, 3, 1]
    straddling = build("squad", raw, sized(4, max_chunks=3, compat="release"), seed=0)
    assert groups_of(straddling)[:2] == [["squad:A", "squad:B"], ["squad:B", "squad:C", "squad:D"]]


def test_squad_evidence_is_recorded_and_not_searched(tmp_path):
    """A context inside another one asks its questions once, at its own place."""
    contexts = ["Mira Holt built it.", "In 1911 Mira Holt built it.", "Rail."]
    asked = [(0, "Who built it?", ["Mira Holt"]), (1, "When was it built?", ["1911"])]
    raw = squad_raw(tmp_path, article("Ferry", contexts, asked))
    first, second = asked[0][1], asked[1][1]
    [right] = build("squad", raw, sized(6), seed=0)
    assert [(qa.question, qa.chunk) for qa in right.questions] == [(first, 0), (second, 1)]
    [released] = build("squad", raw, sized(6, compat="release"), seed=0)
    found = [(qa.question, qa.chunk) for qa in released.questions]
    assert found == [(first, 1), (first, 1), (second, 1)]


THREE_ARTICLES = 33  # tokens; the four articles have 11 on average
ADA = "Title: Ada Venn\nAda Venn founded Port Marrow. She was a surveyor."
PORT = "Title: Port Marrow\nPort Marrow stands on the Lisk River."
TOM = "Title: Tom Venn\nTom Venn was the brother of Ada Venn. He died in 1893."


def hotpot(folder, *rows):
    return write(folder, "hotpotqa_train.json", rows)


def evidence(instance):
    return {
        qa.id: json.loads(text)
        for qa, text in zip(instance.questions, instance.metadata["evidence"], strict=True)
    }


def test_hotpotqa_gives_the_worked_example(tmp_path):
    raw = hotpot(tmp_path, H1, H2)
    [instance] = build("hotpotqa", raw, sized(25, article_tokens=THREE_ARTICLES), seed=0)
    assert instance.chunks == (framed("2024-01-01", f"{ADA}\n\n{PORT}"), framed("2024-01-02", TOM))
    assert summary(instance) == [(H1["question"], "Lisk River", 0), (H2["question"], "1893", 1)]
    found = evidence(instance)
    assert (found["h1"]["chunks"], found["h2"]["chunks"]) == ([0], [1])
    assert found["h2"]["facts"] == [
        ["Tom Venn", "Tom Venn was the brother of Ada Venn."],
        ["Tom Venn", "He died in 1893."],
    ]
    titles = ("Ada Venn", "Port Marrow", "Tom Venn")
    assert instance.metadata["groups"] == [f"hotpotqa:{title}" for title in titles]


def test_a_hotpotqa_article_above_its_target_keeps_its_text(tmp_path):
    """At target 12 the release shows `Title: Tom Venn` and nothing below it."""
    raw = hotpot(tmp_path, H1, H2)
    config = sized(12, 40, article_tokens=THREE_ARTICLES)
    always_12 = replace(config, chunk_max_tokens=12)
    [cut] = build("hotpotqa", raw, replace(always_12, compat="release"), seed=0)
    assert cut.chunks[-1] == framed("2024-01-03", "Title: Tom Venn\n")
    assert evidence(cut)["h2"]["chunks"] == [2]
    [split] = build("hotpotqa", raw, always_12, seed=0)
    text = " ".join(" ".join(split.chunks).split())
    assert "Tom Venn was the brother of Ada Venn." in text and "He died in 1893." in text
    assert all(counter("words").count(chunk) <= 12 + 10 for chunk in split.chunks)
    assert evidence(split)["h2"]["chunks"] == [2, 3]


def test_a_hotpotqa_question_without_its_evidence_is_dropped_and_counted(tmp_path):
    """Its title is not in the context, or the article was first seen with another text."""
    lost = H2 | {"id": "lost", "supporting_facts": {"title": ["Tim Venn"], "sent_id": [0]}}
    changed = H2 | {"id": "changed", "supporting_facts": {"title": ["Tom Venn"], "sent_id": [0]}}
    changed["context"] = {"title": ["Tom Venn"], "sentences": [["Tom Venn had no brother."]]}
    skips = Skips()
    [instance] = build("hotpotqa", hotpot(tmp_path, H1, H2, lost, changed), sized(25), 0, skips)
    assert [qa.id for qa in instance.questions] == ["h1", "h2"]
    assert skips.dropped["questions whose evidence is not in their context"] == 1
    assert skips.dropped["questions whose evidence is not in the chunks"] == 1


def chain(name, first, second):
    """A question that needs two articles of four words each."""
    titles = [first, second]
    return {
        "id": name,
        "question": f"What joins {first} and {second}?",
        "answer": "rope",
        "context": {"title": titles, "sentences": [[f"{t} has rope."] for t in titles]},
        "supporting_facts": {"title": titles, "sent_id": [0, 0]},
    }


@pytest.mark.parametrize(
    ("pairs", "tokens", "fixed", "released"),
    [
        (("AB", "CD", "BE", "FG"), 20, [["1", "3"], ["2", "4"]], [["1", "2"], ["3", "4"]]),
        (("AB", "XY", "BC", "CD"), 15, [["1", "3"], ["2"], ["4"]], None),  # too large for one
    ],
)
def test_hotpotqa_questions_that_share_articles_stand_in_one_batch(
    tmp_path, pairs, tokens, fixed, released
):
    """In the order of the file, A and B would be on both sides of a split."""
    raw = hotpot(tmp_path, *(chain(str(i), *pair) for i, pair in enumerate(pairs, start=1)))
    config = sized(40, article_tokens=tokens)
    for compat, batches in (("fixed", fixed), ("release", released)):
        if batches:
            built = build("hotpotqa", raw, replace(config, compat=compat), seed=0)
            assert [[qa.id for qa in instance.questions] for instance in built] == batches


AT_11 = sized(11, chapter_min_chunks=2)


def books(folder, *rows, name="booksum_train.jsonl"):
    return write(folder, name, rows)


def test_booksum_gives_the_worked_example(tmp_path, monkeypatch, identity_draws):
    reply = "Nell, blue door, nell, , backwards clock"
    answer_stages(monkeypatch, lambda text: reply)
    [instance] = build("booksum", books(tmp_path, DOOR), replace(AT_11, stage="llm"), seed=0)
    parts = (
        "Nell finds a key. The key opens a blue door.",
        "Behind it sits a clock. The clock runs backwards.",
        "Nell winds it. Morning returns.",
    )
    days = ("2024-01-01", "2024-01-03", "2024-01-04")
    assert instance.chunks == tuple(
        f"[Event happened on {day} The user is reading a book]\n"
        f"<User> {part}\n\n<System> KEEP {day}"
        for day, part in zip(days, parts, strict=True)
    )
    [qa] = instance.questions
    assert "summarize" in qa.question.lower() and not qa.question.endswith(".")
    assert days[0] in qa.question and days[-1] in qa.question
    assert qa.answers == ("Nell, blue door, backwards clock",)
    assert groups_of([instance]) == [["booksum:The Blue Door"]]
    assert instance.metadata["dates"] == list(days)


def test_a_chapter_whose_keywords_failed_is_dropped_and_never_has_an_empty_answer(
    tmp_path, monkeypatch
):
    """In the release an empty answer is a full hit in training."""
    replies = {"s1": None, "s2": " , ", "s3": "a key"}
    answer_stages(monkeypatch, replies.get)
    rows = [DOOR | {"summary": [{"text": name}], "chapter_id": name} for name in replies]
    skips = Skips()
    config = replace(AT_11, stage="llm")
    [instance] = build("booksum", books(tmp_path, *rows), config, 0, skips)
    assert instance.metadata["chapter_id"] == "s3" and instance.questions[0].answers == ("a key",)
    assert skips.dropped == {"chapters whose keywords failed": 2}


@pytest.mark.parametrize(
    ("summaries", "answer", "name"),
    [
        ([], None, None),
        ([{"text": " "}], None, None),
        ([{"text": None}, {"text": "Second.", "source": "guide"}], "Second.", "1:guide"),
        ([{"text": "First."}, {"text": "Second."}], "First.", "0"),
    ],
)
def test_booksum_skips_a_chapter_without_summary_and_names_the_one_it_uses(
    tmp_path, summaries, answer, name
):
    """The release fails on an empty array."""
    skips = Skips()
    raw = books(tmp_path, DOOR | {"summary": summaries}, DOOR)
    first, *rest = build("booksum", raw, AT_11, 0, skips)
    if answer is None:
        assert not rest and skips.dropped == {"chapters without a summary": 1}
    else:
        assert first.questions[0].answers == (answer,)
        assert first.metadata["summary_id"] == name


def test_booksum_keeps_paragraphs_and_splits_a_sentence_without_end(tmp_path):
    """The release joins all with one space and has no hard limit."""
    text = "One two.\n\nThree four five.  Six." + " word" * 40
    raw = books(tmp_path, DOOR | {"text": text})
    [instance] = build("booksum", raw, AT_11, seed=0)
    contents = [c.partition("<User> ")[2].partition("\n\n<System>")[0] for c in instance.chunks]
    assert contents[0].startswith("One two.\n\nThree four five.  Six.")
    assert " ".join(contents).split() == text.split()
    assert all(counter("words").count(content) <= 11 for content in contents)


def test_booksums_test_file_is_read_in_release_mode_only(tmp_path):
    """The release trains on BookSum's own test chapters."""
    raw = books(books(tmp_path, DOOR), DOOR | {"book_title": "Test"}, name="booksum_test.jsonl")
    assert groups_of(build("booksum", raw, AT_11, 0)) == [["booksum:The Blue Door"]]
    both = build("booksum", raw, replace(AT_11, compat="release"), 0)
    assert groups_of(both) == [["booksum:The Blue Door"], ["booksum:Test"]]


def test_booksum_chapters_have_a_fitting_number_of_chunks(tmp_path):
    skips = Skips()
    rows = [DOOR, DOOR | {"text": "Short."}, DOOR | {"text": DOOR["text"] * 4}]
    config = replace(AT_11, chapter_max_chunks=5)
    assert len(build("booksum", books(tmp_path, *rows), config, 0, skips)) == 1
    assert skips.dropped == {"chapters with too few chunks": 1, "chapters with too many chunks": 1}


ZINC = (
    ("Aim was to test zinc.", 3),
    ("Forty adults took zinc.", 2),
    ("Colds got shorter.", 4),
    ("Zinc may help.", 1),
    ("Zinc is common.", 0),
)
AT_15 = sized(15, sample_min_tokens=15, max_chunks=2, max_questions=1)


def pubmed(folder, rows):
    rows = [{"text": text, "labels": label} for text, label in rows]
    return write(folder, "pubmed_train.parquet", rows)


def test_pubmed_gives_the_worked_example(tmp_path, identity_draws):
    [instance] = build("pubmed-rct", pubmed(tmp_path, ZINC), AT_15, seed=0)
    items = [f"Sample: {text}\nLabels: {label}" for text, label in ZINC]
    assert instance.chunks == (
        framed("2024-01-01", f"\n{items[0]}\n\n{items[1]}", "Examples:"),
        framed("2024-01-02", f"\n{items[2]}\n\n{items[3]}", "Examples:"),
    )
    [qa] = instance.questions
    assert qa.question.startswith("Sentence: Zinc is common.\n") and "\\boxed{}" in qa.question
    assert qa.answers == ("0",)


def abstracts(n, seed=0):
    """Rows of `n` abstracts of five sentences, every sentence its own."""
    labels = (0, 2, 4, 4, 1)
    return [(f"w{a} is {i} of {seed} .", label) for a in range(n) for i, label in enumerate(labels)]


SMALL = replace(AT_15, max_chunks=3, max_questions=4, instances=10_000)


def used(instance):
    """(sentences shown, sentences asked for)."""
    shown = re.findall("^Sample: (.*)", "\n".join(instance.chunks), re.MULTILINE)
    return shown, [re.match("Sentence: (.*)", qa.question)[1] for qa in instance.questions]


def test_pubmed_sentences_are_used_once_and_abstracts_stay_together(tmp_path):
    """No group is in two instances, no sentence is shown or asked for twice."""
    rows = abstracts(60)
    built = build("pubmed-rct", pubmed(tmp_path, rows), SMALL, seed=0)
    assert len(built) > 10
    sentences = [s for instance in built for part in used(instance) for s in part]
    assert len(sentences) == len(set(sentences)) and set(sentences) <= {text for text, _ in rows}
    groups = [name for instance in built for name in instance.metadata["groups"]]
    assert len(groups) == len(set(groups))
    for instance in built:
        named = {int(name.rpartition("-")[2]) // 5 for name in instance.metadata["groups"]}
        shown, asked = used(instance)
        assert {int(text.split()[0][1:]) for text in shown + asked} <= named


def test_pubmed_never_asks_for_a_sentence_that_it_shows(tmp_path):
    rows = [("Trial is registered .", 2)] * 40 + abstracts(30)
    skips = Skips()
    for instance in build("pubmed-rct", pubmed(tmp_path, rows), SMALL, 0, skips):
        shown, asked = used(instance)
        assert not {text.lower() for text in shown} & {text.lower() for text in asked}
    assert skips.dropped["sentences that repeat another"] > 0


def test_pubmed_says_what_is_left_over_and_how_much_is_missing(tmp_path):
    """The release ends in silence when it cannot fill a chunk."""
    skips = Skips()
    built = build("pubmed-rct", pubmed(tmp_path, abstracts(31)), SMALL, 0, skips)
    n_used = sum(len(shown) + len(asked) for shown, asked in map(used, built))
    assert n_used + sum(skips.dropped.values()) == 155
    assert skips.dropped["sentences left over, too few for an instance"] == 5
    with pytest.raises(InputError, match="enough sentences for 3 chunks and 4 questions, found 5"):
        build("pubmed-rct", pubmed(tmp_path, ZINC), SMALL, seed=0)


def test_pubmed_in_release_mode_draws_sentences_and_cuts_long_ones(tmp_path):
    rows = [*abstracts(40), ("word " * 400, 2)]
    config = replace(SMALL, compat="release", sample_min_tokens=250, chunk_max_tokens=250)
    config = replace(config, max_chunks=1, max_questions=1)
    built = build("pubmed-rct", pubmed(tmp_path, rows), config, seed=0)
    assert groups_of(built) == [None] * len(built)
    sentences = [text for instance in built for part in used(instance) for text in part]
    assert max(map(len, sentences)) == 1000
    skips = Skips()
    build("pubmed-rct", tmp_path, replace(config, compat="fixed"), 0, skips)
    assert skips.dropped["sentences longer than a chunk"] == 1


def test_pubmed_reads_the_authors_file_with_its_abstracts(tmp_path):
    lines = "###7\n" + "".join(f"{pubmed_rct.LABELS[n]}\t{text}\n" for text, n in ZINC[:3])
    lines += "\n###8\n" + "".join(f"{pubmed_rct.LABELS[n]}\t{text}\n" for text, n in ZINC[3:])
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train.txt", lines)
    [instance] = build("pubmed-rct", tmp_path, AT_15, seed=0)
    assert sorted(instance.metadata["groups"]) == ["pubmed-rct:7", "pubmed-rct:8"]


def perl(folder, memory=ILA, asked=ILA_ASKED):
    write(folder, "perltmem_en.json", [memory])
    return write(folder, "perltqa_en.json", [{"Ila Brandt": asked}])


def test_perltqa_gives_the_worked_example(tmp_path):
    skips = Skips()
    [instance] = build("perltqa", perl(tmp_path), WORDS, 0, skips)
    first, second = instance.chunks
    assert "Ila Brandt" in first and "March 3, 2023" in first.splitlines()[0]
    assert "Summary: Planting lemons" in first.splitlines()
    assert "Content: Ila planted forty lemon trees with Oskar." in first.splitlines()
    assert first.endswith(
        "\n2023-03-03 10:00\n<Ila Brandt> The soil is dry.\n<Oskar> Note: water twice a day."
    )
    assert second.endswith("<Ila Brandt> The buyer paid 900 crowns.\n<AI Assistant> Good price.")
    assert summary(instance) == [
        ("How many trees did Ila plant?", "Forty", 0),
        ("What did the buyer pay?", "900 crowns", 1),
    ]
    assert instance.metadata["memory_types"] == ["events", "dialogues"]
    assert instance.metadata["groups"] == ["perltqa:Ila Brandt"]
    assert skips.dropped == {"questions about memories that are not shown": 1}


def test_perltqa_in_release_mode_loses_messages_and_asks_what_is_not_shown(tmp_path):
    [instance] = build("perltqa", perl(tmp_path), replace(WORDS, compat="release"), seed=0)
    assert "twice a day" not in instance.chunks[0]
    asked = ["Who is Oskar?", "How many trees did Ila plant?", "What did the buyer pay?"]
    assert [qa.question for qa in instance.questions] == asked


def test_a_perltqa_dialogue_belongs_to_its_own_event_only(tmp_path):
    """Event 7_0_1 also takes the dialogues of 7_0_10."""
    ten = {"events": "7_0_10", "contents": {"2023": ["Oskar: It is cold."]}}
    events = ILA["events"] | {"7_0_10": ILA["events"]["7_0_1"]}
    memory = ILA | {"events": events, "dialogues": ILA["dialogues"] | {"7_0_10#2": ten}}
    for compat, told in (("fixed", [False, False, True]), ("release", [False, True, True])):
        [built] = build("perltqa", perl(tmp_path, memory), replace(WORDS, compat=compat), seed=0)
        assert ["It is cold." in chunk for chunk in built.chunks] == told


@pytest.mark.parametrize(
    "dialogue",
    [
        {"events": "7_0_0", "contents": {"2023": "Oskar: It is cold."}},
        {"events": "7_0_0", "contents": {"2023": [["Oskar: It is cold."], []]}},
        {"events": ["7_0_0"], "contents": {"2022": [], "2023": ["Oskar: It is cold."]}},
        {"contents": ["Oskar: It is cold."]},
        {"events": "gone", "contents": "Oskar: It is cold."},
    ],
)
def test_perltqa_reads_messages_in_every_shape(tmp_path, dialogue):
    """Without a usable field `events` the id says which event it is."""
    memory = ILA | {"dialogues": {"7_0_0#0": dialogue}}
    [instance] = build("perltqa", perl(tmp_path, memory), WORDS, seed=0)
    assert instance.chunks[0].endswith("<Oskar> It is cold.")


def test_perltqa_drops_a_character_without_events_and_counts_it(tmp_path):
    """In the release it breaks the whole build."""
    skips = Skips()
    bare = {"profile": {"Protagonist": "Oskar"}, "events": {}, "dialogues": {}}
    write(tmp_path, "perltmem_en.json", [ILA, bare])
    asked = [{"Oskar": ILA_ASKED}, {"Nobody": ILA_ASKED}, {"Ila Brandt": ILA_ASKED}]
    write(tmp_path, "perltqa_en.json", asked)
    assert len(build("perltqa", tmp_path, WORDS, 0, skips)) == 1
    assert skips.dropped["characters without events"] == 1
    assert skips.dropped["characters without memories"] == 1


def test_a_null_answer_is_dropped_before_anybody_is_asked(tmp_path):
    """The release pays for a call, or stops in a debugger."""
    skips = Skips()
    asked = ILA_ASKED | {"events": [{"7_0_0": [TREES | {"Answer": None}, TREES]}]}
    [instance] = build("perltqa", perl(tmp_path, asked=asked), WORDS, 0, skips)
    assert len(instance.questions) == 2
    assert skips.dropped["questions with a null answer"] == 1


def test_perltqa_decodes_entities_and_keeps_to_the_limit(tmp_path):
    events = dict(ILA["events"])
    events["7_0_0"] = events["7_0_0"] | {"content": "Ila&#39;s trees grow. " * 30}
    [instance] = build("perltqa", perl(tmp_path, ILA | {"events": events}), sized(40), seed=0)
    assert "Ila's trees grow." in instance.chunks[0] and "&#39;" not in "".join(instance.chunks)
    assert len(instance.chunks) > 3
    assert all(counter("words").count(chunk) <= 40 for chunk in instance.chunks)
    assert all("March 3, 2023" in chunk for chunk in instance.chunks[:3])
    assert instance.questions[0].chunk is None


def test_perltqa_shortens_checks_and_flags(tmp_path, monkeypatch):
    """An answer that cannot be shortened stays and is flagged; golds are narrowed."""

    def reply(text):
        if text.startswith("Question: How many"):
            return "Part-time van dealer in town"  # five words: refused three times
        if text.startswith("Question: What did"):
            return "900 crowns; olive trees"
        return "900 crowns" if "What did the buyer" in text else "It was forty."

    answer_stages(monkeypatch, reply)
    [instance] = build("perltqa", perl(tmp_path), replace(WORDS, stage="llm"), seed=0)
    golds = {qa.id: qa.answers[0] for qa in instance.questions}
    assert golds == {"events-0": "Forty", "dialogues-0": "900 crowns"}
    assert instance.metadata["kept_whole"] == ["events-0"]


def test_perltqa_characters_with_too_much_or_too_little_are_dropped(tmp_path):
    raw = perl(tmp_path)
    for change in ({"event_max_chunks": 1}, {"min_kept_questions": 3}):
        with pytest.raises(InputError, match="expected a character with events and questions"):
            build("perltqa", raw, replace(WORDS, **change), seed=0)


DIALOGUES = (
    "[Dialogue at timestamp 2023/05/20 (Sat) 02:21]\n<User>I adopted a dog named Biscuit.\n"
    "<Assistant>Congratulations on Biscuit!",
    "[Dialogue at timestamp 2023/05/21 (Sun) 09:00]\n<User>Biscuit ate my shoe.",
)
TWO_ASKED = {"questions": ["A?", "B?"], "answers": ["a", 2], "question_types": ["one", "two"]}


def of_samples(folder, *samples, limit=30, close=24, skips=None, **more):
    """The instances of a file of samples in chunks of at most `limit` words."""
    write(folder, "longmemeval_combined_train_v2.json", {"samples": list(samples)})
    close, config = {"dialogue_close_tokens": close}, sized(1, limit, **{"exclude": "none", **more})
    config = replace(config, dialogue_reserve_tokens=8, **close)
    return build("lme_train", folder, config, 0, skips or Skips())


@pytest.mark.parametrize(
    ("limit", "close", "chunks"),
    [(20, 17, DIALOGUES), *((30, close, ("\n\n".join(DIALOGUES),)) for close in (24, 26))],
)
def test_a_sample_of_the_unpublished_layout_is_an_instance(tmp_path, limit, close, chunks):
    [instance] = of_samples(tmp_path, SAMPLE, limit=limit, close=close)
    assert instance.chunks == chunks and instance.source == "lme_train"
    assert summary(instance) == [("What is my dog called?", "Biscuit", None)]
    assert instance.questions[0].id == "s1-0"
    assert instance.metadata["question_types"] == ["single-session-user"]
    assert instance.metadata["groups"] == ["lme_train:s1"]
    turned = {name: SAMPLE[name][::-1] for name in ("haystack_dates", "haystack_sessions")}
    assert of_samples(tmp_path, SAMPLE | turned, limit=limit, close=close) == [instance]


@pytest.mark.parametrize(
    ("types", "kept"), [(["one", "two"], ["one", "two"]), (["one"], None), (["one", None], None)]
)
def test_types_of_a_sample_that_are_missing_or_do_not_fit_are_left_out(tmp_path, types, kept):
    [instance] = of_samples(tmp_path, SAMPLE | TWO_ASKED | {"question_types": types})
    assert instance.metadata.get("question_types") == kept
    assert [qa.answers for qa in instance.questions] == [("a",), ("2",)]


def test_questions_of_samples_that_evaluation_asks_are_left_out(tmp_path):
    """A sample of which none is left is no instance."""
    context, asked = str(["2023", [said("Hi.")]]), ["what is my dog called", "a"]
    row = bench_row("longmemeval_s*", context, asked, [["x"], ["x"]])
    write(tmp_path, "Accurate_Retrieval.json", [row])
    skips, asked = Skips(), {"sample_id": "s2"} | TWO_ASKED
    samples = (SAMPLE, SAMPLE | asked, SAMPLE | {**asked, "sample_id": "s3"})
    built = of_samples(tmp_path, *samples, skips=skips, exclude="evaluation")
    assert [qa.id for instance in built for qa in instance.questions] == ["s2-1", "s3-1"]
    assert built[0].metadata["question_types"] == ["two"]
    assert skips.dropped == {"lme_train: questions of evaluation rows": 3}
    assert of_samples(tmp_path, *samples, exclude="evaluation", instances=1) == built[:1]


MADE = ("squad", "hotpotqa", "booksum", "pubmed-rct", "perltqa")
ALSO = (
    *("ttl_train", "lme_train", "trec_coarse", "banking77", "ruler_qa1_197K"),
    *("icl_clinic150_7050shot_balance", "infbench_sum_eng_shots2", "factconsolidation_mh_6k"),
)
QUICK = BuildConfig(stage="rules", max_questions=20, rows="any", instances=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders with made-up raw files, by source."""
    folders = {name: tmp_path_factory.mktemp(name) for name in (*MADE, *ALSO)}
    for name, folder in folders.items():
        make_raw(folder, name)
    return folders


def ids(folders, config, seed, names=(*MADE, *ALSO)):
    return {name: [i.id for i in build(name, Path(folders[name]), config, seed)] for name in names}


def test_builds_are_the_same_in_every_process_and_for_any_number_of_them(made, root, monkeypatch):
    """Neither the hash seed nor the workers matter; the seed does."""
    monkeypatch.undo()
    code = (
        "import sys, json; sys.path.insert(0, 'tests'); import test_sources_training as t;"
        "print(json.dumps(t.ids(json.loads(sys.argv[1]), t.QUICK, 7)))"
    )
    folders = json.dumps({name: str(folder) for name, folder in made.items()})
    env = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, check=True)
    here = ids(made, QUICK, 7)
    assert json.loads(done.stdout) == here
    for name, found in ids(made, replace(QUICK, workers=2), 7, ("booksum", "pubmed-rct")).items():
        assert found == here[name]
    other = ids(made, QUICK, 8)
    same = [name for name in here if other[name] == here[name]]
    assert same == ["infbench_sum_eng_shots2"]  # books of one part: no day is drawn


@pytest.mark.parametrize("name", MADE)
def test_groups_bear_the_name_of_the_source_and_a_limit_takes_the_first_instances(made, name):
    built = build(name, made[name], QUICK, seed=0)
    assert build(name, made[name], replace(QUICK, instances=1), seed=0) == built[:1]
    groups = [group for instance in built for group in instance.metadata["groups"]]
    assert groups and all(group.startswith(f"{name}:") for group in groups)
