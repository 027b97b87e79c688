"""Images that are decoded in each epoch: the same batches as those decoded once, where these would not fit."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import pytest
import torch
from device import accelerator
from test_pictures import PROCESSOR, rows

from mmssl.data import atomic
from mmssl.data.images import pictures
from mmssl.data.images.on_demand import OnDemand, Table
from mmssl.data.loader import Loader
from mmssl.training import checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def parts(data, **flags) -> tuple[pictures.Pictures, pictures.Pictures]:
    args = pictures.PictureArgs(**flags)
    args.seed, args.dataloader_num_workers = 5, 0
    source = pictures.Source(data.select(range(len(data) - 2)), data.select([len(data) - 1]), "image", 10)
    return source.decoded(PROCESSOR, args)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_images_decoded_once(workers, tmp_path):
    data = rows(tmp_path, 12)
    once, now = parts(data)[0], parts(data, streaming=True)[0]
    assert isinstance(now, pictures.Undecoded) and not isinstance(once, pictures.Undecoded)
    pairs = zip(Loader(once, 2, seed=3).epoch(4), Loader(now, 2, seed=3, num_workers=workers).epoch(4), strict=True)
    for a, b in pairs:
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_with_a_corrupt_image_the_two_differ_in_length_which_a_resume_says(tmp_path):
    args, device = pictures.PictureArgs(), accelerator()
    once, now = (parts(rows(tmp_path, 12, broken=(4,)), streaming=streaming)[0] for streaming in (False, True))
    assert (len(once), len(now)) == (9, 10)
    saved = {"args": asdict(args)} | checkpoint.surroundings(device, len(once))
    assert checkpoint.differences(saved, args, device, len(once)) == []
    [said] = checkpoint.differences(saved, args, device, len(now))
    assert said.startswith("resumed on 10 training samples instead of 9: ") and "--image_cache" in said


def test_what_does_not_fit_is_decoded_in_each_epoch_and_what_was_chosen_is_said(tmp_path, capsys):
    data, one = rows(tmp_path, 12), 3 * 8 * 8
    for room, kinds in (
        (11 * one, (pictures.Pictures, pictures.Pictures)),
        (10 * one, (pictures.Undecoded, pictures.Pictures)),
        (0, (pictures.Undecoded, pictures.Undecoded)),
    ):
        data = rows(tmp_path, 12).add_column(f"n{room}", list(range(12)))  # not yet in the cache
        assert tuple(map(type, parts(data, image_cache=room / 1e9))) == kinds
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and "--image_cache allows" in said
        assert ("decoded during training" in said) == (kinds[0] is pictures.Undecoded)
        assert ("a second on one core" in said) == (kinds[0] is pictures.Undecoded)


def test_images_that_are_decoded_already_need_no_room(tmp_path):
    data = rows(tmp_path, 12)
    parts(data)
    assert type(parts(data, image_cache=0)[0]) is pictures.Pictures


def test_half_of_the_free_space_is_used_where_no_limit_is_given(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    assert 0.4 * usage.free < atomic.room(None) < 0.6 * usage.free
    assert atomic.room(1.5) == 1_500_000_000


def test_a_corrupt_image_is_replaced_by_the_next_that_can_be_used(tmp_path, caplog):
    data = rows(tmp_path, 12, broken=(4, 5, 11))
    pixels = OnDemand(Table(data, ["image"]), 12, PROCESSOR, "images")
    found = pixels[torch.tensor([3, 4, 5, 6, 11])]
    assert found[:, 0, 0, 0].tolist() == [60, 120, 120, 120, 0]
    assert torch.equal(found, pixels[torch.tensor([3, 4, 5, 6, 11])])
    assert [caplog.text.count(f"row {row}: ") for row in (4, 5, 11)] == [1, 1, 1]
    assert "4.png" in caplog.text


def test_an_evaluation_finds_pixels_by_row_as_in_a_decoded_array(tmp_path):
    data = rows(tmp_path, 12)
    once, now = parts(data)[0], parts(data, streaming=True)[0]
    assert now.pixels.shape == tuple(once.pixels.shape)
    for some in (torch.tensor([2]), now.rows[:4], now.sample(3)):
        assert torch.equal(once.pixels[some], now.pixels[some])
