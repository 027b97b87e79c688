"""MAE: mask three quarters of an image's patches, and learn to reconstruct them from the rest.

He et al. 2021, arXiv:2111.06377. Uses transformers' ViTMAEForPreTraining; the encoder is exported as a ViTModel, which
takes all patches. Differs: masks are a function of seed, epoch and image, so that runs repeat on any number of
processes; positions are set here, because transformers 5.23 leaves those of a new ViTMAE at zero, and frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.arguments import check_divides
from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders, memory, pretrained
from mmssl.models.vit_tokens import at, sine_cosine_positions, xavier

if TYPE_CHECKING:
    from transformers import ViTImageProcessorPil, ViTMAEForPreTraining, ViTModel


MASK = 1 << 16  # first stream of the mask's draws, far after those of the image's view
SNIPPETS = {
    "Features of a picture": """
from transformers import pipeline
from transformers.utils import cached_file

name = "..."
extract = pipeline("image-feature-extraction", model=name)
picture = cached_file(name, "figures/example.png")  # or the path of a picture of your own
tokens = extract(picture, return_tensors=True)[0]  # the class token, then one for each patch
print(tokens.shape, tokens.mean(0)[:5])
""",
    "Fine-tune it": """
from transformers import AutoImageProcessor, AutoModelForImageClassification

name = "..."
model = AutoModelForImageClassification.from_pretrained(name, num_labels=10)
processor = AutoImageProcessor.from_pretrained(name)
print(model.config.hidden_size, processor.size)
""",
}


@dataclass(frozen=True)
class Size:
    """Sizes of encoder and decoder; MLPs are four times as wide."""

    width: int
    layers: int
    heads: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int


SIZES = {
    "micro": Size(128, 6, 4, 64, 2, 2),
    "tiny": Size(192, 12, 3, 128, 2, 4),
    "small": Size(384, 12, 6, 256, 4, 8),
    "base": Size(768, 12, 12, 512, 8, 16),  # this and the next two: appendix A.1
    "large": Size(1024, 24, 16, 512, 8, 16),
    "huge": Size(1280, 32, 16, 512, 8, 16),
}


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """(batch, channels, height, width) -> (batch, patches, patch_size ** 2 * channels); patches in row-major order."""
    n, channels, height, width = pixels.shape
    grid = pixels.reshape(n, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def standardise(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(standardised, mean, deviation): each patch is standardised by its own mean and deviation (section 3,
    "reconstruction target"). patches: (batch, patches, values)."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation


def reconstruction_loss(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over masked patches only.

    predicted: (batch, masked patches, values). target: (batch, patches, values). masked: (batch, masked patches), their
    indices.
    """
    return (predicted - at(target, masked)).square().mean()


class MAE(Method):
    """
    model:        encoder and decoder.
    views:        one view of each image, in training.
    decode_ratio: fraction of the masked patches, drawn again each time, that training reconstructs; the decoder gets no
                  other masked patches (Fu et al. 2024, arXiv:2401.14391, section 3.3, there with cross-attention).
    """

    unit = "images"
    card = Card(
        about="MAE: mask most of an image's patches, and learn to reconstruct them from the rest. The encoder is "
        "exported as a `ViTModel`; the model with its decoder, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels: evaluate it on your task before you rely on it.",
        trivial="the mean image",
        snippets=SNIPPETS,
        tags=("mae", "vit"),
    )

    def __init__(
        self,
        model: ViTMAEForPreTraining,
        views: Views,
        decode_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.views, self.decode_ratio = model, views, decode_ratio

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the crop and the mask of each
        image are drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        share = self.decode_ratio if self.training else 1.0
        predicted, target, masked, encoded = self.reconstruct(pixels, self.noise(key), share)
        with torch.autocast(pixels.device.type, enabled=False):
            loss = reconstruction_loss(predicted.float(), target, masked)
            mean_image = at(target.mean(0, keepdim=True).expand_as(target), masked)
            trivial = reconstruction_loss(mean_image, target, masked)
        return Output(loss, features=encoded[:, 1:].mean(1).detach(), trivial_loss=trivial.detach())

    def reconstruct(self, pixels: Tensor, noise: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(predicted, target, masked, encoded), for the fraction `share` of the masked patches.

        pixels: (batch, 3, height, width), normalised. noise: (batch, patches). predicted: (batch, masked patches,
        values). target: (batch, patches, values). masked: (batch, masked patches), their indices. encoded: (batch, 1 +
        visible patches, width), the encoder's output.
        """
        output, decoder = self.model.vit(pixels, noise=noise), self.model.decoder
        encoded, order = output.last_hidden_state, output.ids_restore.argsort(1)
        visible = encoded.shape[1] - 1
        order = order[:, : visible + max(1, round(share * (order.shape[1] - visible)))]
        masked = order[:, visible:]
        mask_tokens = decoder.mask_token.expand(*masked.shape, -1)
        tokens = torch.cat([decoder.decoder_embed(encoded), mask_tokens], 1)
        # the order does not matter: each token gets its position; the class token, which comes first, has position 0
        tokens = tokens + decoder.decoder_pos_embed[0, nn.functional.pad(order + 1, (1, 0))]
        for layer in decoder.decoder_layers:
            tokens = layer(tokens)
        predicted = decoder.decoder_pred(decoder.decoder_norm(tokens[:, 1 + visible :]))
        target = patchify(pixels, self.model.config.patch_size)
        if self.model.config.norm_pix_loss:
            target, _, _ = standardise(target)
        return predicted, target, masked, encoded

    def noise(self, key: Tensor) -> Tensor:
        """(batch, patches) in [0, 1), a function of the key; the patches with the largest values are masked."""
        patches = self.model.decoder.decoder_pos_embed.shape[1] - 1
        return draws.uniform(key[:, None], MASK + torch.arange(patches, device=key.device))

    def exported(self) -> ViTModel:
        """A copy of the encoder. Its pooler_output is the class token."""
        return image_encoders.to_vit(self.model.vit)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder and, in pretraining/, the whole model."""
        self.exported().save_pretrained(directory)
        self.model.save_pretrained(Path(directory, pretrained.PRETRAINING))


def build(args, side: int) -> tuple[ViTMAEForPreTraining, ViTImageProcessorPil]:
    """The model and processor that the flags of recipes/mae.py describe. side: of the data's images, in pixels."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.mask_ratio)
    image_size = args.image_size or side
    patch_size = args.patch_size or image_encoders.usual_patch_size(image_size, 8 if image_size >= 32 else 4)
    return from_scratch(SIZES[args.size], image_size, patch_size, args.mask_ratio, args.norm_pix_loss)


def from_scratch(
    size: Size, image_size: int, patch_size: int, mask_ratio: float = 0.75, norm_pix_loss: bool = True
) -> tuple[ViTMAEForPreTraining, ViTImageProcessorPil]:
    """A new model and its image processor. Raises BadInput if the sizes do not fit together."""
    from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEForPreTraining

    check_divides("--patch_size", patch_size, "--image_size", image_size)
    config = ViTMAEConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_layers,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width,
        mask_ratio=check_mask_ratio(mask_ratio, (image_size // patch_size) ** 2),
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,
    )
    sizes = f"--image_size {image_size}, --patch_size {patch_size}, encoder of width {size.width}"
    model = memory.build(lambda: ViTMAEForPreTraining(config), sizes)
    initialise(model)
    processor = ViTImageProcessorPil(size={"height": image_size, "width": image_size})
    return model, processor


def check_mask_ratio(mask_ratio: float, patches: int) -> float:
    """mask_ratio itself. Raises BadInput if no patch would be visible, or none masked."""
    visible = int(patches * (1 - mask_ratio))
    if not 0 < visible < patches:
        raise BadInput(f"--mask_ratio {mask_ratio} leaves {visible} of {patches} patches visible; about 0.75 works")
    return mask_ratio


@torch.no_grad()
def initialise(model: ViTMAEForPreTraining) -> None:
    """Appendix A.1: Xavier for all linear layers and the patch embedding, sine-cosine positions."""
    xavier(model)
    embeddings, decoder = model.vit.embeddings, model.decoder
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=0.02)
    for positions in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        positions.copy_(sine_cosine_positions(math.isqrt(positions.shape[1] - 1), positions.shape[2]))


def from_pretrained(name: str, mask_ratio: float = 0.75) -> tuple[ViTMAEForPreTraining, ViTImageProcessorPil]:
    """An export of mmssl, or any checkpoint of a ViTMAE, with its decoder. Raises BadInput if `name` is neither."""
    model, processor = pretrained.load_with_decoder(name, "ViTMAEForPreTraining", "an MAE")
    model.config.mask_ratio = check_mask_ratio(mask_ratio, model.vit.embeddings.patch_embeddings.num_patches)
    return model, processor
