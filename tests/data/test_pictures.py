"""Pictures without captions: which can be used, in what size, and what is drawn for them when."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data.images import pictures as of_pictures
from mmssl.data.images.decoding import shape
from mmssl.data.images.pictures import PictureArgs, Pictures, scaled
from mmssl.data.loader import Loader
from mmssl.errors import BadInput

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def rows(folder, n: int = 12, broken: tuple[int, ...] = ()) -> datasets.Dataset:
    files = []
    for i in range(n):
        files.append(str(folder / f"{i}.png"))
        if i in broken:
            (folder / f"{i}.png").write_bytes(b"broken")
        else:
            Image.fromarray(np.full((10, 10), 20 * i, dtype=np.uint8)).save(files[-1])  # grey
    return datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())


def test_the_key_depends_on_seed_epoch_and_picture_and_on_nothing_else(tmp_path):
    data = rows(tmp_path)

    def key(seed: int, epoch: int, indices: list[int]):
        pictures = Pictures(data, PROCESSOR, "image", seed=seed)
        pictures.set_epoch(epoch)
        return pictures.__getitems__(indices)["key"]

    first = key(0, 0, [3, 4])
    assert first.shape == (2,) and first.dtype == torch.int64
    assert torch.equal(key(0, 0, [7, 4, 3])[[2, 1]], first)
    assert not any((key(*other, [3, 4]) == first).any() for other in ((1, 0), (0, 1)))
    assert len(key(0, 0, list(range(12))).unique()) == 12


def test_each_epoch_has_keys_of_its_own(tmp_path):
    loader = Loader(Pictures(rows(tmp_path), PROCESSOR, "image"), 4)
    keys = torch.cat([batch["key"] for epoch in range(100) for batch in loader.epoch(epoch)])
    assert len(keys.unique()) == len(keys) == 1200


def test_grey_pictures_have_three_equal_channels(tmp_path):
    batch = Pictures(rows(tmp_path), PROCESSOR, "image").__getitems__([5])
    assert batch["pixel_values"].shape == (1, 3, 8, 8) and (batch["pixel_values"] == 100).all()
    assert batch.keys() == {"pixel_values", "key", "index"}


def test_a_broken_picture_is_left_out_and_many_are_refused(tmp_path, caplog):
    pictures = Pictures(rows(tmp_path, broken=(2,)), PROCESSOR, "image")
    assert len(pictures) == 11 and 2 not in pictures.rows and "2.png" in caplog.text
    with pytest.raises(BadInput, match="too many to leave out"):
        Pictures(rows(tmp_path, broken=(2, 3, 4)), PROCESSOR, "image")


def test_a_scaled_processor_leaves_the_asked_size_and_the_original_is_left_alone():
    sides = {"height": 8, "width": 8}
    for processor in (PROCESSOR, CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size=sides)):
        larger = scaled(processor, 12)
        assert shape(larger) == (12, 12) and shape(processor) == (8, 8)
        assert (larger.image_mean, larger.image_std) == (processor.image_mean, processor.image_std)
    clip = scaled(CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size=sides), 16)
    assert clip.size["shortest_edge"] == 20  # what is cut off is the same share of the image
    wide = scaled(ViTImageProcessorPil(size={"height": 8, "width": 16}), 4)
    assert shape(wide) == (4, 8)


def save(folder, sizes: list[tuple[int, int]], broken: int = 0) -> str:
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i, 0, 0)).save(folder / f"{i:03}.png")
    for i in range(broken):
        (folder / f"broken{i}.png").write_bytes(b"broken")
    return str(folder)


def found(dataset: str, **flags) -> of_pictures.Source:
    return of_pictures.find(PictureArgs(dataset=dataset, **flags))


def test_the_usual_side_is_the_longer_one_of_most_images_and_at_most_224(tmp_path):
    assert found(save(tmp_path / "wide", [(20, 12)] * 12 + [(30, 30)] * 4)).side == 20
    assert found(save(tmp_path / "large", [(300, 200)] * 12)).side == 224
    assert found(save(tmp_path / "broken", [(9, 9)] * 12, broken=1)).side == 9


def test_a_source_is_decoded_as_the_processor_has_it_or_larger_for_crops(tmp_path):
    folder = save(tmp_path / "wide", [(20, 12)] * 40)
    for flags, side in (({}, 8), ({"decode_size": 16}, 16)):
        args = PictureArgs(dataset=folder, held_out=3, **flags)
        args.seed = 0
        train, held_out = of_pictures.find(args).decoded(PROCESSOR, args)
        assert (len(train), len(held_out)) == (37, 3)
        assert train.pixels.shape[1:] == held_out.pixels.shape[1:] == (3, side, side)
