"""When a reader or judge is gone: wait, ask again, and in the end stop.

The one law: nobody's silence becomes a number. A step whose answers or verdicts are missing is not
trained on with zeros in their place; it is asked for again, and training stops if that does not
help. What is missing below `grpo.missing_limit` stays missing and is counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from memalpha_kit.errors import InputError, ModelGone
from memalpha_kit.settings import GrpoConfig
from memalpha_kit.training import processes

T = TypeVar("T")

log = logging.getLogger(__name__)

GONE = (ModelGone, ConnectionError, TimeoutError)
"""What a reader or judge raises that may be there again later."""

GO_ON = "what was trained so far is kept: resume the run to go on from its last checkpoint"


class TrainingStopped(InputError):
    """Training ended before its last step because going on would have done harm."""


def patiently(
    asked: Callable[[], T],
    missing: Callable[[T], float],
    config: GrpoConfig,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `asked` returns, once the share `missing` in it is within `grpo.missing_limit`.

    Called again after a pause that doubles each time. Raises TrainingStopped, in all processes,
    after `grpo.outage_retries` more calls in vain in one of them.
    """
    result, tries = None, config.outage_retries + 1
    for number in range(tries):
        found = ""
        try:
            result = asked()
            share = missing(result)
        except GONE as error:
            found = str(error) or type(error).__name__
        else:
            found = f"{share:.0%} missing" if share > config.missing_limit else ""
        if not found:
            break
        log.warning("reader or judge: try %d of %d: %s", number + 1, tries, found)
        if number + 1 < tries:
            sleep(config.outage_pause_s * 2**number)
    for problem in processes.gathered(found):
        if problem:
            raise TrainingStopped(
                f"reader or judge: expected at most {config.missing_limit:.0%} of the answers and "
                f"verdicts missing (grpo.missing_limit), found after {tries} tries: {problem}; "
                f"{GO_ON}"
            )
    return result
