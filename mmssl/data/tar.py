"""Tar files of samples (webdataset), read where they lie: a Reader, see data.shards, whose blocks are runs of them."""

from __future__ import annotations

import copy
import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl import bounded_json
from mmssl.data import sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.media import IMAGES
from mmssl.data.webdataset import FIRST, MAX_MEMBER, TEXTS, caption_of
from mmssl.errors import BadInput, first_line

if TYPE_CHECKING:
    from datasets import Features

FORMAT = 2  # version of the index on disk
RUN = 128  # samples in a block
LONGEST_TEXT = 1 << 20  # bytes that are read of a text


class Tar:
    """Samples of tar files, as webdataset has them: members that share a folder and the part of their name before the
    first dot. A sample without an image is no row.

    files: paths. columns: suffixes of members, without the dot, in lower case; "caption": that of the JSON member.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str]) -> None:
        """Raises BadInput if a file cannot be read."""
        self.files, self.columns, self.indexed = files, list(columns), list(columns)
        found = [_members(file, ["json" if column == "caption" else column for column in columns]) for file in files]
        count = np.array([len(each) for each in found])
        # (rows, columns, 2) int64: first byte, and how many; -1 where a sample has no such member
        self.place = np.concatenate(found).reshape(-1, len(columns), 2)
        self.first_of_file = np.concatenate([[0], count.cumsum()])
        starts = zip(self.first_of_file, count, strict=False)
        self.first = np.concatenate([*(np.arange(start, start + n, RUN) for start, n in starts), [count.sum()]])
        sizes = np.concatenate([[0], self.place[:, :, 1].clip(0).sum(1).cumsum()])
        self.size = np.diff(sizes[self.first])

    def __len__(self) -> int:
        return len(self.place)

    @property
    def features(self) -> Features:
        from datasets import Features, Image, Value

        kinds = {"cls": Value("int64")}
        return Features({c: Image() if f".{c}" in IMAGES else kinds.get(c, Value("string")) for c in self.columns})

    def only(self, columns: Sequence[str]) -> Tar:
        other = copy.copy(self)
        other.columns = list(columns)
        return other

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        found: list = []
        for row in rows:
            file = self.files[int(np.searchsorted(self.first_of_file, row, side="right")) - 1]
            with open(file, "rb") as opened:
                found.append({column: self._value(opened, file, row, column) for column in self.columns})
        return found

    def _value(self, opened, file: str, row: int, column: str) -> Any:
        start, length = map(int, self.place[row, self.indexed.index(column)])
        if start < 0:
            return None
        opened.seek(start)
        if f".{column}" in IMAGES:
            return {"bytes": opened.read(length), "path": f"{file}, byte {start:,}"}
        text = opened.read(min(length, LONGEST_TEXT))
        try:
            if column == "caption":
                return caption_of(bounded_json.loads(text.decode()))
            return int(text) if column == "cls" else text.decode()
        except ValueError:  # no JSON, no number or no UTF-8: as if the sample had no such member
            return None


def kinds(files: Sequence[str]) -> list[str]:
    """The columns of tar files: suffixes of their first members, and "caption" where only JSON members have one."""
    found, seen = set(), 0
    for file in files:
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    found.add(_kind(member.name))
                    seen += 1
                    if seen >= FIRST:
                        break
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        if seen >= FIRST:
            break
    known = sorted(kind for kind in found if f".{kind}" in IMAGES or kind in (*TEXTS, "cls"))
    return [*known, "caption"] if "json" in found and not found & set(TEXTS) else known


def _kind(name: str) -> str:
    """The suffix of a member as webdataset has it, all behind the first dot, in lower case; "" of a hidden one."""
    stem, _, kind = name.rpartition("/")[2].partition(".")
    return kind.lower() if stem else ""


def _members(file: str, kinds: Sequence[str]) -> np.ndarray:
    """(samples, 2 * kinds) int64: first byte of each member of that kind, and how many; -1 where there is none. Samples
    without the first kind are left out; if it is an image, an image of any other format is one. Read from the headers
    once, then from a file."""
    about = os.stat(file)
    state = f"{Path(file).resolve()} {about.st_size} {about.st_mtime_ns} {' '.join(kinds)} {FORMAT}"

    def write(directory: Path) -> None:
        found: dict[str, np.ndarray] = {}
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    tar.members = []  # else it keeps them all
                    kind = _kind(member.name)
                    if f".{kind}" in IMAGES and f".{kinds[0]}" in IMAGES:
                        kind = kinds[0]  # an image is one whatever its format
                    if not member.isfile() or kind not in kinds:
                        continue
                    if member.size > MAX_MEMBER or member.issparse():
                        raise BadInput(f"{file}: {member.name} is sparse or has over {MAX_MEMBER:,} bytes; remove it")
                    folder, _, name = member.name.rpartition("/")
                    sample = found.setdefault(f"{folder}/{name.partition('.')[0]}", np.full((len(kinds), 2), -1))
                    if sample[kinds.index(kind), 0] < 0:  # of two images, the first
                        sample[kinds.index(kind)] = member.offset_data, member.size
        except (OSError, tarfile.TarError) as error:
            raise BadInput(f"{file} could not be read as a tar file: {first_line(error)}") from error
        places = np.array([sample for sample in found.values() if sample[0, 0] >= 0], dtype=np.int64)
        with whole(directory) as place:
            np.save(place / "members.npy", places.reshape(-1, 2 * len(kinds)))

    directory = once(sources.home() / "indexed" / hashlib.sha256(state.encode()).hexdigest()[:32], write)
    with reading(directory):
        return np.load(directory / "members.npy")
