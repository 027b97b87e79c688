"""VideoMAE: mask nine tenths of a clip in tubes, and learn to reconstruct them from the rest.

Tong et al. 2022, arXiv:2203.12602. A tube is a patch that is masked in all frames, so that it cannot be copied from the
frame before. Uses transformers' VideoMAEForPreTraining; the encoder is exported as a VideoMAEModel, which takes all
patches. Differs: masks are a function of seed, epoch and clip, so that runs repeat on any number of processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.arguments import check_divides
from mmssl.data import draws
from mmssl.data.images import views
from mmssl.data.images.views import Views
from mmssl.data.video.clips import viewed
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.methods.mae import SIZES, Size, reconstruction_loss
from mmssl.models import image_encoders, memory, pretrained
from mmssl.models.vit_tokens import at, xavier

if TYPE_CHECKING:
    from transformers import VideoMAEForPreTraining, VideoMAEImageProcessorPil, VideoMAEModel

__all__ = ["AUGMENTATIONS", "SIZES", "VideoMAE", "build", "from_args", "from_pretrained", "from_scratch"]

AUGMENTATIONS = {"crop_flip": views.CROP_FLIP, "crop": views.CROP, "none": views.WHOLE}
MASK = 1 << 16  # first stream of the mask's draws, far after those of the clip's view
SNIPPETS = {
    "Features of a clip": """
import torch
from PIL import Image, ImageSequence
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import cached_file

name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
clip = Image.open(cached_file(name, "figures/example.png"))  # animated; or frames of your own, as many
frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
with torch.no_grad():
    tokens = model(**processor(frames, return_tensors="pt")).last_hidden_state
print(tokens.shape, tokens.mean(1).shape)
""",
    "Fine-tune it": """
from transformers import AutoImageProcessor, AutoModelForVideoClassification

name = "..."
# from the mean of all patches, not from the first one; the norm of that mean is new, as the classifier is
model = AutoModelForVideoClassification.from_pretrained(name, num_labels=10, use_mean_pooling=True)
processor = AutoImageProcessor.from_pretrained(name)
print(model.config.num_labels, model.config.num_frames, processor.size)
""",
}


def cubes(clips: Tensor, tubelet: int, patch: int) -> Tensor:
    """(batch, tokens, tubelet * patch ** 2, channels): in the order of the encoder's tokens, time, then rows. clips:
    (batch, time, channels, height, width)."""
    n, time, channels, height, width = clips.shape
    shape = n, time // tubelet, tubelet, channels, height // patch, patch, width // patch, patch
    return clips.reshape(shape).permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)


def clips_of(values: Tensor, tubelet: int, patch: int, size: tuple[int, int, int]) -> Tensor:
    """The inverse of `cubes`. size: (time, height, width)."""
    (time, height, width), channels = size, values.shape[-1]
    grid = time // tubelet, height // patch, width // patch
    split = values.unflatten(2, (tubelet, patch, patch)).unflatten(1, grid)
    return split.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(len(values), time, channels, height, width)


def standardise(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(standardised, mean, deviation): of each channel of each cube, as transformers does. values: as from `cubes`."""
    mean, deviation = values.mean(2, keepdim=True), values.var(2, keepdim=True).sqrt() + 1e-6
    return (values - mean) / deviation, mean, deviation


class VideoMAE(Method):
    """
    model:      encoder and decoder.
    views:      one view of each clip, the same for all of its frames.
    mask_ratio: fraction of the tubes that are masked; 0.9 in the paper.
    """

    unit = "clips"
    card = Card(
        about="VideoMAE: mask most of a clip in tubes, and learn to reconstruct them from the rest. The encoder is "
        "exported as a `VideoMAEModel`; the model with its decoder, to continue from, is in `pretraining/`.",
        task="feature-extraction",
        limits="The model was trained without labels: evaluate it on your task before you rely on it.",
        trivial="the mean clip of the batch",
        snippets=SNIPPETS,
        tags=("video", "videomae"),
    )

    def __init__(self, model: VideoMAEForPreTraining, views: Views, mask_ratio: float = 0.9) -> None:
        super().__init__()
        self.model, self.views, self.mask_ratio = model, views, mask_ratio
        for part in (model, model.videomae.embeddings):  # else each step would copy them to the device
            if (positions := vars(part).pop("position_embeddings", None)) is not None:
                part.register_buffer("position_embeddings", positions, persistent=False)
        config = model.config
        self.tubelet, self.patch = config.tubelet_size, config.patch_size
        self.tubes = (config.image_size // self.patch) ** 2
        self.steps = config.num_frames // self.tubelet  # tokens of a tube
        self.visible = max(1, round((1 - check_mask_ratio(mask_ratio, self.tubes)) * self.tubes))

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, time, 3, height, width) uint8. key: (batch,) int64, from which the crop and the mask of
        each clip are drawn."""
        clips = viewed(self.views, pixel_values, key if self.training else None)
        predicted, target, masked, encoded = self.reconstruct(clips, key)
        with torch.autocast(clips.device.type, enabled=False):
            loss = reconstruction_loss(predicted.float(), target, masked)
            mean = at(target.mean(0, keepdim=True).expand_as(target), masked)
            trivial = reconstruction_loss(mean, target, masked)
        return Output(loss, features=encoded.mean(1).detach().float(), trivial_loss=trivial.detach())

    def reconstruct(self, clips: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(predicted (batch, masked tokens, values), target (batch, tokens, values), masked (batch, masked tokens),
        their indices, encoded (batch, visible tokens, width)). clips: (batch, time, 3, height, width), normalised."""
        visible, masked = self.split(key)
        encoder = self.model.videomae
        tokens = encoder.embeddings(clips, None)  # of all: a linear map, cheap beside the layers
        encoded = encoder.encoder(at(tokens, visible)).last_hidden_state
        if encoder.layernorm is not None:
            encoded = encoder.layernorm(encoded)
        known = self.model.encoder_to_decoder(encoded)
        positions = self.model.position_embeddings.to(known).expand(len(known), -1, -1)
        hidden = self.model.mask_token + at(positions, masked)
        together = torch.cat([known + at(positions, visible), hidden.to(known.dtype)], 1)
        predicted = self.model.decoder(together, masked.shape[1]).logits
        return predicted, self.targets(clips), masked, encoded

    def targets(self, clips: Tensor) -> Tensor:
        """(batch, tokens, values). clips: normalised."""
        values = cubes(clips, self.tubelet, self.patch)
        return (standardise(values)[0] if self.model.config.norm_pix_loss else values).flatten(2)

    def split(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """(visible, masked): (batch, tokens) int64, indices of the tokens; whole tubes, a function of the key."""
        drawn = draws.uniform(key[:, None], MASK + torch.arange(self.tubes, device=key.device))
        order = drawn.argsort(1)
        steps = self.tubes * torch.arange(self.steps, device=key.device)[:, None]

        def tokens(tubes: Tensor) -> Tensor:
            return (steps + tubes[:, None]).flatten(1)

        return tokens(order[:, : self.visible]), tokens(order[:, self.visible :])

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Clips, their visible tubes, and the reconstructions, each masked patch with the mean and contrast of the
        original where targets are standardised."""
        clips = viewed(self.views, pixel_values)
        predicted, _, masked, _ = self.reconstruct(clips, key)
        values = cubes(clips, self.tubelet, self.patch)
        own, found = values.flatten(2), predicted.float()
        if self.model.config.norm_pix_loss:
            _, mean, deviation = standardise(values)
            mean, deviation = (at(each.expand_as(values).flatten(2), masked) for each in (mean, deviation))
            found = found * deviation + mean
        places, size = masked[..., None].expand_as(found), (clips.shape[1], *clips.shape[3:])
        rows = {"clip": own, "visible": own.scatter(1, places, 0.0), "reconstructed": own.scatter(1, places, found)}
        return {
            title: self.views.to_unit_range(
                clips_of(each.unflatten(2, values.shape[2:]), self.tubelet, self.patch, size)
            )
            for title, each in rows.items()
        }

    def exported(self) -> VideoMAEModel:
        return self.model.videomae

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder and, in pretraining/, the whole model."""
        self.exported().save_pretrained(directory)
        self.model.save_pretrained(Path(directory, pretrained.PRETRAINING))


def check_mask_ratio(mask_ratio: float, tubes: int) -> float:
    """mask_ratio itself. Raises BadInput if no tube would be visible, or none masked."""
    visible = round((1 - mask_ratio) * tubes)
    if not 0 < visible < tubes:
        raise BadInput(f"--mask_ratio {mask_ratio} leaves {visible} of {tubes} tubes visible; lower it or --patch_size")
    return mask_ratio


def from_args(args, model: VideoMAEForPreTraining, processor: VideoMAEImageProcessorPil) -> VideoMAE:
    """The method that the flags of recipes/videomae.py describe."""
    return VideoMAE(model, views.made_for(processor, [AUGMENTATIONS[args.augmentation]]), args.mask_ratio)


def build(args, side: int) -> tuple[VideoMAEForPreTraining, VideoMAEImageProcessorPil]:
    """The model and processor that the flags of recipes/videomae.py describe. side: of the data, in pixels."""
    if args.model_name_or_path:
        model, processor = from_pretrained(args.model_name_or_path)
        if args.frames != model.config.num_frames:
            raise BadInput(
                f"--frames {args.frames}: {args.model_name_or_path} takes clips of {model.config.num_frames} frames; "
                f"give --frames {model.config.num_frames}"
            )
        return model, processor
    size = args.image_size or side
    patch = args.patch_size or image_encoders.usual_patch_size(size)
    return from_scratch(SIZES[args.size], size, patch, args.frames, args.tubelet_size, args.norm_pix_loss)


def from_scratch(
    size: Size, image_size: int, patch_size: int, frames: int, tubelet_size: int = 2, norm_pix_loss: bool = True
) -> tuple[VideoMAEForPreTraining, VideoMAEImageProcessorPil]:
    """A new model and its processor. Raises BadInput if the sizes do not fit together."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEImageProcessorPil

    check_divides("--patch_size", patch_size, "--image_size", image_size)
    check_divides("--tubelet_size", tubelet_size, "--frames", frames)
    config = VideoMAEConfig(
        image_size=image_size, patch_size=patch_size, num_frames=frames, tubelet_size=tubelet_size,
        hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        intermediate_size=4 * size.width, decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_layers, decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width, norm_pix_loss=norm_pix_loss, use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    sizes = f"--image_size {image_size}, --patch_size {patch_size}, --frames {frames}, encoder of width {size.width}"
    model = memory.build(lambda: VideoMAEForPreTraining(config), sizes)
    xavier(model)
    torch.nn.init.normal_(model.mask_token, std=0.02)
    square = {"height": image_size, "width": image_size}
    return model, VideoMAEImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square)


def from_pretrained(name: str) -> tuple[VideoMAEForPreTraining, VideoMAEImageProcessorPil]:
    """An export of mmssl, or any checkpoint of a VideoMAE with its decoder. Raises BadInput if `name` is neither."""
    return pretrained.load_with_decoder(name, "VideoMAEForPreTraining", "a VideoMAE")
