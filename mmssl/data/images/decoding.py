"""Decodes images to uint8. views.py then crops and augments them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets

    Data = datasets.Dataset | datasets.IterableDataset


def undecoded(data: Data, column: str) -> Data:
    """The same rows, with {bytes, path} in the image column. Raises BadInput if it cannot hold images."""
    import datasets
    import pyarrow as pa

    try:
        return data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"--image_column {column} holds {data.features[column]}, not images or paths") from error


def as_rgb(image: Image.Image | dict | bytes | str) -> Image.Image:
    """The image in RGB, rotated upright, its transparency composited on white. A dict is what
    `datasets.Image(decode=False)` gives.

    Raises what Pillow raises on an unreadable image: OSError, ValueError, SyntaxError, Image.DecompressionBombError.
    """
    if not isinstance(image, Image.Image):
        import datasets

        image = {"path": image} if isinstance(image, str) else {"bytes": image} if isinstance(image, bytes) else image
        image = datasets.Image().decode_example({"bytes": None, "path": None} | image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode(image: Image.Image | dict | bytes | str, processor) -> np.ndarray:
    """(3, height, width) uint8: the output of a checkpoint's image processor before it rescales to floats.

    Training thus sees exactly the pixels that users of the exported processor give the model.
    """
    pixels = processor(as_rgb(image), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return pixels.astype(np.uint8, copy=False)


def shape(processor) -> tuple[int, int]:
    """(height, width) of the output of a transformers image processor. Raises BadInput if it is not fixed."""
    wide, high = (decode(Image.new("RGB", size), processor).shape for size in ((64, 48), (48, 64)))
    if wide != high or len(wide) != 3:
        raise BadInput(
            f"{type(processor).__name__} gives images of several shapes, {wide} and {high}; it must give one"
        )
    return wide[1:]
