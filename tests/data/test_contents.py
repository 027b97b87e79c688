import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmssl.data import sources
from mmssl.data.text import corpus, documents
from mmssl.errors import BadInput

POEMS = [f"Größe {i}\nits second line" for i in range(30)]
TEXT = "\n\n".join(POEMS)
MARKED = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32-le": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
}
PACKED = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def as_documents(path) -> list[str]:
    return sorted(text.strip() for part in documents.load(str(path)) for text in part["text"])


def as_words(path) -> int:
    return corpus.load(path, min_count=1, threads=1, say=lambda line: None).total


def check_text(path) -> None:
    assert as_documents(path) == sorted(POEMS)
    assert as_words(path) == len(TEXT.split())


@pytest.mark.parametrize("encoding", MARKED)
def test_a_text_with_a_byte_order_mark_is_read(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(MARKED[encoding] + TEXT.encode(encoding))
    check_text(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.{}", "a", "a.{}", "A.TXT"])
@pytest.mark.parametrize("packing", PACKED)
def test_a_packed_text_is_read_whatever_its_name(packing, name, tmp_path):
    path = tmp_path / name.format(packing)
    path.write_bytes(PACKED[packing](b"\xff\xfe" + TEXT.encode("utf-16-le")))
    check_text(path)


def test_a_text_that_only_its_name_calls_packed_is_read(tmp_path):
    (tmp_path / "a.txt.gz").write_text(TEXT)
    check_text(tmp_path / "a.txt.gz")


def rows_of(kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps({"text": poem}, ensure_ascii=False) + "\n" for poem in POEMS)
    return "n\ttext\n" + "".join(f'{i}\t"{poem}"\n' for i, poem in enumerate(POEMS))


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
@pytest.mark.parametrize("packing", ["", *PACKED])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_table_is_read_packed_and_in_utf_16(kind, packing, folder, tmp_path):
    (tmp_path / "data").mkdir()
    content = b"\xff\xfe" + rows_of(kind).encode("utf-16-le")
    path = tmp_path / "data" / f"A.{kind.upper()}{'.' * bool(packing)}{packing}"
    path.write_bytes(PACKED[packing](content) if packing else content)
    assert as_documents(path.parent if folder else path) == sorted(POEMS)


@pytest.mark.parametrize("name", ["a.PARQUET", "a.parquet.download", "a", "a.txt"])
def test_a_parquet_file_is_read_whatever_its_name(name, tmp_path):
    pq.write_table(pa.table({"text": POEMS}), tmp_path / name)
    check_text(tmp_path / name)


def test_brackets_nested_deeply_are_found_in_a_packed_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"[" * 1000))
    with pytest.raises(BadInput, match="nested more than 100 deep"):
        sources.load(str(tmp_path / "a.jsonl.gz"))


def png(path):
    Image.new("RGB", (8, 8)).save(path, format="PNG")


def document(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", TEXT)


@pytest.mark.parametrize("name", ["a.txt", "a.docx"])
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (png, "is a PNG image, not text"),
        (document, "is a ZIP archive, not text: unpack it .*; save a document .* as plain text"),
        (lambda path: path.write_bytes(b"%PDF-1.4\n%\xe2\xe3"), "is a PDF file, not text: extract its text first"),
        (
            lambda path: path.write_bytes(TEXT.encode("utf-16-le")),
            "UTF-16 without a byte .* iconv -f utf-16le -t utf-8",
        ),
        (
            lambda path: path.write_bytes(TEXT.encode("utf-16-be")),
            "UTF-16 without a byte .* iconv -f utf-16be -t utf-8",
        ),
        (lambda path: path.write_bytes(b"\xff\xfea"), "a.* begins like UTF-16-LE but is damaged"),
        (lambda path: path.write_bytes(PACKED["xz"](TEXT.encode())[:-30]), "is not a complete xz file"),
        (lambda path: path.write_bytes(PACKED["zst"](TEXT.encode())[:-30]), "is not a complete zstd file"),
        (lambda path: path.write_bytes(TEXT.encode("cp1252")), r"line 1: byte 0xf6 is not UTF-8.*\(cp1252: Western"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(write, said, name, tmp_path):
    write(tmp_path / name)
    for read in (as_documents, as_words):
        with pytest.raises(BadInput, match=said):
            read(tmp_path / name)


def test_a_tar_archive_of_texts_is_not_read_as_one_text(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT.encode())
        tar.addfile(member, io.BytesIO(TEXT.encode()))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.getvalue()))
    with pytest.raises(BadInput, match="is a tar archive, not text: unpack it and give the folder"):
        as_documents(tmp_path / "a.txt.gz")


def test_the_words_null_and_none_in_a_table_are_words(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\nNone,1\nnull,2\nNA,3\n,4\n")
    rows = sources.load(str(tmp_path / "a.csv"))["train"]
    assert list(rows["text"]) == ["None", "null", "NA", None] and list(rows["n"]) == [1, 2, 3, 4]


def test_a_table_separated_by_semicolons_has_its_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text;n\na, b;1\n")
    assert sources.load(str(tmp_path / "a.csv"))["train"][0] == {"text": "a, b", "n": 1}
