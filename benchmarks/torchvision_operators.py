"""Import this before a package that needs torchvision: a torchvision built for another torch registers none of its
operators, and imports only if somebody declares them."""

from __future__ import annotations

import torch

OPERATORS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "qroi_align", "deform_conv2d")
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [n + suffix for n in OPERATORS for suffix in ("", "_backward")]:
        for spelled in (name, f"_{name}"):
            library.define(f"{spelled}(Tensor a, Tensor b, float c) -> Tensor")
