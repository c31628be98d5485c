"""Methods: the memory and every baseline, behind one interface and with one kind of answer.

A method is a class with its settings, a frozen dataclass, and one line of `METHODS`; nothing else
in the kit knows any of them by name. Options are checked by the settings' types: an unknown one is
an error that names the closest.

    method = build_method(MethodSpec("bm25", {"top_k": 2}), Backends(answer=model))
    method.prepare(instances, keep)
    method.answer(instances, prepared, {(instances[0].id, 0)}, print)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memalpha_kit.errors import InputError, closest
from memalpha_kit.evaluation.methods.base import Answered, Backends, Method, Prepared, Settings
from memalpha_kit.evaluation.methods.contexts import Bm25Chunks, ClosedBook, GoldChunk, LongContext
from memalpha_kit.evaluation.methods.floors import MajorityLabel, Nothing
from memalpha_kit.evaluation.methods.mem1 import Mem1
from memalpha_kit.evaluation.methods.memagent import MemAgent
from memalpha_kit.evaluation.methods.memories import RandomMemory, WrittenMemory
from memalpha_kit.evaluation.methods.released import RELEASED
from memalpha_kit.settings import settings_from

__all__ = [
    "METHODS",
    "RELEASED",
    "Answered",
    "Backends",
    "Method",
    "MethodSpec",
    "Prepared",
    "Settings",
    "build_method",
]

METHODS: dict[str, type[Method]] = {
    "memory": WrittenMemory,
    "long-context": LongContext,
    "bm25": Bm25Chunks,
    "memagent": MemAgent,
    "mem1": Mem1,
    "closed-book": ClosedBook,
    "gold-chunk": GoldChunk,
    "random-memory": RandomMemory,
    "nothing": Nothing,
    "majority-label": MajorityLabel,
}


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and its options, plain values by (dotted) name; the rest is its defaults.

    The name may be one of `RELEASED`, a method with other defaults.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def build_method(spec: MethodSpec, backends: Backends | None = None) -> Method:
    """The method, ready to use; nothing is loaded yet.

    Raises InputError for an unknown method or option, naming the closest, for a value of the wrong
    type or range, and for a model that is needed and not given.
    """
    name, defaults = RELEASED.get(spec.method, (spec.method, {}))
    if name not in METHODS:
        known = closest(spec.method, [*METHODS, *RELEASED])
        raise InputError(f"method: expected a known name, found {spec.method!r}{known}")
    made, options = METHODS[name], {**defaults, **spec.options}
    settings = settings_from(made.Settings, options, f"method {spec.method}")
    return made(spec.method, settings, backends or Backends())
