"""How the published code reads its judges (`memory_server.py`, `evaluate_agent_results.py`).

One attempt; a reply that cannot be read and a call that failed are False (with `error` set, so that
they can be counted); a content verdict needs its code fence; yes and no are sought as substrings,
so "Yes, it acknowledges the preference" is a no; one rubric for all questions.

>>> read_yes_no("Yes."), read_yes_no("Yes, it acknowledges the preference.")
(True, False)
"""

from __future__ import annotations

import re

from memalpha_kit.method.judges import MANNERS, Manner, Verdict, content_verdict


def read_content(reply: str) -> Verdict | None:
    """Only the first block that is fenced as `json` counts, and it must be whole."""
    fenced = re.search(r"```json\s*(.*?)\s*```", reply, re.DOTALL)
    return content_verdict(fenced[1]) if fenced else None


def read_yes_no(reply: str) -> bool:
    """Yes if "yes" occurs and "no" does not, inside other words too."""
    return "yes" in reply.lower() and "no" not in reply.lower()


def read_label(reply: str) -> bool:
    """No label, and both, are wrong."""
    return "<label>CORRECT</label>" in reply and "<label>WRONG</label>" not in reply


MANNERS.add(
    "release",
    Manner(
        read_content,
        read_yes_no,
        read_label,
        lenient=False,
        golds=str,  # a Python list
        own_abstention=False,
        content_temperature=0.1,
        rubric_tokens=512,
    ),
)
