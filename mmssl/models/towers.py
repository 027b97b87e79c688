"""Image–text models with two towers, and their processors: new, from a checkpoint, or combined from two encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmssl.arguments import Flags, check_divides, flag
from mmssl.data.images.decoding import shape
from mmssl.data.text.tokens import train_clip_tokenizer
from mmssl.errors import BadInput, first_line
from mmssl.models import memory, pretrained

if TYPE_CHECKING:
    from transformers import (
        CLIPModel,
        CLIPProcessor,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        VisionTextDualEncoderModel,
        VisionTextDualEncoderProcessor,
    )


@dataclass
class TowerArgs(Flags):
    """Sizes of a new model."""

    image_size: int = flag(72, "side of images in pixels", at_least=1, at_most=2048)
    patch_size: int = flag(12, "side of patches in pixels", at_least=1, at_most=2048)
    vision_width: int = flag(192, "width of the image encoder, a multiple of 64", at_least=64, at_most=16384)
    vision_layers: int = flag(4, "layers of the image encoder", at_least=1, at_most=200)
    text_width: int = flag(128, "width of the text encoder, a multiple of 64", at_least=64, at_most=16384)
    text_layers: int = flag(1, "layers of the text encoder", at_least=1, at_most=200)
    projection_dim: int = flag(128, "dimension of the shared space", at_least=1, at_most=16384)
    vocab_size: int = flag(2300, "size of a new tokenizer, trained on the captions", at_least=2, at_most=10**6)


SIZES = tuple(f.name for f in fields(TowerArgs))


def build(args, captions: Callable[[], list[str]]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and processor that the flags of recipes/clip.py describe. captions: to train a new tokenizer on."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code)
    if args.vision_model_name_or_path:
        return from_towers(args.vision_model_name_or_path, args.text_model_name_or_path)
    tokenizer = train_clip_tokenizer(captions(), args.vocab_size, args.max_length)
    return from_scratch(
        tokenizer, args.image_size, args.patch_size, args.vision_width, args.vision_layers, args.text_width,
        args.text_layers, args.projection_dim,
    )  # fmt: skip


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
    """A CLIPModel with attention heads of width 64 and MLPs of four times the width, and its processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    for name, width in (("vision_width", vision_width), ("text_width", text_width)):
        if width % 64:
            raise BadInput(f"--{name} {width} is not a multiple of 64, the width of one attention head")
    check_divides("--patch_size", patch_size, "--image_size", image_size)
    vision = {"image_size": image_size, "patch_size": patch_size, **_tower(vision_width, vision_layers)}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_tower(text_width, text_layers),
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    sizes = f"--vision_width {vision_width}, --vision_layers {vision_layers}, --text_width {text_width}"
    model = memory.build(lambda: CLIPModel(config), f"{sizes}, --text_layers {text_layers}")
    side = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    return model, CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def from_pretrained(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Any checkpoint with two towers. Raises BadInput if `name` is not one."""
    from transformers import ProcessorMixin

    flag = f"--model_name_or_path {name}"
    model, processor = pretrained.load(name, trust_remote_code)
    if not isinstance(getattr(model, "logit_scale", None), nn.Parameter) or not isinstance(processor, ProcessorMixin):
        raise BadInput(f"{flag} is a {type(model).__name__}, not an image–text model")
    if isinstance(getattr(model, "logit_bias", None), nn.Parameter):
        raise BadInput(f"{flag} is a {type(model).__name__}, which needs texts padded to full length; choose a CLIP")
    return model, fitted(processor, model, flag)


def from_towers(vision: str, text: str) -> tuple[VisionTextDualEncoderModel, VisionTextDualEncoderProcessor]:
    """Two pretrained encoders, or one tower of each of two CLIPs, with new projections. Raises BadInput if one does not
    load."""
    from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor

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
        raise BadInput(f"the encoders {vision} and {text} cannot be combined: {first_line(error)}") from error
    return model, fitted(processor, model, f"the encoders {vision} and {text}")


@torch.no_grad()
def fitted(processor: ProcessorMixin, model: PreTrainedModel, name: str) -> ProcessorMixin:
    """The processor, with a padding token. Raises BadInput, starting with `name`, if the model rejects its output."""
    tokenizer, vocabulary = processor.tokenizer, model.config.text_config.vocab_size
    if tokenizer.pad_token is None:  # any token will do: the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if len(tokenizer) > vocabulary:
        raise BadInput(f"{name}: a tokenizer of {len(tokenizer)} tokens for a model of {vocabulary}")
    try:
        model.get_image_features(pixel_values=torch.zeros(1, 3, *shape(processor.image_processor)))
        tokens = tokenizer("a", padding=True, return_tensors="pt")
        model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    except Exception as error:  # for example a wrong image size or a missing pooler
        raise BadInput(f"{name}: the model does not accept its processor's output: {first_line(error)}") from error
    return processor


def max_length(model: PreTrainedModel, wanted: int) -> int:
    """The number of tokens that the text tower can take, at most `wanted`."""
    return min(wanted, getattr(model.config.text_config, "max_position_embeddings", wanted))


def freeze(model: PreTrainedModel, tower: str) -> None:
    """Freeze one encoder; its projection, the other encoder and the temperature are trained. tower: "vision" or "text".

    Its pooler is trained too: checkpoints of bare encoders have none, and it must not stay random.
    """
    for name, parameter in getattr(model, f"{tower}_model").named_parameters():
        parameter.requires_grad_("pooler" in name.split("."))


def _tower(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "gelu",  # one kernel; the original's quick_gelu needs four, a fifth of a step on a CPU
    }
