from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import DDPMScheduler, UNet2DModel

from mmssl.data.images.views import WHOLE, Views
from mmssl.methods.ddpm import DDPM
from tiny import Tiny, simclr


def method(schedule: str = "linear", noise_levels: int = 1000, prediction: str = "epsilon") -> DDPM:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    views = Views([WHOLE], [0.5] * 3, [0.5] * 3)
    scheduler = DDPMScheduler(noise_levels, beta_schedule=schedule, prediction_type=prediction)
    return DDPM(unet, scheduler, views, momentum=0.9)


def tiny(**options) -> Tiny:
    return replace(simclr.around(method(**options)), moved=("average.",))


VARIANTS = {
    "linear": tiny,
    "cosine": lambda: tiny(schedule="squaredcos_cap_v2"),
    "velocity": lambda: tiny(prediction="v_prediction"),
}
