"""Writing files so that they survive a crash or power cut right after the function returns; and their checksums."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors; they are on disk when this returns. Tied weights are written under each of their names."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(apart, file)
    with open(file, "rb") as f:
        os.fsync(f.fileno())


def write(file: Path, content: str | bytes) -> None:
    with open(file, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())


def replace(file: Path, content: str | bytes) -> None:
    """Write `file` atomically: after a full disk or a power cut the old file is still there. Makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(descriptor)
    partial = Path(name)
    try:
        write(partial, content)
        partial.chmod(0o666 & ~_umask())  # mkstemp lets only the owner read
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


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


def _umask() -> int:
    """The umask. Python can read it only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
