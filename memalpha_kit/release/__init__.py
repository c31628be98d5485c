"""What exists only to equal the published code (repository wangyu-ustc/Mem-alpha).

Every module registers its variants by name when it is imported; nothing in the kit imports this
folder but the registry, which does so when it meets a name that nobody has registered. Without the
folder the kit works as before, under its own rules only.
"""

from memalpha_kit.release import (  # noqa: F401
    answers,
    calls,
    data,
    judges,
    memory,
    methods,
    scoring,
    server,
    tasks,
)
