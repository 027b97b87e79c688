"""Resolves --dataset to data: a built-in name, a file, a folder or a Hub id."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError

from mmssl.data import contents, file_tables, folders, media, readers
from mmssl.data.atomic import home, once
from mmssl.data.built_in import BUILT_IN, DRAWN, build
from mmssl.data.images.decoding import undecoded
from mmssl.errors import BadInput, first_line, not_written
from mmssl.plain_text import say

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


HUB_TIMEOUT = 10  # seconds
# in what Python, Arrow, `datasets` and the Hub's client say of a disk; only some of it has an errno
NOT_WRITTEN = ("No space left", "Not enough disk space", "quota exceeded", "Read-only file system", "Permission denied")
PARQUET_COPY = "refs/convert/parquet"  # the revision that the Hub makes of data in other formats


def load(name: str, *, texts: bool = False) -> dict[str, Dataset]:
    """{"train": ..., "test": ... if the source has held-out data}.

    name: a built-in name (made on first use); a file (.parquet .csv .tsv .jsonl .json .txt .tar; text also packed, as
    .gz .xz .bz2 .zst); a folder of such files, named after their split, of recordings (WAV, FLAC, OGG, MP3), or of
    images; what `save_to_disk` wrote; else a Hub id, "user/name" or "user/name:configuration".

    What is said of images and recordings is taken from a table that names them (see file_tables), or from a file of the
    same name beside an image: cat.jpg and cat.txt, one caption per line, or cat.json with a caption. texts: images and
    recordings are left alone, such as the logo beside a table of texts.
    """
    path = Path(name).expanduser()
    if name in DRAWN:
        raise BadInput(f"--dataset {name}: clips, for recipes on video, such as recipes/video_lstm.py")
    if name in BUILT_IN:
        path = _built(name)
    if path.is_file():
        if not texts and (parts := file_tables.read(path, file_tables.Files(near=path), readers.rows_of)):
            return named({part or "train": rows for part, rows in parts.items()})
        if (found := readers.reader(path)) is None:
            contents.refuse(f"--dataset {name}", contents.kind_of(path))
            raise BadInput(
                f"--dataset {name}: a {path.suffix or 'nameless'} file; can read {', '.join(readers.READERS)}"
            )
        return named(readers.read(found, {"train": [str(path)]}))
    if path.is_dir():
        return named(folders.load(path, texts))
    if _is_a_path(name):
        raise BadInput(f"--dataset {name}: no such file or folder")
    return named(_from_hub(name))


def listed(names: str) -> list[str]:
    """What --dataset names: one, whose name may hold commas, or several, separated by commas."""
    return [names] if Path(names).expanduser().exists() else names.split(",")


def shards(name: str, texts: bool = False) -> dict[str, list[str]] | None:
    """The Parquet or tar files of `load(name)`, {"train": paths or URLs, "test": ... if there is held-out data}; None
    if the data does not lie in such files. On the Hub: Parquet files, those of the repository or the Hub's own copy.
    texts: as in `load`."""
    path = Path(name).expanduser()
    if name in BUILT_IN:
        path = _built(name)
    if path.is_file():
        return {"train": [str(path)]} if readers.reader(path) in ("parquet", "webdataset") else None
    if path.is_dir():
        files = folders.listed(path)
        found = folders.shards(path, files, [] if texts else [f for f in files if media.kind(f.name)])
        return named(folders.by_split(path, found)) if found else None
    if _is_a_path(name):
        return None  # `load` says what is wrong
    return _shards_of_the_hub(name)


def _is_a_path(name: str) -> bool:
    """Whether this is the name of a file or folder, which may not exist, and not that of data on the Hub."""
    path = Path(name).expanduser()
    at_home = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return at_home or contents.suffix(path) in readers.READERS


def split(
    data: dict[str, Dataset], held_out: int, seed: int = 0, together: str | None = None
) -> tuple[Dataset, Dataset]:
    """(train, held out): the source's own test data, or `held_out` rows of the training data, always the same ones and
    at most a tenth of them.

    together: a column of images; rows with the same image stay in the same part.
    """
    train, test = data["train"], data.get("test")
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
    stored = undecoded(rows.select_columns(column), column)
    images = (row[column] or {"bytes": None, "path": None} for row in stored)
    stored_as = (image["bytes"] or f"path {image['path']}".encode(errors="surrogateescape") for image in images)
    # 8 bytes for each row, as there may be very many; where two images share them, they only stay together
    keys = np.fromiter((int.from_bytes(hashlib.sha256(each).digest()[:8], "little") for each in stored_as), np.uint64)
    _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    order = np.empty_like(first)
    order[first.argsort()] = np.arange(len(first))
    return order[numbers]


def named(data: DatasetDict | dict) -> dict:
    """The splits as "train" and "test". "test" is the first split, in the order of folders.HELD_OUT_NAMES, whose labels
    are public. If no split is called "train" (LibriSpeech: "train.100"), it is the first that is not a held-out one."""
    kinds = {name: name.partition(".")[0] for name in data}
    held_out_names = (name for kind in folders.HELD_OUT_NAMES for name in data if kinds[name] == kind)
    held_out = next((data[name] for name in held_out_names if not _secret(data[name])), None)
    others = [rows for name, rows in data.items() if kinds[name] not in folders.HELD_OUT_NAMES]
    train = data["train"] if "train" in data else next(iter([*others, *data.values()]))
    return {"train": train} | ({"test": held_out} if held_out is not None and held_out is not train else {})


def _secret(rows: object) -> bool:
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


def _from_hub(name: str) -> DatasetDict:
    from datasets import load_dataset

    repository, _, configuration = name.partition(":")
    try:
        if not HF_HUB_OFFLINE:
            HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)  # load_dataset would try for half a minute
        return load_dataset(repository, configuration or None)
    except Exception as error:
        raise _not_found(name, error) from error


def _not_found(name: str, error: Exception) -> BadInput:
    if "Config name is missing" in str(error):
        which = " ".join(str(error).split())
        return BadInput(f"--dataset {name}: choose a configuration, --dataset {name}:configuration. {which}")
    cause = error.__cause__ or error
    if any(words in str(cause) for words in NOT_WRITTEN):
        return not_written(Path(HF_HOME), cause)
    answered = HF_HUB_OFFLINE or isinstance(error, HfHubHTTPError)
    remedy = "" if answered else ". If it was downloaded before, set HF_HUB_OFFLINE=1"
    remedy = ". Revisions are not supported: leave out @ and what follows" if "@" in name else remedy
    return BadInput(
        f"--dataset {name}: not a file or folder here, not one of the built-in {', '.join(BUILT_IN)}, and the Hub "
        f"answered: {type(error).__name__}: {first_line(error)}{remedy}"
    )


def _shards_of_the_hub(name: str) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    repository, _, configuration = name.partition(":")
    for revision in (None, PARQUET_COPY):
        try:
            if not HF_HUB_OFFLINE:
                HfApi().dataset_info(repository, timeout=HUB_TIMEOUT)
            found = load_dataset_builder(repository, configuration or None, revision=revision).config.data_files
        except Exception as error:
            if revision:
                continue
            raise _not_found(name, error) from error
        files = {str(part): list(urls) for part, urls in (found or {}).items()}
        if files and all(url.endswith(".parquet") for urls in files.values() for url in urls):
            return named(files)
    raise BadInput(
        f"--dataset {name} --streaming: it holds no Parquet files, and the Hub has no copy in that format; download it "
        f"(hf download {repository} --repo-type dataset --local-dir my_folder) and give that folder"
    )
