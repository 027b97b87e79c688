"""Tables that name images or recordings, however a tool wrote them: which column does, and where the files are.

Examples, in the formats of table_formats: open_clip's training file, imagefolder's metadata, the manifests of NeMo and
wav2vec, the captions of COCO, Flickr8k and Flickr30k, Karpathy's splits of them, Common Voice, ESC-50. A file is found
by what the table calls it: counted from the table, from the working directory, or as the end of a path in the table's
folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.data import columns, contents, media, table_formats
from mmssl.distributed import rank
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN = ("train", "training", "restval")  # in a column "split"; the last one in Karpathy's of COCO


class Files:
    """Images and recordings: those of a folder that have been listed, or those near a table, in its folder or below
    the folder above (COCO: annotations/captions.json, images/cat.jpg)."""

    def __init__(self, listed: Sequence[Path] | None = None, near: Path | None = None) -> None:
        self.listed, self.near = listed, near

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        if self.listed is None:
            return self._of(self.near.parent.rglob("*")) or self._of(self._above().rglob("*"))
        return self._of(self.listed)

    def _above(self) -> Path:
        above = self.near.absolute().parent.parent
        alone = len(above.parts) > 2 and above != Path.home()  # not all that a user has
        return above if alone else self.near.parent

    def _of(self, files: Iterable[Path]) -> dict[str, list[Path]]:
        named: dict[str, list[Path]] = {}
        for file in files:
            if media.kind(file.name):
                named.setdefault(file.name, []).append(file)
        return named

    @cached_property
    def by_stem(self) -> dict[str, Path]:
        """Where each has another name without its suffix, which is more than a number: HAM10000, LJSpeech."""
        listed = self.listed or ()
        named = {file.stem: file for file in listed if not file.stem.isdecimal()}
        return named if len(named) == len(listed) else {}

    def kind(self, name: object) -> str | None:
        """As `media.kind`, also of a listed file that is named without its suffix."""
        file = self.by_stem.get(name.strip()) if isinstance(name, str) else None
        return media.kind(name) or (media.kind(file.name) if file else None)

    def paths(self, names: Sequence[str | None], folder: Path) -> list[str | None]:
        """The files that a table in `folder` names; where there is none, what would be it, to be named as missing."""
        cleaned = [_cleaned(name) if name else "" for name in names]
        return [str(self._path(name, folder)) if Path(name).parts else None for name in cleaned]

    def _path(self, name: str, folder: Path) -> Path:
        if name in self.by_stem:
            return self.by_stem[name]
        if os.path.isfile(folder / name):  # an absolute name stays as it is; False where a name is too long
            return folder / name
        return self._by_end(Path(name).parts) or (Path.cwd() / name if os.path.isfile(name) else folder / name)

    def _by_end(self, name: tuple[str, ...]) -> Path | None:
        """The only file whose path ends with most of the name, at least with its last folder."""
        same = [file for file in self.by_name.get(name[-1], ()) if file.parts[-2:][-len(name) :] == name[-2:]]
        ends = [_common_end(file.parts, name) for file in same]
        best = max(ends, default=0)
        return same[ends.index(best)] if ends.count(best) == 1 else None


def _cleaned(name: str) -> str:
    name = media.NUMBER.sub("", name.strip())
    return name.replace("\\", "/") if "/" not in name else name  # written on Windows


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def column(rows: Sequence[dict], kind_of: Callable[[object], str | None] = media.kind) -> tuple[str, str] | None:
    """(name, "image" or "audio") of the column whose values are called like images or recordings. rows: the first."""
    for kind, usual in (("image", columns.IMAGE), ("audio", columns.AUDIO)):
        names = dict.fromkeys(name for row in rows for name in row)
        found = [name for name in names if 2 * sum(kind_of(row.get(name)) == kind for row in rows) > len(rows)]
        if found:
            return next((name for name in usual if name in found), found[0]), kind
    return None


def read(table: Path, files: Files, read_rows: Callable[[str, Path], Dataset]) -> dict[str, Dataset] | None:
    """{split: rows with the column "image" or "audio"}, or None if the table names no files. The split is "" unless a
    column of that name says it; the captions of an image in several rows are one row.

    read_rows: reads all rows of a Parquet or JSON lines file. Raises BadInput if a row of the table is malformed.
    """
    from datasets import Dataset

    suffix, folder = contents.suffix(table), table.parent
    if not table.is_file() or suffix not in table_formats.SUFFIXES:
        return None  # a named pipe, or another kind of file
    if suffix in table_formats.DELIMITED:
        rows, folder = table_formats.delimited(table, files.kind) or ({}, folder)
        first_values = islice(zip(*rows.values(), strict=True), table_formats.LOOKED_AT)
        first = [dict(zip(rows, values, strict=True)) for values in first_values]
        found = column(first, files.kind)
    elif suffix == ".parquet":
        found = column(table_formats.first_of_parquet(table), files.kind)
        rows = read_rows("parquet", table) if found else []
    elif (first := table_formats.first_lines(table)) is not None:
        found = column(first, files.kind)
        rows = read_rows("json", table) if found else []
    else:
        objects = table_formats.objects(table) if suffix == ".json" else []
        rows, found = table_formats.columns_of(objects), column(objects[: table_formats.LOOKED_AT], files.kind)
    if found is None:
        return None
    rows = rows if isinstance(rows, Dataset) else _table(table, rows)
    return _by_split(table, _with_files(rows, *found, files, folder))


def _table(table: Path, rows: dict[str, list]) -> Dataset:
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        return Dataset.from_dict(rows)
    except (OverflowError, UnicodeError, ArrowException) as error:  # half an emoji, a huge number, a column of kinds
        raise BadInput(f"{table}: {type(error).__name__}: {first_line(error)}; repair or remove that value") from error


def is_about(table: Path, files: Sequence[Path]) -> bool:
    """Whether a Parquet file describes images or recordings, whose names it holds without their suffix, or with it."""
    first, stems = table_formats.first_of_parquet(table), {file.stem for file in files}
    return column(first) is not None or any(value in stems for row in first for value in row.values())


def _with_files(rows: Dataset, name: str, kind: str, files: Files, folder: Path) -> Dataset:
    """The rows with the files in a column `kind`; the captions of one image together, if several rows name it."""
    from datasets import Dataset, Features, Image, List, Value

    paths = files.paths(rows[name][:], folder)
    caption = next((c for c in columns.CAPTION if c in rows.column_names), None)
    if kind == "image" and caption and rows.features[caption] == Value("string") and len(set(paths)) < len(paths):
        split = rows["split"][:] if "split" in rows.column_names else [None] * len(paths)
        together: dict[tuple, int] = {}  # the first row of each image; in another split it is another one
        captions: dict[tuple, list[str]] = {}
        for row, (path, part, text) in enumerate(zip(paths, split, rows[caption][:], strict=True)):
            together.setdefault((path, part), row)
            captions.setdefault((path, part), []).append(text)
        rows, paths = rows.select(list(together.values())).remove_columns(caption), [path for path, _ in together]
        rows = rows.add_column("captions", list(captions.values()), feature=List(Value("string")))
    others = rows.remove_columns([c for c in rows.column_names if c in (name, kind)])
    taken = {kind: paths} | {other: others[other][:] for other in others.column_names}
    features = {kind: Image() if kind == "image" else Value("string")} | dict(others.features)
    return Dataset.from_dict(taken, features=Features(features))


def with_lists(rows: Dataset) -> Dataset:
    """The rows with the caption of each image as a list of one, as beside a table where an image has several."""
    from datasets import List, Value

    caption = next((c for c in columns.CAPTION if c in rows.column_names), None)
    if "image" not in rows.column_names or caption is None or rows.features[caption] != Value("string"):
        return rows
    lists = [[text] for text in rows[caption][:]]
    return rows.remove_columns(caption).add_column("captions", lists, feature=List(Value("string")))


def _by_split(table: Path, rows: Dataset) -> dict[str, Dataset]:
    words = [str(word).strip().lower() for word in rows["split"]] if "split" in rows.column_names else []
    words = ["train" if word in TRAIN else word for word in words]
    if "train" not in words:
        if len(set(words)) > 1 and rank() == 0:
            values = columns.named(sorted(set(words)))
            say(f"{table}: its column split is not used, as none of its values ({values}) is train")
        return {"": rows}
    parts: dict[str, list[int]] = {}
    for row, word in enumerate(words):
        parts.setdefault(word, []).append(row)
    return {part: rows.select(chosen) for part, chosen in parts.items()}
