"""What a file holds, by its first bytes rather than its name; and the text in it, unpacked, as UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmssl.errors import BadInput

PACKED = (".gz", ".xz", ".bz2", ".zst")
HEAD = 4096  # bytes that are looked at
TAR = slice(257, 262), b"ustar"

# https://en.wikipedia.org/wiki/List_of_file_signatures
BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
    b"PAR1": "parquet",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"fLaC": "a FLAC recording",
    b"OggS": "an Ogg recording",
    b"ID3": "an MP3 recording",
    b"%PDF-": "a PDF file",
    b"PK\x03\x04": "a ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Office file (.doc, .xls)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}
FORMS = {b"WAVE": "a WAV recording", b"WEBP": "a WebP image", b"AVI ": "an AVI video"}  # of b"RIFF", at byte 8
REMEDIES = {
    "a PDF file": "extract its text first: pdftotext",
    "a ZIP archive": "unpack it and give the folder; save a document (.docx, .epub) as plain text",
    "an old Office file (.doc, .xls)": "save the document as plain text",
    "a 7z archive": "unpack it and give the folder",
    "a RAR archive": "unpack it and give the folder",
    "tar": "unpack it and give the folder: tar -xf",
}
# the mark of UTF-32 begins with that of UTF-16: the longer ones come first
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
UNPACKING = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what is raised where a packed file is damaged


def _zstd(path: Path, mode: str) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(path, compression="zstd"))


OPEN = {"gzip": gzip.open, "xz": lzma.open, "bz2": bz2.open, "zstd": _zstd}


def suffix(path: str | Path) -> str:
    """In lower case, without that of the packing: ".jsonl" of A.JSONL.gz. A packed tar file is none that is read."""
    name = plain = Path(path).name.lower()
    for packed in PACKED:
        plain = plain.removesuffix(packed)
    return Path(name if plain.endswith(".tar") else plain).suffix


def kind(head: bytes) -> str:
    """A packing (gzip, xz, zstd, bz2), "parquet", "tar", the name of a binary format with its article, or "text". head:
    the first bytes of a file, HEAD of them or all."""
    if head[TAR[0]] == TAR[1]:
        return "tar"
    if head.startswith(b"RIFF") and head[8:12] in FORMS:
        return FORMS[head[8:12]]
    return next((name for beginning, name in BEGINNINGS.items() if head.startswith(beginning)), "text")


def kind_of(path: Path) -> str:
    """`kind` of a regular file."""
    with open(path, "rb") as file:
        return kind(file.read(HEAD))


def is_plain(path: Path) -> bool:
    """Whether it is neither packed nor begins with a byte order mark."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    return kind(head) not in OPEN and _mark(head) is None


def refuse(path: str | Path, what: str) -> None:
    """Raise BadInput if `what`, of `kind`, is not text."""
    if what != "text":
        name = {"tar": "a tar archive", "parquet": "a Parquet file"}.get(what, what)
        remedy = f": {REMEDIES[what]}" if what in REMEDIES else ""
        raise BadInput(f"{path} is {name}, not text{remedy}")


def text(path: Path, block: int) -> Iterator[bytes]:
    """The text of a file in blocks of about so many bytes: unpacked, as UTF-8, without a byte order mark. UTF-16 and
    UTF-32 are recoded where they have a mark. Other bytes are not checked, and a character may be cut in two.

    Raises BadInput if the file is not text, is damaged, or is UTF-16 without a mark.
    """
    packing = kind_of(path)
    with OPEN.get(packing, open)(path, "rb") as file:
        try:
            head = file.peek(HEAD)[:HEAD]
            refuse(path, kind(head))
            _refuse_utf16(path, head)
            mark = _mark(head)
            file.read(len(mark or b""))
            decoder = codecs.getincrementaldecoder(MARKS[mark])() if mark else None
            while read := file.read(block):
                yield decoder.decode(read).encode() if decoder else read
            if decoder:
                yield decoder.decode(b"", final=True).encode()
        except UnicodeError as error:
            raise BadInput(f"{path} begins like {MARKS[mark].upper()} but is damaged: {error}") from error
        except UNPACKING as error:
            if packing not in OPEN:
                raise
            raise BadInput(f"{path} is not a complete {packing} file: {error}") from error


def check_utf8(path: Path, block: bytes, lines: int) -> None:
    """Raise BadInput if a block of a text file is not UTF-8. lines: of the file before the block."""
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line = lines + block.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {line}: byte 0x{block[error.start]:02x} is not UTF-8. Convert the file from its encoding: "
            f"iconv -f cp1252 -t utf-8 {path.name} (cp1252: Western European, cp1251: Cyrillic, gb18030: Chinese)"
        ) from error


def _mark(head: bytes) -> bytes | None:
    return next((mark for mark in MARKS if head.startswith(mark)), None)


def _refuse_utf16(path: Path, head: bytes) -> None:
    """Half of the bytes of Western text in UTF-16 are zeros, always the even or always the odd ones."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if _mark(head) is None and len(head) > 3 and max(even, odd) > len(head) / 5 and min(even, odd) < len(head) / 100:
        order = "le" if odd > even else "be"
        raise BadInput(
            f"{path} is UTF-16 without a byte order mark. Convert it first: iconv -f utf-16{order} -t utf-8 {path.name}"
        )
