"""DDPM: learn to undo noise. A network is shown an image with noise from N(0, 1), and predicts the velocity or the
noise.

Ho et al. 2020, arXiv:2006.11239: the simplified loss (equation 14) over 1,000 noise levels, and a U-Net whose weights
are averaged (appendix B). The linear schedule is the paper's; the cosine one is Nichol & Dhariwal 2021
(arXiv:2102.09672, section 3.2). Images are drawn by DDIM (Song et al. 2020, arXiv:2010.02502, equation 12 with eta =
0), which gives the same image for the same noise. The features are those of the U-Net's middle block for an image with
a little noise (Xiang et al. 2023, DDAE, arXiv:2303.09769). U-Net, schedules and samplers are those of diffusers, and
the export is a DDPMPipeline, too.

Differs: by default the network predicts the velocity (Salimans & Ho 2022, arXiv:2202.00512, section 4), which is the
image, with its sign turned, where there is almost only noise. The paper's noise tells almost nothing of the image
there: its errors become large ones of the whole image, such as a grey ground, until training has been long. Step and
noise are functions of seed, epoch and image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images.views import STREAMS_PER_VIEW, Views
from mmssl.errors import BadInput, first_line
from mmssl.method import Card, Method, Output
from mmssl.models import ema, image_encoders, memory, pretrained
from mmssl.models.decoder import NOISE

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel
    from transformers import BaseImageProcessor

    from mmssl.models.diffusion_encoder import DiffusionEncoderModel

# channels of each level, residual blocks in each, and the levels with attention, from the finest on
SIZES = {
    "micro": ((32, 64, 128), 1, (2,)),
    "small": ((64, 128, 128), 2, (1,)),
    "cifar": ((128, 256, 256, 256), 2, (1,)),  # appendix B of the paper: 35.7 million parameters
}
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # names in diffusers
PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction"}  # names in diffusers
CHUNK = 32  # images that are drawn at once
STAGES, SAMPLES = 6, 6  # columns of the figure
SNIPPETS = {
    "Draw images": """
from diffusers import DDPMPipeline

name = "..."
pipeline = DDPMPipeline.from_pretrained(name)
pipeline(batch_size=1, num_inference_steps=50).images[0].save("drawn.png")
""",
    image_encoders.FEATURES: image_encoders.SNIPPETS[image_encoders.FEATURES],
}


class DDPM(Method):
    """
    unet:         a UNet2DModel of diffusers for square images of `unet.config.sample_size` pixels.
    scheduler:    a DDPMScheduler of diffusers: the noise levels.
    views:        one view of each image, normalised to [-1, 1].
    momentum:     of the averaged weights, which are exported; 0.9999 in the paper, for 800,000 steps. Smaller in the
                  first steps.
    feature_step: the noise level at which the exported encoder sees images.
    """

    unit = "images"
    card = Card(
        about="A denoising diffusion model (DDPM): a U-Net learns to tell an image's noise, step by step down to none. "
        "The directory is a `DDPMPipeline` that draws images, and an encoder: the U-Net up to its middle block.",
        task="unconditional-image-generation",
        limits="The model draws images like those that it was trained on, and may repeat some of them. Its features "
        "were trained to tell noise from image: evaluate them on your task before you rely on them.",
        trivial="a network that predicts 0",
        snippets=SNIPPETS,
        tags=("ddpm", "diffusers"),
    )

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        views: Views,
        momentum: float = 0.999,
        feature_step: int = 100,
    ) -> None:
        super().__init__()
        self.unet, self.average = unet, ema.teacher_of(unet)
        self.scheduler, self.views, self.momentum, self.feature_step = scheduler, views, momentum, feature_step
        self.predicts_velocity = scheduler.config.prediction_type == "v_prediction"
        if not 0 <= feature_step < len(scheduler.alphas_cumprod):
            last = len(scheduler.alphas_cumprod) - 1
            raise BadInput(f"--feature_step {feature_step}: the noise levels are 0 to {last}")
        self.register_buffer("signal", scheduler.alphas_cumprod.float().sqrt())
        self.register_buffer("noise", (1 - scheduler.alphas_cumprod.float()).sqrt())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view, the step and the
        noise of each image are drawn."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        step = (len(self.signal) * draws.uniform(key, STREAMS_PER_VIEW)).long()
        noise = self.drawn_noise(key, pixels.shape[1:])
        predicted = (self.unet if self.training else self.average)(self.noised(pixels, noise, step), step).sample
        target = self.velocity(pixels, noise, step) if self.predicts_velocity else noise
        with torch.autocast(pixels.device.type, enabled=False):
            loss = (predicted.float() - target).square().mean()
        return Output(loss, trivial_loss=target.square().mean())

    def drawn_noise(self, key: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(batch, *shape) from N(0, 1), a function of the key."""
        numbers = torch.arange(torch.Size(shape).numel(), device=key.device)
        return draws.normal(key[:, None], NOISE + numbers).view(-1, *shape)

    def noised(self, pixels: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Equation 4: what the diffusion leaves of the images at each one's step, (batch,)."""
        return self.signal[step, None, None, None] * pixels + self.noise[step, None, None, None] * noise

    def velocity(self, pixels: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Salimans & Ho 2022, section 4: how the noised image changes while the diffusion goes on. Arguments as in
        `noised`."""
        return self.signal[step, None, None, None] * noise - self.noise[step, None, None, None] * pixels

    def after_step(self) -> None:
        ema.update(self.average, self.unet, ema.warmed_up(self.momentum, self.updates))
        self.updates += 1

    @torch.no_grad()
    def denoised(self, noise: Tensor, steps: int = 32) -> list[Tensor]:
        """The images, normalised, after each of the steps from pure noise to an image. noise: (batch, 3, height,
        width)."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")  # from pure noise
        scheduler.set_timesteps(min(steps, len(self.signal)), device=noise.device)
        images = [noise]
        for step in scheduler.timesteps:
            predicted = self.average(images[-1], step).sample.float()
            images.append(scheduler.step(predicted, step, images[-1]).prev_sample)
        return images

    def sampled(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1]: images from the same noise in every run."""
        keys, side = torch.arange(count, device=self.signal.device), self.unet.config.sample_size
        drawn = [self.denoised(self.drawn_noise(key, (3, side, side)))[-1] for key in keys.split(CHUNK)]
        return self.views.to_unit_range(torch.cat(drawn))

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        """The stages from noise to an image, and further images; the same noise in every run. Arguments as in
        `forward`."""
        count, side = len(key), self.unet.config.sample_size
        keys = torch.arange(SAMPLES * count, device=key.device)
        stages = self.denoised(self.drawn_noise(keys, (3, side, side)))
        last = len(stages) - 1
        columns = {}
        for i in range(STAGES):
            at = round(i * last / (STAGES - 1))
            columns[f"{at} of {last} steps"] = stages[at][:count]
        for i in range(1, SAMPLES):
            columns["others" if i == 1 else " " * i] = stages[-1][i * count : (i + 1) * count]
        return {title: self.views.to_unit_range(images) for title, images in columns.items()}

    def exported(self) -> DiffusionEncoderModel:
        """The averaged U-Net up to its middle block; not a copy."""
        from mmssl.models.diffusion_encoder import DiffusionEncoderConfig, DiffusionEncoderModel

        config = {name: value for name, value in self.unet.config.items() if not name.startswith("_")}
        encoder = DiffusionEncoderModel(
            DiffusionEncoderConfig(
                unet=config,
                image_size=config["sample_size"],
                hidden_size=config["block_out_channels"][-1],
                time_step=self.feature_step,
                signal=self.signal[self.feature_step].item(),
                noise=self.noise[self.feature_step].item(),
            )
        )
        encoder.share(self.average)
        return encoder.to(self.signal.device).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder, whose class comes with it, and the pipeline: model_index.json, unet/ and scheduler/."""
        from diffusers import DDPMPipeline

        super().save_pretrained(directory)
        DDPMPipeline(self.average, self.scheduler).save_pretrained(directory)


def build(args, side: int) -> tuple[UNet2DModel, DDPMScheduler, BaseImageProcessor]:
    """The U-Net, noise levels and image processor that the flags of recipes/ddpm.py describe. side: of the data's
    images, in pixels. Raises BadInput if a checkpoint is not a DDPMPipeline of square colour images."""
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ModuleNotFoundError as error:
        raise BadInput(f"DDPM needs the package {error.name}: pip install diffusers") from error
    from transformers import ViTImageProcessorPil

    if args.model_name_or_path:
        name = args.model_name_or_path
        try:
            unet = UNet2DModel.from_pretrained(name, subfolder="unet", use_safetensors=True)
            scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
        except Exception as error:  # a damaged file raises many kinds
            raise BadInput(
                f"--model_name_or_path {name}: not a DDPMPipeline of diffusers with unet/, scheduler/ and safetensors "
                f"({first_line(error)})"
            ) from error
        pretrained.check_finite(unet, f"--model_name_or_path {name}")
        if not isinstance(unet.config.sample_size, int) or unet.config.in_channels != 3:
            raise BadInput(f"--model_name_or_path {name}: its U-Net does not take square colour images")
        if scheduler.config.prediction_type not in PREDICTIONS.values():
            raise BadInput(
                f"--model_name_or_path {name}: its U-Net predicts {scheduler.config.prediction_type!r}, neither noise "
                "nor velocity"
            )
        side = unet.config.sample_size
    else:
        channels, blocks, attention = SIZES[args.size]
        halvings = 2 ** (len(channels) - 1)
        side = args.image_size or -(-side // halvings) * halvings
        if side % halvings:
            raise BadInput(f"--image_size {side}: the U-Net halves it {len(channels) - 1} times; give a multiple of "
                           f"{halvings}")  # fmt: skip
        of_levels = ["Attn" if level in attention else "" for level in range(len(channels))]
        unet = memory.build(
            lambda: UNet2DModel(
                sample_size=side,
                block_out_channels=channels,
                layers_per_block=blocks,
                down_block_types=tuple(f"{kind}DownBlock2D" for kind in of_levels),
                up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(of_levels)),
                norm_num_groups=min(32, channels[0] // 2),
                attention_head_dim=None,  # one head, as in the authors' code
            ),
            f"--size {args.size}",
        )
        scale = 1000 / args.noise_levels  # as much noise in the end, in however many steps
        scheduler = DDPMScheduler(
            num_train_timesteps=args.noise_levels,
            beta_start=min(0.999, 1e-4 * scale),
            beta_end=min(0.999, 0.02 * scale),
            beta_schedule=SCHEDULES[args.schedule],
            prediction_type=PREDICTIONS[args.prediction],
        )
    sides = {"height": side, "width": side}
    return unet, scheduler, ViTImageProcessorPil(size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3)
