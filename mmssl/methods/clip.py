"""CLIP: embed images and texts in one space, where each image is nearest to its own text.

Radford et al. 2021, arXiv:2103.00020; the sigmoid loss is SigLIP, Zhai et al. 2023, arXiv:2303.15343.
Works with any transformers model that has `get_image_features`, `get_text_features` and `logit_scale`: CLIPModel,
VisionTextDualEncoderModel. Differs: gathered embeddings always carry gradients, so N processes train like one. Images
and texts may have several views each; then all pairs of views are compared, also images with images (the full graph of
Contrastive Multiview Coding, Tian et al. 2019, arXiv:1906.05849, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SNIPPETS = {
    "Which text belongs to a picture": """
from transformers import pipeline
from transformers.utils import cached_file

name = "..."
classify = pipeline("zero-shot-image-classification", model=name)
picture = cached_file(name, "figures/example.png")  # or the path of a picture of your own
print(classify(picture, candidate_labels={text}, hypothesis_template="{{}}"))
""",
    "Embeddings of pictures and texts, of unit length; their dot product is their similarity": """
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor
from transformers.utils import cached_file

name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")
inputs = processor(text={text}, images=[picture], padding=True, return_tensors="pt")
with torch.no_grad():
    image = normalize(model.get_image_features(inputs["pixel_values"]).pooler_output, dim=-1)
    text = normalize(model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output, dim=-1)
print(image @ text.T)
""",
}
VISION_SNIPPET = {
    "The image encoder alone": """
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPVisionModel
from transformers.utils import cached_file

name = "..."
vision, processor = CLIPVisionModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")
with torch.no_grad():
    features = vision(**processor(picture, return_tensors="pt"))
print(features.pooler_output.shape, features.last_hidden_state.shape)
"""
}

MAX_LOGIT_SCALE = math.log(100)  # section 2.5: "clipped to prevent scaling the logits by more than 100"


def info_nce(image: Tensor, text: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, first: int) -> Tensor:
    """Symmetric cross-entropy of each pair against all others (CLIP, figure 3), averaged over this process's pairs.

    image, text: (batch, dim), of unit length. all_images, all_texts: (pairs, dim), from all processes. scale: 1 /
    temperature. first: the first row of all_* that belongs to this process.
    """
    target = torch.arange(first, first + len(image), device=image.device)
    by_image = F.cross_entropy(scale * image @ all_texts.T, target)
    by_text = F.cross_entropy(scale * text @ all_images.T, target)
    return (by_image + by_text) / 2


def sigmoid(image: Tensor, all_texts: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
    """Binary classification of every pair of image and text (SigLIP, algorithm 1), summed over texts, averaged over
    this process's images.

    image: (batch, dim), of unit length. all_texts: (pairs, dim), from all processes. first: as in info_nce.
    """
    logits = scale * image @ all_texts.T + bias
    sign = torch.full_like(logits, -1).scatter_(
        1, torch.arange(first, first + len(image), device=image.device)[:, None], 1
    )
    return -F.logsigmoid(sign * logits).sum(1).mean()


WHOLE_FROM = 0.8  # fraction of the training after which images are whole


class PatchDropout:
    """Drops a random fraction of the patches of each training image, but never the class token (FLIP, Li et al. 2022,
    arXiv:2212.00794). Drops none at the end of the training, so that the encoder is trained on whole images too
    (section 3, "unmasking"). A forward hook on the embeddings of an image encoder."""

    def __init__(self, share: float, wanted: Callable[[], bool]) -> None:
        self.share, self.wanted = share, wanted

    def __call__(self, embeddings: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor | None:
        """tokens: (batch, 1 + patches, width) -> (batch, 1 + kept, width)."""
        if not embeddings.training or not self.wanted():
            return None
        n, patches = len(tokens), tokens.shape[1] - 1
        drawn = torch.rand(n, patches, device=tokens.device).argsort(1)[:, : max(1, round((1 - self.share) * patches))]
        kept = F.pad(drawn + 1, (1, 0))  # token 0 is the class token
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


class CLIP(Method):
    """
    model:   embeds images and texts; its `logit_scale` is the log of 1 / temperature.
    views:   one or more views of each training image; patches are dropped from each view separately.
    loss:    "info_nce" or "sigmoid".
    temperature: initial temperature; None keeps the model's.
    patch_dropout: fraction of the patches that is dropped from a training image.
    """

    couples_samples = True
    unit = "pairs"

    def __init__(
        self,
        model: PreTrainedModel,
        views: Views,
        loss: str = "info_nce",
        temperature: float | None = None,
        patch_dropout: float = 0.0,
    ) -> None:
        from transformers import CLIPModel

        super().__init__()
        self.model, self.views, self.kind = model, views, loss
        if temperature is not None:
            with torch.no_grad():
                model.logit_scale.fill_(-math.log(temperature))
        if patch_dropout:
            if not isinstance(model, CLIPModel):
                raise BadInput(f"--patch_dropout is for a CLIPModel's image encoder, not for a {type(model).__name__}")
            dropout = PatchDropout(patch_dropout, lambda: self.hides_patches())  # a bound method would be copied along
            model.vision_model.embeddings.register_forward_hook(dropout)
        if loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))  # SigLIP, section 3.2: start near "no match"

    def train(self, mode: bool = True) -> CLIP:
        """A frozen tower stays in evaluation mode: no dropout, and batch norm keeps its statistics."""
        super().train(mode)
        for tower in (self.model.vision_model, self.model.text_model):
            if any(not p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def embed(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, key: Tensor | None = None
    ) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. input_ids, attention_mask: (batch, tokens), or (batch, texts,
        tokens). key: (batch,) int64, from which an image's views are drawn; without it, whole images are used."""
        return {"image": self.embed_image(pixel_values, key), "text": self.embed_text(input_ids, attention_mask)}

    def embed_image(self, pixel_values: Tensor, key: Tensor | None = None) -> Tensor:
        """(batch, dim), or (batch, views, dim)."""
        if self.training and key is not None:
            views = self.views(pixel_values, key)
            views = views if self.hides_patches() else views[:1]
        else:
            views = [self.views.whole(pixel_values)]
        features = self.model.get_image_features(pixel_values=torch.stack(views, 1).flatten(0, 1))
        n = len(pixel_values)
        return _unit(features.pooler_output, (n,) if len(views) == 1 else (n, len(views)))

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, dim), or (batch, texts, dim). Padding is behind the texts."""
        # CLIP's own text encoder is causal and reads a text at its end, which sees no padding. Given a mask, it would
        # wait for the device to look for padding
        mask = None if self.model.config.model_type == "clip" else attention_mask.flatten(0, -2)
        features = self.model.get_text_features(input_ids=input_ids.flatten(0, -2), attention_mask=mask)
        return _unit(features.pooler_output, input_ids.shape[:-1])

    def hides_patches(self) -> bool:
        """False at the end of the training, when each image is whole and has one view."""
        return self.training and self.progress < WHOLE_FROM

    def loss(self, image: Tensor, text: Tensor) -> Output:
        """image: (batch, dim), or (batch, views, dim). text: the same. Of unit length; row i of both is one pair."""
        images, texts = (x.unsqueeze(1).unbind(1) if x.ndim == 2 else x.unbind(1) for x in (image, text))
        views = (*images, *texts)
        with torch.autocast(image.device.type, enabled=False):
            first, scale = rank() * len(image), self.model.logit_scale.float().exp()
            of_all = [gather(view) for view in views]
            losses = [
                self.between(views[i], views[j], of_all[i], of_all[j], scale, first)
                for i, j in combinations(range(len(views)), 2)
            ]
        n, all_texts = len(of_all[0]), of_all[len(images)]
        trivial = math.log(n)
        if self.kind == "sigmoid" and n > 1:
            # all logits equal: the predicted probability is 1 / n, the fraction of pairs that match
            trivial -= (n - 1) * math.log1p(-1 / n)
        with torch.no_grad():
            nearest = (images[0] @ all_texts.T).argmax(1)
            accuracy = (nearest == torch.arange(first, first + len(image), device=image.device)).float().mean()
        metrics = {"temperature": 1 / scale.detach(), "in_batch_accuracy": accuracy}
        return Output(torch.stack(losses).mean(), metrics, features=images[0].detach(), trivial_loss=trivial)

    def between(self, a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, scale: Tensor, first: int) -> Tensor:
        """The loss between two views, see info_nce and sigmoid. a, b: (batch, dim). all_a, all_b: (pairs, dim)."""
        if self.kind == "sigmoid":
            return sigmoid(a, all_b, scale, self.logit_bias, first)
        return info_nce(a, b, all_a, all_b, scale, first)

    def after_step(self) -> None:
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @property
    def card(self) -> Card:
        from transformers import CLIPModel

        alone = VISION_SNIPPET if isinstance(self.model, CLIPModel) else {}
        return Card(
            about="CLIP: embed images and texts in one space, where each image is nearest to its own text. A "
            f"`{type(self.model).__name__}`, with both encoders.",
            task="zero-shot-image-classification",
            limits="The model knows only what its training pairs show and name; test it on your own data first.",
            trivial="chance: log(batch)",
            snippets=SNIPPETS | alone,
            fill=True,
            tags=("clip",),
        )


def _unit(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(*shape, dim): rows of unit length."""
    return F.normalize(features.float(), dim=-1).unflatten(0, shape)
