import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from transformers import ViTImageProcessorPil

from mmssl.data.images import views
from mmssl.data.images.views import (
    CROP_FLIP,
    EMOJI,
    SIMCLR,
    WHOLE,
    MultiCropArgs,
    View,
    Views,
    byol,
    multi_crop,
    multi_crop_from_args,
    simclr,
)
from mmssl.errors import BadInput
from mmssl.kernels.views_torch import tensor_form

UNIT = [0.0] * 3, [1.0] * 3  # mean and deviation that leave [0, 1] as it is
STILL = View(scale=None, flip=0.0, jitter=0.0, grey=0.0)
EVERYTHING = replace(SIMCLR, blur=0.5, solarise=0.5)


def photographs(n: int = 4, height: int = 40, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Smooth colours with some noise, all of them unlike, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * (0.9 * pixels + 0.1 * torch.rand(pixels.shape, generator=generator))).byte()


def coordinates(n: int, height: int, width: int) -> torch.Tensor:
    """Images of their own coordinates: red is 4 x, green is 4 y, in pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([4 * x, 4 * y, 0 * x]).byte().expand(n, -1, -1, -1)


def one(view: View, pixels: torch.Tensor, key: torch.Tensor | None = None) -> torch.Tensor:
    """The view in [0, 1]."""
    return Views([view], *UNIT)(pixels, torch.arange(len(pixels)) if key is None else key)[0]


def changed(pixels: torch.Tensor, **values: float) -> torch.Tensor:
    """pixels (n, 3, h, w) uint8 with exactly these parameters, by name: the kernel's answer, in [0, 1]."""
    names = ["a", "b", "x", "c", "d", "y", "brightness", "lightness", "contrast", "saturation", "hue", "grey", "sigma",
             "solarise"]  # fmt: skip
    row = dict(zip(names, [1.0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0], strict=True)) | values
    parameters = torch.tensor([list(row.values())]).repeat(len(pixels), 1)
    size = tuple(pixels.shape[2:])
    out = [form(pixels, parameters, size, False, 3, *map(torch.tensor, UNIT)) for form in (tensor_form, pass_on_cpu())]
    torch.testing.assert_close(*out, atol=1e-5, rtol=0)
    return out[1]


def pass_on_cpu():
    return pytest.importorskip("mmssl.kernels.views").cpu_pass


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def assert_like(out: torch.Tensor, expected: Image.Image, levels: float) -> None:
    """Within so many of 255 levels of what Pillow made, which rounds after every step."""
    expected = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1).float()
    assert (255 * out - expected).abs().max() <= levels


# what does not change


def test_a_view_in_which_nothing_happens_is_the_normalised_image():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    expected = (photographs() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    module = Views([STILL], mean, std)
    for out in (module(photographs(), torch.arange(4))[0], module.whole(photographs())):
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)


def test_a_view_depends_on_the_key_and_not_on_batch_order_threads_or_the_global_generator():
    module = Views([SIMCLR, EVERYTHING], *UNIT)
    pixels, key = photographs(8), torch.arange(100, 108)
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    all_views = module(pixels, key)
    assert torch.equal(torch.get_rng_state(), before)
    alone = [torch.cat(parts) for parts in zip(*(module(pixels[[i]], key[[i]]) for i in range(8)), strict=True)]
    backwards = [view.flip(0) for view in module(pixels.flip(0), key.flip(0))]
    try:
        torch.set_num_threads(3)
        large = photographs(8, 160, 160)
        threaded = module(large, key)
        torch.set_num_threads(1)
        assert all(map(torch.equal, threaded, module(large, key)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, all_views, alone)) and all(map(torch.equal, all_views, backwards))


def test_images_views_and_epochs_get_draws_of_their_own():
    same = photographs(1).expand(6, -1, -1, -1)
    out = torch.cat(Views([SIMCLR, SIMCLR], *UNIT)(same, torch.tensor([0, 1, 2, 2**32, 2**40, -1])))
    assert all(not torch.allclose(out[i], out[j], atol=1e-3) for i in range(12) for j in range(i))


def test_no_image_leaks_into_another():
    pixels = photographs()
    other = pixels.clone()
    other[1] = 0
    out, out_other = one(EVERYTHING, pixels), one(EVERYTHING, other)
    assert torch.equal(out[[0, 2, 3]], out_other[[0, 2, 3]]) and not torch.equal(out[1], out_other[1])


def test_values_stay_in_range():
    strong = replace(EVERYTHING, brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5)
    for view in (strong, replace(EMOJI, lightness=1.0)):
        out = one(view, photographs(64))
        assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6


def test_events_happen_as_often_as_asked_and_amounts_fill_their_ranges():
    view = replace(EVERYTHING, blur=0.3)
    p = Views([view], *UNIT).parameters_of(torch.arange(4000), 32, 32)[0]
    happened = torch.stack([p[:, 0] < 0, p[:, 6] != 1, p[:, 11] > 0, p[:, 12] > 0, p[:, 13] > 0]).float().mean(1)
    torch.testing.assert_close(happened, torch.tensor([0.5, 0.8, 0.2, 0.3, 0.5]), atol=0.03, rtol=0)
    jittered = p[p[:, 6] != 1]
    for column, low, high in ((6, 0.6, 1.4), (8, 0.6, 1.4), (9, 0.6, 1.4), (10, -0.1, 0.1)):
        values = jittered[:, column]
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02
    correlation = torch.corrcoef(jittered[:, [2, 5, 6, 8, 9, 10, 11, 12, 13]].T)
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.08


def test_nothing_of_it_is_in_a_checkpoint():
    assert Views([SIMCLR], *UNIT).state_dict() == {}


def test_the_whole_image_comes_in_the_first_views_size():
    module = Views([simclr(16), simclr(8)], *UNIT)
    out = module.whole(photographs())
    assert torch.equal(out, one(replace(STILL, size=16), photographs()))
    torch.testing.assert_close(module.whole(photographs(4, 16, 16)), photographs(4, 16, 16) / 255, atol=1e-5, rtol=0)


def test_autocast_does_not_make_the_pixels_coarse():
    module = Views([EVERYTHING], *UNIT)
    parameters = module.parameters_of(torch.arange(4), 40, 40)[0]
    arguments = photographs(), parameters, (32, 32), False, 1, module.mean, module.std
    with torch.autocast("cpu", torch.bfloat16):
        out = tensor_form(*arguments)
    assert torch.equal(out, tensor_form(*arguments)) and out.dtype == torch.float32


def test_a_compiled_module_makes_the_same_views(monkeypatch):
    module, key = Views([SIMCLR, EVERYTHING], *UNIT), torch.arange(4)
    expected = module(photographs(), key)
    assert all(map(torch.equal, torch.compile(module, backend="eager")(photographs(), key), expected))
    monkeypatch.setattr(views, "_on_cpu", tensor_form)  # what a GPU does, in one graph
    for out, same in zip(
        torch.compile(module, backend="eager", fullgraph=True)(photographs(), key), expected, strict=True
    ):
        torch.testing.assert_close(out, same, atol=1e-4, rtol=0)


# crops, moves and resizing, against Pillow and the definition


@pytest.mark.parametrize("size", [(40, 40), (13, 29), (56, 90), (1, 1)])
def test_resizing_the_whole_image_is_pillows_antialiased_bilinear(size):
    pixels = photographs(1, 40, 52)
    out = one(replace(STILL, size=size), pixels)[0]
    assert_like(out, pillow(pixels[0]).resize(size[::-1], Image.Resampling.BILINEAR), levels=1.01)


@pytest.mark.parametrize("size", [(48, 48), (20, 32), (7, 5)])
def test_a_crop_is_pillows_antialiased_box(size):
    pixels, key = photographs(6, 40, 52), torch.arange(6)
    view = View(size=size, jitter=0.0, grey=0.0)
    out, parameters = one(view, pixels, key), Views([view], *UNIT).parameters_of(key, 40, 52)[0]
    for image, mine, (a, _, x, _, d, y, *_) in zip(pixels, out, parameters.double().tolist(), strict=True):
        box = ((x - abs(a) + 1) * 26, (y - d + 1) * 20, (x + abs(a) + 1) * 26, (y + d + 1) * 20)
        box = tuple(max(0.0, side) for side in box[:2]) + (min(52.0, box[2]), min(40.0, box[3]))
        expected = pillow(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box)
        assert_like(mine.flip(2) if a < 0 else mine, expected, levels=1.01)


@pytest.mark.parametrize(
    "view", [WHOLE, View(scale=(1, 1), ratio=(1, 1), jitter=0.0, grey=0.0), replace(WHOLE, zoom=(1, 1))]
)
def test_flip_mirrors_left_and_right(view):
    torch.testing.assert_close(
        one(replace(view, flip=1.0), photographs()), photographs().flip(3) / 255, atol=1e-5, rtol=0
    )


def test_a_whole_image_flipped_with_probability_one_half_or_never_is_the_view_of_that_name():
    assert views.whole(0.5) == views.FLIP and views.whole(0.0) == WHOLE


def test_crops_lie_inside_and_have_the_asked_area_and_ratio_in_pixels():
    n, height, width = 500, 40, 60
    out = 255 / 4 * one(View(scale=(0.2, 0.4), ratio=(0.7, 1.5), jitter=0.0, grey=0.0), coordinates(n, height, width))
    # a crop's border is half a pixel outside of its first pixel's centre; coordinates are those of centres
    x, y = out[:, 0, 10], out[:, 1, :, 10]
    wide, high = (x[:, -5] - x[:, 4]).abs() * width / (width - 9), (y[:, -5] - y[:, 4]) * height / (height - 9)
    area, ratio = wide * high / (width * height), wide / high
    assert area.min() > 0.19 and area.max() < 0.41 and ratio.min() > 0.69 and ratio.max() < 1.53
    assert area.std() > 0.03 and ratio.log().std() > 0.2
    assert (x.min(1).values + wide).max() < width + 0.1 and (y.min(1).values + high).max() < height + 0.1
    assert 0.4 < (x[:, -1] < x[:, 0]).float().mean() < 0.6
    for start, side, whole in ((x.min(1).values, wide, width), (y.min(1).values, high, height)):
        place = start / (whole - side)  # every place is as likely
        assert place.min() < 0.05 and place.max() > 0.95 and abs(place.mean() - 0.5) < 0.05


def test_rotation_keeps_the_distance_to_the_centre():
    size = 63
    out = 255 / 4 * one(replace(STILL, rotation=45.0), coordinates(100, size, size))[:, :2] - size // 2
    middle = size // 2
    torch.testing.assert_close(out[:, :, middle, middle], torch.zeros(100, 2), atol=1e-3, rtol=0)
    right = out[:, :, middle, middle + 20]
    torch.testing.assert_close(right.norm(dim=1), torch.full((100,), 20.0), atol=0.01, rtol=0)
    angle = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert angle.min() < -30 and angle.max() > 30 and angle.abs().max() <= 45.1


def test_translation_moves_by_at_most_its_share_and_the_border_repeats():
    size = 60
    out = 255 / 4 * one(replace(STILL, translation=0.25), coordinates(300, size, size))
    moved = out[:, 0, 30, 30] - 30
    assert 0.2 * size < moved.abs().max() <= 0.25 * size and moved.min() < -0.15 * size
    assert out.min() >= 0 and out[:, :2].max() <= size - 1 + 1e-3


def test_zoom_shows_a_part_or_more_than_the_whole():
    size = 61
    out = 255 / 4 * one(replace(STILL, zoom=(0.5, 2.0)), coordinates(200, size, size))
    slope = out[:, 0, 30, 31] - out[:, 0, 30, 30]
    assert 0.5 <= slope.min() + 1e-3 < 0.55 and 1.85 < slope.max() - 1e-3 <= 2.0


# colours, against Pillow and the standard library


@pytest.mark.parametrize("amount", [0.0, 0.6, 1.0, 1.7])
def test_brightness_contrast_and_saturation_are_pillows(amount):
    pixels = photographs(1)
    image = pillow(pixels[0])
    assert_like(changed(pixels, brightness=amount)[0], ImageEnhance.Brightness(image).enhance(amount), levels=1.01)
    assert_like(changed(pixels, contrast=amount)[0], ImageEnhance.Contrast(image).enhance(amount), levels=2)
    assert_like(changed(pixels, saturation=amount)[0], ImageEnhance.Color(image).enhance(amount), levels=2)


def test_lightness_adds_to_every_value():
    expected = (photographs() / 255 - 0.3).clamp(0, 1)
    torch.testing.assert_close(changed(photographs(), lightness=-0.3), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.07, 0.1, 1 / 3, 0.5])
def test_hue_turns_the_colour_wheel_of_hsv(turn):
    primary = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
    pixels = torch.cat([primary, torch.randint(0, 256, (94, 3), generator=torch.Generator().manual_seed(0))]).byte()
    expected = []
    for red, green, blue in (pixels / 255).double().tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    out = changed(pixels.T.reshape(1, 3, 10, 10), hue=turn).reshape(3, 100).T
    torch.testing.assert_close(out, torch.tensor(expected), atol=1e-5, rtol=0)


def test_grey_and_solarise_are_pillows():
    pixels = photographs(1)
    image = pillow(pixels[0])
    assert_like(changed(pixels, grey=1.0)[0], image.convert("L").convert("RGB"), levels=1)
    assert_like(changed(pixels, solarise=1.0)[0], ImageOps.solarize(image, 128), levels=0.01)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_a_gaussian_cut_off_at_its_kernel(sigma):
    pixels = photographs(2)
    out = changed(pixels, sigma=sigma)
    expected = gaussian_filter(pixels.numpy() / 255, sigma, axes=(2, 3), mode="nearest", radius=3)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_colours_change_in_the_order_of_the_documentation():
    pixels = photographs(1)
    values = {
        "brightness": 1.3,
        "contrast": 0.6,
        "saturation": 1.4,
        "hue": 0.1,
        "grey": 1.0,
        "sigma": 1.0,
        "solarise": 1.0,
    }
    step_by_step = pixels
    for name, value in values.items():
        step_by_step = (255 * changed(step_by_step, **{name: value})).round().byte()
    out = 255 * changed(pixels, **values)
    assert (out - step_by_step).abs().max() < 3


# ready-made views


def test_blur_begins_where_the_image_is_large_enough():
    assert simclr(64).blur == 0 and simclr(96).blur == 0.5
    assert [view.blur for view in byol(224)] == [1.0, 0.1] and [view.blur for view in byol(32)] == [0.0, 0.0]
    assert [view.solarise for view in byol(32)] == [0.0, 0.2]


def test_small_views_that_would_be_larger_than_the_large_ones_are_refused_by_flag():
    args = MultiCropArgs(small_views=2, boundary=0.05, smallest_crop=0.5)
    with pytest.raises(BadInput, match="--smallest_crop 0.5 is more than --boundary 0.05; lower it"):
        multi_crop_from_args(args, ViTImageProcessorPil())
    args.small_views = 0
    assert len(multi_crop_from_args(args, ViTImageProcessorPil()).views) == 2


def test_multi_crop_gives_large_views_of_most_of_the_image_and_small_ones_of_little():
    made = multi_crop(byol(32), small_size=16, small_views=4)
    out = Views(made, *UNIT)(photographs(), torch.arange(4))
    assert [tuple(view.shape[2:]) for view in out] == [(32, 32)] * 2 + [(16, 16)] * 4
    assert [view.scale for view in made] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 4


@pytest.mark.parametrize("patch_size, small", [(None, 18), (4, 16), (12, 12), (36, 36)])
def test_small_crops_are_whole_patches(patch_size, small):
    processor = ViTImageProcessorPil(size={"height": 36, "width": 36}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    made = multi_crop_from_args(MultiCropArgs(small_views=3), processor, patch_size)
    assert [view.size for view in made.views] == [(36, 36)] * 2 + [small] * 3


def test_views_for_mae_leave_the_colours_alone():
    p = Views([CROP_FLIP], *UNIT).parameters_of(torch.arange(100), 32, 32)[0]
    assert (p[:, 6:] == torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 0])).all()


# what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"brightness": -0.1},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 2.0)},
        {"ratio": (2.0, 1.0)},
        {"hue": 0.7},
        {"rotation": 10.0},
        {"size": 0},
        {"blur": 0.5, "sigma": (0.0, 1.0)},
    ],
)
def test_a_view_that_cannot_be_is_refused_by_name_and_value(wrong):
    with pytest.raises(BadInput, match=f"{list(wrong)[-1]}"):
        View(**wrong)


def test_pixels_that_are_not_uint8_rgb_are_refused():
    module = Views([SIMCLR], *UNIT)
    for pixels in (photographs().float(), photographs()[:, :1], photographs()[0]):
        with pytest.raises(BadInput, match="uint8"):
            module.whole(pixels)
    with pytest.raises(BadInput, match="empty list of views"):
        Views([], *UNIT)


def test_without_numba_the_tensor_form_takes_over(monkeypatch):
    expected = one(EVERYTHING, photographs())
    monkeypatch.setattr(views, "_cpu_pass", lambda: tensor_form)
    torch.testing.assert_close(one(EVERYTHING, photographs()), expected, atol=1e-4, rtol=0)
