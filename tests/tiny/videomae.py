from __future__ import annotations

from functools import partial

import torch

from mmssl.data.images import views
from mmssl.methods import videomae
from mmssl.methods.mae import Size
from tiny import Tiny
from tiny.video_lstm import SIDE, TIME, Clips


def method(norm_pix_loss: bool = True, mask_ratio: float = 0.75) -> tuple[videomae.VideoMAE, object]:
    torch.manual_seed(0)
    model, processor = videomae.from_scratch(Size(32, 2, 2, 32, 1, 2), SIDE, 4, TIME, 2, norm_pix_loss)
    made = views.Views([views.WHOLE], processor.image_mean, processor.image_std)
    return videomae.VideoMAE(model, made, mask_ratio), processor


def tiny(norm_pix_loss: bool) -> Tiny:
    made, processor = method(norm_pix_loss)
    example = {"images": Clips().pixels[:2]}
    return Tiny(made, Clips(), 8, processor=processor, example=example)


VARIANTS = {"normalised": partial(tiny, True), "pixels": partial(tiny, False)}
