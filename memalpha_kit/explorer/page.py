"""The page: one HTML file with the episodes in it, for a browser, a notebook and an exported one.

The one law: what stands in an episode is text. It reaches the page as JSON in which no tag can
end, is put into it as text nodes only, and the page's policy (CSP) runs no script but its own and
loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from memalpha_kit.explorer.view import Json, Recording, view
from memalpha_kit.method.rewards import Judge
from memalpha_kit.records import Episode, Instance, Rewards
from memalpha_kit.settings import RewardConfig

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def html_page(shown: Json) -> str:
    """The page that shows what `view` gave, complete in itself."""
    template = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    script = _SCRIPT.findall(template)[0].encode()
    fills = {
        "HASH": base64.b64encode(hashlib.sha256(script).digest()).decode(),
        "DATA": json.dumps(shown, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub("@@([A-Z]+)@@", lambda found: fills[found[1]], template)


@dataclass(frozen=True)
class Shown:
    """A page in a notebook: in a frame that may run the page's script and nothing else."""

    page: str
    caption: str

    def _repr_html_(self) -> str:
        source = self.page.replace("&", "&amp;").replace("'", "&#39;")
        return (
            f"<iframe sandbox='allow-scripts' srcdoc='{source}' title='explorer' "
            "style='width:100%;height:860px;border:1px solid #8885;border-radius:8px'>"
            f"</iframe><p style='opacity:.7;font-size:small'>{html.escape(self.caption)}</p>"
        )

    def __repr__(self) -> str:
        return self.caption


def show(
    episodes: Sequence[Episode] | Mapping[str, Sequence[Episode]],
    instances: Iterable[Instance] | None = None,
    rewards: Mapping[str, Rewards] | None = None,
    judge: Judge | None = None,
    reward: RewardConfig | None = None,
) -> Shown:
    """Episodes to look at in a notebook, and in what is exported from it.

    Several policies or runs are given by name, `{"before": episodes, "after": episodes}`. Chunks,
    questions and r3 need the instances, r4 a judge or the `rewards` by episode id, as `play` gives
    them.
    """
    runs = episodes if isinstance(episodes, Mapping) else {"episodes": episodes}
    recordings = [Recording(name, run, rewards=rewards or {}) for name, run in runs.items()]
    made = view(recordings, instances or (), judge, reward)
    n_steps = sum(len(episode["steps"]) for episode in made["episodes"])
    caption = f"Explorer: {len(made['episodes'])} episodes, {n_steps} chunks."
    return Shown(html_page(made), f"{caption} If nothing is above, trust this notebook.")
