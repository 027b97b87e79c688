"""Word vectors: loading from files, copying into an embedding table, and the tokenizer of that table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from mmssl.errors import BadInput, first_line
from mmssl.models import pretrained
from mmssl.plain_text import say

if TYPE_CHECKING:
    from gensim.models import KeyedVectors
    from transformers import PreTrainedTokenizerFast


def load(path: str | Path) -> tuple[KeyedVectors, Tensor | None]:
    """(vectors, output table or None): an export of mmssl (a directory or a Hub id), or a word2vec file, text or binary
    (.bin), also .gz, as written by gensim, fastText and, with a header, GloVe. Raises BadInput if it cannot be read."""
    from gensim.models import KeyedVectors

    path = Path(path)
    if not path.exists() and len(path.parts) == 2:
        try:
            pretrained.ask_hub(str(path))
            path = Path(snapshot_download(str(path), allow_patterns=["vectors.bin", "pretraining/*"]))
        except Exception as error:  # the Hub client raises many kinds
            answer = pretrained.said_by_hub(error)
            raise BadInput(f"{path}: no such file or directory, and the Hub answered: {answer}") from error
    outputs = path / "pretraining" / "outputs.safetensors"
    file = path / "vectors.bin" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{path}: no word vectors here (a word2vec file, or a directory with vectors.bin)")
    try:
        vectors = KeyedVectors.load_word2vec_format(file, binary=file.name.removesuffix(".gz").endswith(".bin"))
    except Exception as error:  # whatever gensim raises on a broken file; MemoryError if its header is wrong
        raise BadInput(
            f"{file} is not in word2vec format: {type(error).__name__}: {first_line(error)}. From gensim: "
            "model.wv.save_word2vec_format('vectors.bin', binary=True)"
        ) from error
    if not np.isfinite(vectors.vectors).all():
        word = vectors.index_to_key[int((~np.isfinite(vectors.vectors)).any(1).argmax())]
        raise BadInput(f"{file}: vectors that are NaN or infinite, that of {word!r} first")
    try:
        return vectors, load_file(outputs)["outputs"] if outputs.exists() else None
    except (SafetensorError, OSError, KeyError) as error:
        raise BadInput(f"{outputs} is cut off or damaged ({first_line(error)})") from error


def write_text(file: Path, words: list[str], table: np.ndarray) -> None:
    """Write word2vec's text format, as gensim's save_word2vec_format(binary=False) does, in half the time. table:
    (words, dim) float32; each number has the fewest digits that read back as the same value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with open(file, "wb") as f:
        f.write(f"{len(words)} {table.shape[1]}\n".encode())
        for start in range(0, len(words), 10_000):  # rows that are text in memory at a time
            rows = table[start : start + 10_000]
            ends = pa.array(range(0, rows.size + 1, rows.shape[1]), pa.int32())
            numbers = pc.binary_join(pa.ListArray.from_arrays(ends, pc.cast(pa.array(rows.ravel()), pa.string())), " ")
            lines = pc.binary_join_element_wise(pa.array(words[start : start + 10_000]), numbers, " ")
            f.write(("\n".join(lines.to_pylist()) + "\n").encode())


def with_words(words: list[str], counts: np.ndarray, more: list[str]) -> tuple[list[str], np.ndarray]:
    """(words, counts): the vocabulary of a text, then the words of `more` that it lacks, with a count of 0."""
    known = set(words)
    added = [word for word in more if word not in known]
    return words + added, np.concatenate([counts, np.zeros(len(added), np.int64)])


def take_over(table: Tensor, words: list[str], vectors: KeyedVectors, values: Tensor | None = None) -> int:
    """Copy the vectors of all words that `vectors` knows, or their rows of `values`, into `table`, (words, dim).
    Returns the number of these words."""
    mine = [i for i, word in enumerate(words) if word in vectors.key_to_index]
    theirs = [vectors.key_to_index[words[i]] for i in mine]
    with torch.no_grad():
        table[mine] = (torch.from_numpy(vectors.vectors) if values is None else values)[theirs].to(table)
    return len(mine)


def say_taken_over(known: int, of: int, name: str) -> None:
    """Print how many words start from the vectors of --init_vectors `name`. Raises BadInput if there are none."""
    from accelerate import PartialState

    if not known:
        raise BadInput(f"--init_vectors {name}: it has none of the {of:,} words of the vocabulary")
    if PartialState().is_main_process:
        say(f"{known:,} of {of:,} words start from the vectors of {name}")


def tokenizer(words: list[str], plain: bool) -> PreTrainedTokenizerFast:
    """Maps words to rows of the table. Text is split as in data/text/corpus.py: at white space; with `plain`, it is
    lower-cased and only letters and digits are kept."""
    from transformers import PreTrainedTokenizerFast

    table = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*words, "<unk>", "<pad>"])}, unk_token="<unk>")
    )
    if plain:
        table.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\p{L}\p{M}\p{N}]+"), " ")]
        )
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=table, unk_token="<unk>", pad_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    )
