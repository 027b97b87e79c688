"""The half of a diffusion model's U-Net that encodes an image, as a transformers model. Imports only torch,
transformers and diffusers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class DiffusionEncoderConfig(PreTrainedConfig):
    """unet: the config of diffusers' UNet2DModel. hidden_size: channels of its middle block. The U-Net gets signal *
    image + noise * (noise from N(0, 1), the same for all images): what the diffusion leaves of it at time_step."""

    model_type = "mmssl_diffusion_encoder"

    unet: dict | None = None
    image_size: int = 32  # px, of a square
    num_channels: int = 3
    hidden_size: int = 64
    time_step: int = 100
    signal: float = 1.0
    noise: float = 0.0


@dataclass
class DiffusionEncoderOutput(ModelOutput):
    """last_hidden_state: (batch, hidden_size, rows, columns), the U-Net's middle block. pooler_output: (batch,
    hidden_size, 1, 1), its mean over positions. hidden_states: the maps after the first layer and each block."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class DiffusionEncoderModel(PreTrainedModel):
    """From the first layer to the middle block: features of an image with a little noise (Xiang et al. 2023, DDAE,
    arXiv:2303.09769)."""

    config_class = DiffusionEncoderConfig
    base_model_prefix = "diffusion_encoder"
    main_input_name = "pixel_values"
    parts = ("time_proj", "time_embedding", "conv_in", "down_blocks", "mid_block")

    def __init__(self, config: DiffusionEncoderConfig) -> None:
        super().__init__(config)
        from diffusers import UNet2DModel

        self.share(UNet2DModel(**(config.unet or {})))
        drawn = torch.Generator("cpu").manual_seed(0)
        size = config.num_channels, config.image_size, config.image_size
        self.register_buffer("fixed_noise", torch.randn(size, generator=drawn, device="cpu"))
        self.post_init()

    def _init_weights(self, module) -> None:
        """The U-Net's own constructor has initialised it."""

    def share(self, unet) -> None:
        """Consist of the parts of `unet`, a UNet2DModel of the same config; they are not copied."""
        for name in self.parts:
            setattr(self, name, getattr(unet, name))

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **unused) -> DiffusionEncoderOutput:
        """pixel_values: (batch, channels, height, width), normalised to [-1, 1]."""
        noised = self.config.signal * pixel_values + self.config.noise * self.fixed_noise
        steps = torch.full((len(noised),), self.config.time_step, device=noised.device)
        time = self.time_embedding(self.time_proj(steps).to(noised.dtype))
        maps = [self.conv_in(noised)]
        for block in self.down_blocks:
            maps.append(block(hidden_states=maps[-1], temb=time)[0])
        maps.append(self.mid_block(maps[-1], time))
        return DiffusionEncoderOutput(
            last_hidden_state=maps[-1],
            pooler_output=maps[-1].mean((2, 3), keepdim=True),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )
