"""A disk that fills up, by the kernel's limit on the size of a file."""

import resource
from contextlib import contextmanager


@contextmanager
def no_file_above(limit: int):
    """The kernel stops a write half-way where a file would grow above `limit` bytes.

    Not a fixture: pytest reports a test before its fixtures end, and its own output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
