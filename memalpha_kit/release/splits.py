"""The published split: single instances, always with seed 42, whatever belongs together.

Source: `process_data.py`, which cuts the shuffled instances in two. It gives all of lme_train to
training, where the paper's table 6 says 45 of 50, as the kit does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from memalpha_kit.data.dataset import MERGE_SEED, SEPARATIONS, Parts, Separation, n_train
from memalpha_kit.records import Instance


def split_release(instances: Sequence[Instance], ratio: float, seed: int = MERGE_SEED) -> Parts:
    """Head and tail of the shuffled instances. Groups straddle; `seed` is not used."""
    shuffled = list(instances)
    random.Random(MERGE_SEED).shuffle(shuffled)
    cut = n_train(len(shuffled), ratio)
    return shuffled[:cut], shuffled[cut:]


SEPARATIONS.add(
    "release", Separation("instances", split_release, strict=False, all_train=("lme_train",))
)
