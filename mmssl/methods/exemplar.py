"""Exemplar-CNN: each image is a class of its own, and its augmented copies are the samples of that class.

Dosovitskiy et al. 2014, arXiv:1406.6909, section 2. An encoder, one hidden layer and a classifier with as many outputs
as there are images; cross entropy. Differs: a class's score is the cosine with its weights over a temperature (Wu et
al. 2018, arXiv:1805.01978, equation 2, where the weights are stored features): a plain classifier of 18,000 classes
stays at chance for the first epochs. Copies are drawn in each epoch instead of stored; classes are whole images, not
patches chosen by their gradients; views are those of later methods, with strong changes of colour and scale; no
dropout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import View, Views
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders, memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def exemplar(size: int, scale: tuple[float, float] = (0.1, 1.0)) -> View:
    """Stronger than SimCLR's view for small images: the task is to tell images apart whatever their scale and colours
    (section 2.1; the most important transformations in figure 3)."""
    return View(size=size, scale=scale, jitter=1.0, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15, grey=0.2)


class Exemplar(Method):
    """
    encoder:    an image encoder, see models.image_encoders.
    views:      one view of each image.
    classes:    number of images; row i of the data is class i.
    hidden_dim: of the layer before the classifier. The classifier is a table of (classes, hidden_dim) weights, which
                take 16 bytes each with gradient and AdamW's moments: 20,000 classes of 256 take 82 MB, a million 4.1
                GB.
    temperature: of the softmax.

    Raises BadInput if the classifier does not fit into memory.
    """

    unit = "images"
    card = Card(
        about="Exemplar-CNN: each image is a class of its own, and its augmented copies are the samples of that class. "
        "The encoder is exported; the layer after it, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits=image_encoders.LIMITS_OF_VIEWS,
        trivial="chance: log(classes)",
        snippets=image_encoders.SNIPPETS,
        tags=("exemplar-cnn",),
    )

    def __init__(
        self, encoder: PreTrainedModel, views: Views, classes: int, hidden_dim: int = 256, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.temperature = encoder, views, temperature
        width = image_encoders.width(encoder)
        self.hidden = heads.mlp([width, width, hidden_dim], norm="none")
        flags = f"--classes {classes}, --hidden_dim {hidden_dim}"
        self.classifier = memory.build(lambda: nn.Linear(hidden_dim, classes, bias=False), flags)

    def embed(self, pixel_values: Tensor, key: Tensor, row: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which an image's view is drawn. row:
        (batch,) int64, the classes."""
        (view,) = self.views(pixel_values, key)
        features = image_encoders.features(self.encoder, view)
        return {"hidden": F.normalize(self.hidden(features), dim=1), "features": features, "label": row}

    def loss(self, hidden: Tensor, features: Tensor, label: Tensor) -> Output:
        """hidden: (batch, hidden_dim), of unit length. features: (batch, width). label: (batch,)."""
        # the products in the precision of the training: with many classes they cost as much as the encoder
        logits = F.linear(hidden, F.normalize(self.classifier.weight, dim=1)) / self.temperature
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float(), label)
        found = (logits.argmax(1) == label).float().mean().detach()
        return Output(loss, {"accuracy": found}, features.detach().float(), math.log(self.classifier.out_features))

    def exported(self) -> PreTrainedModel:
        return self.encoder

    def _heads(self) -> dict[str, Tensor]:
        """Without the classifier: its rows are images of this run, which the data of another run may not hold."""
        return {name: value for name, value in super()._heads().items() if not name.startswith("classifier.")}
