"""Decodes images to uint8. views.py then crops and augments them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mmssl.data import regular_files
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    import datasets


MAX_BYTES = 1 << 29  # of an image file: more than MAX_PIXELS take without compression
MAX_PIXELS = 89_478_485  # 0.27 GB as RGB, stored or resized; beyond it Pillow warns of a decompression bomb
MAX_RATIO = 100  # longer side / shorter; a square crop of such an image shows 1 % of it, after all of it was resized


def undecoded(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """The same rows, with {bytes, path} in the image column. Raises BadInput if it cannot hold images."""
    import datasets
    import pyarrow as pa

    try:
        return data.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"--image_column {column} holds {data.features[column]}, not images or paths") from error


def as_rgb(image: Image.Image | dict | bytes | str) -> Image.Image:
    """Turned upright, scaled to 8 bits, transparency composited on white. image, and what raises: as in `opened`."""
    image = eight_bits(opened(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def opened(image: Image.Image | dict | bytes | str) -> Image.Image:
    """The first frame, upright, in the mode that it is stored in. A dict is what `datasets.Image(decode=False)` gives.

    Raises what Pillow raises (OSError, ValueError, SyntaxError, Image.DecompressionBombError) where it cannot read it;
    BadInput, whose message continues the file's name, where it is beyond MAX_BYTES or MAX_PIXELS, no regular file, or a
    program (EPS).
    """
    if isinstance(image, Image.Image):
        return image
    image = {"path": image} if isinstance(image, str) else {"bytes": image} if isinstance(image, bytes) else image
    content = image.get("bytes")
    if content is None:
        if not image.get("path"):
            raise BadInput("holds no image")
        content = regular_files.read(image["path"], MAX_BYTES)
    regular_files.check_size(len(content), MAX_BYTES)
    try:
        found = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # Pillow names the object that it reads from, at its address in memory
        raise UnidentifiedImageError("the file is empty" if not content else "in no known format") from None
    if found.format == "EPS":  # which Pillow gives to ghostscript
        raise BadInput("is a PostScript program; store it as PNG")
    _check_pixels(*found.size, "holds")
    found.load()
    return ImageOps.exif_transpose(found) if ExifTags.Base.Orientation in found.getexif() else found


def is_deep(mode: str) -> bool:
    """Whether Pillow holds more than 8 bits a pixel in it."""
    return mode.startswith("I;16") or mode in ("I", "F")


def eight_bits(image: Image.Image) -> Image.Image:
    """Images of 16 bits divided by 257, floats in [0, 1] multiplied by 255: one rule for all of a data set, so that
    their brightness can be compared. `convert` alone would clip them, to white or to black.

    Raises BadInput if the values do not define white: floats outside [0, 1], integers of more than 16 bits.
    """
    if not is_deep(image.mode):
        return image
    values = np.asarray(image)
    white, lowest, highest = 1 if image.mode == "F" else 65535, values.min(), values.max()
    if not (lowest >= 0 and highest <= white):  # also where one is not a number
        raise BadInput(f"holds values from {lowest:,} to {highest:,}, not from 0 to {white:,}; store it with 8 bits")
    scaled = Image.fromarray(np.rint(values * np.float32(255 / white)).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:  # the value that is
        scaled.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return scaled


def check_resized(size: tuple[int, int], processor) -> None:
    """Raises BadInput if a processor resizes by the shorter side and so makes too large an image of one of `size`."""
    edge = (processor.size or {}).get("shortest_edge") if processor.do_resize else None
    if edge is None:
        return
    ratio = max(size) / min(size)
    if ratio > MAX_RATIO:
        raise BadInput(f"is {size[0]:,} x {size[1]:,} pixels, its sides more than 1 : {MAX_RATIO}; crop it")
    _check_pixels(edge, round(edge * ratio), "becomes")


def _check_pixels(width: int, height: int, holds: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(f"{holds} {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} that are read")


def decode(image: Image.Image | dict | bytes | str, processor) -> np.ndarray:
    """(3, height, width) uint8: the output of a checkpoint's image processor before it rescales to floats; of a
    processor of clips, that of a clip of one frame.

    Training thus sees exactly the pixels that users of the exported processor give the model.
    """
    image = as_rgb(image)
    check_resized(image.size, processor)
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    return pixels.reshape(pixels.shape[-3:]).astype(np.uint8, copy=False)


def normalisation(processor) -> tuple[list[float], list[float]]:
    """(mean, deviation) per channel, of pixels in [0, 1], as `processor` subtracts and divides by them. Raises BadInput
    if it does something else."""
    if getattr(processor, "rescale_offset", False) or getattr(processor, "do_flip_channel_order", False):
        raise BadInput(f"{type(processor).__name__} shifts values or swaps channels, which views of images do not")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    if mean is None or std is None:
        raise BadInput(f"{type(processor).__name__} has no image_mean or image_std; add them to its JSON file")
    mean, std = ([value] * 3 if isinstance(value, (int, float)) else list(value) for value in (mean, std))
    white = 255 * processor.rescale_factor if processor.do_rescale else 255.0  # what becomes of the value 255
    return [value / white for value in mean], [value / white for value in std]


def kept(processor, height: int, width: int) -> tuple[float, float]:
    """(height, width), in pixels of a stored image of that size, of the middle that `processor` keeps: all of it, or,
    after a centre crop, a part."""
    if not processor.do_center_crop:
        return height, width
    high, wide = height, width
    if processor.do_resize:
        size = processor.size
        edge = (size.get("shortest_edge") or 0) / min(height, width)
        high, wide = size.get("height") or edge * height, size.get("width") or edge * width
    crop = processor.crop_size
    return height * min(1.0, crop["height"] / high), width * min(1.0, crop["width"] / wide)


def shape(processor) -> tuple[int, int]:
    """(height, width) of the output of a transformers image processor. Raises BadInput if it is not fixed."""
    try:
        wide, high = (decode(Image.new("RGB", size), processor).shape for size in ((64, 48), (48, 64)))
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:  # of settings that do not fit together
        raise BadInput(
            f"{type(processor).__name__} cannot be used ({first_line(error)}); correct its JSON file"
        ) from error
    if wide != high or len(wide) != 3:
        raise BadInput(
            f"{type(processor).__name__} gives images of several shapes, {wide} and {high}; it must give one"
        )
    return wide[1:]
