"""Tracking: a patch and the same patch some frames later are alike, and unlike patches of other clips.

"Unsupervised learning of visual representations using videos", Wang & Gupta 2015, arXiv:1505.00687: patches that move
are tracked; the first and the last one of a track must be closer than the first one and a random patch, by a margin of
cosine distance; after some epochs the random patches are the hardest ones. Differs: patches are found by the change
between frames and followed by plain normalised correlation (data.video.tracks), where the paper has SURF, dense
trajectories and a correlation filter; the random patches are those of the other clips of the batch, and all of
them count unless `hard_from` says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images import patches
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.data.video import tracks
from mmssl.distributed import gather
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders, on_patches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARGIN = 0.5  # section 4.2
HARDEST = 4  # random patches of each track that count once training has gone on: section 4.2
PLACE = STREAMS_PER_VIEW  # stream of the draw of the first place


def ranking_loss(first: Tensor, last: Tensor, margin: float = MARGIN, hardest: int | None = None) -> Tensor:
    """max(0, D(first, last) - D(first, other) + margin), the mean over the last patches of all other tracks, or over
    the `hardest` of them. D is the cosine distance. first, last: (tracks, dim), of unit length."""
    distance = 1 - first @ last.T
    loss, n = F.relu(distance.diagonal()[:, None] - distance + margin), len(first)
    others = loss.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)  # without the diagonal
    return (others if hardest is None else others.topk(min(hardest, others.shape[1]), 1)[0]).mean()


class Tracking(Method):
    """
    encoder:    a convolutional image encoder, see models.image_encoders. It is applied to patches, and exported.
    views:      the view of a patch.
    patch_size: side of a patch in pixels. reach: farthest that it is looked for from frame to frame, in pixels.
    hard_from:  fraction of the training after which the hardest random patches count alone. Too early, all patches
                become alike.
    """

    couples_samples = True
    unit = "clips"
    card = Card(
        about="Tracking: a patch of a clip and the same patch some frames later are alike, and unlike patches of other "
        "clips. The encoder of the patches is exported; the projection, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The encoder was trained on patches that move, without labels: evaluate it on your task before you rely "
        "on it.",
        trivial="all patches alike: the margin",
        snippets=image_encoders.SNIPPETS,
        tags=("video", "tracking"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        patch_size: int,
        reach: int = 6,
        dim: int = 64,
        margin: float = MARGIN,
        hard_from: float = 1.0,
    ) -> None:
        super().__init__()
        on_patches.check(encoder)
        self.encoder, self.views, self.patch_size, self.reach = encoder, views, patch_size, reach
        self.margin, self.hard_from = margin, hard_from
        width = image_encoders.width(encoder)
        self.head = heads.mlp([width, width, dim], "layer")

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, time, 3, height, width) uint8. key: (batch,) int64, from which a clip's patch and the
        views of it are drawn."""
        cut, score = self.tracked(pixel_values, key)
        ends = torch.cat([cut[:, 0], cut[:, -1]])
        own = draws.keys(key[None], torch.arange(2, device=key.device)[:, None]).flatten()
        seen = self.views(ends, own)[0] if self.training else self.views.whole(ends)
        features = image_encoders.features(self.encoder, seen)
        first, last = F.normalize(self.head(features).float(), dim=1).chunk(2)
        return {"first": first, "last": last, "features": features.chunk(2)[0].float(), "score": score}

    def loss(self, first: Tensor, last: Tensor, features: Tensor, score: Tensor) -> Output:
        """first, last: (batch, dim), of unit length. features: (batch, width). score: (batch,), the lowest correlation
        of each track."""
        with torch.autocast(first.device.type, enabled=False):
            first, last = gather(first.float()), gather(last.float())
            if len(first) < 2:
                raise BadInput("--per_device_train_batch_size 1: the random patches are those of other clips; raise it")
            hardest = HARDEST if self.training and self.progress >= self.hard_from else None
            loss = ranking_loss(first, last, self.margin, hardest)
            nearest = ((first @ last.T).argmax(1) == torch.arange(len(first), device=first.device)).float().mean()
        metrics = {"found_in_batch": nearest.detach(), "correlation": score.detach().mean()}
        return Output(loss, metrics, features.detach(), self.margin)

    @torch.no_grad()
    def tracked(self, pixel_values: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(patches (batch, time, 3, side, side) uint8; the lowest correlation of each track, (batch,))."""
        places, scores = self.track(pixel_values, key)
        top, left = places.flatten(0, 1).unsqueeze(1).unbind(2)
        cut = patches.cut(pixel_values.flatten(0, 1), top, left, self.patch_size)[:, 0]
        return cut.unflatten(0, pixel_values.shape[:2]), scores.amin(1)

    def track(self, pixel_values: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(places, scores), as tracks.follow gives them."""
        if min(pixel_values.shape[3:]) < self.patch_size:
            raise BadInput(f"--patch_side {self.patch_size}: larger than the frames; lower it")
        clips = pixel_values.float() / 255
        drawn = draws.uniform(key, PLACE)
        start = tracks.most_moving(clips, self.patch_size, drawn)
        return tracks.follow(clips, start, self.patch_size, self.reach)

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Clips with a frame around the patch that is tracked, and the patch."""
        places, _ = self.track(pixel_values, key)
        clips, side = pixel_values.float() / 255, self.patch_size
        red = torch.tensor([1.0, 0.2, 0.2], device=clips.device)[:, None]
        for clip, own in zip(clips, places.tolist(), strict=True):
            for frame, (top, left) in zip(clip, own, strict=True):
                for row in (top, top + 1, top + side - 2, top + side - 1):
                    frame[:, row, left : left + side] = red
                for column in (left, left + 1, left + side - 2, left + side - 1):
                    frame[:, top : top + side, column] = red
        cut, _ = self.tracked(pixel_values, key)
        height, width = clips.shape[3:]
        around = (0, width - side, 0, height - side)
        return {"track": clips, "patch": F.pad(cut.float() / 255, around, value=1.0)}

    def exported(self) -> PreTrainedModel:
        return self.encoder
