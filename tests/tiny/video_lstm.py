from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import VideoMAEImageProcessorPil

from mmssl.data import draws
from mmssl.methods.video_lstm import VideoLSTM
from mmssl.models.video_lstm import VideoLSTMConfig, VideoLSTMModel
from tiny import Tiny

SIDE, TIME = 16, 6


class Clips(Dataset):
    """Random stripes, black or of full colour, that move to the right."""

    def __init__(self, n: int = 24, time: int = TIME, side: int = SIDE) -> None:
        generator = torch.Generator().manual_seed(0)
        stripes = 255 * torch.randint(0, 2, (n, 3, 1, side), generator=generator).expand(-1, -1, side, -1)
        moved = [stripes.roll(2 * t, 3) for t in range(time)]
        self.pixels = torch.stack(moved, 1).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[i], "key": draws.draw(torch.tensor(i), 0, 0), "index": i}


def processor() -> VideoMAEImageProcessorPil:
    square = {"height": SIDE, "width": SIDE}
    return VideoMAEImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, do_normalize=False)


def method(kind: str = "composite", conditional: bool = False, **sizes) -> VideoLSTM:
    torch.manual_seed(0)
    sizes = {"image_size": SIDE, "conv_sizes": (8, 16), "hidden_size": 16, "num_hidden_layers": 2} | sizes
    return VideoLSTM(VideoLSTMModel(VideoLSTMConfig(**sizes)), kind, TIME // 2, TIME - TIME // 2, conditional)


def tiny(*arguments, **options) -> Tiny:
    made = method(*arguments, **options)
    tiny = Tiny(made, Clips(), 8, processor=processor(), example={"images": Clips().pixels[:2]})
    tiny.optimizers = lambda method: [torch.optim.AdamW(method.parameters(), lr=1e-2)]
    return tiny


VARIANTS = {
    "composite": tiny,
    "conditional": partial(tiny, "prediction", True),
    "full": partial(tiny, "composite", cell="full"),
    "autoencoder": partial(tiny, "autoencoder"),
}
