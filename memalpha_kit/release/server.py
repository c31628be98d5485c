"""How the published memory server words its answers (`memory_server.py`).

A failed answer is the text `Error: ...`, a call that is not judged or whose judgement failed counts
0, nothing says "partial", `/process` counts memories instead of answers, and an answer is drawn at
temperature 0.7 unless the request names another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memalpha_kit.method.content_judge import StepVerdict
from memalpha_kit.records import Answer
from memalpha_kit.server.wire import Questions
from memalpha_kit.server.work import MANNERS, Manner, judgements, nested


class ReleasedManner(Manner):
    """The published server's words and arithmetic."""

    temperature = 0.7

    def check(self, asked: Questions) -> None:
        """Everything may be asked, a blank question too."""

    def answered(self, asked: Questions, answers: Sequence[Answer], path: str) -> dict[str, Any]:
        """Errors are texts among the answers."""
        said = [f"Error: {a.error}" if a.prediction is None else a.prediction for a in answers]
        counted = len(asked.memories) if path == "/process" else len(answers)
        return {
            "result": nested(said, asked.questions),
            "status": "success",
            "processed_count": counted,
        }

    def judged(self, steps: Sequence[StepVerdict]) -> dict[str, Any]:
        """A failed judgement is an issue."""
        body = judgements(steps)
        for analysis in (one for group in body["detailed_analyses"] for one in group):
            if "error" in analysis:
                analysis["issues"] = analysis["issues"] or [analysis["error"]]
        return body | {"status": "success"}


MANNERS.add("release", ReleasedManner())
