"""VideoMAE: tubes; targets and decoder as transformers has them; plain loading; continuing."""

from __future__ import annotations

import pytest
import torch
from tiny.video_lstm import SIDE, TIME, Clips
from tiny.videomae import method
from torch import Tensor
from transformers import AutoModel, VideoMAEForPreTraining, VideoMAEModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mmssl.data import draws
from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.methods import videomae
from mmssl.methods.mae import Size

KEYS = draws.draw(torch.arange(8), 0, 0)


def batch(n: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": Clips().pixels[:n], "key": KEYS[:n]}


def test_a_tube_is_masked_in_all_frames_or_in_none():
    one, _ = method()
    visible, masked = one.split(KEYS)
    assert visible.shape == (8, 4 * 3) and masked.shape == (8, 12 * 3)
    for row_visible, row_masked in zip(visible, masked, strict=True):
        assert sorted([*row_visible.tolist(), *row_masked.tolist()]) == list(range(48))
        assert not {i % 16 for i in row_visible.tolist()} & {i % 16 for i in row_masked.tolist()}


def test_cubes_are_put_together_again():
    clips = torch.rand(2, 6, 3, 16, 16)
    values = videomae.cubes(clips, 2, 4)
    assert values.shape == (2, 48, 32, 3)
    assert torch.equal(videomae.clips_of(values, 2, 4, (6, 16, 16)), clips)
    assert torch.equal(values[0, 0], clips[0, :2, :, :4, :4].permute(0, 2, 3, 1).flatten(0, 2))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_is_that_of_transformers(norm_pix_loss):
    one, _ = method(norm_pix_loss)
    one.views = views.Views([views.WHOLE], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)  # which it undoes
    one.eval()
    clips = one.views.whole(batch()["pixel_values"].flatten(0, 1)).unflatten(0, (8, TIME))
    visible, masked = one.split(KEYS)
    hidden = torch.zeros(8, 48, dtype=torch.bool).scatter(1, masked, True)
    with torch.no_grad():
        predicted, target, _, _ = one.reconstruct(clips, KEYS)
        theirs = one.model(clips, bool_masked_pos=hidden)
    order = masked.argsort(1)
    ours = predicted.gather(1, order[..., None].expand_as(predicted))
    torch.testing.assert_close(ours, theirs.logits, atol=1e-4, rtol=1e-4)
    if norm_pix_loss:  # pixels: theirs are in [0, 1], ours normalised
        loss = videomae.reconstruction_loss(predicted, target, masked)
        torch.testing.assert_close(loss, theirs.loss, atol=1e-3, rtol=1e-3)


def test_it_loads_plainly_and_continues_with_its_decoder(tmp_path):
    one, processor = method()
    one.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    clips = torch.rand(2, TIME, 3, SIDE, SIDE)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, VideoMAEModel)
    with torch.no_grad():
        expected = one.model.videomae(clips).last_hidden_state
        torch.testing.assert_close(loaded(clips).last_hidden_state, expected)
    model, _ = videomae.from_pretrained(str(tmp_path))
    assert isinstance(model, VideoMAEForPreTraining)
    for name, value in one.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_card_s_classifier_to_fine_tune_takes_all_patches(tmp_path):
    one, processor = method()
    one.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    names = {}
    exec(one.card.snippets["Fine-tune it"].replace('"..."', repr(str(tmp_path))), names)
    classifier, seen = names["model"].eval(), []
    classifier.videomae.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    classifier.fc_norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    classifier(torch.rand(2, TIME, 3, SIDE, SIDE))
    torch.testing.assert_close(seen[1], seen[0].mean(1))
    encoder = one.exported().encoder
    assert torch.equal(classifier.videomae.encoder.layer[0].output.dense.weight, encoder.layer[0].output.dense.weight)


def test_the_figure_shows_the_clip_where_it_is_visible():
    one, _ = method()
    shown = one.eval().shown(**batch())
    same = (shown["clip"] - shown["reconstructed"]).abs().amax(2) < 1e-5
    assert shown["visible"].shape == (8, TIME, 3, SIDE, SIDE) and same.float().mean() >= 0.25


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="--tubelet_size 4 does not divide --frames 6"):
        videomae.from_scratch(Size(32, 1, 2, 32, 1, 2), 16, 4, 6, 4)
    with pytest.raises(BadInput, match="leaves 0 of 16 tubes visible"):
        method(mask_ratio=0.99)
