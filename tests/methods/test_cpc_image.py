"""CPC on images: patches and their augmentation; what a context sees; the loss written out; collapse."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.cpc_image import bit, method
from tiny.deepcluster import one_view
from tiny.simclr import batch, resnet, vit
from torch import Tensor

from mmssl.distributed import has_batch_norm
from mmssl.errors import BadInput
from mmssl.method import Output
from mmssl.methods.cpc_image import CPCImage, MaskedConvolutions, augmented
from mmssl.models import on_patches


def test_patches_overlap_by_half_and_are_in_rows_and_columns():
    pixels = torch.arange(3 * 16 * 16).view(1, 3, 16, 16)
    patches = on_patches.patchwise(bit(), 8).patches(pixels)
    assert patches.shape == (1, 3, 3, 3, 8, 8)
    for row in range(3):
        for column in range(3):
            expected = pixels[0, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8]
            assert torch.equal(patches[0, row, column], expected)


def test_each_patch_is_changed_by_draws_of_its_own_that_follow_from_the_key():
    patches = torch.rand(4, 7, 7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    key = torch.arange(4)
    changed = augmented(patches, key)
    assert torch.equal(changed, augmented(patches, key)) and not torch.equal(changed, augmented(patches, key + 4))
    torch.testing.assert_close(augmented(patches[1:2], key[1:2]), changed[1:2])
    one_channel = (changed == changed[:, :, :, :1]).flatten(3).all(-1)
    flipped = (changed == patches.flip(-1)).flatten(3).all(-1)
    assert 0.1 < one_channel.float().mean() < 0.3 and 0.25 < flipped.float().mean() < 0.55


def test_a_context_sees_its_own_row_and_those_above_but_none_below():
    torch.manual_seed(0)
    network = MaskedConvolutions(6, 8, 3)
    x = torch.rand(1, 6, 5, 5)
    other = x.clone()
    other[:, :, 3:] += 1  # the last two rows
    before, after = network(x), network(other)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3:], after[:, :, 3:])
    first = x.clone()
    first[:, :, 0] += 1
    assert not torch.equal(network(first)[:, :, 3], before[:, :, 3])


def test_the_loss_is_infonce_over_the_target_row_written_out():
    one = method(steps=3)
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 4, 3, 16, generator=generator), torch.randn(2, 4, 3, 8, generator=generator)
    total, count = 0.0, 0
    for k, part in ((2, slice(0, 8)), (3, slice(8, 16))):
        for image in range(2):
            for row in range(4 - k):
                for column in range(3):
                    asked = prediction[image, row, column, part]
                    scores = [float(asked @ t) / 8**0.5 for t in target[:, row + k].flatten(0, 1)]
                    total -= scores[3 * image + column] - math.log(sum(math.exp(score) for score in scores))
                    count += 1
    output = one.loss(prediction, target, torch.rand(2, 5))
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert output.trivial_loss == pytest.approx(math.log(6))


def test_the_loss_starts_at_that_of_chance():
    output = method()(**batch())
    assert output.loss.item() == pytest.approx(output.trivial_loss) == pytest.approx(math.log(6 * 7))


def test_one_patch_encoder_of_the_library_has_no_batch_norm():
    assert not has_batch_norm(method(bit)) and has_batch_norm(method(resnet))


def test_a_vit_odd_patches_and_too_few_rows_are_refused():
    with pytest.raises(BadInput, match="a ViTModel takes images of one size"):
        method(vit)
    with pytest.raises(BadInput, match="--crop_size 5: patches overlap by half; give an even number"):
        method(patch_size=5)
    with pytest.raises(BadInput, match="3 rows of patches are too few to predict 3 below"):
        method(patch_size=8, steps=3)(**batch())


def test_the_heads_are_all_but_the_patch_encoder(tmp_path):
    one, other = method(), method()
    with torch.no_grad():
        one.target.weight.fill_(0.25)
    one.save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in one._heads()} == {"norm", "context", "target", "predict"}
    other.continue_from(str(tmp_path))
    assert (other.target.weight == 0.25).all()


class WithoutNegatives(CPCImage):
    def loss(self, prediction: Tensor, target: Tensor, features: Tensor) -> Output:
        prediction = prediction.unflatten(-1, (-1, target.shape[-1]))[..., 0, :]
        alike = torch.cosine_similarity(prediction[:, :-2], target[:, 2:], dim=-1).mean()
        return Output(-alike, features=target.flatten(0, 2).detach())


class Watched(CPCImage):
    def loss(self, prediction: Tensor, target: Tensor, features: Tensor) -> Output:
        output = super().loss(prediction, target, features)
        output.features = target.flatten(0, 2).detach()
        return output


def test_without_negatives_it_collapses_and_the_monitor_says_so():
    one = method(resnet, WithoutNegatives)
    torch.nn.init.normal_(one.predict.weight, std=0.1)  # zero has no direction
    assert "collaps" in collapse.said(one)


def test_with_them_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(resnet, Watched)) is None


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(BadInput, match="--crop_size 64: more than an image of 16 x 16 pixels"):
        method(patch_size=64)(**batch())


def test_a_context_network_that_does_not_fit_into_memory_is_refused():
    with pytest.raises(BadInput, match="--context_size 1000000, --context_layers 2: training"):
        CPCImage(on_patches.patchwise(bit(), 4), one_view(), hidden=10**6, blocks=2)
