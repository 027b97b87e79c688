"""Files of one format, read with `datasets`: Parquet, tables, JSON, text and tar files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import bounded_json, progress
from mmssl.data import contents, table_formats, webdataset
from mmssl.data.atomic import home, once, whole
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import say

if TYPE_CHECKING:
    from datasets import Dataset


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
BLOCK = 1 << 24  # bytes
NO_SEPARATOR = "\x1f"  # a character that no text holds


def reader(file: Path) -> str | None:
    """The builder of `datasets` for a file, by its first bytes, else by its name; None if neither tells."""
    readers = {"parquet": "parquet", "tar": "webdataset"}
    return readers.get(contents.kind_of(file)) or READERS.get(contents.suffix(file))


def read(reader: str, files: dict[str, list[str]]):
    from datasets import load_dataset

    kwargs = {}
    if reader in ("csv", "json", "text"):
        files = {part: [str(plain(Path(file))) for file in given] for part, given in files.items()}
    every = [file for part in files.values() for file in part]
    if reader == "json":
        for table in every:
            check_json(Path(table))
        if field := table_formats.field(Path(every[0])):
            kwargs["field"] = field
    if reader == "csv":  # only an empty field is missing: pandas drops the words null, None, NA and nan, too
        kwargs |= {"sep": _separator(files), "keep_default_na": False, "na_values": [""]}
    if reader == "webdataset":
        kwargs["features"] = webdataset.features(webdataset.members(every))
    try:
        with progress.silent("datasets"):
            found = load_dataset(reader, data_files=files, **kwargs)
        return {part: webdataset.named(rows) for part, rows in found.items()} if reader == "webdataset" else found
    except Exception as error:
        if isinstance(error.__cause__ or error, UnicodeDecodeError):
            _refuse_other_encodings(every)
        if len(every) > 1 and reader in ("csv", "json", "parquet"):
            return _common_columns(reader, files)
        cause = error.__cause__ or error
        raise BadInput(
            f"{', '.join(every[:3])} could not be read as {reader}: {type(cause).__name__}: {cause}"
        ) from error


def _refuse_other_encodings(files: list[str]) -> None:
    """Raise BadInput with the line that is not UTF-8."""
    for path in map(Path, files):
        with open(path, "rb") as file:
            for lines, line in enumerate(file):
                contents.check_utf8(path, line, lines)


def rows_of(reader: str, table: Path) -> Dataset:
    return read(reader, {"train": [str(table)]})["train"]


def _common_columns(reader: str, files: dict[str, list[str]]) -> dict[str, Dataset]:
    """Tables that do not have the same columns, as `datasets` wants them: those that all have."""
    from datasets import concatenate_datasets

    single = {part: [read(reader, {part: [file]})[part] for file in given] for part, given in files.items()}
    every = [rows for several in single.values() for rows in several]
    common = [c for c in every[0].column_names if all(repr(rows.features.get(c)) == repr(every[0].features[c])
                                                      for rows in every)]  # fmt: skip
    left_out = sorted({c for rows in every for c in rows.column_names} - set(common))
    names = ", ".join(file for given in files.values() for file in given[:3])
    if not common:
        raise BadInput(f"{names}: no column is in all of these files, only {', '.join(left_out)}")
    if rank() == 0:
        say(f"left out the columns {', '.join(left_out)}: they are not in all files, or not of the same kind")
    return {part: concatenate_datasets([rows.select_columns(common) for rows in several])
            for part, several in single.items()}  # fmt: skip


def check_json(table: Path) -> None:
    try:
        bounded_json.check(table)
    except bounded_json.NotJson as error:
        raise BadInput(f"--dataset {table}: {error}") from error


def plain(file: Path) -> Path:
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
    writes where the comma is the decimal mark). A file of one column has none, and its texts may hold commas."""
    with open(next(file for part in files.values() for file in part), "rb") as file:
        header = file.readline(BLOCK)
    return next((separator for separator in "\t,;" if separator.encode() in header), NO_SEPARATOR)
