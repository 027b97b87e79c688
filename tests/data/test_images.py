import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data.images import decoding
from mmssl.data.images.views import WHOLE, Views


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
