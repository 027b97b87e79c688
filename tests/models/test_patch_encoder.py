"""PatchEncoderModel: an encoder of patches as an encoder of images; the form with a head; wrapping an encoder."""

from __future__ import annotations

import pytest
import torch
from tiny.cpc_image import bit
from tiny.simclr import resnet, vit
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextModel

from mmssl.errors import BadInput
from mmssl.models import image_encoders, on_patches, remote_code
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel
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


def test_an_image_smaller_than_a_patch_is_refused(encoder):
    with pytest.raises(ValueError, match="an image of 4 x 16 pixels is smaller than a patch of 8 pixels"):
        encoder(torch.zeros(1, 3, 4, 16))


def test_kernels_larger_than_a_patch_and_code_that_transformers_does_not_have_are_refused():
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))
    with pytest.raises(BadInput, match="--tile_size 2: a ConvNextModel gives no features of images of 2 x 2 pixels"):
        on_patches.patchwise(convolutions, 2, "--tile_size")
    with pytest.raises(BadInput, match="a LinearImageModel cannot be part of an encoder of patches"):
        on_patches.patchwise(LinearImageModel(LinearImageConfig(image_size=8)), 8)


def test_names_of_classes_and_of_the_checkpoint_stay_out_of_its_config():
    plain = resnet()
    plain.config.id2label = {i: str(i) for i in range(1000)}
    backbone = on_patches.patchwise(plain, 8).config.backbone
    assert backbone["model_type"] == "resnet" and not {"id2label", "architectures", "_name_or_path"} & backbone.keys()


def test_losses_are_those_of_the_problem_type(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    remote_code.add_own(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=3, problem_type="multi_label_classification"
    ).eval()
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    output = model(torch.zeros(1, 3, 16, 16), labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


def test_in_bf16_a_loaded_one_has_the_gradient_of_fp32(tmp_path):
    """See test_image_encoders: torch leaves part of the gradient of a strided kernel uninitialised on one pixel."""
    torch.manual_seed(0)
    on_patches.patchwise(image_encoders.from_scratch("resnet-micro", 32)[0], 8).save_pretrained(tmp_path)
    model, found = PatchEncoderModel.from_pretrained(tmp_path), []
    pixels, weight = torch.randn(64, 3, 8, 8), torch.randn(64, image_encoders.width(model))
    for enabled in (True, False):
        model.zero_grad()
        held = [torch.full_like(p, torch.inf) for p in model.parameters() for _ in range(8)]
        del held  # what memory holds
        with torch.autocast("cpu", torch.bfloat16, enabled):
            (model(pixels).pooler_output.flatten(1).float() * weight).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[0].isfinite().all()
    assert (found[0] - found[1]).norm() < 0.2 * found[1].norm()
