"""Raw rows by hand, and how chunks look when every pool of phrases has one line."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from memalpha_kit.chats import ChatReply
from memalpha_kit.settings import BuildConfig

WORDS = BuildConfig(counter="words", rows="any")


def sized(low, high=None, **more):
    """Settings with chunk targets from `low` to `high` words."""
    more = {"dialogue_reserve_tokens": 1, **more}
    return replace(WORDS, chunk_min_tokens=low, chunk_max_tokens=high or low, **more)


def write(folder: Path, name: str, content) -> Path:
    """The folder, now with a file of bytes or text, a value as JSON, or rows as its ending says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)) and path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
        return folder
    if not isinstance(content, (str, bytes)):
        rows = content if path.suffix == ".jsonl" else [content]
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def seven_zip(members, password=None):
    """An archive in 7z's format."""
    held = io.BytesIO()
    with py7zr.SevenZipFile(held, "w", password=password) as file:
        for name, text in members.items():
            file.writestr(text, name)
    return held.getvalue()


def framed(day, content, lead_in="Notes:"):
    """`content` as what the user said on that day."""
    header = f"[Dialogue between User and Assistant on {day} 00:00]"
    return f"{header}\n<User>{lead_in}\n{content}\n<Assistant>Stored."


PAIR = re.compile(r"Sentence: (.*)\nLabel: (\d+)")


def shown(instance):
    """(sentence, label number) of every labelled sample in the chunks."""
    return [pair for chunk in instance.chunks for pair in PAIR.findall(chunk)]


def asked(instance):
    """The sentences that are to be labelled."""
    return [re.match(r"Sentence: (.*)\n", qa.question)[1] for qa in instance.questions]


def without(row, name):
    """The row without one of its fields."""
    return {key: value for key, value in row.items() if key != name}


ROWS = yaml.safe_load(Path(__file__).with_name("raw_rows.yaml").read_text(encoding="utf-8"))
H1, H2, DOOR, ILA, ILA_ASKED, BISCUIT, SAMPLE, TALKS = ROWS.values()
TREES = ILA_ASKED["events"][0]["7_0_0"][0]


def said(text, role="user", **more):
    """A turn of a dialogue."""
    return {"role": role, "content": text, **more}


def bench_row(source, context, questions=("Why?",), answers=(["x"],), **details):
    """A row of MemoryAgentBench; `details` are those of its metadata."""
    row = {"context": context, "questions": list(questions), "answers": list(answers)}
    return row | {"metadata": {"source": source, **details}}


class Scripted:
    """A client that answers one reply after the other, where None is a call that failed."""

    def __init__(self, *replies):
        self.replies, self.requests = iter(replies), []

    def reply(self, text):
        """What is answered to a request that ends with this text."""
        return next(self.replies)

    def chat(self, requests, accept=None):
        self.requests += requests
        texts = [self.reply(request.messages[-1]["content"]) for request in requests]
        return [ChatReply(text, "error" if text is None else "stop") for text in texts]


def talk_qa(category, evidence=("D1:1",), answer="the van", **more):
    """A question of LoCoMo; with the answer None it has none."""
    asked = {"question": "What?", "evidence": list(evidence), "category": category, **more}
    return asked if answer is None else asked | {"answer": answer}
