"""`python -m memalpha_kit` is `memalpha`."""

from __future__ import annotations

import sys

from memalpha_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
