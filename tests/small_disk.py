"""A disk that fills up and a folder that is read-only, by means of the kernel.

Not fixtures: pytest reports a test before its fixtures end, and its own output may be a file.
"""

import ctypes
import os
import resource
from contextlib import contextmanager

LIBC = ctypes.CDLL(None, use_errno=True)
IGNORES_MODES = 1 << 1  # CAP_DAC_OVERRIDE


@contextmanager
def no_file_above(limit: int):
    """The kernel stops a write half-way where a file would grow above `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """Nothing can be made in the folder; root gives up its right to ignore that (Linux)."""
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    root = os.getuid() == 0 and LIBC.capget(header, rights) == 0
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    if root:
        rights[0] &= ~IGNORES_MODES  # of those in effect; it stays permitted
        LIBC.capset(header, rights)
    try:
        yield
    finally:
        if root:
            rights[0] |= IGNORES_MODES
            LIBC.capset(header, rights)
        folder.chmod(mode)
