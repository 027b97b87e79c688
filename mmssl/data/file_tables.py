"""Tables that name images or recordings, however a tool wrote them: which column does, and where the files are.

Read are CSV and TSV with or without a header, JSON lines, JSON and Parquet. Examples: open_clip's training file,
imagefolder's metadata, the manifests of NeMo and wav2vec, the captions of COCO, Flickr8k and Flickr30k, Karpathy's
splits of them, Common Voice, ESC-50. A file is found by what the table calls it: counted from the table, from the
working directory, or as the end of a path in the table's folder.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import bounded_json
from mmssl.data import columns, contents, regular_files
from mmssl.distributed import rank
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
DELIMITED = (".csv", ".tsv", ".txt", ".token")
JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*DELIMITED, *JSON_LINES, ".parquet")
SEPARATORS = "|,;"
NUMBER = re.compile(r"#\d+$")  # Flickr8k and Flickr30k: "cat.jpg#0" is the first caption of cat.jpg
MAX_TABLE = 1 << 30  # bytes; a table is held in memory as Python strings
LOOKED_AT = 20  # rows
HEAD = 1 << 20  # bytes: the first rows of a table lie within them
TRAIN = ("train", "training", "restval")  # in a column "split"; the last one in Karpathy's of COCO
TITLE = "captions"  # a table of this name must hold captions


def media(name: object) -> str | None:
    """ "image" or "audio" if it is called like one; None for URLs and all else."""
    if not isinstance(name, str) or "://" in name:
        return None
    suffix = Path(NUMBER.sub("", name.strip())).suffix.lower()
    return "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else None


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
            if media(file.name):
                named.setdefault(file.name, []).append(file)
        return named

    @cached_property
    def by_stem(self) -> dict[str, Path]:
        """Where each has another name without its suffix, which is more than a number: HAM10000, LJSpeech."""
        listed = self.listed or ()
        named = {file.stem: file for file in listed if not file.stem.isdecimal()}
        return named if len(named) == len(listed) else {}

    def kind(self, name: object) -> str | None:
        """As `media`, also of a listed file that is named without its suffix."""
        file = self.by_stem.get(name.strip()) if isinstance(name, str) else None
        return media(name) or (media(file.name) if file else None)

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
    name = NUMBER.sub("", name.strip())
    return name.replace("\\", "/") if "/" not in name else name  # written on Windows


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


# ---------------------------------------------------------------- which column names files


def column(rows: Sequence[dict], kind_of: Callable[[object], str | None] = media) -> tuple[str, str] | None:
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
    if not table.is_file() or suffix not in SUFFIXES:
        return None  # a named pipe, or another kind of file
    if suffix in DELIMITED:
        rows, folder = _delimited(table, files.kind) or ({}, folder)
        first = [dict(zip(rows, values, strict=True)) for values in islice(zip(*rows.values(), strict=True), LOOKED_AT)]
        found = column(first, files.kind)
    elif suffix == ".parquet":
        found = column(_first_of_parquet(table), files.kind)
        rows = read_rows("parquet", table) if found else []
    elif (first := _first_lines(table)) is not None:
        found = column(first, files.kind)
        rows = read_rows("json", table) if found else []
    else:
        objects = _json(table) if suffix == ".json" else []
        rows, found = _columns(objects), column(objects[:LOOKED_AT], files.kind)
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
    first, stems = _first_of_parquet(table), {file.stem for file in files}
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


def _columns(rows: list[dict]) -> dict[str, list]:
    """The columns whose values are of one simple kind, or lists of strings."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row.get(name) for row in rows] for name in names}
    return {name: column for name, column in values.items() if len({_kind(v) for v in column} - {None}) == 1}


def _kind(value: object) -> str | None:
    if isinstance(value, list):
        return "strings" if all(isinstance(part, str) for part in value) else "other"
    if isinstance(value, dict):
        return "other"
    return None if value is None else "number" if isinstance(value, (int, float)) else type(value).__name__


# ---------------------------------------------------------------- the formats


def text_of(file: Path) -> str:
    """Raises BadInput if it is not text, or larger than MAX_TABLE."""
    try:
        regular_files.check(file, MAX_TABLE)
        return b"".join(contents.text(file, HEAD)).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text: {error}") from error
    except BadInput as error:
        raise error if str(error).startswith(str(file)) else BadInput(f"{file} {error}") from error


def _head(file: Path) -> str:
    """Its first lines; "" if it is not text."""
    try:
        first = next(contents.text(file, HEAD), b"")
        return first[: first.rfind(b"\n") + 1 or len(first)].decode()
    except (BadInput, UnicodeDecodeError):
        return ""


def _delimited(table: Path, kind_of: Callable[[object], str | None]) -> tuple[dict[str, list[str]], Path] | None:
    """(the columns, the folder that their files count from); None if its first rows name no files, or nothing else."""
    titled = table.stem.lower() == TITLE
    head = text_of(table)[:HEAD] if titled else _head(table)
    first = head.partition("\n")[0].strip()
    folder = Path(first) if Path(first).is_absolute() and not media(first) else None  # wav2vec: the first line
    delimiter = "\t" if "\t" in first or folder else next((c for c in first if c in SEPARATORS), None)
    rows = [row for row in _first_rows(head, delimiter) if any(row)]
    naming = [any(map(kind_of, row)) for row in rows]
    if 2 * sum(naming[1:] or naming) <= len(naming[1:] or naming):
        if titled:
            raise BadInput(f"{table} has no row under its header")
        return None
    # a list of files, a table of pairs of files
    if delimiter is None or (naming[0] and (len(rows[0]) == 1 or kind_of(rows[0][1]))):
        return None
    lines = _checked(table, _fields(text_of(table), delimiter))
    header = None if naming[0] else [name.strip() for name in next(lines)]
    if folder or header is None:  # the file, then what is said of it
        header = ["file", "caption" if kind_of(rows[-1][0]) == "image" else "note"]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise BadInput(f"{table} has two columns called {twice[0]}: rename one")
    found: dict[str, list[str]] = {name: [] for name in header if name}  # pandas writes the row's number without a name
    for number, row in enumerate(lines, 2 - naming[0]):
        for name, value in _row(table, number, header, row, delimiter) if any(row) else ():
            if name:
                found[name].append(value)
    return found, folder or table.parent


def _first_rows(head: str, delimiter: str | None) -> list[list[str]]:
    rows = []
    with suppress(csv.Error):  # which is said where all rows are read
        rows += islice(_fields(head, delimiter or "\t"), LOOKED_AT + 1)
    return rows


def _fields(text: str, delimiter: str) -> Iterator[list[str]]:
    if delimiter != "\t":
        return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    # between tabs, quotation marks are often part of a text, and never hold a line end
    return ([_unquoted(field) for field in line.rstrip("\r").split("\t")] for line in text.split("\n"))


def _unquoted(field: str) -> str:
    quoted = len(field) > 1 and field[0] == field[-1] == '"'
    inside = field[1:-1].replace('""', "\0") if quoted else '"'
    return field if '"' in inside else inside.replace("\0", '"')


def _checked(table: Path, lines: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from lines
    except csv.Error as error:  # a field of more than 131,072 characters
        raise BadInput(
            f"{table}, up to line {lines.line_num}: {error}; is a quotation mark before it not closed?"
        ) from error


def _row(table: Path, number: int, header: list[str], fields: list[str], delimiter: str) -> Iterator[tuple[str, str]]:
    """(column, value): as many as there are columns. A delimiter that is not quoted is part of the last one. Raises
    BadInput if that one is no caption, but another column is."""
    if len(fields) < 2:
        raise BadInput(f"{table}, line {number}: no {delimiter!r} between a file name and its caption: {fields[0]!r}")
    last = len(header) - 1
    inner = len(fields) > len(header) and header[-1] not in columns.CAPTION and {*columns.CAPTION} & {*header}
    if inner:
        raise BadInput(
            f"{table}, line {number}: {len(fields)} fields for {len(header)} columns; put a value that holds "
            f"{delimiter!r} between quotation marks"
        )
    values = [*fields[:last], delimiter.join(fields[last:]).strip()]
    return zip(header, [*values, *[""] * (len(header) - len(values))], strict=True)


def _first_of_parquet(table: Path) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            strings = [
                f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
            ]
            if any(_holds_bytes(f.type) for f in file.schema_arrow):  # the images or recordings themselves
                return []
            return next((batch.to_pylist() for batch in file.iter_batches(LOOKED_AT, columns=strings)), [])
    except (OSError, pa.ArrowException):  # what is wrong with it is said when it is read
        return []


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    parts = [field.type for field in kind] if pa.types.is_struct(kind) else [kind]
    return any(pa.types.is_binary(part) or pa.types.is_large_binary(part) for part in parts)


def _first_lines(table: Path) -> list[dict] | None:
    """The first objects of JSON lines; None if it is one JSON text."""
    lines = _head(table).split("\n")[:LOOKED_AT]
    try:
        rows = [bounded_json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return None
    one = len(rows) == 1 and contents.suffix(table) == ".json" and not _is_row(rows[0])
    return None if one or not all(isinstance(row, dict) for row in rows) else rows


def field(table: Path) -> str | None:
    """The name of the only list of objects in a JSON file that is one object, {"version": 1, "data": [...]}."""
    if contents.suffix(table) != ".json" or not _head(table).lstrip().startswith("{") or _first_lines(table):
        return None
    value = _parsed(table)
    lists = [name for name, rows in value.items() if _are_rows(rows)] if isinstance(value, dict) else []
    return lists[0] if len(lists) == 1 else None


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _parsed(table: Path) -> object:
    """None if it is not JSON: that is said where it is read."""
    try:
        return bounded_json.loads(text_of(table))
    except (ValueError, BadInput):
        return None


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and any(map(media, value.values()))


def _json(table: Path) -> list[dict]:
    """The rows of a list of objects, or of an object with a list "images" (COCO, Karpathy)."""
    value = _parsed(table)
    rows = value.get("images") if isinstance(value, dict) else value
    if not _are_rows(rows):
        return []
    if rows is value:
        return rows
    said: dict[object, list[str]] = {}
    for note in value.get("annotations") or ():
        if isinstance(note, dict) and isinstance(note.get("caption"), str):
            said.setdefault(_number(table, note, "image_id"), []).append(note["caption"])
    if said:
        numbers = [_number(table, row, "id") for row in rows]
        return [_captioned(row, said[n]) for row, n in zip(rows, numbers, strict=True) if n in said]
    return [_captioned(row, []) for row in rows]


def _number(table: Path, of: dict, key: str) -> object:
    """Raises BadInput if it is a list or an object."""
    if isinstance(of.get(key), (list, dict)):
        raise BadInput(f"{table}: the {key} {of[key]} is a list or an object, not a number: repair or remove it")
    return of.get(key)


def _captioned(image: dict, captions: list[str]) -> dict:
    name = next((image[key] for key in ("file_name", "filename") if isinstance(image.get(key), str)), None)
    if name and isinstance(image.get("filepath"), str):  # a folder, in Karpathy's split of COCO
        name = f"{image['filepath']}/{name}"
    sentences = [s.get("raw") for s in image.get("sentences") or () if isinstance(s, dict)]
    captions = captions or [text for text in sentences if isinstance(text, str)]
    return (
        {"file": name}
        | ({"captions": captions} if captions else {})
        | {key: image[key] for key in ("split",) if key in image}
    )
