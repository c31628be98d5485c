"""What the miniature will cost, and the one door to a plan of any profile: `memalpha plan`.

The miniature's times are those of a recorded run (`plan_reference.json`), scaled by the work of
each phase and, with a probe, by how fast this machine does a fixed piece of the same work. Real
models are arithmetic on the model's shape (`training/plan.py`).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from memalpha_kit.errors import InputError
from memalpha_kit.files import load_json, save_json
from memalpha_kit.lab import miniature
from memalpha_kit.settings import PolicyConfig, Profile
from memalpha_kit.training.plan import GB, Line, Plan, Shape, known_shape, plan

REFERENCE = Path(__file__).parent / "plan_reference.json"
KERNEL_S = 3.5  # about: to start and stop a notebook's kernel and write its report
PHASES = {"warm start": "warm_start", "GRPO": "grpo", "evaluation": "evaluation"}


def planned(profile: Profile) -> Plan | None:
    """The plan of any profile; None for a model that is in no table."""
    if not profile.model.name:
        return miniature_plan(profile)
    return plan(profile) if known_shape(profile.model.name) else None


def miniature_plan(profile: Profile, speed: float | None = None) -> Plan:
    """What the miniature will cost under this profile."""
    reference = load_json(REFERENCE)
    world, pace = profile.world, 1.0 if speed is None else speed / reference["probe_s"]
    episodes = profile.grpo.steps * profile.grpo.instances * profile.grpo.rollouts
    rows = _rows(profile)
    written, evaluated = rows["grpo"], rows["evaluation"]
    size = miniature_parameters(profile.policy) / reference["parameters"]
    seconds = {
        name: reference[key]["seconds"] * rows[key] / reference[key]["rows"] * size * pace
        for name, key in PHASES.items()
    }
    other = reference["other_s"] * pace
    how = "the recorded run, scaled by rows and parameters"
    how += "" if speed is None else f", times {pace:.2f} (probe)"
    by_rule, mean = "by rule: no model, no cost", "generations x recorded mean"
    asked = episodes * world.max_questions + evaluated * world.max_questions // world.chunks
    lines = [
        ("work", "warm-start rows", rows["warm_start"], "rows", "steps x batch"),
        ("work", "episodes", episodes, "episodes", "steps x instances x rollouts"),
        ("work", "generations", written, "replies", "episodes x chunks"),
        ("work", "prompt tokens", written * reference["prompt_tokens"], "tokens", mean),
        ("work", "reply tokens", written * reference["reply_tokens"], "tokens", mean),
        ("work", "reader calls", asked, "answers", f"{by_rule}; at most"),
        ("work", "judge calls", written * reference["calls"], "verdicts", by_rule),
        *(("time", name, value, "s", how) for name, value in seconds.items()),
        ("time", "other notebooks", other, "s", "data, kernels, figures: as recorded"),
        ("time", "total", sum(seconds.values()) + other, "s", "memalpha run, after installing"),
        ("memory", "RAM", reference["ram_gb"], "GB", "at least: peak of the probe's process"),
        ("memory", "GPU", 0.0, "GB", "none is used"),
        ("disk", "runs, reports, data", reference["disk_gb"] * max(size, 1.0), "GB", "as recorded"),
        ("cost", "money", 0.0, "USD", "no service is asked"),
    ]
    return Plan(profile.name, tuple(Line(*line) for line in lines))


def _rows(profile: Profile) -> dict[str, int]:
    """Rows that each phase works on."""
    warm, grpo, evaluation = profile.warm_start, profile.grpo, profile.evaluation
    chunks = profile.world.chunks
    lengths = zip(evaluation.lengths, evaluation.instances, strict=True)
    return {
        "warm_start": (warm.copy_steps + warm.transcribe_steps + warm.steps) * warm.batch,
        "grpo": grpo.steps * grpo.instances * grpo.rollouts * chunks,
        "evaluation": 2 * chunks * sum(length * n for length, n in lengths),
    }


def miniature_parameters(policy: PolicyConfig, vocabulary: int = 1024) -> int:
    """Parameters of the miniature's policy, for a vocabulary of about this size."""
    sizes = (policy.layers, policy.hidden, policy.heads, policy.kv_heads, policy.head_dim)
    return Shape(*sizes, policy.feed_forward, policy.tie, vocabulary).parameters


def probe(profile: Profile) -> float:
    """Seconds that this machine needs for a fixed piece of the laptop's warm start, about 10.

    `profile` must be the laptop's; the miniature's weights do not matter for the time.
    """
    short = replace(profile.warm_start, copy_steps=30, transcribe_steps=1, steps=30, rows=256)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        miniature.warm_start(replace(profile, warm_start=short, seed=0), Path(folder))
        return time.perf_counter() - started


def record_reference(profile: Profile, root: Path) -> Path:
    """Writes `plan_reference.json` from the last whole run of `profile` in `root`, and a probe.

    Raises InputError if notebooks 01 to 06 have not run under this profile.
    """
    cards = {
        path.parent.parent.name[:2]: load_json(path)
        for path in sorted((root / "reports").glob(f"[0-9]*/{profile.name}/run.json"))
    }
    if not {"01", "02", "03", "04", "05", "06"} <= set(cards):
        raise InputError(f"{root / 'reports'}: expected a whole run: memalpha run first")
    steps = pd.read_csv(root / "runs" / profile.name / "grpo" / "metrics.csv")
    third = cards["03"]
    seconds = {"warm_start": third["warm_start_s"], "grpo": third["grpo_s"]}
    seconds["evaluation"] = cards["05"]["duration_s"]
    whole = sum(card["duration_s"] + KERNEL_S for card in cards.values())
    files = [path for name in ("runs", "reports", "data") for path in (root / name).rglob("*")]
    probed = round(probe(profile), 2)
    unit = 1 if sys.platform == "darwin" else 1024  # of memory: bytes there, kilobytes on Linux
    reference = {
        "profile": profile.name,
        "parameters": miniature_parameters(profile.policy),
        **{name: {"rows": n, "seconds": seconds[name]} for name, n in _rows(profile).items()},
        "other_s": round(whole - sum(seconds.values()), 1),
        "prompt_tokens": round(float(steps.prompt_tokens.mean()), 1),
        "reply_tokens": round(float(steps.reply_tokens.mean()), 1),
        "calls": round(float(steps.calls.mean()), 2),
        "ram_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB, 2),
        "disk_gb": round(sum(path.stat().st_size for path in files if path.is_file()) / GB, 3),
        "probe_s": probed,
    }
    save_json(REFERENCE, reference)
    return REFERENCE
