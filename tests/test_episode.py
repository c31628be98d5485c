"""Episodes: three chunks, two questions, literal replies, the expected memory by hand."""

import dataclasses

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.method.episode import Environment, ask, play, score, write
from memalpha_kit.method.memory import replay
from memalpha_kit.method.readers import BestEntry
from memalpha_kit.method.writers import ScriptedReplies, writer
from memalpha_kit.records import QA, Answer, Completion, Entry, WriteRequest, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig


def call(name: str, **arguments: str) -> str:
    pairs = "".join(f', "{k}": "{v}"' for k, v in arguments.items())
    return f"""<tool_call>
{{"name": "{name}", "arguments": {{"memory_type": "semantic_memory"{pairs}}}}}
</tool_call>"""


def insert(text: str) -> str:
    return call("new_memory_insert", content=text)


CUT = insert("Tom pai").split('"}}')[0]
INSTANCE = make_instance(
    "squad",
    ["Nora keeps bees.", "Tom paints boats.", "Nora keeps goats now."],
    [QA("q0", "What does Nora keep?", ("goats",)), QA("q1", "Who paints boats?", ("Tom",))],
)
SHORT = make_instance("squad", ["One chunk."], [QA("q0", "How many?", ("One",))])
REPLIES = [
    insert("Nora keeps bees."),
    Completion(insert("Tom paints boats.") + CUT, finish="length"),
    call("memory_update", memory_id="1", new_content="Nora keeps goats.")
    + call("memory_delete", memory_id="9"),
]
SETTINGS = (MemoryConfig(), ProtocolConfig())


def test_the_calls_of_each_reply_make_the_memory_after_it():
    [episode] = write([INSTANCE], ScriptedReplies(REPLIES), *SETTINGS)
    assert episode.memory.semantic == (
        Entry("1", "Nora keeps goats."),
        Entry("2", "Tom paints boats."),
    )
    statuses = [[(c.status, c.detail) for c in step.calls] for step in episode.steps]
    assert statuses == [
        [("ok", "")],
        [("ok", ""), ("malformed", "truncated")],
        [("ok", ""), ("rejected", "not_found")],
    ]
    assert episode.steps[0].memory.semantic == (Entry("1", "Nora keeps bees."),)
    assert replay(episode.calls, episode.memory_config) == episode.memory
    assert (episode.writer, episode.wire, episode.source) == ("scripted_replies", "qwen", "squad")
    settings = (MemoryConfig(), ProtocolConfig(execute_truncated=True))  # as released
    [episode] = write([INSTANCE], ScriptedReplies(REPLIES), *settings)
    assert Entry("3", "Tom pai") in episode.memory.semantic


@dataclasses.dataclass
class Recorder:
    """Keeps the requests of every call and says nothing."""

    seen: list[list[WriteRequest]]
    name: str = "recorder"

    def write(self, requests):
        self.seen.append(list(requests))
        return [Completion("Done") for _ in requests]


def test_chunks_are_walked_in_lock_step_with_one_writer_call_per_index():
    recorder = Recorder([])
    done = []
    episodes = write([INSTANCE, SHORT], recorder, *SETTINGS, rollouts=2, progress=done.append)
    assert [len(requests) for requests in recorder.seen] == done == [4, 2, 2]
    assert [r.chunk for r in recorder.seen[1]] == ["Tom paints boats."] * 2
    assert [len(episode.steps) for episode in episodes] == [3, 3, 1, 1]
    assert [episode.rollout for episode in episodes] == [0, 1, 0, 1]
    assert len({episode.id for episode in episodes}) == 4


def test_every_rollout_and_step_has_a_seed_of_its_own_that_does_not_depend_on_the_others():
    together, alone = Recorder([]), Recorder([])
    write([SHORT, INSTANCE], together, *SETTINGS, rollouts=2, seed=5)
    write([INSTANCE], alone, *SETTINGS, rollouts=2, seed=5)
    seeds = [r.seed for requests in alone.seen for r in requests]
    assert len(set(seeds)) == 6
    mine = [r.seed for requests in together.seen for r in requests if r.instance == INSTANCE.id]
    assert mine == seeds
    other = Recorder([])
    write([INSTANCE], other, *SETTINGS, rollouts=2, seed=6)
    assert not set(seeds) & {r.seed for requests in other.seen for r in requests}


def test_a_writer_is_never_given_a_question():
    fields = {field.name for field in dataclasses.fields(WriteRequest)}
    assert fields == {"memory", "chunk", "instance", "step", "rollout", "seed"}


def test_the_same_instance_twice_is_refused_and_none_gives_no_episodes():
    with pytest.raises(InputError, match="2 times"):
        write([SHORT, SHORT], writer("silent"), *SETTINGS)
    assert write([], writer("silent"), *SETTINGS) == []


@pytest.mark.parametrize("wire", ["qwen", "text", "compact"])
def test_a_scripted_writer_speaks_every_wire(wire):
    [episode] = write(
        [INSTANCE], writer("keep_sentences", wire), MemoryConfig(), ProtocolConfig(wire=wire)
    )
    assert [entry.text for entry in episode.memory.semantic] == list(INSTANCE.chunks)


# ---- ask --------------------------------------------------------------------------------------


def test_every_question_is_answered_and_scored_by_the_source_s_metric():
    episodes = write([INSTANCE, SHORT], writer("keep_sentences"), *SETTINGS)
    first, second = ask(episodes, [SHORT, INSTANCE], BestEntry())
    assert [(a.qa, a.prediction, a.score) for a in first.answers] == [
        ("q0", "Nora keeps bees.", 0.0),
        ("q1", "Tom paints boats.", 1.0),
    ]
    assert [answer.retrieved for answer in first.answers] == [("1",), ("2",)]
    assert len(second.answers) == 1
    assert dataclasses.replace(first, answers=()) == episodes[0]


@dataclasses.dataclass
class Losing:
    """Loses the last answers but `n`."""

    n: int
    sizes: list[int] = dataclasses.field(default_factory=list)
    name: str = "losing"

    def read(self, requests, done=None):
        self.sizes.append(len(requests))
        return BestEntry().read(requests)[: self.n]


def test_all_episodes_are_asked_in_one_call_and_none_may_lose_an_answer():
    episodes = write([INSTANCE, SHORT], writer("keep_sentences"), *SETTINGS, rollouts=2)
    everything = Losing(6)
    found = ask(episodes, [INSTANCE, SHORT], everything)
    assert found == [ask([e], [INSTANCE, SHORT], BestEntry())[0] for e in episodes]
    assert everything.sizes == [6] and ask([], [], BestEntry()) == []
    with pytest.raises(ValueError, match="6 questions, 5 answers"):
        ask(episodes, [INSTANCE, SHORT], Losing(5))


@dataclasses.dataclass
class Recovering:
    """Knows nothing of the first `fails` calls and answers after that."""

    fails: int
    calls: int = 0
    name: str = "recovering"

    def read(self, requests, done=None):
        self.calls += 1
        if self.calls <= self.fails:
            return [Answer(request.id, None) for request in requests]
        return BestEntry().read(requests, done)


def test_without_an_answer_or_a_gold_answer_that_the_metric_takes_there_is_no_score(caplog):
    [asked] = ask(write([INSTANCE], writer("silent"), *SETTINGS), [INSTANCE], Recovering(1))
    assert [answer.score for answer in asked.answers] == [None, None]
    odd = make_instance("squad", ["A chunk."], [QA("q7", "Which parts?", (";",))])
    [asked] = ask(write([odd], writer("silent"), *SETTINGS), [odd], BestEntry(), metric="perltqa")
    assert asked.answers[0].score is None
    assert "question q7 is not scored" in caplog.text


def test_asking_needs_the_instance_a_known_source_and_a_known_metric():
    episodes = write([INSTANCE], writer("silent"), *SETTINGS)
    with pytest.raises(InputError, match="not in the data"):
        ask(episodes, [SHORT], BestEntry())
    with pytest.raises(InputError, match="did you mean 'contains'"):
        ask(episodes, [INSTANCE], BestEntry(), metric="contain")
    strange = make_instance("squid", ["A chunk."], [QA("q", "Who?", ("x",))])
    with pytest.raises(InputError, match="squid"):
        ask(write([strange], writer("silent"), *SETTINGS), [strange], BestEntry())


# ---- play -------------------------------------------------------------------------------------


def whole(attempt):
    """Asks until nothing is missing."""
    while (played := attempt()).missing():
        pass
    return played


INSTANCES = [INSTANCE, SHORT]


@pytest.mark.parametrize("overlap", [False, True])
def test_playing_is_writing_asking_and_rewarding_whenever_it_is_asked(overlap):
    world = Environment(*SETTINGS, BestEntry(), judge=lambda call, chunk, memory: True)
    written = write(INSTANCES, writer("keep_sentences"), *SETTINGS, rollouts=2, seed=3)
    expected = score(written, INSTANCES, world)
    chunks = []
    played = play(
        INSTANCES,
        writer("keep_sentences"),
        world,
        rollouts=2,
        seed=3,
        overlap=overlap,
        progress=chunks.append,
    )
    assert played.episodes == ask(written, INSTANCES, BestEntry())
    assert (played.rewards, played.judged) == (expected.rewards, 8)
    assert sum(chunks) == 8 and played.missing() == 0.0


@pytest.mark.parametrize("overlap", [False, True])
def test_what_failed_is_asked_again_and_nothing_else(overlap):
    reader = Recovering(fails=1)
    world = Environment(*SETTINGS, reader)
    played = play(INSTANCES, writer("silent"), world, overlap=overlap, retry=whole)
    assert not played.missing() and reader.calls == (3 if overlap else 2)
    assert all(len(episode.answers) for episode in played.episodes)


def test_a_verdict_or_an_answer_that_failed_is_missing_and_a_wrong_one_is_not():
    world = Environment(*SETTINGS, BestEntry(), judge=lambda call, chunk, memory: None)
    played = play([INSTANCE], writer("keep_sentences"), world)
    assert (played.judged, played.unjudged, played.missing()) == (3, 3, 1.0)
    assert play([INSTANCE], writer("silent"), world).missing() == 0.0
    failing = Environment(*SETTINGS, Recovering(1))
    assert play([INSTANCE], writer("silent"), failing).missing() == 1.0
