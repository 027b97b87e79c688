"""The method against its paper, against transformers, and what it exports against what it trained."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.methods import mae

SIZE = mae.Size(32, 2, 2, 32, 1, 2)


def build(seed: int = 0, view: views.View = views.WHOLE, **options) -> mae.MAE:
    torch.manual_seed(seed)
    model, processor = mae.from_scratch(SIZE, 16, 4, **options)
    return mae.MAE(model, views.Views([view], processor.image_mean, processor.image_std))


def batch(n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"pixel_values": pixels, "key": torch.randint(2**32, (n,), generator=generator)}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """As a ViT's image processor does it."""
    return (pixels / 255 - 0.5) / 0.5


def squares_of(patches: torch.Tensor) -> torch.Tensor:
    """(4, patches) -> (4, 1, 16, 16) bool: where these patches lie."""
    grid = torch.zeros(4, 16).scatter(1, patches, 1.0).bool().view(4, 1, 4, 4)
    return grid.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_is_that_of_transformers_for_the_same_masks(norm_pix_loss):
    method, given = build(norm_pix_loss=norm_pix_loss), batch()
    pixels = normalised(given["pixel_values"])
    with torch.no_grad():
        theirs = method.model(pixels, noise=method.noise(given["key"])).loss
        torch.testing.assert_close(method(**given).loss, theirs)


def test_training_paints_a_share_of_the_hidden_patches_and_the_decoder_sees_no_others():
    method, given = build(), batch()
    method.decode_ratio = 0.25
    lengths, norm = [], method.model.decoder.decoder_norm
    norm.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    layer = method.model.decoder.decoder_layers[0]
    layer.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    loss = method.train()(**given).loss
    assert lengths == [1 + 4 + 3, 3]
    # 1, 4 and 3 of the 16 patches: the rest of the picture does not matter
    squares = squares_of(method.noise(given["key"]).argsort(1)[:, 7:])
    again = given | {"pixel_values": given["pixel_values"].masked_fill(squares, 7)}
    torch.testing.assert_close(method(**again).loss, loss)
    assert not torch.equal(method.eval()(**again).loss, method(**given).loss)
    assert lengths[-2:] == [1 + 16, 12]


def test_only_hidden_patches_count_and_the_loss_is_their_mean_squared_error():
    target = torch.zeros(2, 4, 3)
    target[:, 0] = 100.0  # seen
    predicted, hidden = torch.ones(2, 3, 3), torch.tensor([[3, 1, 2], [1, 2, 3]])
    predicted[0, 1] = 3.0
    target[0, 3] = 1.0
    assert mae.reconstruction_loss(predicted, target, hidden).item() == pytest.approx((0 + 9 + 1 + 3) / 6)


def test_three_quarters_are_hidden_and_they_are_those_with_the_most_noise():
    method, given = build(), batch()
    noise = method.noise(given["key"])
    _, _, hidden, seen = method.reconstruct(given["pixel_values"] / 255, noise)
    assert seen.shape[1] == 1 + 4
    assert torch.equal(hidden, noise.argsort(1)[:, 4:])


def test_what_is_hidden_is_a_function_of_the_key_and_each_patch_is_seen_a_quarter_of_the_time():
    method, keys = build(), torch.arange(4000)
    noise = method.noise(keys)
    assert noise.shape == (4000, 16) and (noise >= 0).all() and (noise < 1).all()
    assert torch.equal(method.noise(keys[[7, 3]]), noise[[7, 3]])
    seen = torch.bincount(noise.argsort(1)[:, :4].flatten(), minlength=16) / len(keys)
    assert (seen - 0.25).abs().max() < 0.03


def test_the_encoder_sees_nothing_of_hidden_patches():
    method, given = build(), batch()
    pixels = given["pixel_values"] / 255
    noise = method.noise(given["key"])
    _, _, hidden, seen = method.reconstruct(pixels, noise)
    squares = squares_of(hidden)
    _, _, _, again = method.reconstruct(torch.where(squares, 0.123, pixels), noise)
    assert torch.equal(seen, again)


def test_patches_are_those_of_the_model_and_standardised_ones_have_mean_0_and_deviation_1():
    method, given = build(), batch()
    pixels = given["pixel_values"] / 255
    patches = mae.patchify(pixels, 4)
    assert torch.equal(patches, method.model.patchify(pixels))
    standardised, mean, deviation = mae.standardise(patches)
    torch.testing.assert_close(standardised.mean(-1), torch.zeros(4, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std(-1), torch.ones(4, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised * deviation + mean, patches)


def test_the_trivial_loss_is_that_of_the_mean_image_of_the_batch():
    method, given = build(norm_pix_loss=False), batch(n=8)
    pixels = normalised(given["pixel_values"])
    target = mae.patchify(pixels, 4).cpu().numpy()
    hidden = np.argsort(np.argsort(method.noise(given["key"]).cpu().numpy(), 1), 1) >= 4
    expected = np.mean(((target - target.mean(0)) ** 2).mean(-1)[hidden])
    assert method(**given).trivial_loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_new_model_knows_where_its_patches_are():
    """transformers 5.23 leaves both tables all zero in a new model, and does not train them."""
    model = build().model
    width = model.config.hidden_size
    theirs = build_2d_sinusoidal_position_embedding(4, 4, width, cls_token=True)
    theirs = torch.cat([theirs[:, width // 2 :], theirs[:, : width // 2]], 1)[
        None
    ]  # columns first, as checkpoints have
    torch.testing.assert_close(model.vit.embeddings.position_embeddings.data, theirs)
    torch.testing.assert_close(model.decoder.decoder_pos_embed.data, theirs)
    assert model.decoder.mask_token.abs().sum() > 0


def test_augmentation_is_for_training_alone():
    method, given = build(view=views.CROP_FLIP), batch()
    plain = build()(**given).loss
    assert torch.equal(method.eval()(**given).loss, plain)
    assert not torch.equal(method.train()(**given).loss, plain)


def test_the_exported_encoder_sees_every_patch_and_is_what_was_trained(tmp_path):
    method, given = build(), batch()
    method.save_pretrained(tmp_path)
    encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(encoder, ViTModel) and not report["missing_keys"] and not report["unexpected_keys"]
    pixels = normalised(given["pixel_values"])
    with torch.no_grad():
        output = encoder.eval()(pixels)
        # with nothing hidden and patches in order, the encoder that was trained gives the same
        method.model.config.mask_ratio = 0.0
        trained = method.model.vit(pixels, noise=torch.arange(16.0).expand(4, -1)).last_hidden_state
    torch.testing.assert_close(output.last_hidden_state, trained, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])


def test_a_classifier_begins_with_the_encoder(tmp_path):
    method = build()
    method.save_pretrained(tmp_path)
    model, report = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.vit.layernorm.weight, method.model.vit.layernorm.weight)


def test_training_goes_on_from_the_export_and_from_a_plain_vitmae(tmp_path):
    method = build()
    _, processor = mae.from_scratch(SIZE, 16, 4)
    for place, save in (("export", method.save_pretrained), ("plain", method.model.save_pretrained)):
        save(tmp_path / place)
        processor.save_pretrained(tmp_path / place)
        model, again = mae.from_pretrained(str(tmp_path / place), mask_ratio=0.5)
        assert isinstance(model, ViTMAEForPreTraining) and model.config.mask_ratio == 0.5
        assert again.image_mean == processor.image_mean
        for (name, old), new in zip(method.model.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(old, new), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch_size": 5}, r"--patch_size 5 does not divide --image_size 16; these would: \[2, 4, 8\]"),
        ({"patch_size": 0}, "--patch_size 0 does not divide --image_size 16"),
        ({"patch_size": 32}, "--patch_size 32 does not divide --image_size 16"),
        ({"patch_size": 4, "mask_ratio": 0.99}, "--mask_ratio 0.99 leaves 0 of 16 patches visible"),
        ({"patch_size": 4, "mask_ratio": 0.0}, "--mask_ratio 0.0 leaves 16 of 16 patches visible"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, said):
    with pytest.raises(BadInput, match=said):
        mae.from_scratch(SIZE, 16, **options)


def test_a_checkpoint_without_a_decoder_is_refused(tmp_path):
    build().exported().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is not an MAE with its decoder"):
        mae.from_pretrained(str(tmp_path))
