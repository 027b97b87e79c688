"""The order of frames: are three frames of a clip in order, or does the clip run forwards or backwards?

shuffle  Shuffle and learn (Misra et al. 2016, arXiv:1603.08561): of five frames a < b < c < d < e of a window,
         (b, c, d) is in order, in either direction, (b, a, d) and (b, e, d) are not.
arrow    The arrow of time: (b, c, d) or (d, c, b) (Wei et al. 2018, "Learning and using the arrow of time", CVPR; there
         with optical flow).

A shared encoder sees one frame at a time. What tells the order without looking at the content is hidden: each frame is
cropped and lit by draws of its own, has noise added that is stronger than the traces of compression, and shows one of
its colour channels; videos have lost their black bars when they were decoded. Differs: half of the tuples are in order,
so that chance is one half; the gaps between the frames are equal or nearly so; frames are taken from a window that is
drawn by its motion, not chosen by optical flow. And the classifier does not see the features of the frames, as in the
paper, but only how far each position has moved: each position of the middle frame is matched with those of the other
two, by the correlation of their features (pointers as in Vondrick et al. 2018, arXiv:1806.09594), and the displacements
to both say whether the frames are in order, or which way time runs, as far as motion alone tells it. The map gives the
positions, so that the features need only tell things apart.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images import patches
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("shuffle", "arrow")
FRAMES = 3  # that the classifier sees
TUPLE, CHANNEL = STREAMS_PER_VIEW, STREAMS_PER_VIEW + 8  # first streams of the draws of a clip, and of a frame
NOISE = 1 << 16  # first stream of the noise of a frame
SIDE = 4.0  # of a frame, in units of a displacement: most are then about 1
FEWEST = 4  # rows and columns of a map


def tuples(key: Tensor, time: int, kind: str) -> tuple[Tensor, Tensor]:
    """(numbers, label): (batch, 3) int64, frames in [0, time); (batch,) int64, 1 in order or forwards.

    The frames b, c, d, and so a and e, are as far apart as a draw says, at least half as far as the window allows:
    between near frames too little moves. A tuple in order runs either way, as one out of order does: the direction
    alone tells nothing.
    """
    gap_at_most = (time - 1) // 4 if kind == "shuffle" else (time - 1) // 2
    drawn = draws.uniform(key[:, None], TUPLE + torch.arange(5, device=key.device)).unbind(1)
    gap_at_least = (gap_at_most + 1) // 2
    gap = gap_at_least + ((gap_at_most - gap_at_least + 1) * drawn[0]).long()
    if kind == "arrow":
        first = (drawn[1] * (time - 2 * gap)).long()
        b, c, d = first, first + gap, first + 2 * gap
        label = (drawn[2] < 0.5).long()
        forwards = label.bool()
    else:
        a = (drawn[1] * (time - 4 * gap)).long()
        b, c, d, e = (a + i * gap for i in range(1, 5))
        label = (drawn[2] < 0.5).long()
        c = torch.where(label.bool(), c, torch.where(drawn[3] < 0.5, a, e))
        forwards = drawn[4] < 0.5
    first, last = torch.where(forwards, b, d), torch.where(forwards, d, b)
    return torch.stack([first, c, last], 1), label


def displacements(middle: Tensor, other: Tensor, places: Tensor, temperature: float) -> Tensor:
    """(batch, positions, 3): how far each position of the middle frame is from where it is found in another, (rows,
    columns), the mean of all positions weighted by the softmax of their correlations, so that a position that is found
    nowhere points to the centre; and the norm of these weights, 1 if one position has all weight, 1 / sqrt(positions)
    if all have the same. middle, other: (batch, positions, dim). places: (positions, 2)."""
    centred = (each - each.mean(2, keepdim=True) for each in (middle, other))
    middle, other = (F.normalize(each, dim=2, eps=1e-3) for each in centred)
    weights = (middle / temperature @ other.mT).softmax(2)
    return torch.cat([weights @ places - places, weights.norm(dim=2, keepdim=True)], 2)


class FrameOrder(Method):
    """
    encoder:     an image encoder, see models.image_encoders, with a map of cells smaller than what moves. It is applied
                 to each frame, and exported.
    views:       one view of each frame.
    kind:        one of KINDS.
    noise:       deviation of the noise that is added to a frame, in units of normalised pixels.
    hidden:      width of the classifier.
    temperature: divides the correlations of features.
    """

    unit = "clips"
    card = Card(
        about="The order of frames: three frames of a clip, and the network says whether they are in order, or which "
        "way time runs. The encoder of the frames is exported; the classifier, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The encoder was trained on noisy frames of one colour channel, without labels: evaluate it on your "
        "task before you rely on it.",
        trivial="chance: log(2)",
        tags=("video", "frame-order"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        kind: str = "shuffle",
        noise: float = 0.1,
        hidden: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.kind, self.noise = encoder, views, kind, noise
        self.temperature = temperature
        self.card = replace(self.card, snippets=image_encoders.snippets_of_map(encoder))
        self.motion = heads.mlp([(FRAMES - 1) * 3, hidden, hidden], "none")
        self.attend = nn.Linear(hidden, 1, bias=False)
        self.classifier = heads.mlp([hidden, hidden, 2], "layer")
        nn.init.zeros_(self.classifier[-1].weight)  # the first prediction is chance
        nn.init.zeros_(self.classifier[-1].bias)

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, time, 3, height, width) uint8. key: (batch,) int64, from which a clip's frames, their
        order, views and noise are drawn."""
        check_time(pixel_values.shape[1], self.kind)
        numbers, label = tuples(key, pixel_values.shape[1], self.kind)
        logits, features = self.classify(self.given(pixel_values, key, numbers))
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float(), label)
        found = (logits.argmax(1) == label).float().mean().detach()
        return Output(loss, {"accuracy": found}, features.detach().float(), math.log(2))

    def given(self, pixel_values: Tensor, key: Tensor, numbers: Tensor) -> Tensor:
        """(batch, 3, 3, height, width): the frames with these numbers, normalised, with nothing left that tells their
        order but what they show."""
        chosen = pixel_values[torch.arange(len(key), device=key.device)[:, None], numbers].flatten(0, 1)
        own = draws.keys(key[:, None], torch.arange(FRAMES, device=key.device)).flatten()
        pixels = self.views(chosen, own)[0] if self.training else self.views.whole(chosen)
        pixels = patches.one_channel(pixels, draws.uniform(own, CHANNEL))
        if self.noise:
            values = torch.arange(math.prod(pixels.shape[2:]), device=key.device)
            grain = draws.normal(own[:, None], NOISE + values).view(len(pixels), 1, *pixels.shape[2:])
            pixels = pixels + self.noise * grain
        return pixels.unflatten(0, (-1, FRAMES))

    def classify(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (batch, 2), features (batch, width), the mean over frames). frames: (batch, 3, 3, height, width)."""
        maps = image_encoders.maps(self.encoder, frames.flatten(0, 1))
        rows, columns = (SIDE / n * torch.arange(n, device=maps.device) for n in maps.shape[2:])
        places = torch.cartesian_prod(rows, columns)
        with torch.autocast(maps.device.type, enabled=False):
            before, middle, after = maps.flatten(2).mT.float().unflatten(0, (-1, FRAMES)).unbind(1)
            both = [displacements(middle, other, places, self.temperature) for other in (before, after)]
        motion = self.motion(torch.cat(both, 2))
        logits = self.classifier((self.attend(motion).softmax(1) * motion).sum(1))
        return logits, maps.mean((2, 3)).unflatten(0, (-1, FRAMES)).mean(1)

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """The frames of a tuple as they are, and as the network gets them; one in order has a white frame at its end,
        one that is predicted to be in order a white frame at the end of the second row."""
        numbers, label = tuples(key, pixel_values.shape[1], self.kind)
        given = self.given(pixel_values, key, numbers)
        predicted = self.classify(given)[0].argmax(1)
        rows = torch.arange(len(key), device=key.device)[:, None]
        true = self.views.to_unit_range(self.views.whole(pixel_values[rows, numbers].flatten(0, 1)))

        def marked(frames: Tensor, said: Tensor) -> Tensor:
            mark = said.float().view(-1, 1, 1, 1, 1).expand_as(frames[:, :1])
            return torch.cat([frames, mark], 1)

        true = true.unflatten(0, (-1, FRAMES))
        return {"frames": marked(true, label), "given": marked(self.views.to_unit_range(given), predicted)}

    def exported(self) -> PreTrainedModel:
        return self.encoder


def check_time(time: int, kind: str) -> None:
    """Raise BadInput if a clip has too few frames for a tuple."""
    fewest = 5 if kind == "shuffle" else 3
    if time < fewest:
        raise BadInput(f"--frames {time}: --kind {kind} takes its frames from {fewest} or more; raise it")


def check_map(encoder: PreTrainedModel, size: tuple[int, int]) -> None:
    """Raise BadInput if the map of a frame of (height, width) has too few positions to tell motion."""
    rows, columns = image_encoders.on_one(image_encoders.maps, encoder, size).shape[2:]
    if min(rows, columns) < FEWEST:
        raise BadInput(
            f"of frames of {size[0]} x {size[1]} pixels, a {type(encoder).__name__} has {rows} x {columns} positions, "
            "too few to show what moves; use --encoder resnet-nano or raise --image_size"
        )
