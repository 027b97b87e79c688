"""Distances between real and generated images against closed forms, and the classifier that is not sure of noise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_encoders
import torch
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data import labelled
from mmssl.data.images import pictures
from mmssl.errors import BadInput
from mmssl.evaluation.generated import (
    AMONG_CLASSES,
    CLASSES,
    CONFIDENCE,
    FRECHET,
    KERNEL,
    OF_NONE,
    Generated,
    frechet_distance,
    kernel_distance,
)
from mmssl.evaluation.held_out import Evaluation


def normal(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_features_have_no_frechet_distance_and_a_shift_has_its_square():
    x = normal(500, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + torch.tensor([3.0] + [0.0] * 7)) == pytest.approx(9, abs=1e-6)


def test_the_frechet_distance_of_scaled_features_is_that_of_two_normal_distributions():
    # independent features with deviations a and b: the sum of (a - b)^2
    x = normal(500, 3, 0)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert frechet_distance(white, white * scale) == pytest.approx(1 + 16, abs=1e-6)


def test_the_kernel_distance_is_the_mean_over_pairs_without_those_of_an_image_with_itself():
    x, y = normal(5, 3, 0), normal(4, 3, 1)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy)


def test_the_kernel_distance_of_equal_distributions_is_about_0_for_any_number_of_images():
    for n in (20, 200):
        found = torch.tensor([kernel_distance(normal(n, 4, 2 * s), normal(n, 4, 2 * s + 1)) for s in range(200)])
        assert abs(found.mean()) < 4 * found.std() / 200**0.5


@pytest.fixture(scope="module")
def judged() -> Generated:
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    flags = vars(pictures.PictureArgs(dataset="digits", held_out=300))
    args = SimpleNamespace(**flags, seed=0, probe_dataset=None, judge=None)
    train, held_out = pictures.find(args).decoded(processor, args)
    return Generated(Evaluation(), args, train, held_out, processor, count=200)


def test_real_images_are_near_and_named_and_noise_is_far_and_of_no_class(judged):
    real, noise = judged.baselines(None)["real images"], judged.of(torch.rand(200, 3, 8, 8))
    assert real[CONFIDENCE] > 80 and real[CLASSES] == 10 and noise[CONFIDENCE] < 20
    assert real[OF_NONE] < 10 and noise[OF_NONE] > 90
    assert real[AMONG_CLASSES] > real[CONFIDENCE] and noise[AMONG_CLASSES] > noise[CONFIDENCE]
    assert noise[FRECHET] > 5 * real[FRECHET] and noise[KERNEL] > 5 * real[KERNEL]


def test_images_of_three_classes_cover_three(judged):
    predicted = judged.classifier.predict(judged._flat(judged.train))
    chosen = judged.train[torch.from_numpy((predicted < 3).nonzero()[0])]
    assert judged.of(chosen)[CLASSES] == 3


def test_images_that_are_sorted_by_class_are_compared_with_all_classes(judged, monkeypatch):
    order = torch.from_numpy(judged.classifier.predict(judged._flat(judged.train))).argsort()
    pixels = (255 * judged.train[order]).to(torch.uint8)
    data = pictures.Undecoded(pixels, torch.arange(len(pixels)))
    monkeypatch.setattr(Generated, "_fit", lambda self, data: None)
    args = SimpleNamespace(judge=None, probe_dataset="digits", dataset="digits")
    one = Generated(Evaluation(), args, data, data, None, count=50)
    assert len(set(judged.classifier.predict(judged._flat(one.held_out)))) >= 9  # of the first 50, two or three


def test_the_card_names_the_encoder_of_the_distances_by_its_checksum(judged):
    assert (
        "200 generated images" in judged.units and "resnet-micro with random weights of seed 0 (sha256 " in judged.units
    )


def random_images(n: int) -> pictures.Undecoded:
    return pictures.Undecoded(torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8), torch.arange(n))


def test_an_encoder_whose_processor_cuts_a_square_out_judges_images_of_that_size(tmp_path):
    tiny_encoders.resnet(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    args = SimpleNamespace(judge=str(tmp_path), probe_dataset=None, dataset="unlabelled")
    one, seen = Generated(Evaluation(), args, random_images(8), random_images(8), None), []
    one.judge.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2:]))
    assert one.of(torch.rand(8, 3, 8, 8))[FRECHET] >= 0 and set(seen) == {(16, 16)}


def test_where_a_class_has_no_example_images_of_none_are_still_of_no_class(monkeypatch):
    label, images = torch.tensor([0, 2]).repeat(40), random_images(80)
    images.pixels[label == 0, :, :, :4] = images.pixels[label == 2, :, :, 4:] = 0
    found = labelled.Labelled(images, label, ["left", "nowhere", "right"], "")
    monkeypatch.setattr(labelled, "load", lambda *_, **__: (found, None))
    args = SimpleNamespace(judge=None, probe_dataset="halves", dataset="halves")
    one = Generated(Evaluation(), args, images, images, None)
    real, none = one.of(one.train), one.of(torch.rand(80, 3, 8, 8))
    assert real[CLASSES] == 2 and real[CONFIDENCE] > 60 and none[CONFIDENCE] < 20


def test_a_single_held_out_image_is_refused_with_the_remedy():
    args = SimpleNamespace(judge=None, probe_dataset=None, dataset="unlabelled")
    with pytest.raises(BadInput, match="two held-out images .* there are 1 and 8; raise --held_out, or use more"):
        Generated(Evaluation(), args, random_images(8), random_images(1), None)
