from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmssl.data.text import blocks, documents
from mmssl.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))


def poems(n: int) -> list[str]:
    return [f"poem {i}\nits second line" for i in range(n)]


def everything(train, held_out) -> list[str]:
    return sorted(text.rstrip("\n") for part in (train, held_out) for text in part["text"])


def test_a_text_file_is_cut_at_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeff" + "\n \t\n\n".join(poems(30)), newline="\r\n")
    train, held_out = documents.load(str(tmp_path / "a.txt"))
    assert everything(train, held_out) == sorted(poems(30)) and len(held_out) == 3


def test_blocks_change_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n\n".join(poems(30)))
    monkeypatch.setattr(blocks, "BLOCK", 16)
    assert everything(*documents.load(str(tmp_path / "a.txt"))) == sorted(poems(30))


def test_several_files_packed_or_not_are_one_data_set(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(poems(30)[:9]))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n\n".join(poems(30)[9:]))
    assert everything(*documents.load(f"{tmp_path}/a.txt,{tmp_path}/b.txt.gz")) == sorted(poems(30))


def test_a_file_without_blank_lines_is_one_document_whose_last_tenth_is_held_out(tmp_path):
    text = "".join(f"{i:04}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    train, held_out = documents.load(str(tmp_path / "a.txt"))
    assert train["text"][0] + held_out["text"][0] == text and len(held_out["text"][0]) == 500


def test_whole_leaves_blank_lines_in(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(poems(30)) + "\n")
    train, held_out = documents.load(str(tmp_path / "a.txt"), whole=True)
    assert train["text"][0] + held_out["text"][0] == "\n\n".join(poems(30)) + "\n"


def test_a_folder_holds_out_what_it_names_so(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "validation.txt").write_text("three")
    train, held_out = documents.load(str(tmp_path))
    assert [text.strip() for text in train["text"]] == ["one", "two"]
    assert [text.strip() for text in held_out["text"]] == ["three"]


def test_rows_of_a_table_are_documents_without_blank_ones(tmp_path):
    table = pa.table({"body": [*poems(30), " ", None, ""], "title": ["t"] * 33})
    pq.write_table(table, tmp_path / "a.parquet")
    train, held_out = documents.load(str(tmp_path / "a.parquet"), "body", held_out=3)
    rows = [list(row) for part in (train, held_out) for row in part]
    assert all(row == ["text"] for row in rows) and len(held_out) == 3
    assert sorted(row["text"] for part in (train, held_out) for row in part) == sorted(poems(30))


def test_a_file_that_changed_is_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(poems(30)))
    documents.load(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("\n\n".join(poems(40)))
    assert everything(*documents.load(str(tmp_path / "a.txt"))) == sorted(poems(40))


def test_repeated_and_leaked_lines_are_counted(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\na\n\n\nb\nc\n")
    (tmp_path / "test.txt").write_text("c\nd\n\n\n d ")
    counts = documents.count(*documents.load(str(tmp_path)))
    assert (counts.documents, counts.lines, counts.repeated) == (2, 5, 2)
    assert (counts.held_out_documents, counts.held_out_lines, counts.leaked) == (2, 3, 1)
    assert "2 of their 5 lines (40.0%) repeat an earlier one" in str(counts)
    assert "1 of the 3 held-out lines (33.3%) occur in them" in str(counts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.txt: no text: empty"),
        (b" \n\t\n", "a.txt: no text: empty"),
        (b"x", "too little text"),
        ("first\nsecond caf\xe9\n".encode("latin1"), r"a\.txt, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadInput, match=said):
        documents.load(str(tmp_path / "a.txt"))


def test_a_missing_file_and_an_unclear_column_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadInput, match=r"b\.txt: no such file"):
        documents.load(f"{tmp_path}/a.txt,{tmp_path}/b.txt")
    with pytest.raises(BadInput, match=r"--text_column body: .*a\.txt is plain text, which has no columns"):
        documents.load(str(tmp_path / "a.txt"), "body")
    pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="no text column among title, body: name it with --text_column"):
        documents.load(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": [" ", None]}), tmp_path / "blank.parquet")
    with pytest.raises(BadInput, match="the train data holds no text"):
        documents.load(str(tmp_path / "blank.parquet"))
    with pytest.raises(BadInput, match="a list with commas takes only text files"):
        documents.load(f"{tmp_path}/a.txt,{tmp_path}/a.parquet")


def test_the_built_in_articles_are_documents_with_a_held_out_part(tmp_path):
    train, held_out = documents.load("wikipedia")
    assert train.column_names == held_out.column_names == ["text"] and len(train) > 15 * len(held_out) > 0
