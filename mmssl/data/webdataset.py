"""Tar files of samples (webdataset): members of the same stem, cat.jpg and cat.txt, are one row.

Read by `datasets`. Differs: the case of a suffix does not matter, a sample may lack a member that others have, audio
needs no torchcodec, and a caption within a JSON member is a column.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from mmssl.data import columns
from mmssl.data.media import IMAGES, SOUNDS
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset, Features

MAX_MEMBER = 1 << 30  # bytes; each is held in memory whole
TEXTS = ("txt", "text", "transcript")  # which `datasets` decodes
MANY = 30  # suffixes of the members of a tar file
FIRST = 1000  # members that are looked at to find the suffixes, where images are read during training


def members(files: list[str]) -> set[str]:
    """The suffixes of all members, as they are written.

    Raises BadInput where a member is larger than MAX_MEMBER (a sparse one takes no space in the tar file), where the
    members of a sample are not next to each other, or where dots in their names hide their suffix.
    """
    found: set[str] = set()
    for file in files:
        try:
            with tarfile.open(file, "r:") as tar:
                ended, last = set(), None
                for member in tar:
                    if member.size > MAX_MEMBER:
                        raise BadInput(
                            f"--dataset {file}: {member.name} holds {member.size / 1e6:,.0f} MB, more than the "
                            f"{MAX_MEMBER / 1e6:,.0f} MB that are read; remove it"
                        )
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if not member.isfile() or not stem:  # hidden, as the ._cat.jpg that macOS adds
                        continue
                    found.add(suffix)
                    if (key := (folder, stem)) != last:
                        ended.add(last)
                        last = key
                    if key in ended:
                        raise BadInput(
                            f"--dataset {file}: {member.name} is not next to the other members of its sample; pack "
                            "them again, with tar --sort=name"
                        )
                    if len(found) > MANY:
                        raise BadInput(
                            f"--dataset {file}: in {member.name}, {suffix!r} counts as the suffix, all behind the "
                            "first dot; pack the files again under names without dots"
                        )
        except tarfile.TarError:
            continue  # what is wrong with it is said when it is read
    return found - {""}


def features(suffixes: set[str]) -> Features | None:
    """What the columns hold; None if `datasets` must find out, from the first samples."""
    from datasets import Features, Image, Json, Value

    kinds = (
        {suffix[1:]: Image() for suffix in IMAGES}
        | {suffix[1:]: Value("binary") for suffix in SOUNDS}
        | {suffix: Value("string") for suffix in (*TEXTS, "__key__", "__url__")}
        | {"cls": Value("int64"), "json": Json()}
    )
    if not suffixes or not all(suffix.lower() in kinds for suffix in suffixes):
        return None
    return Features({suffix: kinds[suffix.lower()] for suffix in (*sorted(suffixes), "__key__", "__url__")})


def named(rows: Dataset) -> Dataset:
    """The rows with lower-case columns, and with a column "caption" if only a JSON member holds one."""
    names = [name for name in rows.column_names or () if not name.startswith("__")]
    for lower in dict.fromkeys(name.lower() for name in names):
        same = [name for name in names if name.lower() == lower]
        if len(same) > 1:
            rows = _together(rows, same, lower)
        elif same != [lower]:
            rows = rows.rename_column(same[0], lower)
    columns_now = rows.column_names or ()
    if "json" not in columns_now or any(name in columns_now for name in columns.CAPTION):
        return rows
    captions = [caption_of(value) for value in rows["json"]]
    return rows.add_column("caption", captions) if any(captions) else rows


def _together(rows: Dataset, names: list[str], name: str) -> Dataset:
    """Several columns, of which one holds a value in each row, as one."""
    from datasets import Features, Image

    kind = rows.features[names[0]]
    for other in names if isinstance(kind, Image) else ():
        rows = rows.cast_column(other, Image(decode=False))
    kept = {other: rows.features[other] for other in rows.features if other not in names}
    features = Features(kept | {name: rows.features[names[0]]})
    rows = rows.map(_First(names, name), remove_columns=[n for n in names if n != name], features=features)
    return rows.cast_column(name, kind)


class _First:
    def __init__(self, names: list[str], name: str) -> None:
        self.names, self.name = names, name

    def __call__(self, row: dict) -> dict:
        return {self.name: next((row[name] for name in self.names if row[name] is not None), None)}


def caption_of(value: object) -> str | None:
    """The first string under a usual name in what a JSON member holds."""
    found = [value.get(name) for name in columns.CAPTION] if isinstance(value, dict) else []
    return next((caption for caption in found if isinstance(caption, str)), None)
