"""How well a masked autoencoder reconstructs held-out images, compared with the mean image; and a figure of both."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmssl import figures
from mmssl.data.images.pictures import Pictures
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.methods.mae import MAE, at, patchify, reconstruction_loss, standardise

SHOWN = 8  # held-out images in the figure


class Reconstruction(Evaluation):
    """train: for the mean image. held_out: masked in the same way at every evaluation."""

    units = "Loss: squared error of masked patches, lower is better."

    BATCH = 128
    OF_THE_MEAN = 10_000  # training images

    def __init__(self, train: Pictures, held_out: Pictures) -> None:
        self.train, self.held_out = train, held_out

    @torch.no_grad()
    def __call__(self, method: MAE) -> dict[str, float]:
        """Mean squared error at masked patches; targets have unit variance unless norm_pix_loss is off."""
        losses, device = [], method.model.device
        for batch in _batches(self.held_out, self.BATCH, device):
            pixels = method.views.whole(batch["pixel_values"])
            predicted, target, masked, _ = method.reconstruct(pixels, method.noise(batch["key"]))
            finite(predicted, "reconstructed patches")
            losses.append(reconstruction_loss(predicted.float(), target, masked) * len(masked))
        return {"reconstruction_loss": (torch.stack(losses).sum() / len(self.held_out)).item()}

    @torch.no_grad()
    def baselines(self, method: MAE) -> Columns:
        """The error of predicting the mean of the training targets, at every patch, masked or not."""
        total, count = 0.0, min(len(self.train), self.OF_THE_MEAN)
        for rows in torch.arange(count).split(self.BATCH):
            total = total + self._targets(method, self.train, rows).sum(0)
        batches = torch.arange(len(self.held_out)).split(self.BATCH)
        errors = [(self._targets(method, self.held_out, r) - total / count).square().mean((1, 2)) for r in batches]
        return {"mean image": {"reconstruction_loss": torch.cat(errors).mean().item()}}

    def _targets(self, method: MAE, pictures: Pictures, rows: Tensor) -> Tensor:
        """(rows, patches, values of a patch)."""
        pixels = method.views.whole(pictures.pixels[pictures.rows[rows]].to(method.model.device))
        patches = patchify(pixels, method.model.config.patch_size)
        return standardise(patches)[0] if method.model.config.norm_pix_loss else patches

    @torch.no_grad()
    def draw(self, method: MAE, directory: Path, results: Columns) -> dict[str, str]:
        """Held-out images, their visible patches, and the reconstructions."""
        rows = torch.linspace(0, len(self.held_out) - 1, min(SHOWN, len(self.held_out))).long()
        batch = next(_batches(self.held_out, len(rows), method.model.device, rows))
        pixels = method.views.whole(batch["pixel_values"])
        images, visible = shown(method, pixels, method.noise(batch["key"]))
        images = {name: image.cpu() for name, image in images.items()}
        figures.picture_grid(images, directory / "reconstructions.png")
        caption = f"Held-out images, the {visible:.0%} of their patches that the encoder gets, and the reconstructions"
        scaled = method.model.config.norm_pix_loss
        contrast = "; each masked patch is shown with the mean and contrast of the original" if scaled else ""
        return {"reconstructions.png": f"{caption}{contrast}."}


@torch.no_grad()
def shown(method: MAE, pixels: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], float]:
    """({"image", "visible", "reconstructed": (batch, 3, height, width) in [0, 1]}, the fraction of visible patches).

    pixels: (batch, 3, height, width), normalised. noise: (batch, patches); patches with large values are masked. Where
    the targets were standardised, each masked patch gets the mean and contrast of the original.
    """
    predicted, _, masked, _ = method.reconstruct(pixels, noise)
    own = patchify(pixels, method.model.config.patch_size)
    if method.model.config.norm_pix_loss:
        _, mean, deviation = standardise(at(own, masked))
        predicted = predicted * deviation + mean
    places = masked[..., None].expand_as(predicted)
    versions = {
        "image": own,
        "visible": own.scatter(1, places, 0.0),
        "reconstructed": own.scatter(1, places, predicted.float()),
    }
    pictures = {name: method.model.unpatchify(patches.float()) for name, patches in versions.items()}
    return {name: method.views.to_unit_range(p) for name, p in pictures.items()}, 1 - masked.shape[1] / own.shape[1]


def _batches(pictures: Pictures, size: int, device: torch.device, rows: Tensor | None = None):
    """The batches of `pictures` in order, on the device."""
    for batch in (torch.arange(len(pictures)) if rows is None else rows).split(size):
        yield {name: value.to(device) for name, value in pictures.__getitems__(batch.tolist()).items()}
