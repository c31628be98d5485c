"""memalpha_kit: a notebook-first research kit for Mem-alpha (arXiv 2509.25911).

A small language model learns by GRPO to write an external memory while it reads a long input
chunk by chunk. Read `records.py` for the words we speak and `README.md` for the arrow.
"""

__version__ = "0.1.0"
