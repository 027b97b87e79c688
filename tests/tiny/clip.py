from __future__ import annotations

from functools import partial

import tiny_clip
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.images import views
from mmssl.methods import clip
from mmssl.models import towers
from tiny import Tiny


class Pairs(Dataset):
    """Random pictures, each with a text of its own, or several."""

    def __init__(self, n: int = 24, texts: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        eos = tiny_clip.tokenizer().eos_token_id
        self.pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
        words = torch.randint(0, 50, (n, texts, 5), generator=generator)
        self.ids = torch.cat([words, torch.full((n, texts, 1), eos)], dim=2).squeeze(1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = self.ids[i]
        key = draws.draw(torch.tensor(i), 0, 0)
        return {"pixel_values": self.pixels[i], "key": key, "input_ids": ids, "attention_mask": ids * 0 + 1, "index": i}


def tiny(texts: int = 1, of_each: tuple[views.View, ...] = (views.WHOLE,), **options) -> Tiny:
    torch.manual_seed(0)
    model, processor = towers.from_scratch(tiny_clip.tokenizer(), 16, 8, 64, 1, 64, 1, 16)
    method = clip.CLIP(model, views.Views(of_each, tiny_clip.MEAN, tiny_clip.STD), **options)
    return Tiny(method, Pairs(texts=texts), batch_size=8, processor=processor, example=tiny_clip.EXAMPLE)


VARIANTS = {
    "info_nce": tiny,
    "sigmoid": partial(tiny, loss="sigmoid"),
    "views": partial(tiny, texts=2, of_each=(views.WHOLE, views.CROP)),
}
