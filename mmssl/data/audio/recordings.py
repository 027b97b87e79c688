"""Recordings for training: decoded and resampled once, kept on disk as 16-bit samples, cropped at random."""

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

from mmssl import bounded_json, progress
from mmssl.data import columns, draws, sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.audio import waves
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import datasets


CHUNK = 256  # rows decoded at a time
ALONE = 2000  # rows: with fewer, no progress bar is shown


def load(names: str, column: str | None = None, speaker: str | None = None) -> dict[str, datasets.Dataset]:
    """{"train": ..., "test": ... if there is one}. The recordings are in the column "audio" and, if `speaker` is given,
    the speakers in the column "speaker".

    names: what `sources.load` takes; or several, separated by commas: the first gives the test data, all of them
    training data. Raises BadInput if a column is missing.
    """
    import datasets

    listed = sources.listed(names)
    parts = [sources.load(name) for name in listed]
    for name, data in zip(listed, parts, strict=True):
        for part, rows in data.items():
            data[part] = _named(f"--dataset {name}", rows, column, speaker)
    if len(parts) == 1:
        return parts[0]
    wanted = ["audio", "speaker"] if speaker else ["audio"]
    together = [data["train"].select_columns(wanted) for data in parts]
    if speaker:  # some sources have numbers, others names
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
        raise BadInput(f"{flag}: the column {found} is {rows.features[found]}, not recordings or paths") from error
    for name, wanted in ((found, "audio"), (speaker, "speaker")):
        if name is not None and name != wanted:
            rows = rows.remove_columns([c for c in (wanted,) if c in rows.column_names]).rename_column(name, wanted)
    return rows


class Recordings(Dataset):
    """Crops of the recordings in the column "audio".

    rows, lengths: (usable,), the rows of `data` that can be used, and their lengths in samples at sampling_rate (Hz).
    crop:     samples; a shorter recording is padded with zeros. With a seed, a longer one gives length // crop crops,
              at random positions that are drawn again each epoch; without a seed, one crop, its beginning.
    shortest: samples; shorter recordings are left out, named and counted, as are corrupt, empty and silent ones.
    speakers: whether a batch holds the speaker of each crop, as a number.
    keys:     whether a batch holds a key of each crop, from which a method draws.
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
        keys: bool = False,
    ) -> None:
        """Raises BadInput if too many recordings are unusable."""
        self.data, self.rate, self.crop, self.seed, self.epoch = data, sampling_rate, crop, seed, 0
        self.keys = keys

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
        self.crops = torch.repeat_interleave(torch.arange(len(self.rows)), often)  # (crops,) the recording of each crop

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def seconds(self) -> float:
        return self.lengths.sum().item() / self.rate

    def company(self, batch: int) -> float:
        """The expected number of other crops by the same speaker in a batch."""
        fraction = torch.bincount(self.speaker[self.crops]) / len(self)
        return (batch - 1) * fraction.square().sum().item()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def wave(self, i: int) -> np.ndarray:
        """(samples,) float32 in [-1, 1]: the whole recording i."""
        return self.samples[self.starts[i] : self.starts[i] + self.lengths[i]].astype(np.float32) / 32768

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        """input_values: (batch, crop) float32. lengths: (batch,), samples without padding. index, speaker: (batch,).
        key: (batch,) int64, which changes with seed, epoch and crop."""
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
        if self.keys:
            batch["key"] = draws.draw(places, ~(self.seed or 0), self.epoch)
        return batch if self.speaker is None else batch | {"speaker": self.speaker[chosen]}


def _decode(data: datasets.Dataset, sampling_rate: int, directory: Path, what: str) -> None:
    """Write samples.int16 and rows.json: {"lengths": of each row, "unusable": {row: why}}."""
    lengths, unusable = [], {}
    with (
        open(directory / "samples.int16", "wb") as file,
        progress.bar(total=len(data), desc=f"decoding {what}", unit="recording", disable=len(data) < ALONE) as bar,
    ):
        for first in range(0, len(data), CHUNK):
            chunk = data.select(range(first, min(first + CHUNK, len(data))))
            for row, wave in enumerate(waves.read(chunk, "audio", sampling_rate, float("inf")), start=first):
                if not isinstance(wave, str) and np.abs(wave).max() < waves.SILENCE:
                    wave = f"{_path(data, row)} is silent"
                if isinstance(wave, str):
                    unusable[row], wave = wave, np.empty(0, np.float32)
                file.write((wave * 32767).round().clip(-32768, 32767).astype(np.int16).tobytes())
                lengths.append(len(wave))
            bar.update(len(chunk))
    if len(unusable) == len(data):  # raises: what is wrong with all of them may be mended, so it is not kept
        columns.unusable({f"{what} that cannot be used": [f"row {i}: {why}" for i, why in unusable.items()]}, len(data))
    (directory / "rows.json").write_text(json.dumps({"lengths": lengths, "unusable": unusable}))


def _path(data: datasets.Dataset, row: int) -> str:
    return (data[row]["audio"] or {}).get("path") or ""


def _digest(data: datasets.Dataset, sampling_rate: int) -> str:
    """A digest of the rows, the files that they point to, and the rate."""
    import pyarrow.compute as pc

    digest = hashlib.sha256(f"{data._fingerprint} {sampling_rate} int16".encode())
    stored = data.data.column("audio")
    for path in pc.struct_field(stored, "path").filter(pc.is_null(pc.struct_field(stored, "bytes"))).to_pylist():
        if path is not None and os.path.exists(path):
            digest.update(f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
