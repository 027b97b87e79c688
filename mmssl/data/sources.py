"""Resolves --dataset to data: a built-in name, a file, a folder or a Hub id."""

from __future__ import annotations

import hashlib
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError

from mmssl import bounded_json
from mmssl.arguments import check_text
from mmssl.data import columns, contents, file_tables, webdataset
from mmssl.data.atomic import once, whole
from mmssl.data.built_in import BUILT_IN, DRAWN, build
from mmssl.data.file_tables import media
from mmssl.data.images.decoding import undecoded
from mmssl.distributed import rank
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
SIDECARS = (".caption", ".txt")  # texts about an image of the same name
ARCHIVES = (".zip", ".tgz", ".gz", ".7z", ".rar")
CONVERT = {
    **dict.fromkeys((".m4a", ".aac", ".wma", ".amr", ".mp4"), "ffmpeg -i in.m4a out.flac"),
    **dict.fromkeys((".heic", ".heif", ".avif"), "heif-convert in.heic out.jpg"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf"), "soffice --convert-to txt"),
    **dict.fromkeys((".pdf",), "pdftotext"),
}
HELD_OUT_NAMES = ("test", "validation", "valid", "val", "dev")
RUN = (".mmssl", "manifest.json")  # in the directory of every run, see training.output_dir
HUB_TIMEOUT = 10  # seconds
PARQUET_COPY = "refs/convert/parquet"  # the revision that the Hub makes of data in other formats
BLOCK = 1 << 24  # bytes


def home() -> Path:
    """The folder of built-in and decoded data: MMSSL_HOME, or mmssl/ in the Hugging Face cache."""
    given = os.environ.get("MMSSL_HOME")
    if not given:  # unset, or set to nothing
        return Path(HF_HOME) / "mmssl"
    check_text("MMSSL_HOME", given)
    return Path(given).expanduser()


def load(name: str, *, streaming: bool = False, texts: bool = False) -> dict[str, Data]:
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
        if not texts and (parts := file_tables.read(path, file_tables.Files(near=path), _rows)):
            return named(_streamed({part or "train": rows for part, rows in parts.items()}, streaming))
        if (found := reader(path)) is None:
            contents.refuse(f"--dataset {name}", contents.kind_of(path))
            raise BadInput(f"--dataset {name}: a {path.suffix or 'nameless'} file; can read {', '.join(READERS)}")
        return named(_read(found, {"train": [str(path)]}, streaming))
    if path.is_dir():
        return named(_folder(path, streaming, texts))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or contents.suffix(path) in READERS:
        raise BadInput(f"--dataset {name}: no such file or folder")
    return named(_from_hub(name, streaming))


def reader(file: Path) -> str | None:
    """The builder of `datasets` for a file, by its first bytes, else by its name; None if neither tells."""
    readers = {"parquet": "parquet", "tar": "webdataset"}
    return readers.get(contents.kind_of(file)) or READERS.get(contents.suffix(file))


def shards(name: str) -> dict[str, list[str]] | None:
    """The Parquet or tar files of `load(name)`, {"train": paths or URLs, "test": ... if there is held-out data}; None
    if the data does not lie in such files. On the Hub: Parquet files, those of the repository or the Hub's own copy."""
    path = Path(name).expanduser()
    if name in BUILT_IN:
        path = _built(name)
    if path.is_file():
        return {"train": [str(path)]} if reader(path) in ("parquet", "webdataset") else None
    if path.is_dir():
        files = listed(path)
        found = _shards(files, [f for f in files if media(f.name)])
        return named(by_split(path, found)) if found else None
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or contents.suffix(path) in READERS:
        return None  # `load` says what is wrong
    return _shards_of_the_hub(name)


def _shards(files: list[Path], named: list[Path]) -> list[Path]:
    """The tar files of a folder, else its Parquet files, unless they are tables about its images and recordings."""
    for suffix in (".tar", ".parquet"):  # img2dataset writes a Parquet file about each tar file
        found = [f for f in files if contents.suffix(f) == suffix and f.stem != "metadata"]
        if found and not (named and suffix == ".parquet" and file_tables.is_about(found[0], named)):
            return found
    return []


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
    stored = undecoded(rows.select_columns(column), column)
    images = (row[column] or {"bytes": None, "path": None} for row in stored)
    stored_as = (image["bytes"] or f"path {image['path']}".encode(errors="surrogateescape") for image in images)
    # 8 bytes for each row, as there may be very many; where two images share them, they only stay together
    keys = np.fromiter((int.from_bytes(hashlib.sha256(each).digest()[:8], "little") for each in stored_as), np.uint64)
    _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    order = np.empty_like(first)
    order[first.argsort()] = np.arange(len(first))
    return order[numbers]


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


def named(data: DatasetDict | IterableDatasetDict | dict) -> dict[str, Data]:
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


def _folder(path: Path, streaming: bool, texts: bool) -> DatasetDict | IterableDatasetDict | dict:
    files = listed(path)
    for file in files:
        check_text("--dataset: the name", str(file.relative_to(path)))
    if {"dataset_dict.json", "state.json"} & {file.name for file in files if file.parent == path}:
        return _streamed(_saved(path), streaming)
    named = [] if texts else [f for f in files if media(f.name)]
    if found := _shards(files, named):
        return _read(READERS[contents.suffix(found[0])], by_split(path, found), streaming)
    refuse_runs(path, files)
    if parts := _tables(path, files, named) or _captioned(path, files, named):
        return _streamed(parts, streaming)
    if images := [f for f in named if media(f.name) == "image"]:
        return _streamed(_pictures(path, images), streaming)
    if named:
        return _streamed({part: _sounds(found) for part, found in by_split(path, named).items()}, streaming)
    tables = [f for f in files if contents.suffix(f) in READERS]
    if not tables:
        raise BadInput(
            f"--dataset {path}: no image, no recording and none of {', '.join(READERS)} in this folder{_remedy(files)}"
        )
    suffix = contents.suffix(tables[0])
    return _read(READERS[suffix], by_split(path, [f for f in tables if contents.suffix(f) == suffix]), streaming)


def listed(root: Path) -> list[Path]:
    """The files below a folder, sorted, also those behind links. Hidden ones are left out, and what macOS and Jupyter
    put beside others: ._cat.jpg, __MACOSX, .ipynb_checkpoints."""
    found, been = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.stat(folder)
        known = (place.st_dev, place.st_ino) in been
        been.add((place.st_dev, place.st_ino))
        # a folder that links to one above it would be walked for ever
        shown = [name for name in folders if not name.startswith((".", "__MACOSX")) or name == RUN[0]]
        folders[:] = [] if known else shown
        found += [] if known else [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _remedy(files: list[Path]) -> str:
    """What can be done with files that cannot be read."""
    if archive := next((f for f in files if f.suffix.lower() in ARCHIVES), None):
        return f"; unpack {archive.name}"
    if other := next((f for f in files if f.suffix.lower() in CONVERT), None):
        kind = other.suffix.lower()
        count = sum(f.suffix.lower() == kind for f in files)
        return f"; it holds {count:,} {kind} files, which are not read: convert them with {CONVERT[kind]}"
    return ""


def _pictures(root: Path, images: list[Path]) -> dict[str, Dataset]:
    """Images, with the names of their folders as labels if all lie equally deep in several. A folder's name makes a
    split only if it begins with its name: `datasets` takes the class "training wheels" for the split "train"."""
    from datasets import ClassLabel, Dataset, Image

    splits = {"train", "training", *HELD_OUT_NAMES}
    places = {image: [p for p in image.relative_to(root).parts[:-1] if p.lower() not in splits] for image in images}
    labels = sorted({place[-1] for place in places.values() if place})
    classes = len(labels) > 1 and len({len(place) for place in places.values()}) == 1
    parts = {}
    for part, chosen in by_split(root, images).items():
        rows = Dataset.from_dict({"image": chosen}).cast_column("image", Image())
        if classes:
            numbers = {name: number for number, name in enumerate(labels)}
            of = [numbers[places[Path(image)][-1]] for image in chosen]
            rows = rows.add_column("label", of).cast_column("label", ClassLabel(names=labels))
        parts[part] = rows
    return parts


def _streamed(parts: dict[str, Dataset], streaming: bool) -> dict[str, Data]:
    return {part: rows.to_iterable_dataset() for part, rows in parts.items()} if streaming else dict(parts)


def _saved(path: Path) -> dict[str, Dataset]:
    """What `save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:
        raise BadInput(f"--dataset {path} could not be read: {type(error).__name__}: {first_line(error)}") from error
    return {"train": found} if isinstance(found, Dataset) else found


def _tables(root: Path, files: list[Path], named: list[Path]) -> dict[str, Dataset]:
    """The rows of the tables that name the images or recordings of a folder, by split; empty if there are none."""
    from datasets import concatenate_datasets

    if not named:
        return {}
    beside = {(file.parent, file.stem) for file in named}  # a text beside an image is about that image alone
    tables = [f for f in files if contents.suffix(f) in file_tables.SUFFIXES and (f.parent, f.stem) not in beside]
    tables = [f for f in tables if "caption" in f.stem.lower()] or tables  # COCO has others, of the same images
    known, parts, seen, train = file_tables.Files(named), {}, {}, False
    # tables that name their split come first: Common Voice's "validated" holds the rows of its other tables, too
    for table in sorted(tables, key=lambda f: (_split_word(f) is None, len(f.name), f)):
        word = _split_word(table)
        if word is None and train:
            break
        if table.name.lower() == "metadata.jsonl":
            _check_json(table)
        for split, rows in (file_tables.read(table, known, _rows) or {}).items():
            part = split or word or "train"
            train = train or word == "train"
            kind = "image" if "image" in rows.column_names else "audio"
            paths = set(_paths(rows, kind))
            if 2 * len(paths & seen.setdefault(part, set())) > len(paths):
                if rank() == 0:
                    say(f"left out {table}: it names the same files as another table")
                continue
            seen[part] |= paths
            parts.setdefault(part, []).append(rows)
    together = {}
    for part, several in parts.items():
        common = [c for c in several[0].column_names if all(c in rows.column_names for rows in several)]
        common = [c for c in common if len({repr(rows.features[c]) for rows in several}) == 1]
        together[part] = concatenate_datasets([rows.select_columns(common) for rows in several])
    return _by_place(root, together["train"]) if list(together) == ["train"] and not train else together


def _paths(rows: Dataset, kind: str) -> list[str | None]:
    import pyarrow.compute as pc

    column = rows.data.column(kind)
    return (column if kind == "audio" else pc.struct_field(column, "path")).to_pylist()


def _by_place(root: Path, rows: Dataset) -> dict[str, Dataset]:
    """The rows of one table by the folders of their files: train/, test/."""
    kind = "image" if "image" in rows.column_names else "audio"
    places: dict[str, list[int]] = {}
    for row, path in enumerate(_paths(rows, kind)):
        inside = path is not None and Path(path).is_relative_to(root)
        (split,) = by_split(root, [Path(path)]) if inside else ("train",)
        places.setdefault(split, []).append(row)
    return {split: rows.select(chosen) for split, chosen in places.items()}


def _split_word(file: Path) -> str | None:
    """The split that is a word of a file's name: captions_val2017.json, wiki.train.tokens."""
    words = re.split(r"[\W\d_]+", file.name.lower())
    return next((name for name in ("train", *HELD_OUT_NAMES) if name in words), None)


def _rows(reader: str, table: Path) -> Dataset:
    return _read(reader, {"train": [str(table)]}, False)["train"]


def refuse_runs(root: Path, files: list[Path]) -> None:
    """Raise BadInput if a run of mmssl is among the files of a folder of data: its figures, texts and tables would be
    read as data."""
    if run := next((file.parents[1] for file in files if file.parts[-2:] == RUN), None):
        raise BadInput(f"--dataset {root} holds a run of mmssl, {run}, which would be read as data: move it elsewhere")


def by_split(root: Path, files: list[Path]) -> dict[str, list[str]]:
    """Files by split: a held-out name with which the file or a folder above it begins, otherwise "train". Where a file
    has "train" in the midst of its name, a held-out name there counts, too."""
    splits: dict[str, list[str]] = {}
    anywhere = any(_split_word(file) == "train" for file in files)
    for file in files:
        words = [re.split(r"[\W\d_]", part.lower())[0] for part in file.relative_to(root).parts]  # dev-00.tar: dev
        words += [_split_word(file)] if anywhere else []
        name = next((n for n in HELD_OUT_NAMES if n in words), "train")
        splits.setdefault(name, []).append(str(file))
    return splits


def _captioned(root: Path, files: list[Path], named: list[Path]) -> dict[str, Dataset]:
    """Images with a text of the same name beside them or in a folder of texts (cat.jpg, cat.txt), or with a JSON file
    that holds a caption; empty if no image has one."""
    from datasets import Dataset, Image

    images = [f for f in named if media(f.name) == "image"]
    texts = {(f.parent, f.stem): f for suffix in (".json", *SIDECARS) for f in files if f.suffix.lower() == suffix}
    found = {image: texts.get((image.parent, image.stem)) for image in images}
    if not any(found.values()):  # images/cat.jpg, texts/cat.txt
        by_stem = {stem: file for (_, stem), file in texts.items() if file.suffix.lower() != ".json"}
        found = {image: by_stem.get(image.stem) for image in images}
        if len({image.stem for image in images}) < len(images) or 2 * sum(map(bool, found.values())) < len(images):
            return {}
    captions = {image: _captions(text) if text else [] for image, text in found.items()}
    if not any(captions.values()):
        return {}
    parts = {}
    for part, chosen in by_split(root, images).items():
        rows = {"image": chosen, "captions": [captions[Path(image)] for image in chosen]}
        parts[part] = Dataset.from_dict(rows).cast_column("image", Image())
    return parts


def _captions(file: Path) -> list[str]:
    if file.suffix.lower() != ".json":
        return file_tables.text_of(file).splitlines()
    try:
        value = bounded_json.read(file)
    except bounded_json.NotJson:
        return []
    caption = next((value[c] for c in columns.CAPTION if c in value), None) if isinstance(value, dict) else None
    return [caption] if isinstance(caption, str) else []


def _sounds(files: list[str]) -> Dataset:
    """Paths, each with the name of its folder as its label; data/audio/waves.py decodes them."""
    from datasets import Dataset

    return Dataset.from_dict({"audio": files, "label": [Path(file).parent.name for file in files]})


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
            raise BadInput(
                f"--dataset {name}: not a file or folder here, not one of the built-in {', '.join(BUILT_IN)}, and the "
                f"Hub answered: {type(error).__name__}: {first_line(error)}"
            ) from error
        files = {str(part): list(urls) for part, urls in (found or {}).items()}
        if files and all(url.endswith(".parquet") for urls in files.values() for url in urls):
            return named(files)
    raise BadInput(
        f"--dataset {name} --streaming: it holds no Parquet files, and the Hub has no copy in that format; download it "
        f"(hf download {repository} --repo-type dataset --local-dir my_folder) and give that folder"
    )


def _read(reader: str, files: dict[str, list[str]], streaming: bool):
    from datasets import load_dataset

    kwargs = {}
    if reader in ("csv", "json", "text"):
        files = {part: [str(_plain(Path(file))) for file in given] for part, given in files.items()}
    every = [file for part in files.values() for file in part]
    if reader == "json":
        for table in every:
            _check_json(Path(table))
        if field := file_tables.field(Path(every[0])):
            kwargs["field"] = field
    if reader == "csv":  # only an empty field is missing: pandas drops the words null, None, NA and nan, too
        kwargs |= {"sep": _separator(files), "keep_default_na": False, "na_values": [""]}
    if reader == "webdataset":
        kwargs["features"] = webdataset.features(webdataset.members(every, streaming))
    try:
        found = load_dataset(reader, data_files=files, streaming=streaming, **kwargs)
        return {part: webdataset.named(rows) for part, rows in found.items()} if reader == "webdataset" else found
    except Exception as error:
        if len(every) > 1 and reader in ("csv", "json", "parquet"):
            return _common_columns(reader, files, streaming)
        cause = error.__cause__ or error
        raise BadInput(
            f"{', '.join(every[:3])} could not be read as {reader}: {type(cause).__name__}: {cause}"
        ) from error


def _common_columns(reader: str, files: dict[str, list[str]], streaming: bool) -> dict[str, Data]:
    """Tables that do not have the same columns, as `datasets` wants them: those that all have."""
    from datasets import concatenate_datasets

    single = {part: [_read(reader, {part: [file]}, False)[part] for file in given] for part, given in files.items()}
    every = [rows for several in single.values() for rows in several]
    common = [c for c in every[0].column_names if all(repr(rows.features.get(c)) == repr(every[0].features[c])
                                                      for rows in every)]  # fmt: skip
    left_out = sorted({c for rows in every for c in rows.column_names} - set(common))
    names = ", ".join(file for given in files.values() for file in given[:3])
    if not common:
        raise BadInput(f"{names}: no column is in all of these files, only {', '.join(left_out)}")
    if rank() == 0:
        say(f"left out the columns {', '.join(left_out)}: they are not in all files, or not of the same kind")
    parts = {part: concatenate_datasets([rows.select_columns(common) for rows in several])
             for part, several in single.items()}  # fmt: skip
    return _streamed(parts, streaming)


def _check_json(table: Path) -> None:
    try:
        bounded_json.check(table)
    except bounded_json.NotJson as error:
        raise BadInput(f"--dataset {table}: {error}") from error


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
