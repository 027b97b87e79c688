"""CPC on images: from the patches above, tell the true patches further down from those of other images.

Van den Oord et al. 2018, arXiv:1807.03748, section 3.3 (v1); Henaff et al. 2019, arXiv:1905.09272 (v2: patches are
augmented one by one, no batch norm). Patches overlap by half; an encoder turns each into a vector; masked convolutions
summarise all rows down to each position in a context; for each k, W_k predicts the vectors k rows below (InfoNCE). The
next row shares pixels with the context and is not predicted. The features of an image are the mean over its patches
(v1, section 3.3). Differs: candidates are the patches of the same row, of all columns and images; scores are divided by
sqrt(dim) and W_k starts at zero, as in methods.cpc.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.patches import one_channel
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.methods.cpc import across
from mmssl.models import image_encoders, memory

if TYPE_CHECKING:
    from mmssl.models.patch_encoder import PatchEncoderModel

NEAREST = 2  # rows below the context that are predicted, at least: the row in between overlaps with it
FLIP, ONE_CHANNEL = 0.5, 0.2  # probabilities that a patch is flipped, and that it keeps one of its colour channels


def augmented(patches: Tensor, key: Tensor) -> Tensor:
    """Flip some patches, and give some the same colour channel three times, each patch by its own draws (v2, section
    4.1, "patch augmentation"). patches: (batch, rows, columns, 3, side, side). key: (batch,) int64."""
    grid = patches.shape[1:3]
    streams = STREAMS_PER_VIEW + torch.arange(3 * grid.numel(), device=key.device)  # those before belong to the view
    flip, drop, channel = draws.uniform(key[:, None], streams).view(-1, 3, *grid, 1, 1, 1).unbind(1)
    patches = torch.where(flip < FLIP, patches.flip(-1), patches)
    return torch.where(drop < ONE_CHANNEL, one_channel(patches, channel.flatten(3).squeeze(3)), patches)


class MaskedConvolutions(nn.Module):
    """Residual blocks in which a position sees no row below its own (v2, appendix: the network of its pseudocode).

    (batch, dim, rows, columns) -> the same shape.
    """

    def __init__(self, dim: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),  # one row above: the kernel sees its own row and that one
                nn.Conv2d(hidden, hidden, (2, 1)),
                nn.ReLU(),
                nn.Conv2d(hidden, dim, 1),
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return F.relu(x)


class CPCImage(Method):
    """
    encoder: a convolutional network that is applied to each patch, see models.on_patches.
    views:   one view of each image.
    steps:   W_k predicts k = 2 to `steps` rows below.
    dim:     of predictions and of what they are compared with.
    blocks:  of the context network, of `hidden` channels: 5 and 256 in v2.
    """

    couples_samples = True
    unit = "images"
    card = Card(
        about="CPC on images: from the patches above, tell the true patches further down from those of other images. "
        "The patch encoder is exported: it cuts an image into patches, encodes each, and gives the mean, and "
        "`last_hidden_state` has the vector of each. The context network and the predictions, to continue from, are in "
        "`pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(candidates)",
        snippets=image_encoders.SNIPPETS,
        tags=("cpc", "contrastive"),
    )

    def __init__(
        self,
        encoder: PatchEncoderModel,
        views: Views,
        steps: int = 4,
        dim: int = 64,
        hidden: int = 256,
        blocks: int = 5,
    ) -> None:
        super().__init__()
        if (side := encoder.config.patch_size) % 2:
            raise BadInput(f"--crop_size {side}: patches overlap by half; give an even number")
        self.encoder, self.views, self.steps = encoder, views, steps
        width = image_encoders.width(encoder)
        self.norm = nn.LayerNorm(width)  # encoders differ in the scale of their features
        sizes = f"--context_size {hidden}, --context_layers {blocks}"
        self.context = memory.build(lambda: MaskedConvolutions(width, hidden, blocks), sizes)
        self.target = nn.Linear(width, dim)
        self.predict = nn.Linear(width, (steps - NEAREST + 1) * dim, bias=False)  # W_2 to W_steps
        nn.init.zeros_(self.predict.weight)

    def embed(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which all of an image's changes are
        drawn."""
        (view,) = self.views(pixel_values, key)
        if min(view.shape[2:]) < (side := self.encoder.config.patch_size):
            raise BadInput(f"--crop_size {side}: more than an image of {view.shape[2]} x {view.shape[3]} pixels")
        patches = augmented(self.encoder.patches(view), key)
        if patches.shape[1] <= self.steps:
            raise BadInput(
                f"{patches.shape[1]} rows of patches are too few to predict {self.steps} below; lower --crop_size or "
                "--prediction_steps"
            )
        features = image_encoders.features(self.encoder.backbone, patches.flatten(0, 2).contiguous())
        encoded = self.norm(features).unflatten(0, patches.shape[:3])
        context = self.context(encoded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return {
            "prediction": self.predict(context),
            "target": self.target(encoded),
            "features": features.unflatten(0, patches.shape[:3]).mean((1, 2)),
        }

    def loss(self, prediction: Tensor, target: Tensor, features: Tensor) -> Output:
        """prediction: (batch, rows, columns, (steps - 1) * dim). target: (batch, rows, columns, dim). features: (batch,
        width), the mean over patches. The loss is the mean over all predicted positions."""
        with torch.autocast(target.device.type, enabled=False):
            # each column of each image is a sequence of rows: (batch * columns, rows, ...)
            predictions, mine = (x.float().transpose(1, 2).flatten(0, 1) for x in (prediction, target))
            everyone = gather(mine)
            lengths = torch.full((len(everyone),), mine.shape[1], device=mine.device)
            losses, right = [], []
            for k, predicted in enumerate(predictions.split(mine.shape[2], dim=2), NEAREST):
                scores, true, _ = across(
                    predicted, mine, lengths[: len(mine)], k, everyone, lengths, rank() * len(mine)
                )
                losses.append(F.cross_entropy(scores.flatten(0, 1), true.flatten(), reduction="none"))
                right.append((scores.argmax(-1) == true).float().mean().detach())
        metrics = {"accuracy_nearest_row": right[0], "accuracy_farthest_row": right[-1]}
        return Output(torch.cat(losses).mean(), metrics, features.detach().float(), math.log(len(everyone)))

    def exported(self) -> PatchEncoderModel:
        return self.encoder
