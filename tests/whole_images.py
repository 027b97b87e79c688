"""What holds for encoders that are trained on patches, tiles or frames: they load plainly, and take whole images."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel

from mmssl.method import Method


def assert_loads_and_takes_them(method: Method, directory: Path) -> None:
    """Images of 32 pixels, larger than those of the tiny forms."""
    method.eval().save_pretrained(directory)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        loaded = AutoModel.from_pretrained(directory).eval()(images).pooler_output
        torch.testing.assert_close(loaded, method.exported()(images).pooler_output)
