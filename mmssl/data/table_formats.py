"""The formats of tables about images or recordings: the first rows, which tell what a table holds, and all of them.

CSV and TSV with or without a header (wav2vec: with the folder of its files in the first line), JSON lines, Parquet, and
a JSON text with a list of objects, or with images and their captions (COCO, Karpathy).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import bounded_json
from mmssl.data import columns, contents, media, regular_files
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITED = (".csv", ".tsv", ".txt", ".token")
SUFFIXES = (*DELIMITED, ".jsonl", ".ndjson", ".json", ".parquet")
SEPARATORS = "|,;"
MAX_TABLE = 1 << 30  # bytes; a table is held in memory as Python strings
LOOKED_AT = 20  # rows
HEAD = 1 << 20  # bytes: the first rows of a table lie within them
TITLE = "captions"  # a table of this name must hold captions


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


def delimited(table: Path, kind_of: Callable[[object], str | None]) -> tuple[dict[str, list[str]], Path] | None:
    """(the columns, the folder that their files count from); None if its first rows name no files, or nothing else."""
    titled = table.stem.lower() == TITLE
    head = text_of(table)[:HEAD] if titled else _head(table)
    first = head.partition("\n")[0].strip()
    folder = Path(first) if Path(first).is_absolute() and not media.kind(first) else None  # wav2vec: the first line
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


def first_of_parquet(table: Path) -> list[dict]:
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


def first_lines(table: Path) -> list[dict] | None:
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
    if contents.suffix(table) != ".json" or not _head(table).lstrip().startswith("{") or first_lines(table):
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
    return isinstance(value, dict) and any(map(media.kind, value.values()))


def objects(table: Path) -> list[dict]:
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


def columns_of(rows: list[dict]) -> dict[str, list]:
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
