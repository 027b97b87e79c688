"""Convolutional encoders for patches: whether one takes them, and one that cuts images into patches itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmssl.errors import BadInput
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmssl.models.patch_encoder import PatchEncoderModel

OF_A_CHECKPOINT = (  # parts of a config that say nothing of the network's shape
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "problem_type",
    "transformers_version",
)  # fmt: skip


def check(model: PreTrainedModel) -> None:
    """Raise BadInput if the model takes images of one size only."""
    if getattr(model.config, "num_attention_heads", None):
        raise BadInput(
            f"a {type(model).__name__} takes images of one size, and not patches of another; use a convolutional "
            "--encoder"
        )


def patchwise(encoder: PreTrainedModel, side: int, flag: str = "--crop_size") -> PatchEncoderModel:
    """The encoder, not copied, applied to patches of `side` pixels that overlap by half. flag: the one that chooses the
    side. Raises BadInput if the encoder takes no such patches, or is none of transformers' own."""
    from mmssl.models.patch_encoder import PatchEncoderConfig, PatchEncoderModel

    if isinstance(encoder, PatchEncoderModel):
        if encoder.config.patch_size != side:
            raise BadInput(
                f"{flag} {side}: the encoder was trained on patches of {encoder.config.patch_size} pixels; set "
                f"{flag} {encoder.config.patch_size}"
            )
        return encoder
    if not type(encoder).__module__.startswith("transformers.models."):
        raise BadInput(
            f"--model_name_or_path: a {type(encoder).__name__} cannot be part of an encoder of patches, because "
            "transformers does not have its code; use a ResNet or another convolutional network of transformers"
        )
    check(encoder)
    remedy = f"raise {flag}, or use another convolutional --encoder"
    image_encoders.check(encoder, (side, side), f"{flag} {side}: a", remedy)
    backbone = {name: value for name, value in encoder.config.to_diff_dict().items() if name not in OF_A_CHECKPOINT}
    config = PatchEncoderConfig(backbone=backbone, hidden_size=image_encoders.width(encoder), patch_size=side)
    return PatchEncoderModel(config, encoder)
