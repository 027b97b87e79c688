"""Pictures without captions: which can be used, and which of their patches are hidden when."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from mmssl.data.images.pictures import Pictures
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


def test_what_is_hidden_depends_on_seed_epoch_and_picture_and_on_nothing_else(tmp_path):
    data = rows(tmp_path)

    def noise(seed: int, epoch: int, indices: list[int]):
        pictures = Pictures(data, PROCESSOR, "image", patches=16, seed=seed)
        pictures.set_epoch(epoch)
        return pictures.__getitems__(indices)["noise"]

    first = noise(0, 0, [3, 4])
    assert first.shape == (2, 16) and (first >= 0).all() and (first < 1).all()
    assert torch.equal(noise(0, 0, [7, 4, 3])[[2, 1]], first)
    assert not any(torch.equal(noise(*other, [3, 4]), first) for other in ((1, 0), (0, 1)))
    assert len(noise(0, 0, list(range(12))).flatten().unique()) == 12 * 16


def test_a_whole_run_sees_each_patch_a_quarter_of_the_time(tmp_path):
    loader = Loader(Pictures(rows(tmp_path), PROCESSOR, "image", patches=16), 4)
    seen = torch.cat([batch["noise"].argsort(1)[:, :4] for epoch in range(100) for batch in loader.epoch(epoch)])
    share = torch.bincount(seen.flatten(), minlength=16) / len(seen)
    assert (share - 0.25).abs().max() < 0.05


def test_grey_pictures_have_three_equal_channels(tmp_path):
    batch = Pictures(rows(tmp_path), PROCESSOR, "image").__getitems__([5])
    assert batch["pixel_values"].shape == (1, 3, 8, 8) and (batch["pixel_values"] == 100).all()
    assert batch.keys() == {"pixel_values", "index"}


def test_a_broken_picture_is_left_out_and_many_are_refused(tmp_path, caplog):
    pictures = Pictures(rows(tmp_path, broken=(2,)), PROCESSOR, "image")
    assert len(pictures) == 11 and 2 not in pictures.rows and "2.png" in caplog.text
    with pytest.raises(BadInput, match="too many to leave out"):
        Pictures(rows(tmp_path, broken=(2, 3, 4)), PROCESSOR, "image")
