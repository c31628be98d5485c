"""What the miniature is asked to reach, beside what its seeds reached."""

from __future__ import annotations

import pandas as pd

TARGETS = {  # at least, at most
    "gain at the training length": (0.25, None),
    "lower end of its interval": (0.0, None),
    "QA after GRPO at the training length": (0.93, None),
    "QA kept at the longest input": (0.95, None),
    "corrections handled by a correct update": (0.9, None),
    "chit-chat stored": (None, 0.1),
    "calls that change nothing, more than before GRPO": (None, 0.0),
}


def table_targets(lengths: pd.DataFrame, behaviour: pd.DataFrame) -> pd.DataFrame:
    """What was asked and what was measured, from the tables of these names in `curves.py`.

    A target is met by the number itself, not by the rounded one; an interval must end above 0. What
    could not be measured (the interval of a single seed, say) is missing and not met.
    """
    first, last = lengths.iloc[0], lengths.iloc[-1]
    share = behaviour[behaviour.length == first.length].set_index(["stage", "what"])["share"]
    after, idle = share["grpo"], "calls that change nothing"
    measured = [first.gain, first.gain_low, first.grpo, last.kept, after["corrections updated"]]
    measured += [after["chit-chat stored"], after[idle] - share["warm_start", idle]]
    table = pd.DataFrame(TARGETS.values(), columns=["at least", "at most"], dtype=float)
    table.insert(0, "target", list(TARGETS))
    value = pd.Series(measured, dtype=float)
    met = ~(value < table["at least"]) & ~(value > table["at most"]) & value.notna()
    met &= ~((table["at least"] == 0) & (value <= 0))
    return table.assign(measured=value.round(4), met=met)
