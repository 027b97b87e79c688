"""Split-brain autoencoder: the loss written out; nothing passes between the halves; what each may see; collapse."""

from __future__ import annotations

import collapse
import pytest
import torch
from tiny.deepcluster import Stored, one_view
from tiny.simclr import batch, resnet
from tiny.split_brain import method
from torch import Tensor
from transformers import AutoModel

from mmssl.data.images import lab
from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA
from mmssl.methods import split_brain
from mmssl.methods.colorization import targets
from mmssl.models import halves, hypercolumns, image_encoders


def with_predictions(one: split_brain.SplitBrain) -> split_brain.SplitBrain:
    for head in (one.predict_colour, one.predict_lightness):
        torch.nn.init.normal_(head.classify.weight, std=0.1)
    return one


def test_the_loss_is_two_cross_entropies_written_out():
    one, rows = with_predictions(method()).eval(), batch(2)
    with torch.no_grad():
        output = one(**rows)
        image = one.views.to_unit_range(one.views.whole(rows["pixel_values"]))
        lightness, ab, _ = targets(image)
        colours, lights, _ = one.predict(one.views.whole(rows["pixel_values"]), (4, 4))
    index, share = lab.soft_encoding(ab.flatten(0, -2), lab.bins(), lab.candidates())
    small = torch.nn.functional.avg_pool2d(lightness, 4).flatten()
    total = trivial = 0.0
    for position in range(32):
        probability, light = colours.flatten(0, -2)[position].softmax(0), lights.flatten(0, -2)[position].softmax(0)
        for bin, part in zip(index[position], share[position], strict=True):
            total -= float(part * probability[bin].log())
            trivial -= float(part * one.share_of_colours[bin].log())
        true = min(99, int(small[position]))
        total -= float(light[true].log())
        trivial -= float(one.share_of_lightness[true].log())
    assert output.loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert float(output.trivial_loss) == pytest.approx(trivial / 32, rel=1e-4)


def test_the_loss_starts_at_that_of_how_often_the_bins_occur():
    output = method()(**batch())
    assert output.loss.item() == pytest.approx(float(output.trivial_loss), rel=1e-5)


def test_the_lightness_is_counted_in_bins_of_one_unit():
    assert split_brain.lightness_bin(torch.tensor([0.0, 0.99, 1.0, 57.3, 99.9, 100.0])).tolist() == [
        0,
        0,
        1,
        57,
        99,
        99,
    ]
    colours, lightness = split_brain.count(Stored(), one_view())
    assert colours.sum().item() == pytest.approx(1) and lightness.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("task, own, other", [(0, "sees_grey", "sees_colour"), (1, "sees_colour", "sees_grey")])
def test_no_gradient_passes_from_the_task_of_one_half_to_the_other(task, own, other):
    one = with_predictions(method())
    pixels = one.views.whole(batch()["pixel_values"])
    one.predict(pixels, (4, 4))[task].square().sum().backward()
    assert all(value.grad is not None for value in getattr(one, own).parameters())
    assert all(value.grad is None for value in getattr(one, other).parameters())


def trained(kind: type = split_brain.SplitBrain) -> split_brain.SplitBrain:
    torch.manual_seed(0)
    one = kind(resnet(), one_view(), split_brain.count(Stored(), one_view()), dim=16)
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
    for _ in range(5):
        one(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        one.after_step()
    return one.eval()


def test_after_training_no_half_sees_what_it_predicts():
    """The shortcut would be to copy: the first half cannot see colour, and the second cannot see how light it is."""
    one = trained()
    mean, std = (value.view(3, 1, 1) for value in (one.views.mean, one.views.std))
    image = 0.3 + 0.4 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    luma = (torch.tensor(LUMA).view(3, 1, 1) * image).sum(1, keepdim=True)
    with torch.no_grad():
        seen, grey, lighter = (
            one.predict((each - mean) / std, (4, 4)) for each in (image, luma.expand_as(image), image + 0.2 * luma)
        )
    torch.testing.assert_close(seen[0], grey[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen[1], lighter[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen[1], grey[1], atol=1e-3) and not torch.allclose(seen[0], lighter[0], atol=1e-3)


def test_loaded_plainly_its_features_are_those_of_both_halves_and_no_weight_joins_them(tmp_path):
    one = trained()
    one.save_pretrained(tmp_path)
    model, pixels = AutoModel.from_pretrained(tmp_path).eval(), one.views.whole(batch()["pixel_values"])
    with torch.no_grad():
        parts = [hypercolumns.maps(half, pixels)[-1].flatten(1) for half in (one.sees_grey, one.sees_colour)]
        torch.testing.assert_close(image_encoders.features(model, pixels), torch.cat(parts, 1))
    assert halves.are_separate(model)


def test_it_continues_where_it_was_and_from_no_other_encoder(tmp_path):
    one = trained()
    one.save_pretrained(tmp_path)
    counted = split_brain.count(Stored(), one_view())
    again = split_brain.SplitBrain(AutoModel.from_pretrained(tmp_path), one_view(), counted, dim=16)
    again.continue_from(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch()).loss, one(**batch()).loss)
    with pytest.raises(BadInput, match="its halves see each other, so this is not a split-brain encoder"):
        method().continue_from(str(tmp_path))


def test_the_heads_are_all_but_the_halves():
    names = {name.split(".")[0] for name in method()._heads()}
    assert names == {"predict_colour", "predict_lightness", "share_of_colours", "share_of_lightness"}


def test_grey_images_have_no_part_in_the_loss():
    one, rows = with_predictions(method()).eval(), batch(4)
    grey = rows["pixel_values"].float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    with torch.no_grad():
        alone = one(**rows)
        together = one(torch.cat([rows["pixel_values"], grey]), torch.cat([rows["key"], rows["key"]]))
    torch.testing.assert_close(together.loss, alone.loss / 2)
    assert {k: v.item() for k, v in together.metrics.items()} == pytest.approx(
        {k: v.item() for k, v in alone.metrics.items()}
    )
    assert one(grey, rows["key"]).loss == 0


def test_the_figure_shows_what_each_half_sees_and_predicts():
    shown = method().eval().shown(**batch(3))
    assert list(shown) == ["image", "grey", "its colours", "colour", "its lightness"]
    assert all(each.shape == (3, 3, 16, 16) and each.min() >= 0 and each.max() <= 1 for each in shown.values())


class Blind(split_brain.SplitBrain):
    def predict(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        return super().predict(torch.zeros_like(pixels), size)


def test_halves_that_get_no_image_learn_nothing_and_the_monitor_says_so():
    torch.manual_seed(0)
    blind = Blind(resnet(), one_view(), split_brain.count(Stored(), one_view()), dim=16)
    assert "features have collapsed" in collapse.said(blind)


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method()) is None
