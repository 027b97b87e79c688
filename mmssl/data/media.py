"""Images and recordings, by the names of their files."""

from __future__ import annotations

import re
from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
NUMBER = re.compile(r"#\d+$")  # Flickr8k and Flickr30k: "cat.jpg#0" is the first caption of cat.jpg


def kind(name: object) -> str | None:
    """ "image" or "audio" if it is called like one; None for URLs and all else."""
    if not isinstance(name, str) or "://" in name:
        return None
    suffix = Path(NUMBER.sub("", name.strip())).suffix.lower()
    return "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else None
