"""DeepCluster: cluster the features of all images, train the network to predict the clusters, and repeat.

Caron et al. 2018, arXiv:1807.05520. At the start of an epoch, k-means on the whitened features of the whole images
gives each image a label; a new linear classifier on top of the encoder learns the labels from augmented views. Two
cures for trivial solutions (section 3.3): an empty cluster takes half of another one, and an image weighs the inverse
of its cluster's size, which equals sampling uniformly over clusters. Differs: the classifier stands directly on the
encoder's features; its moments in the optimizer are dropped with it; the Sobel filter is optional, and if it is used,
it is part of the exported weights (models.sobel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.distributed import gather, rank, world_size
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders, sobel

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from mmssl.data.images.numbered import Numbered

CHUNK = 256  # images that are encoded at once
ITERATIONS = 20  # of k-means, as in the authors' code
POINTS = 8192  # compared with all centroids at once


def whitening(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(mean (width,), projection (width, dim)): (features - mean) @ projection are the `dim` principal components, each
    scaled to unit variance. features: (images, width) fp32."""
    mean = features.double().mean(0)
    centred = features.double() - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(features))  # in ascending order
    variance, directions = variance[-dim:], directions[:, -dim:]
    # a direction without variance must not be scaled to unit variance: it holds rounding errors
    scale = variance.clamp(min=1e-6 * float(variance[-1]) + 1e-30).rsqrt()
    return mean.float(), (directions * scale).float()


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """(points,) int64: the index of the nearest centroid. points: (n, dim). centroids: (k, dim)."""
    half_norm = centroids.square().sum(1) / 2
    return torch.cat([(some @ centroids.T - half_norm).argmax(1) for some in points.split(POINTS)])


def kmeans(points: Tensor, k: int, seed: int, split_empty: bool = True) -> tuple[Tensor, Tensor]:
    """(centroids (k, dim), labels (n,)) of Lloyd's algorithm from k random points.

    An empty cluster gets the centroid of a random other one, drawn by size, and both are moved apart a little, so that
    they share its points (section 3.3). Not scikit-learn's KMeans: that runs on the CPU alone, and the order of its
    threads changes the last bit of a sum, so that a resumed run could get other clusters.
    """
    draws = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=draws)[:k].to(points.device)]
    for _ in range(ITERATIONS):
        labels = nearest(points, centroids)
        sums, sizes = torch.zeros_like(centroids), torch.bincount(labels, minlength=k)
        for some, own in zip(points.split(POINTS), labels.split(POINTS), strict=True):
            sums += F.one_hot(own, k).to(some.dtype).T @ some  # index_add_ adds in any order on a GPU
        centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
        empty = (sizes == 0).nonzero()[:, 0]
        if split_empty and len(empty):
            centroids = _split(centroids, sizes, empty, draws)
    return centroids, nearest(points, centroids)


def _split(centroids: Tensor, sizes: Tensor, empty: Tensor, draws: torch.Generator) -> Tensor:
    """Each empty cluster and one that is not, drawn by size, become neighbours around the centroid of the latter."""
    centroids = centroids.clone()
    few = int((sizes > 0).sum()) < len(empty)
    halved = torch.multinomial(sizes.cpu().double(), len(empty), replacement=few, generator=draws).to(empty.device)
    shift = torch.randn(len(empty), centroids.shape[1], generator=draws).to(centroids) * 1e-3
    centroids[empty] = centroids[halved] + shift
    centroids[halved] -= shift
    return centroids


class DeepCluster(Method):
    """
    encoder:  an image encoder, see models.image_encoders.
    views:    one view of each image.
    images:   the training images, with their rows.
    clusters: about 10 times the number of classes that one expects (section 4.1, figure 2c).
    pca_dim:  dimensions of the whitened features; at most the encoder's width.
    every:    epochs between two clusterings; 1 in the paper, whose epochs have 5,000 steps.
    edges:    the encoder sees only the edges of the grey image.
    """

    unit = "images"
    card = Card(
        about="DeepCluster: cluster the features of all images, train the network to predict the clusters from "
        "augmented views, and repeat. The encoder is exported; a further run clusters the images again.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(clusters)",
        snippets=image_encoders.SNIPPETS,
        tags=("deepcluster", "clustering"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        images: Numbered,
        clusters: int = 100,
        pca_dim: int = 256,
        every: int = 1,
        edges: bool = False,
    ) -> None:
        super().__init__()
        if len(images) < clusters:
            raise BadInput(f"--clusters {clusters}: more clusters than the {len(images):,} training images")
        self.encoder, self.views, self.images, self.every, self.edges = encoder, views, images, every, edges
        width = image_encoders.width(encoder)
        dim = min(pca_dim, width, len(images))
        self.classifier = nn.Linear(width, clusters)
        self.register_buffer("labels", torch.zeros(len(images), dtype=torch.long))
        self.register_buffer("weight_of_cluster", torch.ones(clusters))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("projection", torch.eye(width, dim))
        self.register_buffer("centroids", F.normalize(torch.randn(clusters, dim), dim=1))
        if edges:
            self.register_buffer("edge_kernels", sobel.kernels(encoder, views.std), persistent=False)
            sobel.restrict(encoder, self.edge_kernels)

    def start_epoch(self, epoch: int, accelerator: Accelerator, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if epoch % self.every:
            return
        with accelerator.autocast():
            features = self.features_of_all()
        if not features.isfinite().all():
            raise BadInput(
                f"the features of the training images are not finite before epoch {epoch}: the training has diverged. "
                "Lower --learning_rate, or set --max_grad_norm"
            )
        self.cluster(features, epoch)
        for optimizer in optimizers:
            for parameter in self.classifier.parameters():
                optimizer.state.pop(parameter, None)

    @torch.no_grad()
    def features_of_all(self) -> Tensor:
        """(images, width) fp32, of whole images in evaluation mode. Each process computes a part. An image has the same
        neighbours in its chunk on any number of processes, and thus the same features to the last bit."""
        device, was_training = self.centroids.device, self.training
        self.eval()
        share = math.ceil(len(self.images) / (CHUNK * world_size())) * CHUNK
        rows = torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(self.images) - 1)  # every part is full
        parts = []
        for some in rows.split(CHUNK):
            pixels = self.images.__getitems__(some.tolist())["pixel_values"].to(device)
            parts.append(image_encoders.features(self.encoder, self.views.whole(pixels)).float())
        self.train(was_training)
        return gather(torch.cat(parts))[: len(self.images)]

    @torch.no_grad()
    def cluster(self, features: Tensor, seed: int) -> None:
        """New labels from the features of all images, and a new classifier. The same on every process."""
        with torch.autocast(features.device.type, enabled=False):
            mean, projection = whitening(features, self.projection.shape[1])
            self.mean.copy_(mean)
            self.projection.copy_(projection)
            centroids, labels = self.clusters_of(self.reduced(features), seed)
        self.centroids.copy_(centroids)
        self.labels.copy_(labels)
        sizes = torch.bincount(labels, minlength=len(centroids)).clamp(min=1)
        self.weight_of_cluster.copy_(len(labels) / (len(centroids) * sizes))  # 1 on average over the images
        new = torch.randn(self.classifier.weight.shape, generator=torch.Generator().manual_seed(seed))
        self.classifier.weight.copy_(0.01 * new)  # as in the authors' code
        self.classifier.bias.zero_()

    def clusters_of(self, points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        return kmeans(points, len(self.centroids), seed)

    def reduced(self, features: Tensor) -> Tensor:
        """(batch, width) -> (batch, dim): whitened and of unit length, as k-means sees them."""
        return F.normalize((features.float() - self.mean) @ self.projection, dim=1)

    def embed(self, pixel_values: Tensor, key: Tensor, row: Tensor | None = None) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn. row:
        (batch,) positions among the training images. Without it, images have the label of the nearest centroid."""
        (view,) = self.views(pixel_values, key)
        features = image_encoders.features(self.encoder, view)
        return {"features": features, "label": self.labels[row] if row is not None else self._nearest(pixel_values)}

    @torch.no_grad()
    def _nearest(self, pixel_values: Tensor) -> Tensor:
        features = image_encoders.features(self.encoder, self.views.whole(pixel_values))
        with torch.autocast(features.device.type, enabled=False):
            return nearest(self.reduced(features), self.centroids)

    def loss(self, features: Tensor, label: Tensor) -> Output:
        """features: (batch, width). label: (batch,)."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.classifier(features.float())
            each = F.cross_entropy(logits, label, reduction="none")
            # not divided by the sum of the batch's weights: that would not be the mean over the data
            weights = self.weight_of_cluster[label]
            loss = (each * weights).mean()
        found = (logits.argmax(1) == label).float().mean().detach()
        chance = math.log(len(self.centroids)) * weights.mean()  # the weights of a batch are 1 on average over many
        return Output(loss, {"cluster_accuracy": found}, features.detach().float(), chance)

    def after_step(self) -> None:
        if self.edges:
            sobel.restrict(self.encoder, self.edge_kernels)

    def exported(self) -> PreTrainedModel:
        return self.encoder

    def _heads(self) -> dict[str, Tensor]:
        """Nothing: clusters and classifier are made again at the start of a run, perhaps of other images."""
        return {}
