"""How well a method reconstructs held-out images, compared with the mean image, with principal components and with the
input as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.evaluation.held_out import Columns
from mmssl.evaluation.neighbours import Neighbours

if TYPE_CHECKING:
    from mmssl.data.images.pictures import Pictures
    from mmssl.models.reconstructing import Reconstructing

BATCH = 128
FITTED = 10_000  # training images, at most, that the mean and the components are computed from
FITTED_BYTES = 2**28  # of these images as floats, at most
ERROR = "squared_error"
Restore = Callable[[Tensor], Tensor]  # images that the encoder gets -> reconstructions, both normalised


class Restoration(Neighbours):
    """For methods that are `Reconstructing`, and whose metric `squared_error` is the mean of their errors.

    train:      training images. components: their number, that of the method's code; 0: no comparison with them.
    others:     further baselines, name -> function from given images to reconstructions, on the CPU.
    measures:   further metrics of the method, name -> function from (reconstructions, images), both in [0, 1], to one
                value for each image.
    processor, batch_size, task, chance: see Neighbours.
    """

    def __init__(
        self,
        train: Pictures,
        held_out: Pictures,
        processor,
        batch_size: int,
        components: int = 0,
        task: str = "",
        chance: dict[str, float] | None = None,
        others: dict[str, Restore] | None = None,
        measures: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__(held_out, processor, batch_size, task=task, chance=chance)
        self.train, self.components, self.others, self.measures = train, components, others or {}, measures or {}
        if components:
            self.units = f"{self.units} PCA: {components} principal components of the training images."

    @torch.no_grad()
    def baselines(self, method: Reconstructing) -> Columns:
        columns, device = super().baselines(method), next(method.parameters()).device
        fitted = self._fitted(method, device)
        mean = fitted.mean(0)
        columns["mean image"] = self._results(method, device, lambda given: mean.expand_as(given))
        if self.components:
            columns["PCA"] = self._results(method, device, projection(fitted, self.components))
        as_it_is = self._results(method, device, lambda given: given)
        if as_it_is[ERROR] > 0:
            columns["input as it is"] = as_it_is
        for name, restore in self.others.items():
            columns[name] = self._results(method, device, restore)
        return columns

    def _fitted(self, method: Reconstructing, device: torch.device) -> Tensor:
        """(images, 3, height, width), normalised, on the CPU."""
        one = method.views.whole(self.train.pixels[self.train.rows[:1]].to(device))
        count = min(len(self.train), FITTED, max(2, FITTED_BYTES // (one.numel() * one.element_size())))
        rows = self.train.sample(count)
        return torch.cat([method.views.whole(self.train.pixels[r].to(device)).cpu() for r in rows.split(BATCH)])

    def _results(self, method: Reconstructing, device: torch.device, restore: Restore) -> dict[str, float]:
        """Means over the held-out images that the method is evaluated on. restore: given images -> reconstructions, on
        the CPU."""
        found: dict[str, list[Tensor]] = {}
        count = len(self.held_out) // self.batch_size * self.batch_size
        for rows in torch.arange(count).split(BATCH):
            batch = self.held_out.__getitems__(rows.tolist())
            pixels, key = method.views.whole(batch["pixel_values"].to(device)), batch["key"].to(device)
            predicted = restore(method.given(pixels, key).cpu()).to(device)
            found.setdefault(ERROR, []).append(method.errors(predicted, pixels, key))
            for name, measure in self.measures.items():
                found.setdefault(name, []).append(measure(*map(method.views.to_unit_range, (predicted, pixels))))
        return {name: torch.cat(values).mean().item() for name, values in found.items()}


def projection(images: Tensor, components: int) -> Restore:
    """The function that projects images on the principal components of `images`, (n, ...), and back."""
    from sklearn.decomposition import PCA

    pca = PCA(min(components, len(images) - 1, images[0].numel()), random_state=0).fit(images.flatten(1).numpy())

    def restore(given: Tensor) -> Tensor:
        table = given.flatten(1).numpy()
        return torch.from_numpy(pca.inverse_transform(pca.transform(table))).float().view_as(given)

    return restore


def nearest_pixel(given: Tensor) -> Tensor:
    """Each hidden pixel becomes a copy of the nearest one that is not: a hole is filled from its border. given: (batch,
    3, height, width), normalised, exactly 0 where hidden."""
    from scipy.ndimage import distance_transform_edt

    filled = given.clone()
    for image in filled:
        hidden = (image == 0).all(0)
        y, x = torch.from_numpy(distance_transform_edt(hidden.numpy(), return_distances=False, return_indices=True))
        image.copy_(image[:, y.long(), x.long()])
    return filled
