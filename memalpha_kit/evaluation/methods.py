"""Every method by its name: the memory, the baselines and the floors.

method = build_method(MethodSpec("bm25", {"top_k": 2}), Backends(answer=model))
method.prepare(instances, keep)
method.answer(questions, instances, prepared, print)
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from memalpha_kit.evaluation import contexts, memories, walks  # noqa: F401  they register methods
from memalpha_kit.evaluation.base import METHODS, Backends, Method, Put
from memalpha_kit.method.readers import LABELLED
from memalpha_kit.records import Answer
from memalpha_kit.sections import settings_from


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and its options, plain values by (dotted) name; the rest is its defaults."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def build_method(spec: MethodSpec, backends: Backends | None = None) -> Method:
    """The method, ready to use; nothing is loaded yet.

    Raises InputError for an unknown method or option, naming the closest, for a value of the wrong
    type or range, and for a model that is needed and not given.
    """
    made = METHODS[spec.method]
    options = {**made.defaults, **spec.options}
    settings = settings_from(made.Settings, options, f"method {spec.method}")
    return made(spec.method, settings, backends or Backends())


# ---- floors -------------------------------------------------------------------------------------


@METHODS.register("nothing")
class Nothing(Method):
    """Answers "" to everything. Memory: none."""

    summary = "an empty answer to everything; the floor of every metric"

    def request(self, put: Put) -> tuple[None, Answer]:
        """No request."""
        return None, put.draft(prediction="")


@METHODS.register("majority-label")
class MajorityLabel(Method):
    r"""Answers with the commonest label of the chunks' samples, as `\boxed{n}`; "" without any.

    Ties go to the label seen first. Memory: none worth counting.
    """

    summary = "the commonest label of the samples; a floor for classification"

    def request(self, put: Put) -> tuple[None, Answer]:
        """No request."""
        label = commonest_label(put.instance.chunks)
        return None, put.draft(prediction=f"\\boxed{{{label}}}" if label else "")


@cache
def commonest_label(chunks: tuple[str, ...]) -> str:
    """The commonest label of labelled samples, the first of equals; "" without any."""
    labels = Tally(match["label"] for chunk in chunks for match in LABELLED.finditer(chunk))
    return labels.most_common(1)[0][0] if labels else ""
