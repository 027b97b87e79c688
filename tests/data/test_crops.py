"""Crops cut from stored images: the same places as those of the views, sharper, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import tiny_clip
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from test_every_method import METHODS, variants
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data import draws
from mmssl.data.image_text import pairs
from mmssl.data.images import decoding, pictures
from mmssl.data.images.crops import Crops
from mmssl.data.images.numbered import Numbered
from mmssl.data.images.views import CROP_FLIP, EMOJI, FLIP, SIMCLR, View, Views
from mmssl.data.loader import Loader
from mmssl.errors import BadInput
from mmssl.method import Method, Output

SIDE = 16
BILINEAR = 2  # of Pillow: the filter of the views
PROCESSOR = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=BILINEAR)
KEYS = draws.draw(torch.arange(8), 3, 1)


def photograph(height: int, width: int) -> Pillow.Image:
    """Smooth waves of three colours."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [np.sin(x / width * 9 + 1), np.cos(y / height * 7 + x / width * 3), np.sin((x / width + y / height) * 5)]
    return Pillow.fromarray(np.stack([127 + 120 * wave for wave in waves], axis=2).astype(np.uint8))


def cut(shown: Views, image: Pillow.Image, processor=PROCESSOR) -> list[torch.Tensor]:
    """The views, through crops of the stored image."""
    crops = Crops(shown, processor)
    return shown(torch.from_numpy(np.stack([crops(image, key) for key in KEYS])), KEYS)


def whole(shown: Views, image: Pillow.Image) -> list[torch.Tensor]:
    """The views of the image in its own size."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return shown(pixels.expand(len(KEYS), -1, -1, -1).contiguous(), KEYS)


@pytest.mark.parametrize("size", [(40, 40), (90, 60), (50, 121)])
@pytest.mark.parametrize("view", [CROP_FLIP, SIMCLR, replace(SIMCLR, blur=0.5, solarise=0.3), FLIP, EMOJI])
def test_views_are_those_of_the_image_in_its_full_size(view: View, size: tuple[int, int]):
    image, two = photograph(*size), [replace(view, size=SIDE), replace(view, size=(8, 12))]
    shown = Views(two, [0.5] * 3, [0.5] * 3)
    for through_crops, of_whole in zip(cut(shown, image), whole(shown, image), strict=True):
        assert through_crops.shape == of_whole.shape
        assert (through_crops - of_whole).abs().mean() < 0.01  # a crop is rounded to 8 bits


@pytest.mark.parametrize("size", [(40, 160), (160, 40), (64, 64)])
@pytest.mark.parametrize("resized, crop", [({"shortest_edge": 20}, SIDE), ({"height": 24, "width": 32}, SIDE)])
def test_a_centre_crop_of_the_processor_is_kept(resized, crop, size):
    sides = {"height": crop, "width": crop}
    processor = CLIPImageProcessorPil(size=resized, crop_size=sides, resample=BILINEAR)
    image = photograph(*size)
    pixels = torch.from_numpy(decoding.decode(image, processor)).expand(len(KEYS), -1, -1, -1).contiguous()
    # the shape of a crop is that of stored pixels, so it is another one where the processor squeezes them
    for view, most in [(FLIP, 0.02)] + [(CROP_FLIP, 0.06)] * ("shortest_edge" in resized):  # detail is sharper
        shown = Views([replace(view, size=SIDE)], [0.0] * 3, [1.0] * 3)
        (through_crops,), (of_decoded,) = cut(shown, image, processor), shown(pixels, KEYS)
        assert (through_crops - of_decoded).abs().mean() < most


def test_a_view_without_a_size_is_refused():
    with pytest.raises(BadInput, match="needs a size"):
        Crops(Views([CROP_FLIP], [0.5] * 3, [0.5] * 3), PROCESSOR)


def test_detail_is_kept_that_a_shrunk_image_has_lost():
    rng = np.random.default_rng(0)
    fine = Pillow.fromarray(rng.integers(0, 256, (8 * SIDE, 8 * SIDE, 3), dtype=np.uint8))
    small = View(size=SIDE, scale=(1 / 64, 1 / 64), ratio=(1.0, 1.0), jitter=0.0, grey=0.0)
    shown = Views([small], [0.0] * 3, [1.0] * 3)
    (sharp,), (blurred,) = cut(shown, fine), whole(shown, fine.resize((SIDE, SIDE), Pillow.Resampling.BILINEAR))
    assert sharp.std() > 4 * blurred.std()


def stored(folder, n: int = 12, side: int = 48) -> Dataset:
    paths = []
    for row in range(n):
        paths.append(str(folder / f"{row}.png"))
        photograph(side + row, side).save(paths[-1])
    features = Features({"image": Image(), "n": Value("int64")})
    return Dataset.from_dict({"image": paths, "n": list(range(n))}, features=features)


def training(data: Dataset, **flags) -> pictures.Pictures:
    return parts(data, **flags)[0]


def parts(data: Dataset, **flags) -> tuple[pictures.Pictures, pictures.Pictures]:
    args = pictures.PictureArgs(**flags)
    args.seed, args.dataloader_num_workers = 5, 0
    return pictures.Source(data.select(range(10)), data.select([11]), "image", SIDE).decoded(PROCESSOR, args)


class Seen(Method):
    def __init__(self, *shown: View) -> None:
        super().__init__()
        self.views = Views(shown, [0.5] * 3, [0.5] * 3)

    def forward(self, pixel_values, key) -> Output:
        return Output(torch.stack([view.mean() for view in self.views(pixel_values, key)]).mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_and_hold_all_views(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    data = training(stored(tmp_path), crop_from="stored")
    assert "--crop_from stored" in capsys.readouterr().out
    data.made_for(Seen(replace(SIMCLR, size=SIDE), replace(SIMCLR, size=8)))
    alone = list(Loader(data, 2, seed=3).epoch(1))
    batches = list(Loader(data, 2, seed=3, num_workers=workers).epoch(1))
    assert all(batch["pixel_values"].shape == (2, 3 * SIDE**2 + 3 * 8**2) for batch in batches)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, batches, strict=True) for name in a)
    assert data.pixels[data.rows[:2]].shape == (2, 3, SIDE, SIDE)  # an evaluation still gets whole images


def test_images_on_disk_are_not_used_and_held_out_ones_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    data = stored(tmp_path)
    assert type(training(data)) is pictures.Pictures
    train, held_out = parts(data, crop_from="stored")
    assert type(train) is pictures.Undecoded and type(held_out) is pictures.Pictures
    assert held_out.__getitems__([0])["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_methods_without_views_of_their_own_and_those_that_choose_their_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    data = training(stored(tmp_path), crop_from="stored")
    with pytest.raises(BadInput, match="--crop_from stored: Method has no views of its own"):
        data.made_for(Method())
    with pytest.raises(BadInput, match="--crop_from stored: this method needs whole training images"):
        Numbered(data)


def test_clip_trains_on_crops_of_pairs_that_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "pairs"
    folder.mkdir()
    for row in range(12):
        photograph(60 + row, 60).save(folder / f"{row}.png")
        (folder / f"{row}.txt").write_text("a red square")
    method, processor = tiny_clip.build()
    method.views = Views([replace(CROP_FLIP, size=24)] * 2, [0.5] * 3, [0.5] * 3)
    source = pairs.find(str(folder), None, None, held_out=1, streaming=True)
    training = source.training(processor, 8, 0, crop_from="stored", seed=0)
    training.made_for(method)
    batch = next(Loader(training, 4).epoch(0))
    assert batch.pop("pixel_values").shape == (4, 2 * 3 * 24**2) and training.pictures(torch.arange(2)).dim() == 4
    batch = next(Loader(training, 4).epoch(0))
    batch.pop("index")
    assert method.train()(**batch).loss.isfinite()
    with pytest.raises(BadInput, match="--crop_from stored works with --streaming only"):
        pairs.find(str(folder), None, None, held_out=1).training(processor, 8, 0, crop_from="stored")


def of_images() -> list[str]:
    """Methods whose recipe takes --crop_from."""
    found = []
    for name in METHODS:
        recipe = import_module(f"recipes.{name}") if name not in {"cpc", "clip"} else None
        flags = [kind for kind in vars(recipe).values() if isinstance(kind, type)] if recipe else []
        if any(issubclass(kind, pictures.PictureArgs) for kind in flags):
            found.append(name)
    return found


@pytest.mark.parametrize("name", of_images())
def test_every_method_on_images_trains_on_crops(name, tmp_path, monkeypatch):
    tiny = next(iter(variants(name).values()))()
    views_of = getattr(tiny.method, "views", None)
    batch = next(Loader(tiny.data, tiny.batch_size, tiny.collate_fn).epoch(0))
    batch.pop("index", None)
    if not isinstance(views_of, Views) or "row" in batch:
        pytest.skip("refused, see the test above")
    shape = batch["pixel_values"].shape[2:]
    views_of.views = tuple(replace(view, size=view.shape(*shape)) for view in views_of.views)
    crops = Crops(views_of, PROCESSOR)
    images = [Pillow.fromarray(image.permute(1, 2, 0).numpy()) for image in batch["pixel_values"]]
    of_crops = torch.from_numpy(np.stack([crops(image, key) for image, key in zip(images, batch["key"], strict=True)]))
    outputs = []
    for pixels in (batch["pixel_values"], of_crops):
        torch.manual_seed(0)
        tiny.method.train()
        outputs.append(tiny.method(**batch | {"pixel_values": pixels}).loss)
    assert torch.allclose(*outputs, rtol=0.05), "crops are rounded to 8 bits, nothing else"
