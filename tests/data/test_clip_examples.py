"""Labelled clips: moving digits, the middle of a video, the video that a clip is of; and encoders that take them."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
import videos
from tiny.video_lstm import method, processor
from tiny.videomae import method as videomae
from transformers import ViTImageProcessorPil

from mmssl.data import labelled
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.evaluation.downstream.raw_features import raw_features
from mmssl.models import image_encoders

SIZE = ViTImageProcessorPil(size={"height": 16, "width": 16})


def bright(count: int, level: int) -> bytes:
    noise = np.random.default_rng(level).integers(0, 20, (count, 32, 32, 3))
    return videos.video((noise + level).astype(np.uint8))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    """12 videos in two classes, dark and bright, each of its own brightness."""
    place = tmp_path_factory.mktemp("videos")
    levels = [20 + 15 * i for i in range(12)]
    rows = {
        "video": [{"bytes": bright(30, level), "path": None} for level in levels],
        "label": [x > 100 for x in levels],
    }
    data = datasets.Dataset.from_dict(rows | {"label": ["bright" if bad else "dark" for bad in rows["label"]]})
    data.to_parquet(place / "train.parquet")
    return str(place)


@pytest.mark.parametrize("modality", ["image", "video"])
def test_moving_digits_are_single_and_labelled_and_the_test_has_other_digits(modality):
    train, test = labelled.load("moving_digits", modality, SIZE, max_samples=40, frames=5)
    assert len(train) == len(test) == 40 and train.names == [str(digit) for digit in range(10)]
    batch = train.__getitems__([0, 3])
    assert batch["pixel_values"].shape == (2, 5, 3, 16, 16) and len(train.label.unique()) > 5
    assert not labelled.overlap(train, test)


def test_the_middle_of_each_video_has_its_label(parquet):
    train, test = labelled.load(parquet, "video", SIZE, held_out=2, frames=6)
    assert len(train) == 11 and len(test) == 1 and train.names == ["bright", "dark"]
    pixels = train.__getitems__(list(range(11)))["pixel_values"].float().mean((1, 2, 3, 4))
    assert torch.equal(pixels > 110, train.label == 0)


def test_which_video_a_clip_is_of_is_learned_from_its_beginning_and_tested_on_its_end(parquet):
    train, test = labelled.load(parquet, "image", SIZE, label_column=labelled.WHICH_CLIP, frames=6)
    assert len(train.names) == 12 and len(test) == 12 and len(train) == 12 * 5
    assert train.inputs.starts.max() + 6 <= 20 <= test.inputs.starts.min()
    x, z = raw_features(train, test)
    nearest = np.abs(x[None].mean(2) - z.mean(1)[:, None]).argmin(1)
    assert (train.label[nearest] == test.label).float().mean() > 0.8
    with pytest.raises(BadInput, match="fewer than two videos have 90 frames"):
        labelled.load(parquet, "image", SIZE, label_column=labelled.WHICH_CLIP, frames=30)


def saved(place, name: str) -> str:
    torch.manual_seed(0)
    if name == "frames":
        model, used = image_encoders.from_scratch("resnet-micro", 32)
        model.save_pretrained(place)
    elif name == "videomae":
        one, used = videomae()
        one.save_pretrained(place)
    else:
        used = processor()
        method().save_pretrained(place)
    used.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize(
    ("name", "modality", "frames"), [("frames", "image", 8), ("videomae", "video", 6), ("lstm", "video", 10)]
)
def test_encoders_of_frames_and_of_clips_give_one_vector_per_clip(name, modality, frames, tmp_path):
    encoder = encoders.load(saved(tmp_path, name))
    assert encoder.modality == modality and encoder.frames == frames
    train, _ = labelled.load("moving_digits", encoder.modality, encoder.processor, max_samples=6, frames=encoder.frames)
    found = encoders.features(encoder, train, cached=False)[0]
    assert found.ndim == 2 and len(found) == 6 and found.std(0).max() > 0
    if name == "frames":  # the mean over the frames
        of_layers = encoders.features(encoder, train, layers="all", cached=False)
        torch.testing.assert_close(of_layers[-1], found)
        assert len(of_layers) == 4 and all(len(layer) == 6 for layer in of_layers)
        pixels = encoder.views.whole(train.__getitems__([2])["pixel_values"][0])
        with torch.no_grad():
            expected = encoder.model(pixels).last_hidden_state.mean((0, 2, 3))
        torch.testing.assert_close(found[2], expected, atol=1e-5, rtol=1e-4)
