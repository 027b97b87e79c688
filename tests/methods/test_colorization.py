"""Colorization: the loss written out; rebalancing; grey images; what the encoder may see; collapse."""

from __future__ import annotations

import collapse
import pytest
import torch
from PIL import Image
from tiny.colorization import counted, method
from tiny.deepcluster import Stored, one_view
from tiny.simclr import batch, resnet
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessorPil

from mmssl.data.images import lab
from mmssl.errors import BadInput
from mmssl.methods import colorization
from mmssl.models import image_encoders


def test_rebalancing_is_equation_4_and_a_weight_is_1_on_average():
    joint = torch.zeros(313, 313)
    joint[3, 3], joint[3, 4], joint[9, 9] = 0.6, 0.1, 0.3
    weight, constant = colorization.rebalancing(joint)
    plain = [1 / (0.5 * p + 0.5 / 313) for p in joint.sum(0).tolist()]
    mean = 0.7 * plain[3] + 0.3 * plain[9]
    torch.testing.assert_close(weight, torch.tensor([w / mean for w in plain]))
    assert weight[9] > weight[3]
    expected = {3: 0.6 * plain[3] / mean, 4: 0.1 * plain[3] / mean, 9: 0.3 * plain[9] / mean}
    assert constant.sum().item() == pytest.approx(1)
    assert {i: constant[i].item() for i in expected} == pytest.approx(expected, rel=1e-3)


def test_the_counted_colours_are_those_of_the_images():
    joint = counted()
    pixels = Stored().pixels / 255
    ab = torch.nn.functional.avg_pool2d(lab.from_srgb(pixels)[:, 1:], 4).permute(0, 2, 3, 1).reshape(-1, 2)
    nearest = torch.cdist(ab, lab.bins()).argmin(1)
    torch.testing.assert_close(joint.sum(1), torch.bincount(nearest, minlength=313) / len(ab))
    assert joint.sum().item() == pytest.approx(1)


def test_the_loss_is_the_weighted_cross_entropy_written_out():
    torch.manual_seed(0)
    one, rows = method().eval(), batch(2)
    torch.nn.init.normal_(one.decoder.classify.weight, std=0.1)
    with torch.no_grad():
        output = one(**rows)
        lightness, ab, _ = colorization.targets(rows["pixel_values"] / 255)
        logits, _ = one.predict(lightness, (4, 4))
    index, share = lab.soft_encoding(ab.flatten(0, -2), lab.bins(), lab.candidates())
    total = trivial = 0.0
    for position, scores in enumerate(logits.flatten(0, -2)):
        probability = scores.softmax(0)
        for bin, part in zip(index[position], share[position], strict=True):
            weight = one.weight_of_bin[index[position, 0]] * part
            total -= float(weight * probability[bin].log())
            trivial -= float(weight * one.constant[bin].log())
    assert output.loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert float(output.trivial_loss) == pytest.approx(trivial / 32, rel=1e-4)


def test_the_loss_starts_at_that_of_the_colours_of_the_training_images():
    output = method()(**batch())
    assert output.loss.item() == pytest.approx(float(output.trivial_loss), rel=1e-5)


def test_grey_images_are_counted_and_have_no_part_in_the_loss():
    one, rows = method(resnet).eval(), batch(4)
    grey = rows["pixel_values"].float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    mixed = torch.cat([rows["pixel_values"], grey])
    with torch.no_grad():
        alone, together = one(**rows), one(mixed, torch.cat([rows["key"], rows["key"]]))
    assert alone.metrics["grey_images"] == 0 and together.metrics["grey_images"] == 0.5
    torch.testing.assert_close(together.loss, alone.loss / 2)
    torch.testing.assert_close(together.trivial_loss, alone.trivial_loss / 2)
    torch.testing.assert_close(together.metrics["colour_error"], alone.metrics["colour_error"])
    only = one(grey, rows["key"])
    assert only.loss == 0 and only.metrics["colour_error"] == only.metrics["rebalanced_colour_error"] == 0


def test_the_errors_of_a_grey_prediction_are_how_far_the_true_colours_are_from_grey():
    one, pictures = method(), Stored()
    ab = colorization.targets(pictures.pixels / 255)[1].flatten(0, -2)
    weight = one.weight_of_bin[torch.cdist(ab, lab.bins()).argmin(1)]
    lengths = [(a * a + b * b, w) for (a, b), w in zip(ab.tolist(), weight.tolist(), strict=True)]
    plain = (sum(square for square, _ in lengths) / len(lengths)) ** 0.5
    weighted = (sum(w * square for square, w in lengths) / sum(w for _, w in lengths)) ** 0.5
    expected = {"colour_error": plain, "rebalanced_colour_error": weighted}
    assert one.errors_of_grey(pictures) == pytest.approx(expected, rel=1e-4)


def test_images_without_any_colour_are_refused():
    pictures = Stored()
    pictures.pixels = pictures.pixels[:, :1].expand(-1, 3, -1, -1).contiguous()
    with pytest.raises(BadInput, match="all images are grey, so there are no colours to predict"):
        colorization.count_colours(pictures, one_view())


def test_the_encoder_cannot_see_the_colours_that_it_predicts():
    """Two images of the same lightness and of other colours get the same prediction."""
    generator = torch.Generator().manual_seed(0)
    image = lab.from_srgb(0.3 + 0.4 * torch.rand(2, 3, 16, 16, generator=generator))
    other = image.clone()
    other[:, 1:] = 0
    one, predictions = method(resnet).eval(), []
    torch.nn.init.normal_(one.decoder.classify.weight, std=0.1)
    for each in (image, other):
        lightness, _, _ = colorization.targets(lab.to_srgb(each))
        predictions.append(one.predict(lightness, (4, 4))[0])
    torch.testing.assert_close(*predictions, atol=1e-3, rtol=1e-3)


def test_loaded_plainly_it_sees_a_picture_and_its_grey_form_alike(tmp_path):
    one = method(resnet)
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
    for _ in range(3):
        one(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        one.after_step()
    one.save_pretrained(tmp_path)
    ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=image_encoders.MEAN, image_std=image_encoders.STD
    ).save_pretrained(tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(batch()["pixel_values"][0].permute(1, 2, 0).cpu().numpy())
    with torch.no_grad():
        coloured, grey = (
            model(**processor(each, return_tensors="pt")).pooler_output
            for each in (picture, picture.convert("L").convert("RGB"))
        )
    torch.testing.assert_close(coloured, grey, atol=0.02, rtol=0.02)  # Pillow rounds grey to whole numbers


def test_the_heads_are_the_decoder_and_the_statistics_of_the_colours():
    names = {name.split(".")[0] for name in method(resnet)._heads()}
    assert names == {"decoder", "weight_of_bin", "constant"}


def test_the_figure_shows_the_lightness_with_predicted_and_true_colours():
    shown = method(resnet).eval().shown(**batch(3))
    assert list(shown) == ["image", "input", "predicted", "true"]
    assert all(each.shape == (3, 3, 16, 16) and each.min() >= 0 and each.max() <= 1 for each in shown.values())
    assert lab.from_srgb(shown["input"])[:, 1:].abs().max() < 1e-3
    assert (shown["true"] - shown["image"]).abs().mean() < (shown["input"] - shown["image"]).abs().mean()


class Blind(colorization.Colorization):
    def predict(self, lightness: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        return super().predict(torch.zeros_like(lightness), size)


def test_an_encoder_that_gets_no_image_learns_nothing_and_the_monitor_says_so():
    torch.manual_seed(0)
    blind = Blind(resnet(), one_view(), counted(), dim=32)
    output = blind.eval()(**batch())
    assert output.loss.item() == pytest.approx(float(output.trivial_loss), rel=1e-5)
    assert "features have collapsed" in collapse.said(blind)


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(resnet)) is None
