"""PatchEncoderModel: an encoder of patches as an encoder of images; the form with a head; wrapping an encoder."""

from __future__ import annotations

import pytest
import torch
from tiny.cpc_image import bit
from tiny.simclr import resnet, vit
from transformers import AutoModelForImageClassification

from mmssl.errors import BadInput
from mmssl.models import image_encoders, on_patches, remote_code
from mmssl.models.patch_encoder import PatchEncoderForImageClassification, PatchEncoderModel


@pytest.fixture(params=[bit, resnet])
def encoder(request) -> PatchEncoderModel:
    torch.manual_seed(0)
    return on_patches.patchwise(request.param(), 8).eval()


def test_each_place_is_the_encoding_of_its_patch_alone(encoder):
    pixels = torch.randn(2, 3, 20, 16)
    output = encoder(pixels, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, image_encoders.width(encoder), 4, 3)
    patch = pixels[:, :, 8:16, 4:12]
    alone = encoder.backbone(patch, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state[:, :, 2, 1], alone.pooler_output.flatten(1))
    torch.testing.assert_close(output.pooler_output[..., 0, 0], output.last_hidden_state.mean((2, 3)))
    assert len(output.hidden_states) == len(alone.hidden_states) > 1
    torch.testing.assert_close(output.hidden_states[1][:, :, 2, 1], alone.hidden_states[1].mean((2, 3)))


def test_a_narrow_edge_is_in_no_patch(encoder):
    pixels = torch.randn(1, 3, 16, 16)
    wider = torch.nn.functional.pad(pixels, (0, 3, 0, 3), value=9.0)
    torch.testing.assert_close(encoder(wider).last_hidden_state, encoder(pixels).last_hidden_state)


def test_the_form_with_a_head_is_loaded_from_an_export_and_trains_the_encoder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    remote_code.add_own(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5)
    assert isinstance(model, PatchEncoderForImageClassification)
    pixels = torch.randn(3, 3, 16, 16)
    inside = model.eval().patch_encoder(pixels).pooler_output
    torch.testing.assert_close(inside, encoder(pixels).pooler_output)
    output = model(pixels, labels=torch.tensor([0, 3, 4]))
    output.loss.backward()
    assert output.logits.shape == (3, 5)
    assert all(p.grad is not None for p in model.parameters())


def test_an_encoder_of_patches_is_not_wrapped_again_and_keeps_its_size(encoder):
    assert on_patches.patchwise(encoder, 8) is encoder
    with pytest.raises(BadInput, match="--crop_size 6: the encoder was trained on patches of 8 pixels"):
        on_patches.patchwise(encoder, 6)


def test_encoders_of_whole_images_only_are_refused():
    with pytest.raises(BadInput, match="a ViTModel takes images of one size"):
        on_patches.patchwise(vit(), 8)


def test_patches_of_an_odd_side_overlap_by_half_rounded_up():
    encoder = on_patches.patchwise(bit(), 15).eval()
    pixels = torch.randn(1, 3, 64, 64)
    assert encoder(pixels).last_hidden_state.shape[2:] == (8, 8)
    assert torch.equal(encoder.patches(pixels)[0, 1, 0], pixels[0, :, 7:22, :15])
