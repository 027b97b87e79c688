"""Resolves --dataset to data: a built-in name, a file, a folder or a Hub id."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError

from mmssl import bounded_json
from mmssl.arguments import check_text
from mmssl.data import contents, regular_files
from mmssl.data.atomic import once, whole
from mmssl.data.built_in import BUILT_IN, build
from mmssl.data.images.decoding import undecoded
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from mmssl.data.images.decoding import Data


READERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".txt": "text",
    ".tar": "webdataset",
}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
HELD_OUT_NAMES = ("test", "validation", "valid", "val", "dev")
RUN = (".mmssl", "manifest.json")  # in the directory of every run, see training.output_dir
HUB_TIMEOUT = 10  # seconds
MAX_TABLE = 1 << 30  # bytes of a table of captions; it is held in memory as Python strings
BLOCK = 1 << 24  # bytes
MAX_MEMBER = 1 << 30  # bytes of a member of a tar file; each is held in memory whole


def home() -> Path:
    """The folder of built-in and decoded data: MMSSL_HOME, or mmssl/ in the Hugging Face cache."""
    given = os.environ.get("MMSSL_HOME")
    if not given:  # unset, or set to nothing
        return Path(HF_HOME) / "mmssl"
    check_text("MMSSL_HOME", given)
    return Path(given).expanduser()


def load(name: str, *, streaming: bool = False) -> dict[str, Data]:
    """{"train": ..., "test": ... if the source has held-out data}.

    name: a built-in name (made on first use); a file (.parquet .csv .tsv .jsonl .txt .tar; text also packed, as .gz .xz
    .bz2 .zst); a folder of such files, named after their split, of recordings (WAV, FLAC, OGG, MP3), or of images with
    captions; else a Hub id, "user/name" or "user/name:configuration".

    Images with captions, in a folder: `metadata.csv` or `metadata.jsonl` with a `file_name` column (imagefolder); or a
    text file beside each image, one caption per line (cat.jpg, cat.txt); or `captions.csv` / `captions.txt` with a
    header and one file name and caption per row, one row for each caption (the format of Flickr8k).
    """
    path = Path(name).expanduser()
    if name in BUILT_IN:
        path = _built(name)
    if path.is_file():
        if (found := reader(path)) is None:
            contents.refuse(f"--dataset {name}", contents.kind_of(path))
            raise BadInput(f"--dataset {name}: a {path.suffix or 'nameless'} file; can read {', '.join(READERS)}")
        return _named(_read(found, {"train": [str(path)]}, streaming))
    if path.is_dir():
        return _named(_folder(path, streaming))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or contents.suffix(path) in READERS:
        raise BadInput(f"--dataset {name}: no such file or folder")
    return _named(_from_hub(name, streaming))


def reader(file: Path) -> str | None:
    """The builder of `datasets` for a file, by its first bytes, else by its name; None if neither tells."""
    readers = {"parquet": "parquet", "tar": "webdataset"}
    return readers.get(contents.kind_of(file)) or READERS.get(contents.suffix(file))


def split(data: dict[str, Data], held_out: int, seed: int = 0, together: str | None = None) -> tuple[Data, Dataset]:
    """(train, held out): the source's own test data, or `held_out` rows of the training data, always the same ones and
    at most a tenth of them. A stream holds out the first `held_out` rows of its test data, else of its training data.

    together: a column of images; rows with the same image stay in the same part.
    """
    from datasets import IterableDataset

    train, test = data["train"], data.get("test")
    if isinstance(train, IterableDataset):
        return _split_stream(train, test, held_out)
    if test is not None:
        return train, test
    if len(train) < 2:
        raise BadInput(f"the data has {len(train)} rows: too few to train on some and hold out others")
    wanted = max(1, min(held_out, len(train) // 10))
    groups = _groups(train, together) if together else np.arange(len(train))
    if groups.max() == len(train) - 1:  # no row repeats another
        parts = train.train_test_split(test_size=wanted, seed=seed)
        return parts["train"], parts["test"]
    drawn = np.random.default_rng(seed).permutation(groups.max() + 1)
    rows_so_far = np.bincount(groups)[drawn].cumsum()
    held = np.isin(groups, drawn[: max(1, np.searchsorted(rows_so_far, wanted, side="right"))])
    if held.all():
        raise BadInput(f"all {len(train)} rows hold the same image: none is left to train on")
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def _groups(rows: Dataset, column: str) -> np.ndarray:
    """(rows,) int: equal numbers for equal images, counted in the order in which they first occur."""
    numbers: dict[bytes | str, int] = {}
    stored = undecoded(rows.select_columns(column), column)
    images = (row[column] or {"bytes": None, "path": None} for row in stored)
    keys = (hashlib.sha256(image["bytes"]).digest() if image["bytes"] else image["path"] for image in images)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _split_stream(train: IterableDataset, test: IterableDataset | None, held_out: int) -> tuple[Data, Dataset]:
    from datasets import Dataset

    train, test = (part.decode(False) if part is not None and part.features else part for part in (train, test))
    source = train if test is None else test
    rows = list(source.take(held_out))
    if not rows:
        raise BadInput("the stream is empty, or --held_out is 0: nothing to evaluate on")
    if test is None:
        # by content: `skip` counts from 0 in every shard, so that processes and workers would train on held-out rows
        held = {_digest(row) for row in rows}
        train = train.filter(lambda row: _digest(row) not in held)
    return train, Dataset.from_list(rows, features=source.features)


def _digest(row: dict) -> bytes:
    return hashlib.sha256(repr(sorted(row.items())).encode()).digest()


def _named(data: DatasetDict | IterableDatasetDict | dict) -> dict[str, Data]:
    """The splits as "train" and "test". "test" is the first split, in the order of HELD_OUT_NAMES, whose labels are
    public. If no split is called "train" (LibriSpeech: "train.100"), it is the first that is not a held-out one."""
    kinds = {name: name.partition(".")[0] for name in data}
    held_out_names = (name for kind in HELD_OUT_NAMES for name in data if kinds[name] == kind)
    held_out = next((data[name] for name in held_out_names if not _secret(data[name])), None)
    others = [rows for name, rows in data.items() if kinds[name] not in HELD_OUT_NAMES]
    train = data["train"] if "train" in data else next(iter([*others, *data.values()]))
    return {"train": train} | ({"test": held_out} if held_out is not None and held_out is not train else {})


def _secret(rows: Data) -> bool:
    """True if every label is -1, as in the test data of a public benchmark (GLUE). Prints that the data is skipped."""
    from accelerate import PartialState
    from datasets import Dataset

    if not isinstance(rows, Dataset) or "label" not in rows.column_names or not _is_integer(rows.features["label"]):
        return False
    secret = rows.unique("label") == [-1]
    if secret and PartialState().is_main_process:
        say(f"skipped the {rows.split or 'test'} data: its labels are all -1, kept secret by its authors")
    return secret


def _is_integer(feature) -> bool:
    from datasets import ClassLabel, Value

    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith("int"))


def _built(name: str) -> Path:
    """The folder of the built-in data, made first if it does not exist."""
    return once(home() / name, partial(build, name))


def _folder(path: Path, streaming: bool) -> DatasetDict | IterableDatasetDict | dict:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        check_text("--dataset: the name", str(file.relative_to(path)))
    for suffix in (".parquet", ".tar"):
        if found := [f for f in files if contents.suffix(f) == suffix and f.stem != "metadata"]:
            return _read(READERS[suffix], by_split(path, found), streaming)
    refuse_runs(path, files)
    images = [f for f in files if f.suffix.lower() in IMAGES]
    if images:
        table = next((path / t for t in ("captions.csv", "captions.txt") if (path / t).is_file()), None)
        if table is None and not any(p.with_suffix(".txt").exists() for p in images):
            return _read("imagefolder", None, streaming, data_dir=str(path))
        rows = _sidecars(images) if table is None else _caption_table(path, table, images)
        return {"train": rows.to_iterable_dataset() if streaming else rows}
    if sounds := [f for f in files if f.suffix.lower() in SOUNDS]:
        parts = {part: _sounds(found) for part, found in by_split(path, sounds).items()}
        return {part: rows.to_iterable_dataset() for part, rows in parts.items()} if streaming else parts
    tables = [f for f in files if contents.suffix(f) in READERS]
    if not tables:
        raise BadInput(f"--dataset {path}: no image, no recording and none of {', '.join(READERS)} in this folder")
    suffix = contents.suffix(tables[0])
    return _read(READERS[suffix], by_split(path, [f for f in tables if contents.suffix(f) == suffix]), streaming)


def refuse_runs(root: Path, files: list[Path]) -> None:
    """Raise BadInput if a run of mmssl is among the files of a folder of data: its figures, texts and tables would be
    read as data."""
    if run := next((file.parents[1] for file in files if file.parts[-2:] == RUN), None):
        raise BadInput(f"--dataset {root} holds a run of mmssl, {run}, which would be read as data: move it elsewhere")


def by_split(root: Path, files: list[Path]) -> dict[str, list[str]]:
    """Files by split: a held-out name with which the file or a folder above it begins, otherwise "train"."""
    splits: dict[str, list[str]] = {}
    for file in files:
        words = [re.split(r"[\W\d_]", part.lower())[0] for part in file.relative_to(root).parts]  # dev-00.tar: dev
        name = next((n for n in HELD_OUT_NAMES if n in words), "train")
        splits.setdefault(name, []).append(str(file))
    return splits


def _sidecars(images: list[Path]) -> Dataset:
    captions = {}
    for image in images:
        text = image.with_suffix(".txt")
        captions[image] = _text(text).splitlines() if text.is_file() else []
    return _captioned(captions)


def _sounds(files: list[str]) -> Dataset:
    """Paths, each with the name of its folder as its label; data/audio/waves.py decodes them."""
    from datasets import Dataset

    return Dataset.from_dict({"audio": files, "label": [Path(file).parent.name for file in files]})


def _caption_table(root: Path, table: Path, images: list[Path]) -> Dataset:
    by_name = {p.name: p for p in images} | {p.relative_to(root).as_posix(): p for p in images}
    lines = _text(table).splitlines()
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    captions: dict[Path, list[str]] = {}
    for number, row in enumerate(_csv_rows(table, csv.reader(lines, delimiter=delimiter)), start=1):
        if not row or (number == 1 and row[0] not in by_name):  # a header
            continue
        if len(row) < 2:
            raise BadInput(f"{table}, line {number}: no {delimiter!r} between a file name and its caption: {row[0]!r}")
        # a missing file is reported later, with the images that cannot be decoded. An unquoted comma is text
        image = by_name.get(row[0], root / row[0])
        captions.setdefault(image, []).append(delimiter.join(row[1:]).strip())
    if not captions:
        raise BadInput(f"{table} has no row under its header")
    return _captioned(captions)


def _csv_rows(table: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:  # a field of more than 131,072 characters
        raise BadInput(
            f"{table}, up to line {rows.line_num}: {error}; is a quotation mark before it not closed?"
        ) from error


def _captioned(captions: dict[Path, list[str]]) -> Dataset:
    from datasets import Dataset, Image

    rows = {"image": [str(p) for p in captions], "captions": list(captions.values())}
    return Dataset.from_dict(rows).cast_column("image", Image())


def _text(file: Path) -> str:
    try:
        return contents.decoded(regular_files.read(file, MAX_TABLE))
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text: {error}") from error
    except BadInput as error:
        raise BadInput(f"{file} {error}") from error


def _from_hub(name: str, streaming: bool) -> DatasetDict | IterableDatasetDict:
    from datasets import load_dataset

    repository, _, configuration = name.partition(":")
    try:
        if not HF_HUB_OFFLINE:
            HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)  # load_dataset would try for half a minute
        return load_dataset(repository, configuration or None, streaming=streaming)
    except Exception as error:
        answered = HF_HUB_OFFLINE or isinstance(error, HfHubHTTPError)
        offline = "" if answered else ". If it was downloaded before, set HF_HUB_OFFLINE=1"
        raise BadInput(
            f"--dataset {name}: not a file or folder here, not one of the built-in {', '.join(BUILT_IN)}, and the Hub "
            f"answered: {type(error).__name__}: {first_line(error)}{offline}"
        ) from error


def _read(reader: str, files: dict[str, list[str]] | None, streaming: bool, **kwargs):
    from datasets import load_dataset

    if reader in ("csv", "json", "text"):
        files = {part: [str(_plain(Path(file))) for file in given] for part, given in files.items()}
    tables = [Path(file) for part in (files or {}).values() for file in part] if reader == "json" else []
    if reader == "imagefolder":
        tables = [table for table in Path(kwargs["data_dir"]).rglob("metadata.jsonl") if table.is_file()]
    try:
        for table in tables:
            bounded_json.check(table)
    except bounded_json.NotJson as error:
        raise BadInput(f"--dataset {table}: {error}") from error
    if reader == "csv":  # only an empty field is missing: pandas drops the words null, None, NA and nan, too
        kwargs |= {"sep": _separator(files), "keep_default_na": False, "na_values": [""]}
    if reader == "webdataset" and not streaming:
        for file in (file for part in files.values() for file in part):
            _check_members(file)
    try:
        return load_dataset(reader, data_files=files, streaming=streaming, **kwargs)
    except Exception as error:
        where = kwargs.get("data_dir") or ", ".join(f for part in (files or {}).values() for f in part[:3])
        cause = error.__cause__ or error
        raise BadInput(f"{where} could not be read as {reader}: {type(cause).__name__}: {cause}") from error


def _plain(file: Path) -> Path:
    """The file, or its content as UTF-8 in the folder of caches where it is packed or has a byte order mark."""
    if not file.is_file() or contents.is_plain(file):
        return file
    state = f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}"

    def write(directory: Path) -> None:
        with whole(directory) as place, open(place / name, "wb") as plain:
            for block in contents.text(file, BLOCK):
                plain.write(block)

    name = file.name
    while Path(name).suffix.lower() in contents.PACKED:
        name = Path(name).stem
    return once(home() / "unpacked" / hashlib.sha256(state.encode()).hexdigest()[:24], write) / name


def _separator(files: dict[str, list[str]]) -> str:
    """Of the columns: a tab if the first line of the first file holds one, else a comma, else a semicolon (as Excel
    writes where the comma is the decimal mark)."""
    with open(next(file for part in files.values() for file in part), "rb") as file:
        header = file.readline(BLOCK)
    return next((separator for separator in "\t,;" if separator.encode() in header), ",")


def _check_members(file: str) -> None:
    """Raises BadInput where a member is larger than MAX_MEMBER: a sparse one takes no space in the tar file."""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.size > MAX_MEMBER:
                    raise BadInput(
                        f"--dataset {file}: {member.name} holds {member.size / 1e6:,.0f} MB, more than the "
                        f"{MAX_MEMBER / 1e6:,.0f} MB that are read; remove it"
                    )
    except tarfile.TarError:
        return  # what is wrong with it is said when it is read
