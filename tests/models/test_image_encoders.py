"""Encoders of images by name: each a class of transformers, with features as wide as it says."""

from dataclasses import dataclass

import numpy as np
import pytest
import tiny_encoders
import torch
from PIL import Image
from tiny import cpc
from transformers import (
    AutoModel,
    BitModel,
    ConvNextConfig,
    ConvNextModel,
    MobileNetV2Config,
    MobileNetV2Model,
    ResNetModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from mmssl.arguments import TrainArgs
from mmssl.data.images import views
from mmssl.data.images.decoding import decode, normalisation, shape
from mmssl.errors import BadInput
from mmssl.models import image_encoders

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
         "patch_size": 8}  # fmt: skip
WEIGHTS = {  # in millions: of torchvision's and timm's encoders without their classifiers
    "resnet18": 11.2, "resnet34": 21.3, "resnet50": 23.5, "vit-tiny": 5.5, "vit-small": 21.7, "vit-base": 85.8,
    "vit-large": 303.3,
}  # fmt: skip


@pytest.mark.parametrize(("name", "side"), [("resnet-micro", 2), ("vit-micro", 8)])
def test_a_map_has_a_vector_for_each_place_and_its_mean_is_that_of_the_places(name, side):
    model, pixels = image_encoders.from_scratch(name, 32)[0].eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, hidden = image_encoders.maps(model, pixels), model(pixels).last_hidden_state
    assert found.shape == (2, image_encoders.width(model), side, side)
    places = hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden[:, 1:].mean(1)
    torch.testing.assert_close(found.mean((2, 3)), places)
    if hidden.ndim == 3:  # rows first
        torch.testing.assert_close(found[:, :, 1, 2], hidden[:, 1 + side + 2])


def test_the_map_of_an_oblong_image_has_its_rows_and_columns():
    model, pixels = ViTModel(ViTConfig(**SMALL | {"image_size": (16, 32)})).eval(), torch.rand(1, 3, 16, 32)
    found = image_encoders.maps(model, pixels)
    assert found.shape[2:] == (2, 4)
    assert torch.equal(found[0, :, 1, 2], model(pixels).last_hidden_state[0, 1 + 4 + 2])


@pytest.mark.parametrize("name", image_encoders.NAMES)
def test_every_name_is_a_stock_class_whose_features_have_its_width(name):
    with torch.device("meta"):
        model, processor = image_encoders.from_scratch(name, 32 if name.endswith(("nano", "micro")) else 224)
        features = image_encoders.features(model, torch.zeros(2, 3, *shape(processor)))
    assert type(model) in (BitModel, ResNetModel, ViTModel) and features.shape == (2, image_encoders.width(model))
    assert [*processor.image_mean, *processor.image_std] == [*image_encoders.MEAN, *image_encoders.STD]


@pytest.mark.parametrize("name", WEIGHTS)
def test_named_sizes_have_as_many_weights_as_their_papers_say(name):
    with torch.device("meta"):
        model, _ = image_encoders.from_scratch(name, 224, 16 if name.startswith("vit") else None)
    counted = sum(p.numel() for part, p in model.named_parameters() if not part.startswith("pooler"))
    assert counted / 1e6 == pytest.approx(WEIGHTS[name], rel=0.01)


@pytest.mark.parametrize("name", ["resnet-micro", "vit-micro"])
def test_an_export_is_continued_with_equal_features(name, tmp_path):
    model, processor = image_encoders.from_scratch(name, 32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, of_images = image_encoders.from_pretrained(str(tmp_path))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = image_encoders.features(model.eval(), pixels)
        torch.testing.assert_close(image_encoders.features(again.eval(), pixels), expected)
        if name == "vit-micro":  # its pooler gives the class token as it is
            torch.testing.assert_close(expected, model(pixels).last_hidden_state[:, 0])
    assert of_images.size == processor.size and not expected.isnan().any()


def test_of_a_vit_all_is_trained_but_the_pooler():
    model, _ = image_encoders.from_scratch("vit-micro", 32)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("name", ["resnet-micro", "vit-micro"])
def test_views_of_several_sizes_keep_their_order_and_go_through_the_encoder_one_size_at_a_time(name):
    model, _ = image_encoders.from_scratch(name, 32)
    views = [torch.randn(2, 3, side, side) for side in (32, 16, 32, 16)]
    passes = []
    model.register_forward_pre_hook(lambda module, inputs: passes.append(inputs[0].shape))
    with torch.no_grad():
        together = image_encoders.features_of_views(model.eval(), views)
        assert passes == [(4, 3, 32, 32), (4, 3, 16, 16)]
        for view, found in zip(views, together, strict=True):
            torch.testing.assert_close(found, image_encoders.features(model, view), atol=1e-5, rtol=1e-4)


@dataclass
class Flags(image_encoders.EncoderArgs, TrainArgs):
    output_dir: str = "runs/none"


def flags(**given) -> Flags:
    return Flags(**given)


@pytest.mark.parametrize(("side", "given", "size"), [(8, {}, 32), (64, {}, 64), (64, {"image_size": 48}, 48)])
def test_images_are_as_large_as_the_data_has_them_and_at_least_32(side, given, size):
    model, processor = image_encoders.build(flags(encoder="vit-micro", **given), side)
    assert shape(processor) == (size, size)
    assert (model.config.image_size, model.config.patch_size) == (size, size // 8)


def test_the_tower_of_a_model_of_pairs_is_an_encoder(tmp_path):
    directory = tiny_encoders.clip(tmp_path / "clip")
    model, processor = image_encoders.build(flags(model_name_or_path=directory), 24)
    pixels = torch.randn(2, 3, *shape(processor))
    features = image_encoders.features(model.eval(), pixels)
    assert features.shape == (2, image_encoders.width(model))
    model.save_pretrained(tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower").eval()
    torch.testing.assert_close(image_encoders.features(again, pixels), features)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"encoder": "vit-micro", "patch_size": 5}, r"does not divide --image_size 32; these would: \[2, 4, 8, 16\]"),
        ({"patch_size": 4}, "--patch_size 4 has no effect with --encoder resnet-micro: only a ViT has patches"),
        ({"encoder": "vit-micro", "patch_size": 64}, "--patch_size 64 does not divide --image_size 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, said):
    with pytest.raises(BadInput, match=said):
        image_encoders.build(flags(**given), 32)


def test_a_checkpoint_that_takes_no_images_is_refused(tmp_path):
    tiny = cpc.VARIANTS["within"]()
    tiny.method.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="a CpcAudioModel does not take images"):
        image_encoders.build(flags(model_name_or_path=str(tmp_path)), 32)


def test_a_vit_without_a_pooler_is_read_without_one_and_gives_the_mean_of_its_tokens(tmp_path):
    encoder, processor = image_encoders.from_scratch("vit-micro", 16)
    encoder.pooler = None
    encoder.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = image_encoders.from_pretrained(str(tmp_path))
    assert again.pooler is None
    pixels = torch.randn(2, 3, 16, 16)
    expected = encoder.eval()(pixels).last_hidden_state.mean(1)
    torch.testing.assert_close(image_encoders.features(again.eval(), pixels), expected)


@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 4), (50, 5), (28, 2), (7, 1), (224, 28)])
def test_the_usual_patches_divide_the_image(image_size, patch_size):
    assert image_encoders.usual_patch_size(image_size) == patch_size


def saved(directory, model, processor) -> str:
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def of_32(**given) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 32, "width": 32}, **given)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: ViTModel(ViTConfig(**SMALL, num_channels=1)), "a ViTModel gives no features of images of 32 x 32"),
        (lambda: MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35)), "a MobileNetV2Model gives no features"),
    ],
)
def test_a_checkpoint_that_gives_no_vector_of_an_image_is_refused(model, said, tmp_path):
    directory = saved(tmp_path, model(), of_32())
    with pytest.raises(BadInput, match=f"--model_name_or_path {directory}: {said}"):
        image_encoders.from_pretrained(directory)


def test_running_statistics_that_are_not_finite_are_refused(tmp_path):
    model, processor = image_encoders.from_scratch("resnet-micro", 32)
    next(buffer for buffer in model.buffers() if buffer.is_floating_point()).fill_(torch.nan)
    with pytest.raises(BadInput, match="running_mean holds NaN or infinite values"):
        image_encoders.from_pretrained(saved(tmp_path, model, processor))


@pytest.mark.parametrize("given", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_views_are_normalised_as_the_processor_does_it(given):
    processor = of_32(**given)
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3))
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(decode(picture, processor))[None]
    shown = views.made_for(processor, [views.WHOLE]).whole(pixels)
    torch.testing.assert_close(shown, expected, atol=1e-4, rtol=1e-4)


def test_a_processor_without_a_mean_is_refused():
    with pytest.raises(BadInput, match="ViTImageProcessor.* has no image_mean or image_std"):
        processor = of_32()
        processor.image_mean = None
        normalisation(processor)


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (lambda: ViTModel(ViTConfig(**SMALL)), 4),
        (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)), 16),
    ],
)
def test_views_too_small_for_an_encoder_are_refused_by_their_size(model, side):
    encoder, sizes = model().train(), [views.View(size=32), views.View(size=side)]
    made = views.Views(sizes, image_encoders.MEAN, image_encoders.STD)
    with pytest.raises(BadInput, match=f"gives no features of images of {side} x {side} pixels .*--small_views 0"):
        image_encoders.check_views(encoder, made)
    assert encoder.training
    image_encoders.check_views(encoder, views.Views(sizes[:1], image_encoders.MEAN, image_encoders.STD))


def test_in_bf16_patches_that_shrink_to_one_pixel_have_the_gradient_of_fp32():
    """torch leaves part of the gradient of a convolution with a stride uninitialised there: whatever memory held."""
    torch.manual_seed(0)
    encoder, _ = image_encoders.from_scratch("resnet-micro", 32)
    pixels, weight, found = torch.randn(64, 3, 8, 8), torch.randn(64, image_encoders.width(encoder)), []
    for enabled in (True, False):
        encoder.zero_grad()
        held = [torch.full_like(p, torch.inf) for p in encoder.parameters() for _ in range(8)]
        del held  # what memory holds
        with torch.autocast("cpu", torch.bfloat16, enabled):
            (image_encoders.features(encoder, pixels).float() * weight).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert found[0].isfinite().all()
    assert (found[0] - found[1]).norm() < 0.2 * found[1].norm()


def test_without_a_stride_on_one_pixel_an_encoder_computes_the_same():
    encoder, _ = image_encoders.from_scratch("resnet-micro", 32)
    pixels = torch.randn(2, 3, 8, 8)
    ours = image_encoders.features(encoder.eval(), pixels)
    plain = type(encoder)(encoder.config).eval()
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(image_encoders.features(plain, pixels), ours)
    assert image_encoders.features(encoder, torch.randn(2, 3, 32, 32)).shape == (2, 256)


def test_only_transformers_have_patches_that_are_frozen():
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))
    image_encoders.freeze_patches(convolutions)
    assert all(parameter.requires_grad for parameter in convolutions.parameters())


def test_settings_of_a_processor_that_do_not_fit_together_are_refused():
    with pytest.raises(BadInput, match="ViTImageProcessorPil cannot be used .*longest_edge.*correct its JSON file"):
        shape(ViTImageProcessorPil(size={"longest_edge": 32}))


@pytest.mark.parametrize("name", ["resnet-micro", "vit-micro"])
def test_the_snippet_of_an_encoder_trained_by_its_map_does_not_read_a_class_token(name):
    model, _ = image_encoders.from_scratch(name, 32)
    code = image_encoders.snippets_of_map(model)[image_encoders.FEATURES]
    assert ("[:, 1:].mean(1)" in code) == (name == "vit-micro") == ("pooler_output" not in code)
