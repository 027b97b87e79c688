"""CLIP: embed images and texts in one space, where each image is nearest to its own text.

Radford et al. 2021, arXiv:2103.00020; the sigmoid form is SigLIP, Zhai et al. 2023, arXiv:2303.15343.
Over any transformers model with `get_image_features`, `get_text_features` and `logit_scale`: CLIPModel,
VisionTextDualEncoderModel. Differs: gathered embeddings always carry gradients, so N processes train like one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from mmssl import pretrained
from mmssl.data.images import normalise, shape, unit_range
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput, first_line
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
        for tower in _towers(self.model):
            if any(not p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def embed(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """pixel_values: (batch, 3, height, width) uint8. input_ids, attention_mask: (batch, tokens)."""
        return {"image": self.embed_image(pixel_values), "text": self.embed_text(input_ids, attention_mask)}

    def embed_image(self, pixel_values: Tensor) -> Tensor:
        pixels = unit_range(pixel_values)
        if self.training and self.augment is not None:
            pixels = self.augment(pixels)
        features = self.model.get_image_features(pixel_values=normalise(pixels, self.mean, self.std))
        return F.normalize(features.pooler_output.float(), dim=-1)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(features.pooler_output.float(), dim=-1)

    def loss(self, image: Tensor, text: Tensor) -> Output:
        """image, text: (batch, dim), of unit length, row i of one belonging to row i of the other."""
        with torch.autocast(image.device.type, enabled=False):
            first, scale = rank() * len(image), self.model.logit_scale.float().exp()
            all_texts = gather(text)
            if self.kind == "sigmoid":
                loss = sigmoid(image, all_texts, scale, self.logit_bias, first)
                n = len(all_texts)
                # all logits equal: each question answered with the share of pairs that match, 1 / n
                trivial = math.log(n) - (n - 1) * math.log1p(-1 / n) if n > 1 else 0.0
            else:
                loss = info_nce(image, text, gather(image), all_texts, scale, first)
                trivial = math.log(len(all_texts))
        with torch.no_grad():
            nearest = (image @ all_texts.T).argmax(1)
            accuracy = (nearest == torch.arange(first, first + len(image), device=image.device)).float().mean()
        metrics = {"temperature": 1 / scale.detach(), "in_batch_accuracy": accuracy}
        return Output(loss, metrics, features=image.detach(), trivial_loss=trivial)

    def after_step(self) -> None:
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def save_pretrained(self, directory: str | Path) -> None:
        self.model.save_pretrained(directory)


def from_scratch(
    tokenizer: PreTrainedTokenizerBase,
    image_size: int,
    patch_size: int,
    vision_width: int,
    vision_layers: int,
    text_width: int,
    text_layers: int,
    projection_dim: int,
) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIPModel with 64 to an attention head and four times the width in its MLPs, and its processor."""
    for name, width in (("vision_width", vision_width), ("text_width", text_width)):
        if width % 64:
            raise BadInput(f"--{name} {width} is not a multiple of 64, the width of one attention head")
    if image_size % patch_size:
        raise BadInput(f"--patch_size {patch_size} does not divide --image_size {image_size}")
    vision = {"image_size": image_size, "patch_size": patch_size, **_tower(vision_width, vision_layers)}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_tower(text_width, text_layers),
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim))
    side = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    return model, CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def from_pretrained(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Any checkpoint with two towers. Raises BadInput where `name` is none."""
    flag = f"--model_name_or_path {name}"
    model, processor = pretrained.load(name, trust_remote_code)
    if not isinstance(getattr(model, "logit_scale", None), nn.Parameter) or not isinstance(processor, ProcessorMixin):
        raise BadInput(f"{flag} is a {type(model).__name__}, not a model of image–text pairs")
    if isinstance(getattr(model, "logit_bias", None), nn.Parameter):
        raise BadInput(f"{flag} is a {type(model).__name__}, which reads padded texts; here they are trimmed")
    return model, fitted(processor, model, flag)


def from_towers(vision: str, text: str) -> tuple[VisionTextDualEncoderModel, VisionTextDualEncoderProcessor]:
    """Two pretrained encoders, or a tower each of two CLIPs, with new projections on top. Raises BadInput where one
    does not load."""
    images, images_processor = pretrained.load(vision, may_lack="pooler", flag="--vision_model_name_or_path")
    texts, texts_processor = pretrained.load(text, may_lack="pooler", flag="--text_model_name_or_path")
    try:
        model = VisionTextDualEncoderModel.from_vision_text_pretrained(
            vision_model=getattr(images, "vision_model", images), text_model=getattr(texts, "text_model", texts)
        )
        processor = VisionTextDualEncoderProcessor(
            image_processor=getattr(images_processor, "image_processor", images_processor),
            tokenizer=getattr(texts_processor, "tokenizer", texts_processor),
        )
    except (TypeError, ValueError, AttributeError) as error:  # a config without hidden_size is an AttributeError
        raise BadInput(f"the encoders {vision} and {text} make no pair: {first_line(error)}") from error
    return model, fitted(processor, model, f"the encoders {vision} and {text}")


@torch.no_grad()
def fitted(processor: ProcessorMixin, model: PreTrainedModel, name: str) -> ProcessorMixin:
    """The processor, able to pad. Raises BadInput, beginning with `name`, where the model cannot take what it gives."""
    tokenizer, vocabulary = processor.tokenizer, model.config.text_config.vocab_size
    if tokenizer.pad_token is None:  # which token is all the same: the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if len(tokenizer) > vocabulary:
        raise BadInput(f"{name}: a tokenizer of {len(tokenizer)} tokens for a model of {vocabulary}")
    try:
        model.get_image_features(pixel_values=torch.zeros(1, 3, *shape(processor.image_processor)))
        tokens = tokenizer("a", padding=True, return_tensors="pt")
        model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    except Exception as error:  # whatever an architecture says to an image size, or to a missing pooler
        raise BadInput(f"{name}: the model does not take what its processor gives: {first_line(error)}") from error
    return processor


def max_length(model: PreTrainedModel, wanted: int) -> int:
    """Tokens that the text tower can take, at most `wanted`."""
    return min(wanted, getattr(model.config.text_config, "max_position_embeddings", wanted))


def freeze(model: PreTrainedModel, tower: str) -> None:
    """ "vision" or "text": leave that encoder as it is, and train its projection, the other one and the temperature.

    A pooler on top of it is trained too: checkpoints of bare encoders come without, and a random one must not stay.
    """
    for name, parameter in getattr(model, f"{tower}_model").named_parameters():
        parameter.requires_grad_("pooler" in name.split("."))


def _towers(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return model.vision_model, model.text_model


def _tower(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "gelu",  # one kernel; the original's quick_gelu is four, and a fifth of a CPU step
    }
