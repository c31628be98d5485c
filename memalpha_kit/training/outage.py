"""When a reader or judge is gone: wait, ask again, and in the end stop.

The one law: nobody's silence becomes a number. A step whose answers or verdicts are missing is not
trained on with zeros in their place; it is asked for again, and training stops if that does not
help (D32). What is missing below `grpo.missing_limit` stays missing and is counted.
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
    result, problem = None, None
    try:
        result = _asked_again(asked, missing, config, sleep)
    except TrainingStopped as error:
        problem = error
    for found in processes.gathered(problem):
        if found:
            raise found
    return result


def _asked_again(
    asked: Callable[[], T],
    missing: Callable[[T], float],
    config: GrpoConfig,
    sleep: Callable[[float], None],
) -> T:
    tries = config.outage_retries + 1
    for number in range(tries):
        try:
            result = asked()
        except GONE as error:
            found = str(error) or type(error).__name__
        else:
            share = missing(result)
            if share <= config.missing_limit:
                return result
            found = f"{share:.0%} missing"
        log.warning("reader or judge: try %d of %d: %s", number + 1, tries, found)
        if number + 1 < tries:
            sleep(config.outage_pause_s * 2**number)
    raise TrainingStopped(
        f"reader or judge: expected at most {config.missing_limit:.0%} of the answers and verdicts "
        f"missing (grpo.missing_limit), found after {tries} tries: {found}; {GO_ON}"
    )
