import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data.images import decoding
from mmssl.data.images.decoding import Affine, ColourJitter, RandomResizedCrop


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
    ours = decoding.normalise(decoding.unit_range(ours), processor.image_mean, processor.image_std)
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


# augmentation


def batch(n: int = 4, size: int = 20) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


AUGMENTATIONS = [
    Affine(rotation=30, scale=(0.5, 1.5), translation=0.2, flip=0.5),
    RandomResizedCrop(),
    ColourJitter(0.4),
]


@pytest.mark.parametrize(
    "identity", [Affine(), RandomResizedCrop(scale=(1, 1), ratio=(1, 1), flip=0), ColourJitter(0.0)]
)
def test_identity_parameters_leave_the_image_as_it_is(identity):
    torch.testing.assert_close(identity(batch()), batch(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mirror", [Affine(flip=1), RandomResizedCrop(scale=(1, 1), ratio=(1, 1), flip=1)])
def test_flip_mirrors_left_and_right(mirror):
    torch.testing.assert_close(mirror(batch()), batch().flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentation_is_deterministic_under_a_seed_and_stays_in_range(augment):
    out = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        out.append(augment(batch()))
    assert torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2])
    assert out[0].shape == batch().shape and out[0].min() >= 0 and out[0].max() <= 1


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_each_image_of_a_batch_gets_its_own_draw(augment):
    same = batch(1).expand(8, -1, -1, -1)
    out = augment(same)
    assert all(not torch.allclose(out[i], out[j], atol=1e-3) for i in range(8) for j in range(i))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_no_image_leaks_into_another(augment):
    pixels = batch()
    changed = pixels.clone()
    changed[1] = 0
    torch.manual_seed(0)
    out = augment(pixels)
    torch.manual_seed(0)
    out_changed = augment(changed)
    assert torch.equal(out[[0, 2, 3]], out_changed[[0, 2, 3]]) and not torch.equal(out[1], out_changed[1])


def coordinates(n: int, size: int) -> torch.Tensor:
    """An image of its own coordinates: channel 0 is x, 1 is y, from 0 to 1 between the outermost pixel centres."""
    line = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(n, -1, -1, -1)


def test_crops_lie_inside_and_have_the_asked_area_and_ratio():
    size, n = 64, 500
    out = RandomResizedCrop(scale=(0.2, 0.6), ratio=(0.5, 2.0), flip=0.5)(coordinates(n, size))
    # the slope of a coordinate is the crop's side as a share of the image's; away from the rim, where it is clamped
    step_x, step_y = out[:, 0].diff(dim=2)[:, :, 4:-4] * (size - 1), out[:, 1].diff(dim=1)[:, 4:-4] * (size - 1)
    wide, high = step_x.abs().amax((1, 2)), step_y.abs().amax((1, 2))
    area, ratio = wide * high, wide / high
    assert area.min() > 0.19 and area.max() < 0.61 and ratio.min() > 0.49 and ratio.max() < 2.05
    assert area.std() > 0.05 and ratio.log().std() > 0.2
    # outside the image the coordinate would stand still
    torch.testing.assert_close(step_x.abs().amin((1, 2)), wide, atol=1e-3, rtol=0)
    torch.testing.assert_close(step_y.abs().amin((1, 2)), high, atol=1e-3, rtol=0)
    assert 0.4 < (step_x[:, 0, 0] < 0).float().mean() < 0.6


def test_rotation_keeps_the_distance_to_the_centre():
    size = 65
    out = Affine(rotation=45)(coordinates(100, size))
    away = (out[:, :2] - 0.5) * (size - 1)  # pixels from the centre: where each output pixel looks
    middle = size // 2
    torch.testing.assert_close(away[:, :, middle, middle], torch.zeros(100, 2), atol=1e-3, rtol=0)
    right = away[:, :, middle, middle + 20]
    torch.testing.assert_close(right.norm(dim=1), torch.full((100,), 20.0), atol=0.01, rtol=0)
    angle = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert angle.min() < -30 and angle.max() > 30 and angle.abs().max() <= 45.1


def test_translation_moves_by_at_most_its_share():
    size = 64
    out = Affine(translation=0.25)(coordinates(300, size))
    moved = out[:, 0, 0, size // 2] - coordinates(1, size)[0, 0, 0, size // 2]
    assert moved.abs().max() <= 0.26 and moved.abs().max() > 0.2 and moved.min() < -0.15 < 0.15 < moved.max()


def test_colour_jitter_leaves_grey_grey():
    grey = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    out = ColourJitter(0.4)(grey)
    torch.testing.assert_close(out, out.mean(1, keepdim=True).expand_as(out), atol=1e-6, rtol=0)
    assert not torch.allclose(out, grey)
