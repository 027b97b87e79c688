"""Convolutional encoders that are trained on small patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmssl.errors import BadInput
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mmssl.models.patch_encoder import PatchEncoderModel

NOT_OF_ITS_SHAPE = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")  # in a config


def check(model: PreTrainedModel) -> None:
    """Raise BadInput if the model does not take both small patches and whole images."""
    if getattr(model.config, "num_attention_heads", None):
        raise BadInput(
            f"a {type(model).__name__} takes images of one size, and so not both patches and whole images; use a "
            "convolutional --encoder"
        )


def patchwise(encoder: PreTrainedModel, side: int, flag: str = "--crop_size") -> PatchEncoderModel:
    """The encoder, not copied, applied to patches of `side` pixels that overlap by half. flag: the one that chooses the
    side. Raises BadInput if the encoder takes no patches, or is one of other patches already."""
    from mmssl.models.patch_encoder import PatchEncoderConfig, PatchEncoderModel

    if isinstance(encoder, PatchEncoderModel):
        if encoder.config.patch_size != side:
            raise BadInput(
                f"{flag} {side}: the encoder was trained on patches of {encoder.config.patch_size} pixels; set "
                f"{flag} {encoder.config.patch_size}"
            )
        return encoder
    check(encoder)
    backbone = {name: value for name, value in encoder.config.to_diff_dict().items() if name not in NOT_OF_ITS_SHAPE}
    config = PatchEncoderConfig(backbone=backbone, hidden_size=image_encoders.width(encoder), patch_size=side)
    return PatchEncoderModel(config, encoder)
