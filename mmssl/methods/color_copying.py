"""Colour by pointing: a position of a grey frame copies the colours of the positions of earlier frames that it is like.

"Tracking emerges by colorizing videos", Vondrick et al. 2018, arXiv:1806.09594: an encoder embeds each position of grey
frames; the similarity of a position to those of the reference frames, after a softmax, says how much of each one's
colour is copied; the loss is the cross entropy of quantised colours (16 clusters of ab in Lab). What points at the same
colour points at the same thing: masks and keypoints follow the pointers, too (`propagate`). Differs: a stock encoder of
single frames, whose stages are all read, without the convolutions over time; colours are means over the cells of the
map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images import lab
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.data.video.clips import viewed
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import colour_directions, hypercolumns, image_encoders

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

COLOURS = 16  # clusters: section 3.4
CELL = 4  # pixels a side of a position
COUNTED = 64  # clips whose colours are clustered, at most
POINTS = 20_000  # colours that are clustered, at most
FRAMES = STREAMS_PER_VIEW  # first stream of the draws of the frames of a clip
NEAREST = 5  # positions that a mask is copied from


def ab_of(pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(L, ab): (n, 1, height, width); (n, rows, columns, 2), means over the cells. pixels: (n, 3, height, width) in
    [0, 1]."""
    found = lab.from_srgb(pixels)
    return found[:, :1], F.adaptive_avg_pool2d(found[:, 1:], size).permute(0, 2, 3, 1)


@torch.no_grad()
def cluster_colours(clips: Dataset, views: Views, seed: int = 0) -> Tensor:
    """(16, 2) fp32: k-means centres of the colours ab of training clips. Raises BadInput if all are grey."""
    from sklearn.cluster import KMeans

    rows = torch.linspace(0, len(clips) - 1, min(COUNTED, len(clips))).long().tolist()
    found = []
    for row in rows:
        pixels = views.to_unit_range(viewed(views, clips.__getitems__([row])["pixel_values"])[0, ::4])
        found.append(ab_of(pixels, [max(1, side // CELL) for side in pixels.shape[2:]])[1].flatten(0, 2))
    ab = torch.cat(found)
    chosen = torch.randperm(len(ab), generator=torch.Generator().manual_seed(seed))[:POINTS]
    ab = ab[chosen]
    if ab.unique(dim=0).shape[0] < COLOURS or ab.abs().max() < 1.0:
        raise BadInput("all clips are grey, so there are no colours to copy: choose --dataset with colours")
    return torch.from_numpy(KMeans(COLOURS, n_init=4, random_state=seed).fit(ab.numpy()).cluster_centers_).float()


def copied(similarity: Tensor, values: Tensor) -> Tensor:
    """(batch, positions, dim): the softmax over references of the similarity, times their values. similarity: (batch,
    positions, references). values: (batch, references, dim)."""
    return similarity.softmax(2) @ values


class ColorCopying(Method):
    """
    encoder:     an image encoder, see models.image_encoders; a ResNet or a ViT.
    views:       one view of each clip, without changes of colour.
    centres:     (16, 2), see `cluster_colours`.
    references:  frames that colours are copied from; 3 in the paper.
    dim:         of the embedding of a position. temperature: divides the similarities of unit vectors.
    """

    unit = "clips"
    card = Card(
        about="Colour by pointing: each position of a grey frame copies the colours of the positions of earlier frames "
        "that it is like. The encoder is exported: it sees pictures in grey. What embeds the positions, to continue "
        "from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The encoder does not see colours. It was trained without labels: evaluate it on your task before you "
        "rely on it.",
        trivial="the colours of the reference frames, in equal parts",
        tags=("video", "colorization"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        centres: Tensor,
        references: int = 3,
        dim: int = 64,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.references, self.temperature = encoder, views, references, temperature
        self.card = replace(self.card, snippets=image_encoders.snippets_of_map(encoder))
        grey = colour_directions.projection(colour_directions.GREY, views.std)
        self.register_buffer("sees_grey", grey, persistent=False)
        colour_directions.restrict(encoder, grey)
        self.register_buffer("centres", centres)
        self.embed_positions = hypercolumns.Hypercolumns(hypercolumns.channels(encoder), 2 * dim, dim)
        torch.nn.init.xavier_uniform_(self.embed_positions.classify.weight)  # zeros would be like everything else

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, time, 3, height, width) uint8. key: (batch,) int64, from which a clip's view and its
        frames are drawn."""
        chosen = pixel_values[torch.arange(len(key), device=key.device)[:, None], self.chosen(key, pixel_values)]
        clips = viewed(self.views, chosen, key if self.training else None)
        lightness, ab = ab_of(self.views.to_unit_range(clips.flatten(0, 1)), self.grid(clips))
        embedded, features = self.positions(lightness, self.grid(clips))
        embedded, ab = (each.unflatten(0, clips.shape[:2]) for each in (embedded, ab))
        with torch.autocast(clips.device.type, enabled=False):
            cluster = torch.cdist(ab.flatten(1, 3), self.centres).argmin(2).unflatten(1, ab.shape[1:4])
            colours = F.one_hot(cluster, COLOURS).float()
            known, true = colours[:, :-1].flatten(1, 3), cluster[:, -1].flatten(1)
            similarity = self.similarity(embedded[:, -1:], embedded[:, :-1])
            predicted = copied(similarity, known).clamp(min=1e-6)
            loss = F.nll_loss(predicted.log().flatten(0, 1), true.flatten())
            equally = known.mean(1, keepdim=True).clamp(min=1e-6).log().expand_as(predicted)
            trivial = F.nll_loss(equally.flatten(0, 1), true.flatten())
            # positions of the commonest colour, such as a black background, say nothing
            rare = cluster[:, -1].flatten(1) != cluster.flatten().mode().values
            right = (predicted.argmax(2) == true) & rare
        metrics = {"rare_colours_right": right.sum() / rare.sum().clamp(min=1)} if not self.training else {}
        return Output(loss, metrics, features.detach().float(), trivial.detach())

    def chosen(self, key: Tensor, pixel_values: Tensor) -> Tensor:
        """(batch, references + 1) int64: frames at equal distances, the last one to be coloured."""
        time = pixel_values.shape[1]
        drawn = draws.uniform(key[:, None], FRAMES + torch.arange(2, device=key.device))
        gap = 1 + (drawn[:, 0] * ((time - 1) // self.references)).long()
        first = (drawn[:, 1] * (time - self.references * gap)).long()
        return first[:, None] + gap[:, None] * torch.arange(self.references + 1, device=key.device)

    def grid(self, clips: Tensor) -> tuple[int, int]:
        """(rows, columns) of the positions of a frame."""
        return tuple(max(1, side // CELL) for side in clips.shape[-2:])

    def positions(self, lightness: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(embeddings of unit length (n, rows, columns, dim), features (n, width)). lightness: (n, 1, height, width) in
        [0, 100]."""
        grey = self.views.normalised((lightness / lab.LARGEST_L).expand(-1, 3, -1, -1))
        maps = hypercolumns.maps(self.encoder, grey)
        embedded = self.embed_positions(maps, size)
        return F.normalize(embedded.float(), dim=-1), maps[-1].flatten(1)

    def similarity(self, target: Tensor, known: Tensor) -> Tensor:
        """(batch, positions of the targets, positions of the known frames). target, known: (batch, frames, rows,
        columns, dim)."""
        with torch.autocast(target.device.type, enabled=False):  # of many alike, rounding must not choose the nearest
            return target.flatten(1, 3) @ known.flatten(1, 3).mT / self.temperature

    @torch.no_grad()
    def propagate(self, pixel_values: Tensor, first: Tensor) -> Tensor:
        """(batch, time, classes, height, width) in [0, 1]: masks of each frame, copied from those of the frames before
        and of the first, by the pointers that were learned for colours. pixel_values: (batch, time, 3, height, width)
        uint8. first: (batch, classes, height, width), the masks of the first frame."""
        clips = viewed(self.views, pixel_values)
        size, time = self.grid(clips), clips.shape[1]
        lightness, _ = ab_of(self.views.to_unit_range(clips.flatten(0, 1)), size)
        embedded = self.positions(lightness, size)[0].unflatten(0, clips.shape[:2])
        cells = [F.adaptive_avg_pool2d(first.float(), size).flatten(2).mT]  # (batch, positions, classes)
        for t in range(1, time):
            before = sorted({0, *range(max(0, t - self.references), t)})
            similarity = self.similarity(embedded[:, t : t + 1], embedded[:, before])
            best, which = similarity.topk(min(NEAREST, similarity.shape[2]), dim=2)
            known = torch.cat([cells[b] for b in before], 1)
            picked = known[torch.arange(len(known), device=known.device)[:, None, None], which]
            cells.append((best.softmax(2)[..., None] * picked).sum(2))
        maps = torch.stack(cells, 1).mT.unflatten(3, size)
        large = F.interpolate(maps.flatten(0, 1), first.shape[-2:], mode="bilinear")
        return large.unflatten(0, (-1, time))

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Clips, and the same in grey with the colours of the first frame, carried on by the pointers."""
        clips = viewed(self.views, pixel_values)
        pixels = self.views.to_unit_range(clips)
        found = lab.from_srgb(pixels)
        carried = self.propagate(pixel_values, found[:, 0, 1:])
        return {"clip": pixels, "first colours, carried on": lab.to_srgb(torch.cat([found[:, :, :1], carried], 2))}

    def after_step(self) -> None:
        colour_directions.restrict(self.encoder, self.sees_grey)

    def exported(self) -> PreTrainedModel:
        return self.encoder


def check_time(time: int, references: int) -> None:
    """Raise BadInput if a clip has too few frames."""
    if time <= references:
        raise BadInput(f"--frames {time}: {references} references and the frame to be coloured need more; raise it")
