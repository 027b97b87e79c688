"""The layouts of folders: files by split, images by class, with texts beside them or tables about them, recordings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import bounded_json
from mmssl.arguments import check_text
from mmssl.data import columns, contents, file_tables, media, readers, table_formats
from mmssl.distributed import rank
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


SIDECARS = (".caption", ".txt")  # texts about an image of the same name
SHARDS = (".tar", ".parquet")
ARCHIVES = (".zip", ".tgz", ".gz", ".7z", ".rar")
CONVERT = {
    **dict.fromkeys((".m4a", ".aac", ".wma", ".amr", ".mp4"), "ffmpeg -i in.m4a out.flac"),
    **dict.fromkeys((".heic", ".heif", ".avif"), "heif-convert in.heic out.jpg"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf"), "soffice --convert-to txt"),
    **dict.fromkeys((".pdf",), "pdftotext"),
}
HELD_OUT_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval")
RUN = (".mmssl", "manifest.json")  # in the directory of every run, see training.output_dir


def load(path: Path, texts: bool) -> DatasetDict | dict[str, Dataset]:
    """The rows of a folder by split, see `sources.load`. Raises BadInput if it holds none, or a run of mmssl."""
    files = listed(path)
    for file in files:
        check_text("--dataset: the name", str(file.relative_to(path)))
    names = {file.name for file in files if file.parent == path}
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names:
        return _saved(path)
    named = [] if texts else [f for f in files if media.kind(f.name)]
    if found := shards(path, files, named):
        return readers.read(readers.READERS[contents.suffix(found[0])], by_split(path, found))
    refuse_runs(path, files)
    if named:
        others = [f for f in files if contents.suffix(f) in SHARDS and not file_tables.is_about(f, named)]
        say_left_out(path, others, "a folder of images and recordings, which hold most")
    if parts := _tables(path, files, named) or _captioned(path, files, named):
        return parts
    images, sounds = ([f for f in named if media.kind(f.name) == kind] for kind in ("image", "audio"))
    if len(sounds) > len(images):
        say_left_out(path, images, "a folder of recordings")
        return {part: _sounds(found) for part, found in by_split(path, sounds).items()}
    if images:
        say_left_out(path, sounds, "a folder of images")
        return _pictures(path, images)
    tables: dict[str, list[Path]] = {}
    for file in files:
        tables.setdefault(contents.suffix(file), []).append(file)
    tables = {suffix: found for suffix, found in tables.items() if suffix in readers.READERS}
    if not tables:
        lacks = "no text: none of" if texts else "no image, no recording and none of"
        raise BadInput(f"--dataset {path}: {lacks} {', '.join(readers.READERS)} in this folder{_remedy(files)}")
    suffix = max(tables, key=lambda each: size(tables[each]))
    others = [file for each, found in tables.items() if each != suffix for file in found]
    say_left_out(path, others, f"a folder of {suffix} files, which hold most")
    return readers.read(readers.READERS[suffix], by_split(path, tables[suffix]))


def size(files: list[Path]) -> int:
    """Bytes."""
    return sum(file.stat().st_size for file in files)


def say_left_out(root: Path, files: list[Path], why: str) -> None:
    if files and rank() == 0:
        names = columns.named([str(file.relative_to(root)) for file in files])
        say(f"left out {len(files):,} files of {root}, read as {why}: {names}")


def _remedy(files: list[Path]) -> str:
    """What can be done with files that cannot be read."""
    if archive := next((f for f in files if f.suffix.lower() in ARCHIVES), None):
        return f"; unpack {archive.name}"
    if other := next((f for f in files if f.suffix.lower() in CONVERT), None):
        kind = other.suffix.lower()
        count = sum(f.suffix.lower() == kind for f in files)
        return f"; it holds {count:,} {kind} files, which are not read: convert them with {CONVERT[kind]}"
    if left := [file for file in files if media.kind(file.name)]:
        return f"; it holds {len(left):,} images or recordings, which other recipes learn from"
    return ""


def shards(root: Path, files: list[Path], named: list[Path]) -> list[Path]:
    """The tar files of a folder or its Parquet files, whichever hold more; none if its images and recordings hold more
    than these, or if these are tables about them."""
    tars, tables = ([f for f in files if contents.suffix(f) == kind and f.stem != "metadata"] for kind in SHARDS)
    found = max(tars, tables, key=size)
    if not found or size(found) <= size(named) or (named and file_tables.is_about(found[0], named)):
        return []
    others = named if found is tars else [*tars, *named]  # img2dataset writes a Parquet file about each tar file
    say_left_out(root, others, f"a folder of {contents.suffix(found[0])} files, which hold most")
    return found


def listed(root: Path) -> list[Path]:
    """The files below a folder, sorted, also those behind links. Hidden ones are left out, and what macOS and Jupyter
    put beside others: ._cat.jpg, __MACOSX, .ipynb_checkpoints."""
    found, been = [], set()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        place = os.stat(folder)
        known = (place.st_dev, place.st_ino) in been
        been.add((place.st_dev, place.st_ino))
        # a folder that links to one above it would be walked for ever
        shown = [name for name in folders if not name.startswith((".", "__MACOSX")) or name == RUN[0]]
        folders[:] = [] if known else shown
        found += [] if known else [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _refuse(error: OSError) -> None:
    raise BadInput(f"--dataset: {error.filename} cannot be read ({first_line(error)}): repair or remove it") from error


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


def _split_word(file: Path) -> str | None:
    """The split that is a word of a file's name: captions_val2017.json, wiki.train.tokens."""
    words = re.split(r"[\W\d_]+", file.name.lower())
    return next((name for name in ("train", *HELD_OUT_NAMES) if name in words), None)


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


def _sounds(files: list[str]) -> Dataset:
    """Paths, each with the name of its folder as its label; data/audio/waves.py decodes them."""
    from datasets import Dataset

    return Dataset.from_dict({"audio": files, "label": [Path(file).parent.name for file in files]})


def _saved(path: Path) -> dict[str, Dataset]:
    """What `save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:
        raise BadInput(f"--dataset {path} could not be read: {type(error).__name__}: {first_line(error)}") from error
    return {"train": found} if isinstance(found, Dataset) else found


def _captioned(root: Path, files: list[Path], named: list[Path]) -> dict[str, Dataset]:
    """Images with a text of the same name beside them or in a folder of texts (cat.jpg, cat.txt), or with a JSON file
    that holds a caption; empty if no image has one."""
    from datasets import Dataset, Image

    images = [f for f in named if media.kind(f.name) == "image"]
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
        return table_formats.text_of(file).splitlines()
    try:
        value = bounded_json.read(file)
    except bounded_json.NotJson:
        return []
    caption = next((value[c] for c in columns.CAPTION if c in value), None) if isinstance(value, dict) else None
    return [caption] if isinstance(caption, str) else []


def _tables(root: Path, files: list[Path], named: list[Path]) -> dict[str, Dataset]:
    """The rows of the tables that name the images or recordings of a folder, by split; empty if there are none."""
    from datasets import concatenate_datasets

    if not named:
        return {}
    beside = {(file.parent, file.stem) for file in named}  # a text beside an image is about that image alone
    tables = [f for f in files if contents.suffix(f) in table_formats.SUFFIXES and (f.parent, f.stem) not in beside]
    tables = [f for f in tables if "caption" in f.stem.lower()] or tables  # COCO has others, of the same images
    known, parts, seen, train = file_tables.Files(named), {}, {}, False
    # tables that name their split come first: Common Voice's "validated" holds the rows of its other tables, too
    for table in sorted(tables, key=lambda f: (_split_word(f) is None, len(f.name), f)):
        word = _split_word(table)
        if word is None and train:
            break
        if table.name.lower() == "metadata.jsonl":
            readers.check_json(table)
        for split, rows in (file_tables.read(table, known, readers.rows_of) or {}).items():
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
    if parts and (left := [file for file in named if not any(str(file) in paths for paths in seen.values())]):
        say_left_out(root, left, "its tables say: they name the others")
    if any("captions" in rows.column_names for several in parts.values() for rows in several):
        parts = {part: list(map(file_tables.with_lists, several)) for part, several in parts.items()}
    together = {}
    for part, several in parts.items():
        common = [c for c in several[0].column_names if all(c in rows.column_names for rows in several)]
        common = [c for c in common if len({repr(rows.features[c]) for rows in several}) == 1]
        together[part] = concatenate_datasets([rows.select_columns(common) for rows in several])
    return _by_place(root, together["train"]) if list(together) == ["train"] and not train else together


def _by_place(root: Path, rows: Dataset) -> dict[str, Dataset]:
    """The rows of one table by the folders of their files: train/, test/."""
    kind = "image" if "image" in rows.column_names else "audio"
    places: dict[str, list[int]] = {}
    for row, path in enumerate(_paths(rows, kind)):
        inside = path is not None and Path(path).is_relative_to(root)
        (split,) = by_split(root, [Path(path)]) if inside else ("train",)
        places.setdefault(split, []).append(row)
    return {split: rows.select(chosen) for split, chosen in places.items()}


def _paths(rows: Dataset, kind: str) -> list[str | None]:
    import pyarrow.compute as pc

    column = rows.select_columns(kind).with_format("arrow")[:].column(kind)
    return (column if kind == "audio" else pc.struct_field(column, "path")).to_pylist()
