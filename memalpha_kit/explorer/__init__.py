"""The explorer: episodes to look at, chunk by chunk, as one page that needs no server.

`show(episodes)` is for a notebook, `memalpha explore` for everywhere else; both show the same page.
"""

from memalpha_kit.explorer.page import html_page, show
from memalpha_kit.explorer.view import Recording, view

__all__ = ["Recording", "html_page", "show", "view"]
