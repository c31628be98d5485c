"""The memory of three parts as a method: every writer, every reader, kills, and random memories."""

import json
import shutil
from dataclasses import replace

import pytest
from fake_chat import FakeChat, user
from test_methods import INSTANCE, INSTANCES, LABELLED, run
from tiny_models import TEMPLATE, tiny_lm

from memalpha_kit.chats import ChatReply
from memalpha_kit.entries import Store
from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.evaluation.memories import draw
from memalpha_kit.evaluation.methods import Backends, MethodSpec, Prepared, build_method
from memalpha_kit.evaluation.runs import read_record, record_line
from memalpha_kit.evaluation.writing import SILENT_CHUNKS, Journal, KeptWriter
from memalpha_kit.method import memory as memories
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import ask, write
from memalpha_kit.method.readers import READERS, BestEntry
from memalpha_kit.method.writers import ScriptedReplies, writer
from memalpha_kit.models.chat import Client
from memalpha_kit.models.local_chat import LocalChat
from memalpha_kit.models.servers import Endpoint
from memalpha_kit.records import QA, ToolCall, ToolUse, make_instance
from memalpha_kit.settings import MemoryConfig, ProtocolConfig
from memalpha_kit.tokens import counter

WORDPUNCT = counter("wordpunct")


def built(model=None, backends=None, **options):
    """The memory method with these options, `__` for a dot."""
    options = {key.replace("__", "."): value for key, value in options.items()}
    return build_method(MethodSpec("memory", options), backends or Backends(answer=model))


def calls(prepared) -> tuple[int, int]:
    """How many memory operations were tried, and how many worked."""
    statuses = [call.status for call in prepared.episode.calls]
    return len(statuses), statuses.count("ok")


# ---- scripted writers and model-free readers --------------------------------------------------


def test_a_scripted_writer_and_a_model_free_reader_give_what_write_and_ask_give():
    prepared, answered = run(built(writer="keep_sentences", reader="best_entry"))
    episodes = write(INSTANCES, writer("keep_sentences"), MemoryConfig(), ProtocolConfig())
    for instance, episode in zip(INSTANCES, ask(episodes, INSTANCES, BestEntry()), strict=True):
        one = prepared[instance.id]
        assert one.episode.steps == episode.steps
        assert one.memory_tokens == memories.tokens(episode.memory, WORDPUNCT)
        assert (one.requests, one.prompt_tokens) == (0, None)
        for answer in episode.answers:
            found = answered[instance.id, answer.qa]
            assert (found.prediction, found.retrieved) == (answer.prediction, answer.retrieved)
            assert found.memory_tokens == one.memory_tokens


def test_a_reader_that_says_nothing_before_its_end_is_heard(monkeypatch):
    class Plain(BestEntry):
        def read(self, questions, done=None):
            return [replace(answer, qa="") for answer in super().read(questions)]

    monkeypatch.setitem(READERS._things, "plain", Plain)
    (_, slow), (_, fast) = (
        run(built(writer="keep_sentences", reader=name)) for name in ("plain", "best_entry")
    )
    assert [a.prediction for a in slow.values()] == [a.prediction for a in fast.values()]


def test_memory_options_reach_the_writer():
    prepared, _ = run(built(writer="keep_sentences", reader="best_entry", memory__semantic=False))
    assert prepared[INSTANCE.id].episode.memory.semantic is None
    assert calls(prepared[INSTANCE.id]) == (4, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"writer": ""}, "writer: expected a name or a model's folder, found ''"),
        ({"writer": "keep_sentence"}, "did you mean 'keep_sentences'"),
        ({"writer": "silent", "reader": "best_entri"}, "did you mean 'best_entry'"),
        (
            {"writer": "silent", "reader": "best_entry", "top_k": 3},
            "top_k has no effect: reader best_entry",
        ),
        ({"writer": "silent", "initial_k": 3}, "initial_k has no effect: reader model"),
        ({"writer": "silent", "reader": "best_entry", "k": 0}, "k: expected at least 1, found 0"),
        ({"writer": "silent", "reader": "agentic", "k": 3}, "k has no effect: reader agentic"),
        ({"writer": "silent", "retrieval": "embedding"}, "expected a model that embeds"),
        ({"writer": "silent", "reader": "model"}, "expected a model that answers"),
        ({"writer": "api", "reader": "best_entry"}, "expected a model that answers"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(options, message):
    with pytest.raises(InputError, match=message):
        built(**options)


@pytest.mark.parametrize("wire", ["compact", "lines"])
def test_a_wire_that_a_served_model_is_not_told_of_is_refused(wire):
    """It would be offered the endpoint's tools, whatever the setting says."""
    with pytest.raises(InputError, match="expected qwen .* or text .* for writer api.*found"):
        built(FakeChat(), writer="api", protocol__wire=wire)
    with pytest.raises(InputError, match="protocol.prompt: expected paper or short for a chat"):
        built(FakeChat(), writer="api", protocol__wire=wire, protocol__prompt="compact")


def test_what_embeds_belongs_to_the_settings_where_it_is_used():
    """Else a run with one embedding model goes on with another."""

    def found(model, **options):
        backends = Backends(answer=FakeChat(), embed=Client(Endpoint("http://x/v1", model)).embed)
        return built(backends=backends, writer="silent", **options).settings()

    assert found("e1", retrieval="embedding") != found("e2", retrieval="embedding")
    assert found("e1") == found("e2")


def test_writers_of_the_caller_go_by_their_names():
    given = Backends(writers={"mine": ScriptedReplies(["", ""])})
    prepared, answered = run(built(backends=given, writer="mine", reader="best_entry"))
    assert prepared[INSTANCE.id].episode.memory == memories.empty(MemoryConfig())
    assert answered[INSTANCE.id, "q0"].prediction == ""


def test_a_model_reads_the_memory_with_the_settings_of_the_method():
    model = FakeChat()
    _, answered = run(built(model, writer="keep_sentences", max_tokens=7), {(INSTANCE.id, "q0")})
    assert len(model.asked) == 1 and model.asked[0].max_tokens == 7
    assert "Ada paints boats." in model.asked[0].messages[0]["content"]
    one = answered[INSTANCE.id, "q0"]
    assert (one.prediction, one.finish, one.latency_s) == ("Nora", "stop", 0.5)
    assert one.prompt_tokens > 20 and one.retrieved


# ---- a chat model with tools ------------------------------------------------------------------


def insert(text: str, name: str = "new_memory_insert") -> ToolUse:
    return ToolUse("a", name, json.dumps({"memory_type": "semantic_memory", "content": text}))


def remember(asked) -> ChatReply | str:
    """Inserts the chunk's first line while writing; answers "Nora"."""
    if not asked.tools:
        return "Nora"
    chunk = user(asked).partition("<new_chunk>\n")[2].partition("\n")[0]
    return ChatReply(None, "tool_calls", (insert(chunk),), 50, 9)


def test_an_untrained_model_writes_with_the_tools_of_its_endpoint():
    model = FakeChat(remember)
    prepared, answered = run(built(model, writer="api", protocol__max_reply_tokens=99))
    one = prepared[INSTANCE.id]
    assert [e.text for e in one.episode.memory.semantic] == INSTANCE_LINES
    assert (*calls(one), one.requests) == (2, 2, 2)
    assert (one.prompt_tokens, one.completion_tokens) == (100, 18)
    first = model.asked[0]
    assert first.max_tokens == 99 and first.temperature == 0.0 and first.thinking is False
    names = [tool["function"]["name"] for tool in json.loads(first.tools)]
    assert names == ["new_memory_insert", "memory_update", "memory_delete"]
    assert one.episode.writer == "api:fake" and one.episode.wire == "qwen"
    assert answered[INSTANCE.id, "q0"].prediction == "Nora"


INSTANCE_LINES = [chunk.partition("\n")[0] for chunk in INSTANCE.chunks]


@pytest.mark.parametrize("prompt", ["paper", "short"])
def test_a_served_model_without_tools_is_told_of_them_in_its_prompt(prompt):
    """Marker text beside the rules of the paper, or the short prompt that a small model learned."""
    call = ToolCall("new_memory_insert", {"memory_type": "semantic_memory", "content": "Bees."})
    wire = {"paper": "text", "short": "lines"}[prompt]
    model = FakeChat(lambda asked: render_calls([call], wire))
    options = {"protocol__wire": wire, "protocol__prompt": prompt, "reader": "best_entry"}
    prepared, _ = run(built(model, writer="api", **options), ())
    first = model.asked[0].messages[0]["content"]
    assert not model.asked[0].tools and render_calls([call], wire).partition("new_")[0] in first
    assert [e.text for e in prepared[INSTANCE.id].episode.memory.semantic] == ["Bees."]
    with pytest.raises(InputError, match="prompt: expected at most 9 tokens"):
        built(model, writer="api", protocol__max_prompt_tokens=9, **options)


def test_a_served_model_that_makes_no_call_is_told_of_while_it_is_paid_for(caplog):
    """Behind a server nobody sees whether the chat template shows the tools."""
    chunks = [f"{i} bees hum." for i in range(SILENT_CHUNKS + 5)]
    long = [make_instance("squad", chunks, [QA("q", "Who?", ("A",))])]
    for says, warned in ((lambda asked: "I store it.", 1), (remember, 0)):
        caplog.clear()
        run(built(FakeChat(says), writer="api", reader="best_entry"), (), long)
        assert len(caplog.messages) == warned
        for message in caplog.messages:
            assert message.startswith(f"api:fake: the writer made no call in {SILENT_CHUNKS} of")
            assert "--set protocol.wire=text" in message


def test_tools_that_a_template_in_this_process_leaves_out_are_refused_before_any_work(policy):
    """Nothing is written for a reader that cannot search, nor loaded for a writer without tools."""
    deaf = tiny_lm()
    deaf.tokenizer.chat_template = TEMPLATE.replace("(tool | tojson)", "'a tool'")
    for writes, reads in (("api", "best_entry"), ("silent", "agentic")):
        with pytest.raises(InputError, match="leaves them out.*protocol.wire=text"):
            built(LocalChat(deaf), writer=writes, reader=reads).load()
    built(LocalChat(deaf), writer="api", protocol__wire="text", reader="best_entry").load()
    built(LocalChat(tiny_lm()), writer="silent", reader="agentic").load()
    folder = policy.parent / "deaf"
    folder.mkdir()
    deaf.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"is not read")
    with pytest.raises(InputError, match="leaves them out"):
        built(writer=str(folder), reader="best_entry").load()


@pytest.mark.parametrize("method", ["memory", "memagent"])
def test_a_memory_whose_prompt_is_too_long_is_not_asked_for_again(method):
    model = FakeChat(lambda _: ChatReply(None, "unanswerable", error="HTTP 400: too long"))
    options = {"writer": "api", "reader": "best_entry"} if method == "memory" else {}
    spec = MethodSpec(method, options)
    prepared, answered = run(build_method(spec, Backends(answer=model)))
    assert {made.finish for made in prepared.values()} == {"unanswerable"}
    assert {answer.finish for answer in answered.values()} == {"unanswerable"}
    assert all("too long" in answer.error for answer in answered.values())


def test_another_model_can_write():
    writes, answers = FakeChat(remember, name="writes"), FakeChat()
    method = built(backends=Backends(answers, writes), writer="api")
    run(method, {(INSTANCE.id, "q0")}, [INSTANCE])
    assert (len(writes.asked), len(answers.asked)) == (2, 1)
    assert method.settings()["write_model"] == "writes" and method.settings()["model"] == "fake"


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (ChatReply("<think>a <tool_call></think>Done.", tools=(insert("Bees."),)), 1),
        (ChatReply("<think>cut", "length", (insert("Bees."),)), 1),
        (ChatReply("Done."), 0),
        (ChatReply(None, tools=(ToolUse("a", "new_memory_insert", '{"content": "Be'),)), 0),
        (ChatReply("", tools=(ToolUse("a", "new_memory_insert", "[]"),)), 0),
        (ChatReply("", tools=(insert("Bees. </tool_call> \u2028"), insert("Rain."))), 2),
        (ChatReply("", tools=(insert("Bees.", "no_such_tool"),)), 0),
    ],
)
def test_calls_are_read_by_the_one_parser_and_broken_ones_are_the_models_mistakes(
    reply, kept, thinking
):
    model = FakeChat(lambda asked: reply)
    method = built(model, writer="api", reader="best_entry", protocol__thinking=thinking)
    prepared, _ = run(method, (), [make_instance("squad", ["A."], [QA("q", "Who?", ("A",))])])
    (one,) = prepared.values()
    assert one.error == "" and calls(one) == (len(reply.tools), kept)
    assert len(one.episode.memory.semantic) == kept


def test_a_failed_request_ends_the_memory_of_its_instance_and_of_no_other():
    def failing(asked):
        return None if asked.tools and "Nora keeps" in user(asked) else remember(asked)

    model = FakeChat(failing)
    prepared, answered = run(built(model, writer="api"))
    one = prepared[INSTANCE.id]
    assert one.error == "chunk 0: HTTP 500 six times" and one.requests == 1
    assert one.memory_tokens is None and one.episode is None
    assert answered[INSTANCE.id, "q0"].prediction is None
    assert prepared[LABELLED.id].error == "" and answered[LABELLED.id, "q0"].prediction == "Nora"
    assert not any("Ada paints" in text for text in model.texts)  # nothing more is spent on it
    prepared, _ = run(built(FakeChat(lambda asked: ChatReply(None)), writer="api"), ())
    assert prepared[INSTANCE.id].error == "chunk 0: the reply has neither text nor calls"


def test_entries_shown_are_halved_until_the_prompt_fits():
    def system_texts(**options) -> list[str]:
        model = FakeChat(remember)
        run(built(model, writer="api", **options), (), [instance])
        return [asked.messages[0]["content"] + user(asked) for asked in model.asked]

    instance = make_instance("squad", ["Bees hum.", "It rains."], [QA("q", "Who?", ("A",))])
    first, second = system_texts()
    assert "1 of 1 entries" in second
    limit = WORDPUNCT.count(second) - 1
    _, second = system_texts(protocol__max_prompt_tokens=limit)
    assert "0 of 1 entries" in second
    with pytest.raises(InputError, match="^prompt: expected at most 300"):
        built(FakeChat(), writer="api", protocol__max_prompt_tokens=300)  # before any work
    assert WORDPUNCT.count(first) <= limit
    instance = make_instance("squad", ["Bees hum. " * 200], [QA("q", "Who?", ("A",))])
    with pytest.raises(InputError, match=r"squad/\w+: chunk 0: prompt: expected at most"):
        system_texts(protocol__max_prompt_tokens=limit)


def test_a_killed_writer_goes_on_at_the_next_chunk(tmp_path):
    whole = run(built(FakeChat(remember), writer="api"), ())[0]
    calls = 0
    for dies_after in (1, 1, None):
        model = FakeChat(remember, dies_after)
        method = built(backends=Backends(answer=model, journal=tmp_path), writer="api")
        try:
            found = run(method, ())[0]
        except ModelGone:
            found = None
        method.journal.close()
        calls += len(model.asked)
    assert found == whole and calls == 3


# ---- a policy in a folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    lm = tiny_lm()
    folder = tmp_path_factory.mktemp("policy")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def test_a_policys_folder_writes_and_is_named_by_its_content(policy, tmp_path):
    options = {"writer": str(policy), "reader": "best_entry", "protocol__max_reply_tokens": 8}
    method = built(backends=Backends(journal=tmp_path), **options)
    prepared, _ = run(method, (), [INSTANCE])
    method.journal.close()
    one = prepared[INSTANCE.id]
    assert one.requests == 2 and one.completion_tokens <= 16 and one.prompt_tokens > 500
    assert all(step.completion.prompt_ids == () for step in one.episode.steps)
    assert read_record(json.loads(json.dumps(record_line(one))), "")[0] == one
    again, _ = run(built(backends=Backends(journal=tmp_path), **options), (), [INSTANCE])
    assert again == prepared
    key = method.settings()["writer"]
    assert key.startswith("sha256:")
    same, other = (shutil.copytree(policy, tmp_path / name) for name in ("same", "other"))
    (other / "config.json").write_text((policy / "config.json").read_text() + "\n")
    keys = [built(reader="best_entry", writer=str(f)).settings()["writer"] for f in (same, other)]
    assert keys[0] == key != keys[1]


def test_a_kept_reply_is_found_again_without_a_look_at_the_whole_memory(tmp_path, monkeypatch):
    class Gone:
        name = "keep_sentences"

    monkeypatch.setattr(Store, "_tuple", lambda entries: pytest.fail("looked at every entry"))
    rules, written = (MemoryConfig(), ProtocolConfig(), 2), []
    for asked in (writer("keep_sentences"), Gone()):
        journal = Journal(tmp_path / "replies.jsonl")
        written.append(write(INSTANCES, KeptWriter(asked, journal), *rules))
        journal.close()
    monkeypatch.undo()
    assert written[0] == written[1] == write(INSTANCES, writer("keep_sentences"), *rules)


# ---- random memories --------------------------------------------------------------------------


def random_memory(**options):
    return build_method(MethodSpec("random-memory", {"reader": "best_entry"} | options))


def test_random_memories_hold_at_most_what_was_asked_for_in_the_order_of_the_text():
    prepared, _ = run(random_memory(share=0.5))
    one = prepared[INSTANCE.id]
    assert one.memory_tokens <= one.input_tokens / 2 and one.episode.memory.semantic
    text = "\n".join(INSTANCE.chunks)
    places = [text.index(entry.text) for entry in one.episode.memory.semantic]
    assert places == sorted(places)
    assert prepared[LABELLED.id].episode.memory.semantic[0].text.startswith("Sentence: ")


def test_a_share_of_all_tokens_gives_all_and_of_none_nothing():
    for share, n in ((1.0, 4), (0.0, 0)):
        prepared, _ = run(random_memory(share=share), ())
        assert len(prepared[INSTANCE.id].episode.memory.semantic) == n


def test_a_draw_depends_on_its_seed_and_its_instance_alone():
    chunks = [f"Fact {i} is here." for i in range(40)]
    instance = make_instance("squad", chunks, [QA("q", "Who?", ("A",))])
    once, other = (draw(instance, 60, WORDPUNCT.count, seed) for seed in (1, 2))
    assert once == draw(instance, 60, WORDPUNCT.count, 1) != other
    assert sum(map(len, once)) == 12  # five tokens each
    assert draw(instance, 60, WORDPUNCT.count, None)[:12] == [[chunk] for chunk in chunks[:12]]


def test_a_random_memory_is_as_large_as_another_runs(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [record_line(Prepared(i.id, memory_tokens=9)) for i in INSTANCES]
    lines.append({"kind": "answer", "instance": INSTANCE.id, "prediction": "x"})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"kind": "pre')
    method = random_memory(like=str(path))
    prepared, _ = run(method)
    assert 5 < prepared[INSTANCE.id].memory_tokens <= 9
    assert method.settings()["like"].startswith("sha256:")
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match=f"expected a memory of {LABELLED.id}, found none"):
        run(random_memory(like=str(path)))
    with pytest.raises(InputError, match="share has no effect"):
        random_memory(like=str(path), share=0.1)
    with pytest.raises(InputError, match="expected lines of JSON"):
        random_memory(like=str(tmp_path))
