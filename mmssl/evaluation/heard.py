"""What an audio encoder hears in held-out recordings: its frames beside a spectrogram, and recordings in the plane."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmssl import figures
from mmssl.data.audio.recordings import Recordings

SHOWN = 500  # recordings in the plane, at most
SECONDS = 4  # of the recording with its frames, at most
LONGEST = 10  # seconds of each recording on the map: the time of an encoder may grow with the square of the length


@torch.no_grad()
def draw(encode: Callable[[Tensor], Tensor], held_out: Recordings, directory: Path) -> dict[str, str]:
    """Write context.png and, where the data has labels, map.png; returns file name -> caption.

    encode: (1, samples) float32 in [-1, 1] -> (frames, dim), on the CPU.
    """
    longest = int(held_out.lengths[:100].argmax())
    wave = held_out.wave(longest)[: SECONDS * held_out.rate]
    frames = encode(torch.from_numpy(wave)[None])
    figures.heard(wave, frames.float().numpy(), held_out.rate, directory / "context.png")
    captions = {"context.png": "A held-out recording and its context features."}
    usual = (name for name in ("label", "digit", "speaker") if name in held_out.data.column_names)
    labels = next((name for name in usual if 1 < len(set(held_out.data[name])) <= 20), None)
    if labels and len(held_out) > 2:
        rows = range(min(len(held_out), SHOWN))
        beginnings = (torch.from_numpy(held_out.wave(i)[: LONGEST * held_out.rate]) for i in rows)
        vectors = torch.stack([encode(wave[None]).mean(0) for wave in beginnings])
        names = [str(held_out.data[int(held_out.rows[i])][labels]) for i in rows]
        figures.label_map(vectors.float().numpy(), names, directory / "map.png")
        captions["map.png"] = (
            f"Held-out recordings by their mean context feature, coloured by {labels}. Training used no labels."
        )
    return captions
