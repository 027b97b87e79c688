"""Encoders of images by name, each a stock class of transformers, from scratch or from a checkpoint.

ResNet: He et al. 2015, arXiv:1512.03385. ViT: Dosovitskiy et al. 2020, arXiv:2010.11929; its small sizes from DeiT,
arXiv:2012.12877. `micro` is for small images on a CPU, and without a paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.arguments import Flags, flag
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, ViTMAEModel, ViTModel


@dataclass(frozen=True)
class ResNetSize:
    widths: tuple[int, ...]  # of the stages
    blocks: tuple[int, ...]  # in each stage
    kind: str = "basic"
    stem: int = 64


@dataclass(frozen=True)
class ViTSize:
    width: int
    layers: int
    heads: int


SIZES: dict[str, ResNetSize | ViTSize] = {
    "resnet-micro": ResNetSize((64, 128, 256), (1, 1, 1)),
    "resnet18": ResNetSize((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": ResNetSize((64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet50": ResNetSize((256, 512, 1024, 2048), (3, 4, 6, 3), "bottleneck"),
    "vit-micro": ViTSize(128, 6, 4),
    "vit-tiny": ViTSize(192, 12, 3),
    "vit-small": ViTSize(384, 12, 6),
    "vit-base": ViTSize(768, 12, 12),
    "vit-large": ViTSize(1024, 24, 16),
}
NAMES = tuple(SIZES)
SMALLEST = 32  # px: a ResNet halves the side four times, and smaller images are enlarged
SNIPPETS = {
    "Features of a picture": """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import cached_file

name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")  # or a picture of your own
with torch.no_grad():
    features = model(**processor(picture, return_tensors="pt")).pooler_output.flatten(1)
print(features.shape)
""",
    "Fine-tune it": """
from transformers import AutoImageProcessor, AutoModelForImageClassification

name = "..."
model = AutoModelForImageClassification.from_pretrained(name, num_labels=10)
processor = AutoImageProcessor.from_pretrained(name)
print(model.config.num_labels, processor.size)
""",
}
SAME_IN_VIT = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
               "intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias", "initializer_range")  # fmt: skip
LIMITS_OF_VIEWS = (
    "It has learned what crops and colour changes leave of these images, not what they show: see what it transfers "
    "before relying on it."
)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as torchvision's and timm's encoders have them


@dataclass
class EncoderArgs(Flags):
    """Flags of recipes that pretrain any encoder of images."""

    encoder: str = flag("resnet-micro", "from scratch, a class of transformers", NAMES, of_new_model=True)
    model_name_or_path: str | None = flag(None, "continue from this encoder: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    image_size: int | None = flag(
        None, "pixels a side; default: what the data has, at least 32", at_least=8, at_most=2048, of_new_model=True
    )
    patch_size: int | None = flag(
        None, "pixels a side, of a ViT's patches; default: an eighth of the image", at_least=1, of_new_model=True
    )


def build(args: EncoderArgs, side: int) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The encoder that the flags name, and the processor of its images. side: pixels that the data's images have."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code)
    return from_scratch(args.encoder, args.image_size or max(SMALLEST, side), args.patch_size)


def from_scratch(
    name: str, image_size: int, patch_size: int | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A new encoder and the processor of its images. patch_size: of a ViT; by default an eighth of the image's side.

    Raises BadInput where the patches do not divide the image.
    """
    from transformers import ViTImageProcessorPil

    size = SIZES[name]
    sides = {"height": image_size, "width": image_size}
    if isinstance(size, ViTSize):
        model = _vit(size, image_size, patch_size or max(1, image_size // 8))
        return model, ViTImageProcessorPil(size=sides, image_mean=MEAN, image_std=STD)
    if patch_size:
        raise BadInput(f"--patch_size {patch_size} has no effect with --encoder {name}: only a ViT has patches")
    processor = ViTImageProcessorPil(size=sides, image_mean=MEAN, image_std=STD)
    return _resnet(size), processor


def from_pretrained(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The encoder of any checkpoint of images and its image processor. Raises BadInput where it is none."""
    from transformers.image_processing_utils import BaseImageProcessor

    from mmssl.models import pretrained

    model, processor = pretrained.load(name, trust_remote_code)
    processor = getattr(processor, "image_processor", processor)  # of a processor of images and text
    if not isinstance(processor, BaseImageProcessor):
        raise BadInput(f"--model_name_or_path {name}: a {type(model).__name__} takes no images")
    if type(model).__name__ == "ViTMAEModel":
        model = to_vit(model)  # without masks
    return getattr(model, "vision_model", model), processor  # a tower of an image-text model is an encoder, too


@torch.no_grad()
def to_vit(encoder: ViTMAEModel) -> ViTModel:
    """The same encoder without masking. A pooler that changes nothing: AutoModel expects one, and a missing one would
    be made up at random."""
    from transformers import ViTConfig, ViTModel

    same = {name: getattr(encoder.config, name) for name in SAME_IN_VIT}
    vit = ViTModel(ViTConfig(**same, hidden_dropout_prob=0.0, pooler_act="linear"))
    vit.load_state_dict(encoder.state_dict(), strict=False)
    nn.init.eye_(vit.pooler.dense.weight)
    nn.init.zeros_(vit.pooler.dense.bias)
    return vit.eval()


def width(model: PreTrainedModel) -> int:
    """The dimension of `features`."""
    config = model.config
    return config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size


def features(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """(batch, 3, height, width), normalised -> (batch, width(model)): the mean over places of a convolutional network;
    of a transformer the class token, where the model has a pooler that gives it, else the mean of its tokens."""
    output = model(pixels)
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        return output.last_hidden_state.mean(1)
    return pooled.flatten(1)


def freeze_patches(model: PreTrainedModel) -> None:
    """A ViT's patch projection stays as it is (MoCo v3, arXiv:2104.02057, section 4.2). Other encoders have none."""
    if getattr(model.config, "patch_size", None):
        model.get_input_embeddings().requires_grad_(False)


def _resnet(size: ResNetSize) -> PreTrainedModel:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=size.stem, hidden_sizes=list(size.widths), depths=list(size.blocks), layer_type=size.kind
    )
    # 1.5 to 2 times as fast as the usual layout, on CPUs and on GPUs alike
    return ResNetModel(config).to(memory_format=torch.channels_last)


def _vit(size: ViTSize, image_size: int, patch_size: int) -> PreTrainedModel:
    from transformers import ViTConfig, ViTModel

    if not 0 < patch_size <= image_size or image_size % patch_size:
        fitting = [side for side in range(2, image_size) if image_size % side == 0]
        raise BadInput(f"--patch_size {patch_size} does not divide --image_size {image_size}; {fitting} would")
    config = ViTConfig(
        image_size=image_size, patch_size=patch_size, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, pooler_act="linear",
    )  # fmt: skip
    model = ViTModel(config)
    with torch.no_grad():  # the pooler gives the class token as it is
        nn.init.eye_(model.pooler.dense.weight)
        nn.init.zeros_(model.pooler.dense.bias)
    model.pooler.requires_grad_(False)
    return model
