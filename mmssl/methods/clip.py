"""CLIP: embed images and texts in one space, where each image is nearest to its own text.

Radford et al. 2021, arXiv:2103.00020; the sigmoid form is SigLIP, Zhai et al. 2023, arXiv:2303.15343.
Over any transformers model with `get_image_features`, `get_text_features` and `logit_scale`: CLIPModel,
VisionTextDualEncoderModel. Differs: gathered embeddings always carry gradients, so N processes train like one; an image
may come with several texts, each of which is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    PreTrainedModel,
)

from mmssl.data.images import normalise, unit_range
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.method import Method, Output

SNIPPETS = {
    "Which text belongs to a picture": """
from transformers import pipeline
from transformers.utils import cached_file

name = "..."
classify = pipeline("zero-shot-image-classification", model=name)
picture = cached_file(name, "figures/example.png")  # or the path of a picture of your own
print(classify(picture, candidate_labels={labels}, hypothesis_template="{{}}"))
""",
    "Embeddings of pictures and texts, of unit length; their dot product says how well they go together": """
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor
from transformers.utils import cached_file

name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")
inputs = processor(text={labels}, images=[picture], padding=True, return_tensors="pt")
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
    """Symmetric cross-entropy of each pair against all others (CLIP, figure 3); the mean over this process's pairs.

    image, text: (batch, dim), of unit length. all_images, all_texts: (pairs, dim), those of all processes. scale: 1 /
    temperature. first: the row of all_* where this process's pairs begin.
    """
    target = torch.arange(first, first + len(image), device=image.device)
    by_image = F.cross_entropy(scale * image @ all_texts.T, target)
    by_text = F.cross_entropy(scale * text @ all_images.T, target)
    return (by_image + by_text) / 2


def sigmoid(image: Tensor, all_texts: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
    """Every pair of image and text is a binary question (SigLIP, algorithm 1): summed over texts, mean over images.

    image: (batch, dim), of unit length. all_texts: (pairs, dim), those of all processes.
    """
    logits = scale * image @ all_texts.T + bias
    sign = torch.full_like(logits, -1).scatter_(
        1, torch.arange(first, first + len(image), device=image.device)[:, None], 1
    )
    return -F.logsigmoid(sign * logits).sum(1).mean()


class PatchDropout:
    """A random share of the patches is left out of each training image, the class token never (FLIP, Li et al. 2022,
    arXiv:2212.00794); none at the end of the training, so that whole images are no news (section 3, "unmasking"). As a
    forward hook on the embeddings of an image encoder."""

    UNTIL = 0.8  # of the training

    def __init__(self, share: float, progress: Callable[[], float]) -> None:
        self.share, self.progress = share, progress

    def __call__(self, embeddings: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor | None:
        """tokens: (batch, 1 + patches, width) -> (batch, 1 + kept, width)."""
        if not embeddings.training or self.progress() >= self.UNTIL:
            return None
        n, patches = len(tokens), tokens.shape[1] - 1
        drawn = torch.rand(n, patches, device=tokens.device).argsort(1)[:, : max(1, round((1 - self.share) * patches))]
        kept = F.pad(drawn + 1, (1, 0))  # token 0 is the class token
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


class CLIP(Method):
    """
    model:   embeds images and texts; its `logit_scale` is the log of 1 / temperature.
    mean, std: of the pixels, one value a channel in [0, 1]; those of the exported image processor.
    augment: (batch, 3, height, width) in [0, 1] -> the same; training only.
    loss:    "info_nce" or "sigmoid".
    temperature: initial.
    patch_dropout: share of the patches that a training image is shown without.
    """

    couples_samples = True
    unit = "pairs"

    def __init__(
        self,
        model: PreTrainedModel,
        mean: list[float],
        std: list[float],
        augment: nn.Module | None = None,
        loss: str = "info_nce",
        temperature: float | None = None,
        patch_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.mean, self.std, self.augment, self.kind = model, mean, std, augment, loss
        if temperature is not None:
            with torch.no_grad():
                model.logit_scale.fill_(-math.log(temperature))
        if patch_dropout:
            if not isinstance(model, CLIPModel):
                raise BadInput(f"--patch_dropout is for a CLIPModel's image encoder, not for a {type(model).__name__}")
            model.vision_model.embeddings.register_forward_hook(PatchDropout(patch_dropout, lambda: self.progress))
        if loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))  # SigLIP, section 3.2: begin as if nothing matches

    def train(self, mode: bool = True) -> CLIP:
        """A frozen tower stays in evaluation mode: its dropout is off, its batch norm keeps the statistics it has."""
        super().train(mode)
        for tower in (self.model.vision_model, self.model.text_model):
            if any(not p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def embed(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. input_ids, attention_mask: (batch, tokens), or (batch, texts,
        tokens)."""
        return {"image": self.embed_image(pixel_values), "text": self.embed_text(input_ids, attention_mask)}

    def embed_image(self, pixel_values: Tensor) -> Tensor:
        pixels = unit_range(pixel_values)
        if self.training and self.augment is not None:
            pixels = self.augment(pixels)
        features = self.model.get_image_features(pixel_values=normalise(pixels, self.mean, self.std))
        return F.normalize(features.pooler_output.float(), dim=-1)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.model.get_text_features(
            input_ids=input_ids.flatten(0, -2), attention_mask=attention_mask.flatten(0, -2)
        )
        return F.normalize(features.pooler_output.float(), dim=-1).unflatten(0, input_ids.shape[:-1])

    def loss(self, image: Tensor, text: Tensor) -> Output:
        """image: (batch, dim). text: (batch, dim), or (batch, texts, dim), over which the loss is a mean. All of unit
        length, row i of one belonging to row i of the other."""
        with torch.autocast(image.device.type, enabled=False):
            first, scale, all_images = rank() * len(image), self.model.logit_scale.float().exp(), gather(image)
            texts = text.reshape(len(text), -1, text.shape[-1]).unbind(1)
            all_texts = [gather(of_each) for of_each in texts]
            if self.kind == "sigmoid":
                losses = [sigmoid(image, everyones, scale, self.logit_bias, first) for everyones in all_texts]
            else:
                losses = [
                    info_nce(image, mine, all_images, everyones, scale, first)
                    for mine, everyones in zip(texts, all_texts, strict=True)
                ]
        n = len(all_images)
        trivial = math.log(n)
        if self.kind == "sigmoid" and n > 1:
            # all logits equal: each question answered with the share of pairs that match, 1 / n
            trivial -= (n - 1) * math.log1p(-1 / n)
        with torch.no_grad():
            nearest = (image @ all_texts[0].T).argmax(1)
            accuracy = (nearest == torch.arange(first, first + len(image), device=image.device)).float().mean()
        metrics = {"temperature": 1 / scale.detach(), "in_batch_accuracy": accuracy}
        return Output(torch.stack(losses).mean(), metrics, features=image.detach(), trivial_loss=trivial)

    def after_step(self) -> None:
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def save_pretrained(self, directory: str | Path) -> None:
        self.model.save_pretrained(directory)
