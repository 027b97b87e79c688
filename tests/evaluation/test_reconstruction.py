"""The loss on held-out images, and that of the mean image, against both computed by hand."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data.images import views
from mmssl.data.images.pictures import Pictures
from mmssl.evaluation.reconstruction import Reconstruction
from mmssl.methods import mae


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model, processor = mae.from_scratch(mae.Size(32, 1, 2, 32, 1, 2), 16, 4)
    rng, pictures = np.random.default_rng(0), []
    for n in (20, 6):
        images = [Image.fromarray(pixels) for pixels in rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)]
        features = datasets.Features({"image": datasets.Image()})
        rows = datasets.Dataset.from_dict({"image": images}, features=features)
        pictures.append(Pictures(rows, processor, "image"))
    method = mae.MAE(model, views.Views([views.WHOLE], processor.image_mean, processor.image_std))
    return method.eval(), *pictures


def test_the_loss_is_that_of_the_method_on_all_held_out_images_at_once(parts, monkeypatch):
    method, train, held_out = parts
    monkeypatch.setattr(Reconstruction, "BATCH", 4)  # the last one is smaller
    batch = held_out.__getitems__(list(range(6)))
    expected = method(batch["pixel_values"], batch["key"]).loss.item()
    evaluation = Reconstruction(train, held_out)
    assert evaluation(method)["reconstruction_loss"] == pytest.approx(expected, rel=1e-5)
    assert evaluation(method) == evaluation(method)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_mean_image_is_that_of_the_training_images(parts, norm_pix_loss):
    method, train, held_out = parts
    method.model.config.norm_pix_loss = norm_pix_loss

    def targets(pictures):
        patches = mae.patchify((pictures.pixels / 255 - 0.5) / 0.5, 4).numpy()
        deviation = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
        return (patches - patches.mean(-1, keepdims=True)) / deviation if norm_pix_loss else patches

    expected = np.mean((targets(held_out) - targets(train).mean(0)) ** 2)
    found = Reconstruction(train, held_out).baselines(method)["mean image"]["reconstruction_loss"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_drawing_shows_the_image_what_was_seen_and_what_was_painted(parts, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("mmssl.figures.picture_grid", lambda columns, file: shown.update(columns))
    method, train, held_out = parts
    caption = Reconstruction(train, held_out).draw(method, tmp_path, {})["reconstructions.png"]
    assert "25%" in caption
    image, seen, painted = shown.values()
    torch.testing.assert_close(image, held_out.pixels / 255, atol=1e-5, rtol=0)
    patches = [mae.patchify(pictures, 4) for pictures in (image, seen, painted)]
    visible = (patches[1] - patches[0]).abs().amax(-1) < 1e-6
    assert (visible.sum(1) == 4).all() and torch.equal(patches[2][visible], patches[0][visible])
    # the painted patches have the brightness of the original, as the caption says of standardised targets
    hidden = ~visible
    assert not torch.allclose(patches[2][hidden], patches[0][hidden])
