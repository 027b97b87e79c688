"""Files that are on disk when the function returns, whatever happens to the machine a moment later; their checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """safetensors, on disk when this returns. Tied weights are written under each of their names."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(apart, file)
    with open(file, "rb") as f:
        os.fsync(f.fileno())


def write(file: Path, content: str) -> None:
    with open(file, "w") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
