"""I-JEPA: its blocks, what each network sees, and its loss."""

from __future__ import annotations

import collapse
import pytest
import torch
import torch.nn.functional as F
from tiny.ijepa import initialised, method
from tiny.simclr import batch, resnet, vit
from transformers import AutoModel, ViTModel

from mmssl.errors import BadInput
from mmssl.methods.ijepa import IJEPA, context_block, prediction_loss, target_blocks

KEYS = torch.arange(3000)


@pytest.mark.parametrize("side", [4, 8, 14])
def test_target_blocks_are_rectangles_of_the_papers_size_and_ratio(side):
    places, real = target_blocks(KEYS, side)
    assert places.shape == real.shape and real.shape[1] == 4 and places.shape[2] == int(0.2 * side**2)
    areas = real.sum(2).float()
    assert (areas == areas[:, :1]).all()  # one size in an image
    ratios = []
    for image in range(200):
        for block in range(4):
            inside = places[image, block][real[image, block]]
            rows, columns = inside // side, inside % side
            height, width = (int(x.max() - x.min() + 1) for x in (rows, columns))
            assert len(inside.unique()) == len(inside) == height * width
            ratios.append(height / width)
    if side >= 8:
        assert 0.13 * side**2 <= areas.mean() <= 0.2 * side**2 and min(ratios) >= 0.66 and max(ratios) <= 2.0
        assert areas.unique().numel() > 1


def test_every_patch_is_a_target_and_positions_of_an_images_blocks_differ():
    places, real = target_blocks(KEYS, 8)
    counts = torch.bincount(places[real], minlength=64)
    assert (counts > 0).all() and (places[:, 0, 0] != places[:, 1, 0]).float().mean() > 0.9


def test_blocks_are_a_function_of_the_key():
    for part, again in zip(target_blocks(KEYS, 8), target_blocks(KEYS[[7, 3]], 8), strict=True):
        assert torch.equal(part[[7, 3]], again)


def hidden_by(targets: torch.Tensor, real: torch.Tensor, side: int) -> torch.Tensor:
    hidden = torch.zeros(len(targets), side**2, dtype=torch.bool)
    for image in range(len(targets)):
        hidden[image, targets[image][real[image]]] = True
    return hidden


def test_the_context_is_a_large_square_without_the_targets():
    hidden = hidden_by(*target_blocks(KEYS, 8), 8)
    places, real = context_block(KEYS, 8, hidden, 64)
    assert not hidden.gather(1, places)[real].any()
    whole, all_real = context_block(KEYS, 8, torch.zeros_like(hidden), 64)
    areas = all_real.sum(1)
    assert set(areas.tolist()) == {49, 64}  # squares of 0.85 to 1 of 64 patches
    for image in range(100):
        block = set(whole[image][all_real[image]].tolist())
        assert set(places[image][real[image]].tolist()) == block - set(hidden[image].nonzero().flatten().tolist())
    some, kept = context_block(KEYS, 8, hidden, 20)
    assert torch.equal(kept.sum(1), real.sum(1).clamp(max=20))
    assert torch.equal(some, places[:, :20])


def test_the_context_encoder_sees_nothing_of_the_targets():
    one, given = method(initialised).train(), batch()
    hidden = hidden_by(*target_blocks(given["key"], 4), 4).view(-1, 1, 4, 4)
    squares = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    contexts = []
    one.encoder.layernorm.register_forward_hook(lambda module, inputs, output: contexts.append(output))
    one(**given)
    one(**given | {"pixel_values": given["pixel_values"].masked_fill(squares, 7)})
    assert contexts[0].shape[1] == 1 + 8
    _, seen = context_block(given["key"], 4, hidden.flatten(1), 8)
    seen = F.pad(seen, (1, 0), value=True)
    assert torch.equal(contexts[0][seen], contexts[1][seen])


def test_the_loss_is_smooth_l1_over_real_patches_each_image_counting_equally():
    predicted, target = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    target[0, 0] = 1.0  # 0.5
    target[0, 1] = 3.0  # 2.5
    target[1, :2] = 100.0  # padding
    target[1, 2] = 0.5  # 0.125
    real = torch.tensor([[True, True, False], [False, False, True]])
    assert prediction_loss(predicted, target, real).item() == pytest.approx((1.5 + 0.125) / 2)
    assert prediction_loss(target, target, real) == 0


def test_the_targets_are_the_layer_normed_features_of_the_target_encoder_on_the_whole_image():
    one, given = method(initialised).eval(), batch()
    targets, real = target_blocks(given["key"], 4)
    predictions = []
    one.predictor.register_forward_hook(lambda module, inputs, output: predictions.append(output))
    with torch.no_grad():
        output = one(**given)
        encoded = one.target_encoder(one.views.whole(given["pixel_values"])).last_hidden_state[:, 1:]
    losses = []
    for image in range(len(targets)):
        goals = encoded[image][targets[image][real[image]]]
        goals = (goals - goals.mean(1, keepdim=True)) / (goals.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        losses.append(F.smooth_l1_loss(predictions[0][image][real[image]], goals))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    torch.testing.assert_close(output.features, encoded.mean(1))


def test_each_block_is_predicted_without_the_positions_of_the_others():
    one, given = method(initialised).eval(), batch(2)
    targets, real = target_blocks(given["key"], 4)
    context, places, seen = torch.randn(2, 4, 32), torch.tensor([[0, 1, 2]] * 2), torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        together = one.predictor(context, places, seen, targets, real)
        alone = one.predictor(context, places, seen, targets[:, 2:3], real[:, 2:3])
    torch.testing.assert_close(together[:, 2:3], alone)


def test_the_target_encoder_is_exported_and_the_context_encoder_is_among_the_heads(tmp_path):
    one = method()
    with torch.no_grad():
        one.encoder.layernorm.bias.add_(1.0)
    one.save_pretrained(tmp_path)
    exported = AutoModel.from_pretrained(tmp_path)
    assert isinstance(exported, ViTModel)
    assert torch.equal(exported.layernorm.bias, one.target_encoder.layernorm.bias)
    again = method()
    again.continue_from(str(tmp_path))
    assert torch.equal(again.encoder.layernorm.bias, one.encoder.layernorm.bias)


def test_the_cards_snippet_takes_the_mean_of_the_patches():
    assert "last_hidden_state[:, 1:].mean(1)" in IJEPA.card.snippets["Features of a picture"]
    assert "pooler_output" not in IJEPA.card.snippets["Features of a picture"]


def test_what_cannot_be_masked_or_built_is_refused():
    with pytest.raises(BadInput, match="I-JEPA masks patches of a ViTModel, and this is a ResNetModel"):
        method(resnet)
    with pytest.raises(BadInput, match="--predictor_width 12, --predictor_heads 2: the width must be a multiple of 8"):
        IJEPA(vit(), method().views, width=12, heads=2)


class WithGradientThroughTargets(IJEPA):
    def encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixels).last_hidden_state[:, 1:]


def test_with_gradient_through_the_targets_it_collapses_and_the_monitor_says_so():
    def said(kind: type[IJEPA]) -> str | None:
        torch.manual_seed(0)
        return collapse.said(kind(vit(), method().views, 16, 1, 2), learning_rate=0.02)

    assert said(IJEPA) is None
    assert "collaps" in said(WithGradientThroughTargets)
