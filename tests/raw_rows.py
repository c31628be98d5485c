"""Raw files by hand, and how chunks look when every pool of phrases has one line."""

import json
from pathlib import Path


def write(folder: Path, name: str, content) -> Path:
    """The folder, now with a raw file of bytes, text, or a value as JSON."""
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, ensure_ascii=False)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def framed(day, content, lead_in="Notes:"):
    """`content` as what the user said on that day."""
    header = f"[Dialogue between User and Assistant on {day} 00:00]"
    return f"{header}\n<User>{lead_in}\n{content}\n<Assistant>Stored."
