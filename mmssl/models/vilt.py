"""The ViLT of LXMERT and its processor: new, from the layers of an image encoder, or from a checkpoint.

Kim et al. 2021, arXiv:2102.03334: one encoder for words and patches together, started from a ViT (section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.arguments import check_divides
from mmssl.data.images.decoding import normalisation
from mmssl.data.text.tokens import train_wordpiece
from mmssl.errors import BadInput
from mmssl.models import image_encoders, memory, pretrained, text_encoders
from mmssl.models.vit_tokens import sine_cosine_positions, xavier

if TYPE_CHECKING:
    from transformers import (
        CLIPVisionModel,
        PreTrainedTokenizerBase,
        ViltForMaskedLM,
        ViltProcessor,
        ViTModel,
    )


SIZES = ("image_size", "patch_size", "width", "layers")  # flags that an image encoder decides
# the parts of a layer, and what they are called in a ViTModel and in a CLIPVisionModel
PARTS = {
    "layernorm_before": ("layernorm_before", "layer_norm1"),
    "attention.attention.query": ("attention.q_proj", "self_attn.q_proj"),
    "attention.attention.key": ("attention.k_proj", "self_attn.k_proj"),
    "attention.attention.value": ("attention.v_proj", "self_attn.v_proj"),
    "attention.output.dense": ("attention.o_proj", "self_attn.out_proj"),
    "layernorm_after": ("layernorm_after", "layer_norm2"),
    "intermediate.dense": ("mlp.fc1", "mlp.fc1"),
    "output.dense": ("mlp.fc2", "mlp.fc2"),
}


def build(args, captions: Iterable[str]) -> tuple[ViltForMaskedLM, ViltProcessor]:
    """The model and processor that the flags of recipes/lxmert.py describe. captions: to train a tokenizer on."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path)
    tokenizer = train_wordpiece(captions, args.vocab_size, args.max_length)
    if args.vision_model_name_or_path:
        return from_image_encoder(tokenizer, args.vision_model_name_or_path)
    return from_scratch(tokenizer, args.image_size, args.patch_size, args.width, args.layers)


def from_scratch(
    tokenizer: PreTrainedTokenizerBase, image_size: int, patch_size: int, width: int, layers: int
) -> tuple[ViltForMaskedLM, ViltProcessor]:
    """A new model, with attention heads of width 64 (of 32 where it is narrower) and MLPs of four times the width, and
    its processor. Raises BadInput if the sizes do not fit together."""
    check_divides("--patch_size", patch_size, "--image_size", image_size)
    if width % 32:
        raise BadInput(f"--width {width} is not a multiple of 32, the width of an attention head")
    sizes = {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // (64 if width % 64 == 0 else 32),
        "intermediate_size": 4 * width,
    }
    described = f"--width {width}, --layers {layers}, --image_size {image_size}, --patch_size {patch_size}"
    model = _new(tokenizer, described, **sizes)
    embeddings = model.vilt.embeddings  # the positions of a new ViltModel are zero
    for part in (embeddings.patch_embeddings, model.vilt.encoder, model.vilt.pooler):
        xavier(part)  # with the default, a deviation of 0.02, matching stays at chance for hundreds of steps
    with torch.no_grad():
        embeddings.position_embeddings.copy_(sine_cosine_positions(image_size // patch_size, width))
    return model, processor_of(model, tokenizer)


def from_image_encoder(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[ViltForMaskedLM, ViltProcessor]:
    """A model of the sizes of the ViTModel or CLIPVisionModel `name`, with its patches, positions and layers; and its
    processor. Raises BadInput if `name` is neither, or if its images are not square."""
    from transformers import CLIPVisionModel, ViTModel

    flag = f"--vision_model_name_or_path {name}"
    encoder, images = image_encoders.from_pretrained(name, flag="--vision_model_name_or_path")
    if not isinstance(encoder, (ViTModel, CLIPVisionModel)):
        raise BadInput(f"{flag} is a {type(encoder).__name__}, not a ViTModel or a CLIPVisionModel")
    config = encoder.config
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise BadInput(
            f"{flag} takes images of {config.image_size} pixels in patches of {config.patch_size}; a ViLT takes square "
            "ones, and each size is one number"
        )
    sizes = {key: getattr(config, key) for key in image_encoders.SAME_IN_VIT if hasattr(config, key)}
    model = _new(tokenizer, flag, **sizes)
    xavier(model.vilt.pooler)
    start_from(model, encoder)
    return model, processor_of(model, tokenizer, *normalisation(images))


def from_pretrained(name: str) -> tuple[ViltForMaskedLM, ViltProcessor]:
    """An export of mmssl, or any ViLT with its masked language model. Raises BadInput if `name` is neither."""
    from transformers import ViltForMaskedLM, ViltProcessor

    flag = f"--model_name_or_path {name}"
    model, processor = pretrained.load(name, auto_class="ViltForMaskedLM")
    if not isinstance(model, ViltForMaskedLM) or not isinstance(processor, ViltProcessor):
        raise BadInput(f"{flag} is a {type(model).__name__} with a {type(processor).__name__}, not a ViLT")
    text_encoders.check_tokenizer(processor.tokenizer, flag)
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, longest(model))
    return model, processor_of(model, processor.tokenizer, *normalisation(processor.image_processor))


def processor_of(
    model: ViltForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> ViltProcessor:
    """Resizes pictures to the one square that the model has positions for; ViLT's own keeps their proportions, and then
    every picture has another number of patches."""
    from transformers import ViltProcessor, ViTImageProcessorPil

    side = {"height": model.config.image_size, "width": model.config.image_size}
    images = ViTImageProcessorPil(size=side, image_mean=list(mean), image_std=list(std))
    return ViltProcessor(image_processor=images, tokenizer=tokenizer)


def longest(model: ViltForMaskedLM) -> int:
    """The number of text tokens that the model can take."""
    return model.config.max_position_embeddings


@torch.no_grad()
def start_from(model: ViltForMaskedLM, encoder: ViTModel | CLIPVisionModel) -> None:
    """Copy the patches, positions and layers of an encoder of the same sizes."""
    is_clip = hasattr(encoder, "pre_layrnorm")
    vilt, of = model.vilt, encoder.embeddings
    layers = encoder.encoder.layers if is_clip else encoder.layers
    for layer, other in zip(vilt.encoder.layer, layers, strict=True):
        for name, names in PARTS.items():
            layer.get_submodule(name).load_state_dict(other.get_submodule(names[is_clip]).state_dict())
    vilt.layernorm.load_state_dict((encoder.post_layernorm if is_clip else encoder.layernorm).state_dict())
    if is_clip:
        positions = of.position_embedding.weight[None]
        given = without_norm(of.patch_embedding.weight, of.class_embedding[None, None], positions, encoder.pre_layrnorm)
    else:
        projection = of.patch_embeddings.projection
        given = projection.weight, projection.bias, of.cls_token, of.position_embeddings
    projection = vilt.embeddings.patch_embeddings.projection
    own = projection.weight, projection.bias, vilt.embeddings.cls_token, vilt.embeddings.position_embeddings
    for parameter, value in zip(own, given, strict=True):
        parameter.copy_(value)
    vilt.embeddings.token_type_embeddings.weight[1] = 0  # of patches, to which the encoder adds nothing


def without_norm(kernel: Tensor, first: Tensor, positions: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, ...]:
    """(kernel, bias, first, positions) that include the norm after the embeddings: exactly for the class token; for
    patches with one deviation for all, that of grey ones whose brightness has a deviation of 1.

    kernel: (width, 3, side, side), of the patches. first: (1, 1, width), the class token. positions: (1, 1 + patches,
    width).
    """
    of_first = first + positions[:, :1]
    brightness, places = kernel.sum((1, 2, 3)), positions[:, 1:]
    of_patches = (places.var(-1, correction=0).mean() + brightness.var(correction=0) + norm.eps).sqrt()

    def centred(value: Tensor) -> Tensor:
        return norm.weight * (value - value.mean(-1, keepdim=True))

    return (
        centred(kernel.movedim(0, -1)).movedim(-1, 0) / of_patches,
        torch.zeros_like(brightness),
        torch.zeros_like(first),
        norm.bias + torch.cat([norm(of_first) - norm.bias, centred(places) / of_patches], 1),
    )


def _new(tokenizer: PreTrainedTokenizerBase, described: str, **sizes) -> ViltForMaskedLM:
    """described: the flags that decide the sizes, for messages."""
    from transformers import ViltConfig, ViltForMaskedLM

    config = ViltConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        type_vocab_size=1,
        **sizes,
    )
    return memory.build(lambda: ViltForMaskedLM(config), described)
