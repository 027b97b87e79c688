from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data import draws
from mmssl.data.images import views
from mmssl.methods import lxmert
from mmssl.models import vilt
from tiny import Tiny
from tiny.bert import LENGTH, VOCABULARY, WORDS, tokenizer


class Pairs(Dataset):
    """Random pictures and texts of two lengths, half of them compared, half of those swapped."""

    def __init__(self, n: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
        self.ids = torch.randint(5, len(VOCABULARY), (n, 9), generator=generator)
        self.ids[:, 0], self.ids[:, -1] = 2, 3
        self.ids[::2, 6:] = torch.tensor([3, 0, 0])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        key = draws.draw(torch.tensor(i), 0, 0)
        texts = {"input_ids": self.ids[i], "attention_mask": (self.ids[i] > 0).long()}
        kinds = {"compared": torch.tensor(i % 4 < 2), "matched": torch.tensor(i % 4 > 0)}
        return {"pixel_values": self.pixels[i], "key": key, **texts, **kinds, "index": i}


def method(**options) -> tuple[lxmert.LXMERT, object]:
    torch.manual_seed(0)
    words = tokenizer()
    words.model_max_length = LENGTH
    model, processor = vilt.from_scratch(words, 16, 4, 32, 2)
    one = views.Views([views.WHOLE], [0.5] * 3, [0.5] * 3)
    counts = torch.arange(len(VOCABULARY))
    return lxmert.LXMERT(model, words, one, counts, **options), processor


def tiny(**options) -> Tiny:
    made, processor = method(**options)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    example = {"text": [f"the {WORDS[1]} [MASK] on a mat", "a dog"], "images": images}
    return Tiny(made, Pairs(), batch_size=8, processor=processor, example=example, auto_class="ViltForMaskedLM")


VARIANTS = {"words_and_patches": tiny, "words_alike": partial(tiny, rarity=0.0, share=0.15, patch_share=0.5)}
