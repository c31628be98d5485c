"""How chunks look when every pool of phrases has one line (the fixture `one_line_pools`)."""


def framed(day, content, lead_in="Notes:"):
    """`content` as what the user said on that day."""
    header = f"[Dialogue between User and Assistant on {day} 00:00]"
    return f"{header}\n<User>{lead_in}\n{content}\n<Assistant>Stored."
