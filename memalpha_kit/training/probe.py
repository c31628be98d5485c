"""How fast this machine is with a model: `memalpha plan --profile small --probe`."""

from __future__ import annotations

import random
import time

import torch

from memalpha_kit.errors import InputError
from memalpha_kit.models.decode import fast
from memalpha_kit.models.local import Sampling
from memalpha_kit.settings import Profile
from memalpha_kit.training.backends import load_model
from memalpha_kit.training.plan import Assumptions, Plan, plan
from memalpha_kit.training.real import base_folder
from memalpha_kit.training.shapes import CARDS, CPU, Card
from memalpha_kit.training.warm_start import Row, completion_loss

STEPS = 2
"""Training steps that are timed, after one that is not."""


def probed(profile: Profile, given: Assumptions) -> Plan:
    """The plan of a profile on one core of this processor, after about a minute of its own work.

    Timed are steps of the warm start, and the replies of one step of GRPO, on made-up tokens in the
    lengths that the plan assumes. Raises InputError for a card, a profile without a warm start, a
    model that is not there, or what `plan` refuses.
    """
    rows, made = profile.grpo.instances * profile.grpo.rollouts, plan(profile, given)
    if not made.value("warm-start tokens"):
        raise InputError(f"--probe: expected the miniature or profile small, found {profile.name}")
    if given.card != CPU:
        raise InputError(f"--probe: expected --card {CPU}, found {given.card} (measures no card)")
    n = made.value("generations")
    prompt, reply = (round(made.value(f"{part} tokens") / n) for part in ("prompt", "reply"))
    learning, writing = _seconds(profile, prompt, reply)
    tokens = profile.warm_start.batch * (prompt + reply)
    expected = 3600 * made.value("warm start") * tokens / made.value("warm-start tokens")
    card = CARDS[CPU]._replace(tflops=CARDS[CPU].tflops * expected / learning)

    def generating(card: Card) -> float:
        return 3600 * plan(profile, given, card).value("generation") * rows / made.value("episodes")

    reading = generating(card._replace(bandwidth_gbs=float("inf")))
    token_by_token = max(writing - reading, 0.1 * writing)  # reading was estimated, all was timed
    share = (generating(card) - reading) / token_by_token
    return plan(profile, given, card._replace(bandwidth_gbs=card.bandwidth_gbs * share))


def _seconds(profile: Profile, prompt: int, reply: int) -> tuple[float, float]:
    """Seconds of a step of the warm start, and of the replies of a step of GRPO."""
    torch.set_num_threads(profile.threads)
    model, rng = profile.model, random.Random(profile.seed)
    lm = load_model(model, base_folder(model), profile.seed, batch_size=64)
    ordinary = [i for i in range(len(lm.tokenizer)) if i not in set(lm.tokenizer.all_special_ids)]
    batch = [
        Row(rng.choices(ordinary, k=prompt), rng.choices(ordinary, k=reply))
        for _ in range(profile.warm_start.batch)
    ]
    times = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        completion_loss(lm.model, batch, lm.tokenizer.pad_token_id).backward()
        times.append(time.perf_counter() - started)
    asked = [rng.choices(ordinary, k=prompt) for _ in range(profile.grpo.instances)]
    started = time.perf_counter()
    sampling = Sampling(1.0, reply, seed=profile.seed)
    written = fast(lm).generate(asked * profile.grpo.rollouts, sampling)
    writing = time.perf_counter() - started
    n_tokens = sum(len(one.completion_ids) for one in written)  # some replies ended early
    return sum(times[1:]) / STEPS, writing * len(written) * reply / n_tokens
