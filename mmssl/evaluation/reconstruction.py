"""How well a masked autoencoder paints held-out images back, beside the mean image; and what that looks like."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmssl import figures
from mmssl.data.images.decoding import normalise, unit_range
from mmssl.data.images.pictures import Pictures
from mmssl.evaluation.finite import finite
from mmssl.methods.mae import MAE, at, patchify, reconstruction_loss, standardise


class Reconstruction:
    """train, held_out: with their draw of patches; the held-out masks are the same at every evaluation."""

    BATCH = 128
    OF_THE_MEAN = 10_000  # training images

    def __init__(self, train: Pictures, held_out: Pictures) -> None:
        self.train, self.held_out = train, held_out

    @torch.no_grad()
    def __call__(self, method: MAE) -> dict[str, float]:
        """Mean squared error at hidden patches, of targets of unit variance unless the model was told otherwise."""
        losses, device = [], method.model.device
        for batch in _batches(self.held_out, self.BATCH, device):
            pixels = normalise(batch["unit"], method.mean, method.std)
            predicted, target, hidden, _ = method.reconstruct(pixels, batch["noise"])
            finite(predicted, "reconstructed patches")
            losses.append(reconstruction_loss(predicted.float(), target, hidden) * len(hidden))
        return {"reconstruction_loss": (torch.stack(losses).sum() / len(self.held_out)).item()}

    @torch.no_grad()
    def mean_image(self, method: MAE) -> dict[str, float]:
        """What the mean of the training images' targets reaches at every patch, hidden or not."""
        total, count = 0.0, min(len(self.train), self.OF_THE_MEAN)
        for some in torch.arange(count).split(self.BATCH):
            total = total + self._targets(method, self.train, some).sum(0)
        rows = torch.arange(len(self.held_out)).split(self.BATCH)
        errors = [(self._targets(method, self.held_out, some) - total / count).square().mean((1, 2)) for some in rows]
        return {"reconstruction_loss": torch.cat(errors).mean().item()}

    def _targets(self, method: MAE, pictures: Pictures, rows: Tensor) -> Tensor:
        pixels = unit_range(pictures.pixels[pictures.rows[rows]])
        patches = patchify(normalise(pixels, method.mean, method.std), method.model.config.patch_size)
        return standardise(patches)[0] if method.model.config.norm_pix_loss else patches

    @torch.no_grad()
    def draw(self, method: MAE, file: Path, shown: int = 8) -> str:
        """Held-out images, what the encoder saw of them, and what the decoder made of that. Returns the caption."""
        method.eval()
        rows = torch.linspace(0, len(self.held_out) - 1, min(shown, len(self.held_out))).long()
        batch = next(_batches(self.held_out, len(rows), method.model.device, rows))
        pixels = normalise(batch["unit"], method.mean, method.std)
        predicted, _, hidden, _ = method.reconstruct(pixels, batch["noise"])
        own = patchify(pixels, method.model.config.patch_size)
        if method.model.config.norm_pix_loss:
            _, mean, deviation = standardise(at(own, hidden))
            predicted = predicted * deviation + mean
        places = hidden[..., None].expand_as(predicted)
        columns = {
            "image": own,
            "seen": own.scatter(1, places, 0.0),
            "painted back": own.scatter(1, places, predicted.float()),
        }
        std, centre = (torch.tensor(v).view(1, -1, 1, 1) for v in (method.std, method.mean))
        shown_as = {
            title: method.model.unpatchify(patches.float()).cpu() * std + centre for title, patches in columns.items()
        }
        figures.picture_grid(shown_as, file)
        share = 1 - hidden.shape[1] / own.shape[1]
        scaled = "; each hidden patch has the mean and contrast of the original" * method.model.config.norm_pix_loss
        return f"Held-out images, the {share:.0%} of their patches that were seen, and the rest painted{scaled}."


def _batches(pictures: Pictures, size: int, device: torch.device, rows: Tensor | None = None):
    """pictures' batches in order, on the device, with `unit`: the pixels in [0, 1]."""
    for some in (torch.arange(len(pictures)) if rows is None else rows).split(size):
        batch = {name: value.to(device) for name, value in pictures.__getitems__(some.tolist()).items()}
        yield batch | {"unit": unit_range(batch["pixel_values"])}
