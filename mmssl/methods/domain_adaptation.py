"""Unsupervised domain adaptation: labels of one domain, the source, and none of another, the target.

Cross entropy on the source and, so that the classifier works on the target, one of these on both:
CORAL    equal covariances of the features; Sun & Saenko 2016, arXiv:1607.01719.
DANN     features that do not tell the domain; Ganin et al. 2015, arXiv:1505.07818: a classifier of domains learns from
         them, and the encoder gets its gradient reversed, times lambda.
DeepJDOT the cheapest transport of the batch of the source to that of the target, in features and labels; Damodaran et
         al. 2018, arXiv:1803.10081. The plan is POT's.
Differs: any classifier of transformers, whose features are the input of its last layer; batches of both domains are
those of all processes; both pass through the network together, so that batch norms see them alike; DeepJDOT's term
grows like DANN's, where the paper starts from a network that is trained on the source.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import joined
from mmssl.distributed import gather
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import classifiers, heads
from mmssl.models.adversarial import discriminator_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmssl.data.images.views import Views

ALIGNMENTS = ("none", "coral", "dann", "deepjdot")
SOURCE, TARGET = "source", "target"  # parts of a batch, see data.joined
STEEPNESS = 10.0  # gamma of DANN's schedule, section 5.2.2
HIDDEN = 100  # units of the classifier of domains
ADDED = ("index", "key", "lengths")  # what data sets add to the inputs of a model
TASKS = {"image": "image-classification", "text": "text-classification", "audio": "audio-classification"}
SNIPPETS = {
    "image": """
from transformers import pipeline
from transformers.utils import cached_file

name = "..."
classify = pipeline("image-classification", model=name)
print(classify(cached_file(name, "figures/example.png"))[0])
""",
    "text": """
from transformers import pipeline

name = "..."
print(pipeline("text-classification", model=name)("one text"))
""",
    "audio": """
import numpy as np
from transformers import pipeline

name = "..."
print(pipeline("audio-classification", model=name)(np.zeros(16000, dtype=np.float32)))
""",
}


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.factor * gradient, None


def reversed_gradient(x: Tensor, factor: float) -> Tensor:
    """x; its gradient is multiplied by -factor (DANN, section 4.2)."""
    return _Reversed.apply(x, factor)


def growth(progress: float) -> float:
    """DANN's lambda: from 0 to almost 1 as `progress` goes from 0 to 1 (section 5.2.2)."""
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


def coral(source: Tensor, target: Tensor) -> Tensor:
    """The squared distance of the covariances of (batch, d) features, divided by 4 d^2: equation 1."""
    covariances = [(z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1) for z in (source, target)]
    return (covariances[0] - covariances[1]).square().sum() / (4 * source.shape[1] ** 2)


def transport_cost(
    source: Tensor, target: Tensor, label: Tensor, logits: Tensor, distance: float, loss: float
) -> Tensor:
    """(source batch, target batch): `distance` times the squared distance of their features, plus `loss` times the
    cross entropy of the source's label in the prediction for the target (DeepJDOT, equation 6). source, target:
    (batch, width). label: of the source. logits: (batch, classes), of the target."""
    apart = source.square().sum(1)[:, None] + target.square().sum(1) - 2 * source @ target.T
    return distance * apart.clamp(min=0) - loss * logits.log_softmax(1).T[label]


def transport_plan(cost: Tensor) -> Tensor:
    """(rows, columns), of sum 1: the plan of least cost between uniform weights. Constant, as in DeepJDOT's algorithm:
    the network learns with the plan fixed. Raises BadInput without POT."""
    try:
        import ot
    except ImportError as error:
        raise BadInput("--alignment deepjdot needs the package POT: pip install POT") from error
    rows, columns = (torch.full((n,), 1 / n, dtype=torch.float64).numpy() for n in cost.shape)
    return torch.from_numpy(ot.emd(rows, columns, cost.detach().double().cpu().numpy())).to(cost)


class DomainAdaptation(Method):
    """
    model:      a classifier of transformers with a linear head, see models.classifiers.
    modality:   "image", "text" or "audio".
    alignment:  one of ALIGNMENTS.
    weight:     of the alignment in the loss; in DeepJDOT of the features' distance, alpha.
    loss_weight: DeepJDOT's weight of the classification of the target, lambda_t.
    views:      one view of each image, in training.
    """

    couples_samples = True
    unit = "examples"

    def __init__(
        self,
        model: PreTrainedModel,
        modality: str,
        alignment: str,
        weight: float = 1.0,
        loss_weight: float = 1.0,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.model, self.modality, self.alignment, self.views = model, modality, alignment, views
        self.weight, self.loss_weight, self.classes = weight, loss_weight, model.config.num_labels
        self.domains = (
            heads.mlp([classifiers.head(model).in_features, HIDDEN, 1], "none") if alignment == "dann" else None
        )

    def embed(self, **batch: Tensor) -> dict[str, Tensor]:
        """batch: the parts of data.joined: the source with label: (batch,), and the target, with the inputs that the
        model takes."""
        parts = joined.apart(batch)
        label = parts[SOURCE].pop("label")
        each = [self._prepared(**parts[domain]) for domain in (SOURCE, TARGET)]
        if self.modality == "image":
            both = torch.cat([inputs["pixel_values"] for inputs in each])
            features, logits = classifiers.features_and_logits(self.model, pixel_values=both)
            n = len(label)
            rows = [(features[:n], logits[:n]), (features[n:], logits[n:])]
        else:  # texts and recordings differ in length; their models have no batch norms
            rows = [classifiers.features_and_logits(self.model, **inputs) for inputs in each]
        (source, logits), (target, target_logits) = ([x.float() for x in pair] for pair in rows)
        return {"source": source, "target": target, "logits": logits, "target_logits": target_logits, "label": label}

    def loss(self, source: Tensor, target: Tensor, logits: Tensor, target_logits: Tensor, label: Tensor) -> Output:
        """source, target: (batch, width). logits, target_logits: (batch, classes). label: (batch,), of the source."""
        watched = source.detach()
        source, target, logits, target_logits, label = map(gather, (source, target, logits, target_logits, label))
        with torch.autocast(source.device.type, enabled=False):
            classified = F.cross_entropy(logits, label)
            aligned, trivial = self.alignment_loss(source, target, target_logits, label)
            metrics = {"source_accuracy": (logits.argmax(1) == label).float().mean(), "alignment": aligned.detach()}
            return Output(classified + aligned, metrics, watched, math.log(self.classes) + trivial)

    def alignment_loss(
        self, source: Tensor, target: Tensor, target_logits: Tensor, label: Tensor
    ) -> tuple[Tensor, float]:
        """(the term that aligns the domains; its value if the input is ignored)."""
        if self.alignment == "coral":
            return self.weight * coral(source, target), 0.0
        if self.alignment == "dann":
            factor = growth(self.progress)
            true, other = (self.domains(reversed_gradient(z, factor))[:, 0] for z in (source, target))
            return self.weight * discriminator_loss(true, other) / 2, self.weight * math.log(2)
        if self.alignment == "deepjdot":
            cost = transport_cost(source, target, label, target_logits, self.weight, self.loss_weight)
            factor, trivial = growth(self.progress), self.loss_weight * math.log(self.classes)
            return factor * (transport_plan(cost) * cost).sum(), factor * trivial
        return source.new_zeros(()), 0.0

    def classify(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, width) features and (batch, classes) logits of examples of either domain."""
        return classifiers.features_and_logits(self.model, **self._prepared(**inputs))

    def _prepared(self, key: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        given = {name: value for name, value in inputs.items() if name not in ADDED}
        if self.views is not None:
            pixels = given["pixel_values"]
            given["pixel_values"] = self.views(pixels, key)[0] if self.training else self.views.whole(pixels)
        return given

    @property
    def card(self) -> Card:
        how = {"none": "no adaptation", "coral": "CORAL", "dann": "DANN", "deepjdot": "DeepJDOT"}[self.alignment]
        return Card(
            about=f"A `{type(self.model).__name__}` for a domain without labels ({how}): trained on labelled examples "
            "of another domain, the source, and on examples of this one, the target, without labels.",
            task=TASKS[self.modality],
            limits="Only the evaluation has seen labels of the target: if its classes differ from the source's, or are "
            "more or less frequent, an alignment can do harm.",
            trivial="a model that ignores its input",
            snippets={"Classify": SNIPPETS[self.modality]},
            tags=("domain-adaptation", self.alignment),
            auto_class=classifiers.AUTO_CLASSES[self.modality],
        )
