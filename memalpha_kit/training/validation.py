"""How good the policy is on held-out instances while it trains, and the best one so far.

    validation.csv        a row every `grpo.validate_every` steps, and at the last
    best/policy/          the policy of the step with the highest accuracy, the earliest of equals
    best/best.json        that step and its measures, written after the policy

The one law: looking changes nothing. Replies are greedy, no global random number is drawn, and a
run with validation ends with the weights of one without. As published, the score is r1 alone; our
means are over instances, theirs over chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memalpha_kit.files import load_json, save_json
from memalpha_kit.method.episode import Environment
from memalpha_kit.models.local import CausalLM
from memalpha_kit.records import Instance
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training import processes
from memalpha_kit.training.measures import joined, observe, summarise
from memalpha_kit.training.rollouts import played_by

BEST = "best"
MEASURES = (
    *("accuracy", "format", "compression", "content"),
    *("calls", "memory_tokens", "reply_tokens", "cut_replies"),
)


class Validation:
    """Looks at the policy after some of the steps; `save(folder)` writes the policy as it is."""

    def __init__(
        self,
        instances: Sequence[Instance],
        environment: Environment,
        config: GrpoConfig,
        out: Path,
        save: Callable[[Path], object],
    ) -> None:
        self.instances = instances[: config.validate_instances]
        self.environment, self.config = environment, config
        self.folder, self.save = out / BEST, save
        file = self.folder / "best.json"
        # other nodes may not see the file, and all must agree on what is better
        found = load_json(file)["accuracy"] if processes.is_main() and file.is_file() else None
        self.best: float | None = processes.from_main(found)

    def due(self, step: int) -> bool:
        """Whether to look after step `step` (from 1)."""
        every = self.config.validate_every
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def __call__(self, step: int, lm: CausalLM) -> dict[str, float]:
        """The measures of the policy after step `step`, by everybody; keeps it if it is the best.

        After a crash the best may be of a step behind the checkpoint: the resumed run gets there
        again, and equals are not better.
        """
        mine = self.instances[processes.place() :: processes.count()]
        played = played_by(lm, self.environment, self.config, mine, temperature=0.0)
        seen = observe(played.episodes, played.rewards, (), self.environment.memory.counter)
        every = summarise(joined(processes.gathered(seen)))
        values = {name: every[name] for name in MEASURES}
        found = values["accuracy"]
        if found == found and (self.best is None or found > self.best):  # NaN: nobody knows
            self.best = found
            self.save(self.folder / "policy")
            if processes.is_main():
                known = {name: value if value == value else None for name, value in values.items()}
                save_json(self.folder / "best.json", {"step": step, **known})
        return values
