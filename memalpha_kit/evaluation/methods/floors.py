"""Floors that neither read nor ask: what every method has to be better than."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence

from memalpha_kit.evaluation.methods.base import AnsweredDone, Method, Question
from memalpha_kit.method.readers import LABELLED


class Nothing(Method):
    """Answers "" to everything. Memory: none."""

    summary = "an empty answer to everything; the floor of every metric"

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """At once."""
        for question in questions:
            done(question.answered(""))


class MajorityLabel(Method):
    r"""Answers with the commonest label of the chunks' samples, as `\boxed{n}`; "" without any.

    Ties go to the label seen first. Memory: none worth counting.
    """

    summary = "the commonest label of the samples; a floor for classification"

    def answer_group(self, questions: Sequence[Question], done: AnsweredDone) -> None:
        """At once."""
        labels: dict[str, str] = {}
        for question in questions:
            instance = question.instance
            if instance.id not in labels:
                found = (m["label"] for chunk in instance.chunks for m in LABELLED.finditer(chunk))
                commonest = Tally(found).most_common(1)
                labels[instance.id] = f"\\boxed{{{commonest[0][0]}}}" if commonest else ""
            done(question.answered(labels[instance.id]))
