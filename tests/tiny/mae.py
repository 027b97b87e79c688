from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.images import views
from mmssl.methods import mae
from tiny import Tiny

SIZE = mae.Size(32, 2, 2, 32, 1, 2)


class Pictures(Dataset):
    """Random stripes, with the numbers that masks are drawn from."""

    def __init__(self, n: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        stripes = torch.randint(0, 256, (n, 3, 1, 16), generator=generator).expand(-1, -1, 16, -1)
        self.pixels = stripes.to(torch.uint8).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[i], "key": draws.draw(torch.tensor(i), 0, 0), "index": i}


def tiny(norm_pix_loss: bool) -> Tiny:
    torch.manual_seed(0)
    model, processor = mae.from_scratch(SIZE, 16, 4, norm_pix_loss=norm_pix_loss)
    return Tiny(
        mae.MAE(model, views.Views([views.WHOLE], processor.image_mean, processor.image_std)),
        Pictures(),
        batch_size=8,
        processor=processor,
        example={"images": Pictures().pixels[:3]},
    )


VARIANTS = {"normalised": partial(tiny, norm_pix_loss=True), "pixels": partial(tiny, norm_pix_loss=False)}
