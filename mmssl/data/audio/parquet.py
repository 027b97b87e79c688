"""Writes recordings, with the columns that their file names encode, as Parquet with a card, for `--dataset` and
`load_dataset`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset, Features, Value

from mmssl.data import regular_files
from mmssl.data.atomic import whole
from mmssl.data.audio import waves
from mmssl.data.columns import unusable
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import markdown

AUDIO = {"bytes": Value("binary"), "path": Value("string")}
SHARD = 400_000_000  # bytes of recordings in a file, about
MAX_BYTES = 1 << 30  # of one recording; a column of Parquet holds 2 GiB at a time
PLACE = re.compile(r"\\\{(\w+)(:d)?\\\}")  # {speaker} or {take:d}, escaped
KINDS = {"": ("[^/]+?", Value("string")), ":d": (r"\d+", Value("int64"))}


def columns(pattern: str) -> dict[str, Value]:
    """The columns that `fields` fills. pattern: as there."""
    return {name: KINDS[kind][1] for name, kind in PLACE.findall(re.escape(pattern))}


def fields(pattern: str, path: str) -> dict[str, str | int]:
    """The values encoded in a path. pattern: "{digit:d}_{speaker}_{take:d}", :d for a number; with slashes, the folders
    above are matched too.

    Raises BadInput if the path does not match.
    """
    name = "/".join([*Path(path).parent.parts, Path(path).stem][-pattern.count("/") - 1 :])
    expression = PLACE.sub(lambda m: f"(?P<{m[1]}>{KINDS[m[2] or ''][0]})", re.escape(pattern))
    found = re.fullmatch(expression, name)
    if found is None:
        raise BadInput(f"{path or 'a recording without a name'} does not match the pattern {pattern}")
    return {key: int(found[key]) if value == KINDS[":d"][1] else found[key] for key, value in columns(pattern).items()}


def described(parts: dict[str, Dataset], pattern: str, hold_out: str | None = None) -> dict[str, Iterable[dict]]:
    """Rows for `write`, from the output of `recordings.load`. hold_out: rows with "column=value,value" go to the test
    part, all others to the training part; default: the parts stay as they are."""

    def rows(data: Iterable[dict]) -> Iterator[dict]:
        for row in data:
            yield {"audio": row["audio"], **fields(pattern, (row["audio"] or {}).get("path") or "")}

    if hold_out is None:
        return {part: rows(data) for part, data in parts.items()}
    column, _, values = hold_out.partition("=")
    if column not in columns(pattern) or not values:
        raise BadInput(f"--hold_out {hold_out}: give a column of {', '.join(columns(pattern))}, as in speaker=ann,bob")

    def of(held: bool) -> Iterator[dict]:
        every = chain.from_iterable(map(rows, parts.values()))
        return (row for row in every if (str(row[column]) in values.split(",")) == held)

    return {"train": of(False), "test": of(True)}


def write(
    directory: Path,
    parts: dict[str, Iterable[dict]],
    columns: dict[str, Value],
    card: str,
    hours: dict[str, float] | None = None,
) -> str:
    """Write <part>-00000.parquet and so on, and README.md, all or nothing. Returns a sentence that says what was
    written.

    parts:   rows with "audio" ({bytes, path}; path is the file's path if there are no bytes) and `columns`. Recordings
             that soundfile cannot open are left out, named and counted.
    columns: the other columns of each row; "sampling_rate", in Hz, is added.
    card:    text of README.md, in which {contents} is filled in.
    hours:   upper limit for each part; the first recordings are kept.

    Raises BadInput if `directory` is not empty, if a part is empty, or if too many recordings cannot be read.
    """
    hours = hours or {}
    features = Features({"audio": AUDIO, "sampling_rate": Value("int64"), **columns})
    with whole(directory) as place:
        written = [_part(place, part, rows, features, hours.get(part)) for part, rows in parts.items()]
        contents = "; ".join(written)
        (place / "README.md").write_text(card.replace("{contents}", markdown(contents)), encoding="utf-8")
    return f"{directory}: {contents}"


def _part(directory: Path, part: str, rows: Iterable[dict], features: Features, hours: float | None) -> str:
    shard, size, shards, count, seconds, rates, broken = [], 0, 0, 0, 0.0, set(), []

    def flush() -> None:
        Dataset.from_list(shard, features=features).to_parquet(directory / f"{part}-{shards:05}.parquet")

    for row in rows:
        opened = _opened(row["audio"])
        if isinstance(opened, str):
            broken.append(opened)
            continue
        audio, rate, duration = opened
        shard.append(row | {"audio": audio, "sampling_rate": rate})
        rates.add(rate)
        size, count, seconds = size + len(audio["bytes"]), count + 1, seconds + duration
        full = hours is not None and seconds >= 3600 * hours
        if size >= SHARD or full:
            flush()
            shard, size, shards = [], 0, shards + 1
        if full:
            break
    if shard:
        flush()
    if not count + len(broken):
        raise BadInput(f"there is no recording for the {part} part")
    left_out = unusable({"recordings that cannot be read": broken}, count + len(broken))
    left_out = f", left out {left_out}" if left_out else ""
    at = " and ".join(f"{rate:,}" for rate in sorted(rates))
    return f"{part}: {count:,} recordings, {seconds / 60:,.1f} minutes at {at} Hz{left_out}"


def _opened(audio: dict | None) -> tuple[dict, int, float] | str:
    """({bytes, path}, rate in Hz, seconds), the path without its folders; or what is wrong."""
    import soundfile  # here: it loads a C library

    audio = audio or {}
    name = audio.get("path") or ""
    try:
        content = audio["bytes"] if audio.get("bytes") is not None else regular_files.read(name, MAX_BYTES)
        regular_files.check_size(len(content), MAX_BYTES)
        info = soundfile.info(io.BytesIO(content))
        if not info.frames:
            raise BadInput("holds no samples")
        waves.check_rate(info.samplerate)
        return {"bytes": content, "path": Path(name).name}, info.samplerate, info.duration
    except Exception as error:  # decoders raise many kinds on a corrupt file
        return f"{name} {'' if isinstance(error, BadInput) else f'{type(error).__name__}: '}{first_line(error)}".strip()
