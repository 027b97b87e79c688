"""Generated images beside real ones: distances between their features, and what a classifier of real images calls them.

Frechet distance: Heusel et al. 2017, arXiv:1706.08500, section 4. Kernel distance: Binkowski et al. 2018,
arXiv:1801.01401, section 4, unbiased for any number of images. Both are usually taken on an Inception network trained
on ImageNet; here, on an encoder that needs no download: a fixed one with random weights (Naeem et al. 2020,
arXiv:2002.09797, find these useful for images unlike those of ImageNet), or one of the user's. Compare only distances
on the same encoder and for the same number of images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.arguments import Flags, flag
from mmssl.data import labelled
from mmssl.data.built_in import LABELLED
from mmssl.data.images.decoding import normalisation, shape
from mmssl.errors import BadInput
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from pathlib import Path

    from mmssl.data.images.pictures import Pictures
    from mmssl.method import Method

BATCH = 128
LABELS = 2000  # labelled images, at most, that the classifier is fitted on
COVERED = 0.1  # of a class's fair share of the images: a class that gets fewer is missing
FRECHET, KERNEL = "frechet_distance", "kernel_distance"
CONFIDENCE, CLASSES = "classifier_confidence", "classes_covered"
AMONG_CLASSES, OF_NONE = "confidence_among_classes", "of_no_class"  # per cent


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared distance of the means, plus the trace of Cx + Cy - 2 (Cx Cy)^(1/2). x, y: (images, width)."""
    x, y = x.double(), y.double()
    cx, cy = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(cx)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cy @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * cross).item()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / width + 1)^3, unbiased: it can be below 0. x, y:
    (images, width)."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return (without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()).item()


@dataclass
class GeneratedArgs(Flags):
    """Flags of recipes that generate images."""

    judge: str | None = flag(None, "encoder on whose features generated images are compared; default: random weights")


class Generated(Evaluation):
    """Another evaluation and, in addition, how the images of `method.sampled(count) -> (count, 3, height, width) in
    [0, 1]` compare with held-out ones. If there is labelled data (--probe_dataset, or built in with labels), also what
    a classifier of real images makes of them: its confidence, which is low in images that it takes for none of the
    classes; its confidence among the classes, as if there were no such images; the percentage that it takes for none;
    and the number of classes among them.

    args: GeneratedArgs. train, held_out: real images. processor: of the method's images.
    count: of generated images, and of held-out ones. Raises BadInput if there are fewer than two of either.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        args,
        train: Pictures,
        held_out: Pictures,
        processor,
        count: int = 256,
    ) -> None:
        self.evaluation, self.processor = evaluation, processor
        self.count = min(count, len(held_out), len(train))
        if self.count < 2:
            raise BadInput(
                "generated images are compared with two held-out images and two training images at least, and there "
                f"are {len(held_out):,} and {len(train):,}; raise --held_out, or use more images"
            )
        # not the first ones, which are often all of one class
        self.train, self.held_out = (
            images.pixels[images.sample(self.count)].float() / 255 for images in (train, held_out)
        )
        if name := args.judge:
            self.judge, of = image_encoders.from_pretrained(name, flag="--judge")
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.judge, of = image_encoders.from_scratch("resnet-micro", max(32, self.held_out.shape[-1]))
            name = "resnet-micro with random weights of seed 0"
        self.judge.eval()
        self.size, (mean, std) = shape(of), normalisation(of)
        self.mean, self.std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
        self.classifier = self.classes = None
        data = args.probe_dataset or (args.dataset if args.dataset in LABELLED else "none")
        if data != "none":
            self._fit(data)
        self.units = (
            f"{evaluation.units} Distances of {self.count} generated images from as many held-out ones, on features of "
            f"{name} (sha256 {checksum(self.judge)[:12]})."
        )

    def __call__(self, method: Method) -> dict[str, float]:
        return self.evaluation(method) | self.of(method.sampled(self.count).float().cpu())

    def baselines(self, method: Method) -> Columns:
        columns = self.evaluation.baselines(method)
        columns["real images"] = columns.get("real images", {}) | self.of(self.train)
        return columns

    def draw(self, method: Method, directory: Path, results: Columns) -> dict[str, str]:
        return self.evaluation.draw(method, directory, results)

    def text(self, method: Method) -> str:
        return self.evaluation.text(method)

    def of(self, images: Tensor) -> dict[str, float]:
        """images: (count, 3, height, width) in [0, 1]."""
        x, y = self._features(images), self._features(self.held_out)
        found = {FRECHET: frechet_distance(x, y), KERNEL: kernel_distance(x, y)}
        if self.classifier is not None:
            every = self.classifier.predict_proba(self._flat(images))
            probability = every[:, : self.classes]
            named = np.bincount(probability.argmax(1), minlength=self.classes)
            highest = probability.max(1)
            found[CONFIDENCE] = 100 * float(highest.mean())
            found[AMONG_CLASSES] = 100 * float((highest / probability.sum(1).clip(1e-12)).mean())
            found[OF_NONE] = 100 * float((every.argmax(1) == self.classes).mean())
            found[CLASSES] = float((named >= COVERED * len(images) / self.classes).sum())
        return found

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        found = []
        for chunk in images.split(BATCH):
            chunk = torch.nn.functional.interpolate(chunk, self.size, mode="bilinear", antialias=True)
            found.append(image_encoders.features(self.judge, (chunk - self.mean) / self.std).float())
        return torch.cat(found)

    def _fit(self, data: str) -> None:
        """A support vector machine on pixels with calibrated probabilities, and one class more, for images of none: a
        classifier of real images alone is sure of noise, too. Of grey images it sees one channel, a sixth of the work.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        train, _ = labelled.load(data, "image", self.processor, max_samples=LABELS)
        pixels, label = train.inputs.pixels[train.inputs.rows].float() / 255, train.label.numpy()
        self.small, self.classes = pixels.shape[-2:], len(np.unique(label))  # a rare one may be missing
        self.grey = bool((pixels == pixels[:, :1]).all())
        none = unlike(pixels)
        label = np.concatenate([label, np.full(len(none), label.max() + 1)])
        known = self._flat(torch.cat([pixels, none]))
        self.classifier = CalibratedClassifierCV(SVC(), ensemble=False).fit(known, label)

    def _flat(self, images: Tensor) -> np.ndarray:
        if images.shape[-2:] != self.small:
            images = torch.nn.functional.interpolate(images, self.small, mode="bilinear", antialias=True)
        return (images.mean(1) if self.grey else images).flatten(1).numpy()


def unlike(images: Tensor, seed: int = 0) -> Tensor:
    """As many images that are of no class: a third each are means of two images, images with their pixels in another
    order, and images with noise that hides them. images: (n, 3, height, width) in [0, 1]."""
    drawn = torch.Generator().manual_seed(seed)
    other = images[torch.randperm(len(images), generator=drawn)]
    mixed, shuffled, hidden = (torch.arange(len(images)).remainder(3) == i for i in range(3))
    found = (images + other) / 2
    order = torch.rand(int(shuffled.sum()), 1, images[0, 0].numel(), generator=drawn).argsort(-1)
    pixels = images[shuffled].flatten(2)
    found[shuffled] = pixels.gather(2, order.expand_as(pixels)).view_as(images[shuffled])
    noise = torch.randn(images[hidden].shape, generator=drawn)
    strength = torch.rand(int(hidden.sum()), 1, 1, 1, generator=drawn) + 0.3
    found[hidden] = (images[hidden] / 2 + strength * noise).clamp(0, 1)
    return found


def checksum(model: torch.nn.Module) -> str:
    """sha256 of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
