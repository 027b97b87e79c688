"""A CLIP of a few thousand weights, for tests of what is saved, loaded and sent."""

from functools import cache
from pathlib import Path

import torch
from transformers.image_utils import OPENAI_CLIP_MEAN as MEAN
from transformers.image_utils import OPENAI_CLIP_STD as STD

from mmssl.data.images import views
from mmssl.data.text.tokens import train_clip_tokenizer
from mmssl.methods import clip
from mmssl.models import towers

TEXTS = ["a red square", "a blue circle", "two green triangles"]
EXAMPLE = {
    "text": TEXTS,
    "images": torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
}


@cache
def tokenizer():
    return train_clip_tokenizer(TEXTS, 600)


def build(seed: int = 0) -> tuple[clip.CLIP, object]:
    """(method, processor)"""
    torch.manual_seed(seed)
    model, processor = towers.from_scratch(tokenizer(), 24, 12, 64, 1, 64, 1, 32)
    return clip.CLIP(model, views.Views([views.WHOLE], MEAN, STD)), processor


def export(directory: Path) -> Path:
    method, processor = build()
    method.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
