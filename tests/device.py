"""The device that the guarantees are tested on: the CPU, or the GPU with MMSSL_TEST_DEVICE=cuda.

    MMSSL_TEST_DEVICE=cuda pytest tests/test_{every_method,loop,steps,export}.py tests/methods

On a GPU, kernels are deterministic (as with --full_determinism), so that a resume must still be exact to the bit; TF32
is off, which rounds to 10 bits of mantissa; and what must agree up to rounding may differ by TOLERANCE, as sums are
taken in another order for another batch size. Two processes share one GPU over gloo, because NCCL refuses that.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from torch import Tensor, nn

NAME = "MMSSL_TEST_DEVICE"
DEVICE = torch.device(os.environ.get(NAME, "cpu"))
USE_CPU = DEVICE.type == "cpu"
TOLERANCE = 1e-5 if USE_CPU else 1e-4


def prepare() -> None:
    """In each process that trains on a GPU, before anything else does."""
    if USE_CPU:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # else DDP takes the local rank for the number of the GPU
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else a look at the GPU before a fork breaks it in the child
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def accelerator() -> Accelerator:
    return Accelerator(cpu=USE_CPU)


def placed(*values):
    """Modules, tensors, and lists and dicts of tensors, on the device; a single one as it is."""
    found = tuple(_placed(value) for value in values)
    return found if len(found) > 1 else found[0]


def _placed(value):
    if isinstance(value, (Tensor, nn.Module)):
        return value.to(DEVICE)
    if isinstance(value, dict):
        return {name: _placed(part) for name, part in value.items()}
    return [_placed(part) for part in value] if isinstance(value, list) else value
