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


def patchwise(encoder: PreTrainedModel, side: int) -> PatchEncoderModel:
    """The encoder, not copied, applied to patches of `side` pixels that overlap by half. Raises BadInput if the side is
    odd, if it takes no patches, or if it is an encoder of other patches already."""
    from mmssl.models.patch_encoder import PatchEncoderConfig, PatchEncoderModel

    if side % 2:
        raise BadInput(f"--crop_size {side}: patches overlap by half; give an even number")
    if isinstance(encoder, PatchEncoderModel):
        if encoder.config.patch_size != side:
            raise BadInput(
                f"--crop_size {side}: the encoder was trained on patches of {encoder.config.patch_size} pixels; set "
                f"--crop_size {encoder.config.patch_size}"
            )
        return encoder
    check(encoder)
    backbone = {name: value for name, value in encoder.config.to_diff_dict().items() if name not in NOT_OF_ITS_SHAPE}
    config = PatchEncoderConfig(backbone=backbone, hidden_size=image_encoders.width(encoder), patch_size=side)
    return PatchEncoderModel(config, encoder)
