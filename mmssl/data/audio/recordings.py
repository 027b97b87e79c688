"""Recordings for training: decoded and resampled once, kept on disk as 16-bit samples, cut at random."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from mmssl import bounded_json
from mmssl.data import columns, draws, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.audio import waves
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets


SILENCE = 1e-4  # largest sample, full scale being 1: below it a 16-bit recording holds nothing but its last bits
CHUNK = 256  # rows that are decoded at a time
ALONE = 2000  # rows that are decoded before a progress bar is worth showing


def load(names: str, column: str | None = None, speaker: str | None = None) -> dict[str, datasets.Dataset]:
    """{"train", "test" where there is one}, the recordings in the column "audio", who speaks in "speaker" where asked.

    names: what `sources.load` takes; several with commas between them, of which the first gives the test data and the
    others their recordings alone. Raises BadInput where a column is missing.
    """
    import datasets

    parts = [sources.load(name) for name in names.split(",")]
    for name, data in zip(names.split(","), parts, strict=True):
        for part, rows in data.items():
            data[part] = _named(f"--dataset {name}", rows, column, speaker)
    if len(parts) == 1:
        return parts[0]
    wanted = ["audio", "speaker"] if speaker else ["audio"]
    together = [data["train"].select_columns(wanted) for data in parts]
    if speaker:  # numbers here, names there
        together = [rows.cast_column("speaker", datasets.Value("string")) for rows in together]
    together = datasets.concatenate_datasets(together)
    return {"train": together} | ({"test": parts[0]["test"]} if "test" in parts[0] else {})


def _named(flag: str, rows: datasets.Dataset, column: str | None, speaker: str | None) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    found = columns.find(rows.column_names, column, columns.AUDIO, "audio", f"{flag}: ")
    if speaker is not None:
        columns.find(rows.column_names, speaker, (), "speaker", f"{flag}: ")
    try:  # paths, {bytes, path} and Audio become one and the same; what they hold is not touched
        rows = rows.cast_column(found, datasets.Audio(decode=False))
    except (TypeError, pa.ArrowException) as error:
        raise BadInput(f"{flag}: the column {found} is {rows.features[found]}: no recordings, no paths") from error
    for name, wanted in ((found, "audio"), (speaker, "speaker")):
        if name is not None and name != wanted:
            rows = rows.remove_columns([c for c in (wanted,) if c in rows.column_names]).rename_column(name, wanted)
    return rows


class Recordings(Dataset):
    """Crops of the recordings in the column "audio".

    rows, lengths: (usable,), which rows of `data` can be used, and their samples at sampling_rate, in Hz.
    crop:     samples; a shorter recording is padded with zeros. With a seed, a longer one is cut at random places, anew
              each epoch, as often as it is longer; without, its beginning is taken, once.
    shortest: samples; what is shorter is left out, as what is broken, empty or silent is: named, and counted.
    speakers: whether crops come with who speaks, as a number.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        sampling_rate: int,
        crop: int,
        shortest: int,
        seed: int | None = None,
        speakers: bool = False,
        what: str = "recordings",
    ) -> None:
        """Raises BadInput where too much is unusable."""
        self.data, self.rate, self.crop, self.seed, self.epoch = data, sampling_rate, crop, seed, 0

        def decode(directory: Path) -> None:
            with whole(directory) as place:
                _decode(data, sampling_rate, place, what)

        directory = once(sources.home() / "decoded" / _digest(data, sampling_rate), decode)
        with reading(directory):
            found = bounded_json.read(directory / "rows.json")
            lengths = torch.tensor(found["lengths"], dtype=torch.int64)
            unusable = {int(row): why for row, why in found["unusable"].items()}
            if (size := (directory / "samples.int16").stat().st_size) != 2 * lengths.sum():
                raise ValueError(f"samples.int16 holds {size:,} bytes, not {2 * lengths.sum().item():,}")
        short = [row for row, n in enumerate(found["lengths"]) if n < shortest and row not in unusable]
        unusable |= {row: f"{_path(data, row)} is shorter than {shortest / sampling_rate:.2f} s" for row in short}
        self.unusable = dict(sorted(unusable.items()))
        broken = [f"row {row}: {why}" for row, why in self.unusable.items()]
        columns.report_unusable({f"{what} that cannot be used": broken}, len(lengths))
        self.rows = torch.tensor([row for row in range(len(lengths)) if row not in unusable])
        ends = lengths.cumsum(0)
        self.starts, self.lengths = (ends - lengths)[self.rows], lengths[self.rows]
        self.samples = np.memmap(directory / "samples.int16", np.int16, mode="r")
        self.speaker = None
        if speakers:
            numbers = {name: i for i, name in enumerate(sorted(set(map(str, data["speaker"]))))}
            self.speaker = torch.tensor([numbers[str(name)] for name in data["speaker"]])[self.rows]
        often = torch.ones_like(self.lengths) if seed is None else (self.lengths // crop).clamp(min=1)
        self.crops = torch.repeat_interleave(torch.arange(len(self.rows)), often)  # which recording each is of

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def seconds(self) -> float:
        return self.lengths.sum().item() / self.rate

    def company(self, batch: int) -> float:
        """How many others by the same speaker a crop meets in a batch, on average."""
        share = torch.bincount(self.speaker[self.crops]) / len(self)
        return (batch - 1) * share.square().sum().item()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def wave(self, i: int) -> np.ndarray:
        """The whole recording, float32 in [-1, 1]."""
        return self.samples[self.starts[i] : self.starts[i] + self.lengths[i]].astype(np.float32) / 32768

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        """input_values: (batch, crop) float32. lengths: (batch,), samples that are no padding. index, speaker:
        (batch,)."""
        places = torch.tensor(places)
        chosen = self.crops[places]
        spare = (self.lengths[chosen] - self.crop).clamp(min=0)
        drawn = 0.0 if self.seed is None else draws.share(places, self.seed, self.epoch)
        first = self.starts[chosen] + torch.as_tensor(drawn * (spare + 1)).long()
        lengths = self.lengths[chosen].clamp(max=self.crop)
        crops = np.zeros((len(places), self.crop), np.float32)
        for crop, start, n in zip(crops, first.tolist(), lengths.tolist(), strict=True):
            crop[:n] = self.samples[start : start + n]
        batch = {"input_values": torch.from_numpy(crops / 32768), "lengths": lengths, "index": self.rows[chosen]}
        return batch if self.speaker is None else batch | {"speaker": self.speaker[chosen]}


def _decode(data: datasets.Dataset, sampling_rate: int, directory: Path, what: str) -> None:
    """Write samples.int16 and rows.json: {"lengths": of each row, "unusable": {row: why}}."""
    lengths, unusable = [], {}
    with (
        open(directory / "samples.int16", "wb") as file,
        tqdm(total=len(data), desc=f"decoding {what}", unit="recording", disable=len(data) < ALONE) as bar,
    ):
        for first in range(0, len(data), CHUNK):
            some = data.select(range(first, min(first + CHUNK, len(data))))
            for row, wave in enumerate(waves.read(some, "audio", sampling_rate, float("inf")), start=first):
                if not isinstance(wave, str) and np.abs(wave).max() < SILENCE:
                    wave = f"{_path(data, row)} is silent"
                if isinstance(wave, str):
                    unusable[row], wave = wave, np.empty(0, np.float32)
                file.write((wave * 32767).round().clip(-32768, 32767).astype(np.int16).tobytes())
                lengths.append(len(wave))
            bar.update(len(some))
    (directory / "rows.json").write_text(json.dumps({"lengths": lengths, "unusable": unusable}))


def _path(data: datasets.Dataset, row: int) -> str:
    return (data[row]["audio"] or {}).get("path") or ""


def _digest(data: datasets.Dataset, sampling_rate: int) -> str:
    """Changes with the rows, the files that they point to, and the rate."""
    import pyarrow.compute as pc

    digest = hashlib.sha256(f"{data._fingerprint} {sampling_rate} int16".encode())
    stored = data.data.column("audio")
    for path in pc.struct_field(stored, "path").filter(pc.is_null(pc.struct_field(stored, "bytes"))).to_pylist():
        if path is not None and os.path.exists(path):
            digest.update(f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
