"""Image encoders by name, all standard classes of transformers, new or from a checkpoint.

ResNet: He et al. 2015, arXiv:1512.03385. BiT, a ResNet with group norms: Kolesnikov et al. 2019, arXiv:1912.11370.
ViT: Dosovitskiy et al. 2020, arXiv:2010.11929; small sizes from DeiT, arXiv:2012.12877. Sizes called nano and micro are
ours, for small images on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from mmssl.arguments import Flags, check_divides, flag, layers_by_width
from mmssl.data.images import decoding
from mmssl.errors import BadInput, first_line
from mmssl.models import gradient_checkpointing, memory

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, ViTMAEModel, ViTModel

    from mmssl.data.images.views import Views

T = TypeVar("T")


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


@dataclass(frozen=True)
class BiTSize:
    widths: tuple[int, ...]  # of the stages; the narrowest layer has a quarter of the first
    blocks: tuple[int, ...]  # in each stage
    stem: int = 64


SIZES: dict[str, ResNetSize | BiTSize | ViTSize] = {
    "resnet-nano": ResNetSize((64, 128), (1, 1)),
    "resnet-micro": ResNetSize((64, 128, 256), (1, 1, 1)),
    "bit-micro": BiTSize((128, 256, 512), (1, 1, 1)),
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
RESNETS = tuple(name for name, size in SIZES.items() if isinstance(size, ResNetSize))
VITS = tuple(name for name, size in SIZES.items() if isinstance(size, ViTSize))
SMALLEST = 32  # px; smaller images are enlarged, because most ResNets halve the side four or five times

FEATURES = "Features of a picture"
SNIPPETS = {
    FEATURES: """
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
# of a ViT of which only the patches were trained, not the class token
SNIPPETS_OF_PATCHES = SNIPPETS | {
    FEATURES: SNIPPETS[FEATURES].replace("pooler_output.flatten(1)", "last_hidden_state[:, 1:].mean(1)")
}
SAME_IN_VIT = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
               "intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias", "initializer_range")  # fmt: skip
LIMITS_OF_VIEWS = (
    "The model was trained without labels, to ignore crops and colour changes: evaluate it on your task before you "
    "rely on it."
)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as in torchvision and timm


def encoder_flag(default: str, names: Sequence[str] = NAMES, what: str = "architecture of a new encoder"):
    """The flag --encoder: one of `names`. Its help is `what`, and of each the blocks of a ResNet or layers of a ViT,
    and the dimension of the features."""

    def size(of: ResNetSize | BiTSize | ViTSize) -> tuple[int, int]:
        return (of.layers, of.width) if isinstance(of, ViTSize) else (sum(of.blocks), of.widths[-1])

    sizes = layers_by_width({name: size(SIZES[name]) for name in names})
    text = f"{what}; layers (of a ResNet: blocks) x width of the features: {sizes}"
    return flag(default, text, names, of_new_model=True)


@dataclass
class EncoderArgs(Flags):
    """Flags of recipes that pretrain any image encoder."""

    encoder: str = encoder_flag("resnet-micro")
    model_name_or_path: str | None = flag(None, "continue from this encoder: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    image_size: int | None = flag(
        None,
        "side in pixels; default: that of the data, from 32 to 224 (of video at most 112)",
        at_least=8,
        at_most=2048,
        of_new_model=True,
    )
    patch_size: int | None = flag(
        None,
        "side of a ViT's patches in pixels; default: an eighth of the image",
        at_least=1,
        at_most=2048,
        of_new_model=True,
    )


def build(
    args: EncoderArgs, side: int, initialise: Callable[[PreTrainedModel], None] | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The encoder that the flags describe, and its image processor. side: of the data's images, in pixels. initialise:
    called with an encoder that is new."""
    if args.model_name_or_path:
        model, processor = from_pretrained(args.model_name_or_path, args.trust_remote_code)
    else:
        model, processor = from_scratch(args.encoder, args.image_size or max(SMALLEST, side), args.patch_size)
        if initialise:
            initialise(model)
    if args.gradient_checkpointing:
        gradient_checkpointing.check(model)
    return model, processor


def from_scratch(
    name: str, image_size: int, patch_size: int | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A new encoder and its image processor. patch_size: of a ViT; default: an eighth of the image's side.

    Raises BadInput if the patch size does not divide the image size.
    """
    from transformers import ViTImageProcessorPil

    size = SIZES[name]
    sides = {"height": image_size, "width": image_size}
    if isinstance(size, ViTSize):
        model = _vit(size, image_size, patch_size or usual_patch_size(image_size))
        return model, ViTImageProcessorPil(size=sides, image_mean=MEAN, image_std=STD)
    if patch_size:
        raise BadInput(f"--patch_size {patch_size} has no effect with --encoder {name}: only a ViT has patches")
    processor = ViTImageProcessorPil(size=sides, image_mean=MEAN, image_std=STD)
    return _bit(size) if isinstance(size, BiTSize) else _resnet(size), processor


def from_pretrained(
    name: str, trust_remote_code: bool = False, flag: str = "--model_name_or_path"
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The image encoder of any checkpoint, and its image processor. flag: the flag that named it, for messages. Raises
    BadInput if it has none."""
    from transformers.image_processing_utils import BaseImageProcessor

    from mmssl.models import pretrained
    from mmssl.models.patch_encoder import exact_on_one_pixel

    model, processor = pretrained.load(name, trust_remote_code, may_lack="pooler", remove_missing=True, flag=flag)
    processor = getattr(processor, "image_processor", processor)  # part of a processor for images and text
    if not isinstance(processor, BaseImageProcessor):
        raise BadInput(f"{flag} {name}: a {type(model).__name__} does not take images")
    if type(model).__name__ == "ViTMAEModel":
        model = to_vit(model)  # without masks
    model = exact_on_one_pixel(getattr(model, "vision_model", model))  # one tower of an image-text model
    remedy = "use an encoder of whole images, such as a ViT or a ResNet"
    check(model, decoding.shape(processor), f"{flag} {name}: a", remedy)
    return model, processor


def check_views(model: PreTrainedModel, views: Views) -> None:
    """Raise BadInput if the model gives no features of a view of such a size: small ones have no room for its patches
    or kernels."""
    for size in {view.size for view in views.views if view.size is not None}:
        side = (size, size) if isinstance(size, int) else size
        check(model, side, "a", "raise --image_size, lower --patch_size, or set --small_views 0")


@torch.no_grad()
def on_one(what: Callable[[PreTrainedModel, Tensor], T], model: PreTrainedModel, size: tuple[int, int]) -> T:
    """what(model, one image of (height, width)), to read shapes from; the model is left as it was."""
    pixels, was_training = torch.zeros(1, 3, *size, device=model.device), model.training
    try:
        return what(model.eval(), pixels)
    finally:
        model.train(was_training)


def check(model: PreTrainedModel, size: tuple[int, int], start: str, remedy: str) -> None:
    """Raise BadInput if the model gives no vector of images of (height, width). start, remedy: of the message."""
    try:
        found = tuple(on_one(features, model, size).shape)
        if found != (1, width(model)):
            raise BadInput(f"the shape {found} is not that of one vector of {width(model)} numbers")
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{start} {type(model).__name__} gives no features of images of {size[0]} x {size[1]} pixels "
            f"({first_line(error)}); {remedy}"
        ) from error


@torch.no_grad()
def to_vit(encoder: ViTMAEModel) -> ViTModel:
    """The same encoder without masking, with an identity pooler: AutoModel expects a pooler, and would initialise a
    missing one at random."""
    from transformers import ViTConfig, ViTModel

    same = {name: getattr(encoder.config, name) for name in SAME_IN_VIT}
    vit = ViTModel(ViTConfig(**same, hidden_dropout_prob=0.0, pooler_act="linear"))
    vit.load_state_dict(encoder.state_dict(), strict=False)
    nn.init.eye_(vit.pooler.dense.weight)
    nn.init.zeros_(vit.pooler.dense.bias)
    return vit.eval()


def usual_patch_size(image_size: int, across: int = 8) -> int:
    """Pixels a side of patches that divide the image, about `across` of them in a row."""
    return max(side for side in range(1, max(1, image_size // across) + 1) if image_size % side == 0)


def width(model: PreTrainedModel) -> int:
    """The dimension of `features`."""
    config = model.config
    return config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size


def features(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """(batch, 3, height, width), normalised -> (batch, width(model)). For a convolutional network, the mean over
    positions; for a transformer, the output of its pooler, or the mean over tokens if it has none. A ViT takes images
    of other sizes than its own, with positions interpolated."""
    own = getattr(model.config, "image_size", None)
    fits = own is None or tuple(pixels.shape[2:]) == ((own, own) if isinstance(own, int) else tuple(own))
    interpolated = not fits and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    output = model(pixels, interpolate_pos_encoding=True) if interpolated else model(pixels)
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        return output.last_hidden_state.mean(1)
    return pooled.flatten(1)


def maps(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """(batch, 3, height, width), normalised -> (batch, width(model), rows, columns): the last layer of a convolutional
    network, or of the patches of a ViT. Raises BadInput if the model has no such map."""
    return as_map(model, model(pixels).last_hidden_state, pixels)


def as_map(model: PreTrainedModel, hidden: Tensor, pixels: Tensor) -> Tensor:
    """(batch, channels, rows, columns): the last hidden state of the model on these pixels, as a map of places. Of a
    ViT's tokens the patches come last, in rows. Raises BadInput if it has none."""
    if (patch := patch_size(model)) is None and hidden.ndim == 4:
        return hidden
    rows, columns = (side // (patch or 1) for side in pixels.shape[2:])
    if patch is None or hidden.ndim != 3 or hidden.shape[1] < rows * columns:
        raise BadInput(f"a {type(model).__name__} has no feature maps that this method can read: use a ResNet or a ViT")
    return hidden[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def features_of_views(model: PreTrainedModel, views: Sequence[Tensor]) -> list[Tensor]:
    """The features of each view, in one pass over all views of a size. views: each (batch, 3, height, width)."""
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(view.shape for view in views):
        same = [i for i, view in enumerate(views) if view.shape == size]
        chunks = features(model, torch.cat([views[i] for i in same])).chunk(len(same))
        found |= dict(zip(same, chunks, strict=True))
    return [found[i] for i in range(len(views))]


def patch_size(model: PreTrainedModel) -> int | None:
    """The side of a ViT's patches in pixels; None for a convolutional network."""
    size = getattr(model.config, "patch_size", None) if getattr(model.config, "num_attention_heads", None) else None
    return max(size) if isinstance(size, (list, tuple)) else size


def snippets_of_map(model: PreTrainedModel) -> dict[str, str]:
    """Of an encoder that was trained by its `maps` alone."""
    return SNIPPETS_OF_PATCHES if patch_size(model) else SNIPPETS


def freeze_patches(model: PreTrainedModel) -> None:
    """A ViT's patch projection stays as it is (MoCo v3, arXiv:2104.02057, section 4.2). Other encoders have none."""
    if patch_size(model):
        model.get_input_embeddings().requires_grad_(False)


def _resnet(size: ResNetSize) -> PreTrainedModel:
    from transformers import ResNetConfig, ResNetModel

    from mmssl.models.patch_encoder import exact_on_one_pixel

    config = ResNetConfig(
        embedding_size=size.stem, hidden_sizes=list(size.widths), depths=list(size.blocks), layer_type=size.kind
    )
    # 1.5 to 2 times as fast as the default layout, on CPUs and on GPUs
    return exact_on_one_pixel(ResNetModel(config).to(memory_format=torch.channels_last))


def _bit(size: BiTSize) -> PreTrainedModel:
    from transformers import BitConfig, BitModel

    from mmssl.models.patch_encoder import exact_on_one_pixel

    config = BitConfig(
        embedding_size=size.stem, hidden_sizes=list(size.widths), depths=list(size.blocks),
        # of 4 channels at least: of one channel, on a map of one pixel, a norm makes 0
        num_groups=min(32, size.widths[0] // 16),
    )  # fmt: skip
    return exact_on_one_pixel(BitModel(config).to(memory_format=torch.channels_last))


def _vit(size: ViTSize, image_size: int, patch_size: int) -> PreTrainedModel:
    from transformers import ViTConfig, ViTModel

    check_divides("--patch_size", patch_size, "--image_size", image_size)
    config = ViTConfig(
        image_size=image_size, patch_size=patch_size, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, pooler_act="linear",
    )  # fmt: skip
    model = memory.build(lambda: ViTModel(config), f"--image_size {image_size}, --patch_size {patch_size}")
    with torch.no_grad():  # identity: the pooler returns the class token
        nn.init.eye_(model.pooler.dense.weight)
        nn.init.zeros_(model.pooler.dense.bias)
    model.pooler.requires_grad_(False)
    return model
