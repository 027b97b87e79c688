import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data.images import decoding
from mmssl.data.images.views import WHOLE, Views
from mmssl.errors import BadInput


def clip_processor(size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.RandomState(width).randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("processor", [clip_processor(48), ViTImageProcessorPil(size={"height": 48, "width": 40})])
@pytest.mark.parametrize("size", [(112, 112), (113, 77), (50, 131), (20, 30), (48, 48)])
def test_training_pixels_are_those_of_the_exported_processor(processor, size):
    image = photograph(*size)
    ours = torch.from_numpy(decoding.decode(image, processor))[None]
    ours = Views([WHOLE], processor.image_mean, processor.image_std).whole(ours)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_transparency_is_composited_on_white():
    for mode in ("RGBA", "LA", "P"):
        image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        ImageDraw.Draw(image).rectangle((0, 0, 15, 31), fill=(0, 0, 0, 255))
        file = io.BytesIO()
        image.convert(mode).save(file, "PNG")
        pixels = np.asarray(decoding.as_rgb(file.getvalue()))
        assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all(), mode


def test_a_photo_that_was_stored_on_its_side_is_turned_upright():
    upright = photograph(64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    file = io.BytesIO()
    upright.rotate(90, expand=True).save(file, "PNG", exif=exif)
    assert np.array_equal(np.asarray(decoding.as_rgb({"bytes": file.getvalue(), "path": None})), np.asarray(upright))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert decoding.decode(photograph(40, 30).convert("L" if mode == "I;16" else mode), clip_processor(16)).shape == (
        3,
        16,
        16,
    )


@pytest.mark.parametrize(("content", "said"), [(b"", "the file is empty"), (b"no picture", "in no known format")])
def test_what_is_no_image_is_said_without_an_address_in_memory(content, said):
    with pytest.raises(UnidentifiedImageError, match=f"^{said}$"):
        decoding.opened(content)


def test_bytes_path_and_dict_are_the_same_image(tmp_path):
    photograph(40, 30).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    given = [data, str(tmp_path / "a.png"), {"bytes": data, "path": "elsewhere.png"}, {"path": str(tmp_path / "a.png")}]
    first, *others = (decoding.decode(image, clip_processor(16)) for image in given)
    assert all(np.array_equal(first, other) for other in others)


def test_shape_is_that_of_what_comes_out():
    assert decoding.shape(clip_processor(40)) == (40, 40)
    assert decoding.shape(ViTImageProcessorPil(size={"height": 32, "width": 48})) == (32, 48)


def test_a_processor_without_a_fixed_shape_is_refused():
    with pytest.raises(decoding.BadInput, match="several shapes"):
        decoding.shape(CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False))


# ---------------------------------------------------------------- limits


def file_of(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_a_strip_that_its_shorter_side_would_make_huge_is_refused():
    strip = file_of(Image.new("L", (1, 65_000)))  # 224 x 14,560,000 pixels
    with pytest.raises(BadInput, match="is 1 x 65,000 pixels, its sides more than 1 : 100; crop it"):
        decoding.decode(strip, clip_processor(224))
    with pytest.raises(BadInput, match="becomes 8,192 x 819,200 pixels, more than the 89,478,485 that are read"):
        decoding.decode(Image.new("L", (1, 100)), clip_processor(8192))
    whole = ViTImageProcessorPil(size={"height": 16, "width": 16})  # makes nothing larger
    assert decoding.decode(strip, whole).shape == (3, 16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = file_of(Image.new("1", (10_000, 9_000)))
    assert len(bomb) < 20_000
    monkeypatch.setattr(Image.Image, "load", None)  # not called
    with pytest.raises(BadInput, match="holds 10,000 x 9,000 pixels, more than the 89,478,485 that are read"):
        decoding.as_rgb(bomb)


def test_bytes_beyond_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    with pytest.raises(BadInput, match="holds 0 MB, more than"):
        decoding.as_rgb(file_of(photograph(40, 30)))


def test_a_postscript_program_is_not_run():
    with pytest.raises(BadInput, match="is a PostScript program"):
        decoding.as_rgb(file_of(photograph(40, 30), "EPS"))


def test_of_a_thousand_frames_the_first_is_read():
    frames = [Image.new("L", (8, 8), shade) for shade in range(250)] * 4
    gif = file_of(frames[7], "GIF", save_all=True, append_images=frames)
    assert (np.asarray(decoding.as_rgb(gif)) == 7).all()


def test_a_cmyk_jpeg_has_the_colours_that_pillow_gives_it():
    jpeg = file_of(photograph(40, 32, "CMYK"), "JPEG", quality=95)
    difference = np.asarray(decoding.as_rgb(jpeg), int) - np.asarray(photograph(40, 32), int)
    assert np.abs(difference).mean() < 5


# ---------------------------------------------------------------- more than 8 bits

RAMP = np.arange(256, dtype=np.uint16)[None] * 257


@pytest.mark.parametrize(
    ("values", "format"),
    [(RAMP, "PNG"), (RAMP, "TIFF"), (RAMP.astype(np.int32), "TIFF"), ((RAMP / 65535).astype(np.float32), "TIFF")],
)
def test_deep_images_are_scaled_by_what_their_format_says_and_not_clipped(values, format):
    pixels = np.asarray(decoding.as_rgb(file_of(Image.fromarray(values), format)))
    assert (pixels == np.arange(256)[None, :, None]).all()


def test_a_dark_deep_image_stays_dark():
    pixels = np.asarray(decoding.as_rgb(Image.fromarray(RAMP // 4)))
    assert pixels.max() == 64


@pytest.mark.parametrize(
    "values", [[[0, 70_000]], [[-1, 5]], [[0.0, 1.5]], [[-0.1, 1.0]], [[float("nan"), 0.5]], [[float("inf"), 0.5]]]
)
def test_deep_images_whose_white_is_unknown_are_refused(values):
    values = np.array(values)
    image = Image.fromarray(values.astype(np.int32 if values.dtype.kind == "i" else np.float32))
    with pytest.raises(BadInput, match="holds values from .*; store it with 8 bits"):
        decoding.as_rgb(image)


def test_the_transparent_value_of_a_deep_image_is_white():
    png = file_of(Image.fromarray(np.array([[0, 300, 514]], np.uint16)), transparency=300)
    assert np.asarray(decoding.as_rgb(png))[0, :, 0].tolist() == [0, 255, 2]
