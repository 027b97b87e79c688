"""Text as word2vec reads it: a vocabulary, and one flat int32 array of word ids with -1 at the end of each sentence.

Words are what `str.split()` gives, cut to LONGEST_WORD bytes; a sentence is a line, and empty lines are skipped.
Compiled code cuts the bytes into words and looks them up in a hash table, several blocks in parallel. The array is
written to disk block by block and memory-mapped, so that a corpus may be larger than memory. It stays on disk: the next
run with the same text and settings reads it from there.
"""

from __future__ import annotations

import hashlib
import json
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl import bounded_json
from mmssl.data import sources
from mmssl.data.atomic import once, reading, whole
from mmssl.data.text.blocks import in_blocks, open_blocks
from mmssl.device import cores
from mmssl.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

    from mmssl.data.text.blocks import Source
    from mmssl.kernels.word_table import Table


DROPPED = -2  # id of a word that is too rare
LONG_LINE = 1_000_000  # words
FORMAT = 2  # version of the files on disk

Say = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """
    words:  the vocabulary, most frequent first.
    counts: (words,) int64.
    ids:    (tokens,) int32, memory-mapped; SENTENCE_END after each line that has words.
    total:  words in the text, including the dropped ones.
    """

    words: list[str]
    counts: np.ndarray
    ids: np.ndarray
    total: int

    def sentences(self) -> Iterator[list[str]]:
        """The lines as lists of words, without the dropped words."""
        from mmssl.kernels import SENTENCE_END

        rest = np.empty(0, np.int32)
        for start in range(0, len(self.ids), 1 << 20):
            piece = np.concatenate([rest, self.ids[start : start + (1 << 20)]])
            *whole, rest = np.split(piece, np.flatnonzero(piece == SENTENCE_END) + 1)
            for sentence in whole:
                if len(sentence) > 1:
                    yield [self.words[i] for i in sentence[:-1].tolist()]

    @property
    def unigram_entropy(self) -> float:
        """The loss, in nats per word, of a model that knows only the word counts."""
        frequency = self.counts / self.counts.sum()
        return float(-(frequency * np.log(frequency)).sum())


def load(
    source: Source,
    *,
    column: str | None = None,
    min_count: int = 5,
    max_words: int | None = None,
    plain: bool = False,
    phrases: bool = False,
    cache: str | Path | None = None,
    threads: int | None = None,
    say: Say = print,
) -> Corpus:
    """The corpus of a text, from the cache if it is there.

    source:    a text, also packed; a Parquet file; a list of such files; a folder, a built-in name or a Hub id (see
               `sources.load`); a datasets.Dataset or IterableDataset.
    column:    the text column of a table. Default: "text", else the only column of strings.
    min_count: rarer words are left out. max_words: largest vocabulary; the most frequent words are kept.
    plain:     lower-case everything and keep only letters and digits, for text that is not tokenised yet.
    phrases:   join word pairs that belong together (see `join_phrases`).
    cache:     folder for the arrays; default ~/.cache/huggingface/mmssl/corpora, or $MMSSL_HOME/corpora.

    Raises BadInput if a file is missing, if bytes are not UTF-8 (with file and line), or if no word is left.
    """
    cache = Path(cache) if cache else sources.home() / "corpora"
    name, blocks = open_blocks(source, column)
    settings = {"source": name, "min_count": min_count, "max_words": max_words, "plain": plain, "format": FORMAT}
    directory = cache / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]

    def make(directory: Path) -> None:
        build(blocks, directory, min_count, max_words, plain, threads, say)
        (directory / "settings.json").write_text(json.dumps(settings, indent=2))

    corpus = read(once(directory, make))
    return join_phrases(corpus, directory / "phrases", min_count, say=say) if phrases else corpus


def from_args(args) -> Corpus:
    """The corpus that the flags of recipes/word2vec.py describe."""
    listed = sources.listed(args.dataset)
    source = listed if len(listed) > 1 else args.dataset
    options = {"column": args.text_column, "min_count": args.min_count, "max_words": args.max_words}
    return load(source, **options, plain=args.plain, phrases=args.phrases)


def read(directory: Path) -> Corpus:
    """Read a corpus that `build` wrote."""
    with reading(directory):
        about = bounded_json.read(directory / "corpus.json")
        words = (directory / "words.txt").read_bytes().decode().split("\n")
        counts, ids = np.load(directory / "counts.npy"), np.memmap(directory / "ids.int32", np.int32, mode="r")
        # ids holds every occurrence of a word that is kept, and the ends of sentences
        if not len(words) == len(counts) == about["words"] or len(ids) < counts.sum():
            raise ValueError("words.txt, counts.npy or ids.int32 is cut short")
        return Corpus(words, counts, ids, about["total"])


def build(
    blocks: Iterable[tuple[str, bytes]],
    directory: Path,
    min_count: int = 5,
    max_words: int | None = None,
    plain: bool = False,
    threads: int | None = None,
    say: Say = print,
) -> None:
    """Count and number the words of `blocks`. Write words.txt, counts.npy, ids.int32 and corpus.json to `directory`.

    blocks: (source, UTF-8 text); each begins and ends between two words.
    """
    from mmssl.kernels.word_table import LONGEST_WORD

    with whole(directory) as place:
        tables, pieces, longest = _number(blocks, place / "provisional.int32", plain, threads or cores())
        words, counts, renumber = _vocabulary(tables, min_count, max_words)
        total = int(sum(table.counts[: table.size].sum() for table in tables))
        if cut := sum(table.cut for table in tables):
            say(f"{cut:,} of {total:,} words are longer than {LONGEST_WORD:,} bytes and were cut to that length")
        if longest > LONG_LINE:
            say(f"the longest line has {longest:,} words; a line counts as one sentence, so no window ends inside it")
        _renumber(place / "provisional.int32", place / "ids.int32", pieces, renumber)
        (place / "provisional.int32").unlink()
        (place / "words.txt").write_bytes("\n".join(words).encode())
        np.save(place / "counts.npy", counts)
        (place / "corpus.json").write_text(json.dumps({"total": total, "words": len(words), "format": FORMAT}))


def join_phrases(
    corpus: Corpus, directory: Path, min_count: int = 5, threshold: float = 10.0, say: Say = print
) -> Corpus:
    """The corpus with frequent word pairs joined into one word, new_york, as found by gensim's Phrases (Mikolov et al.
    2013, section 4). Runs in Python: about a minute for ten million words, once."""
    from gensim.models.phrases import Phrases

    phrases = Phrases(corpus.sentences(), min_count=min_count, threshold=threshold, delimiter="_").freeze()
    joined = (" ".join(phrases[sentence]) + "\n" for sentence in corpus.sentences())
    blocks = (("phrases", block) for block in in_blocks(joined))
    return read(once(directory, lambda place: build(blocks, place, min_count, say=say)))


# ---------------------------------------------------------------- from text to provisional numbers


def _number(blocks, file: Path, plain: bool, threads: int) -> tuple[list[Table], list[tuple[int, int]], int]:
    """Write the provisional numbers of all blocks. Returns the tables, (table, length) of each block, and the words of
    the longest line."""
    from mmssl.kernels import SENTENCE_END
    from mmssl.kernels.word_table import Table

    tables = [Table() for _ in range(threads)]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(threads):
        free.put(i)

    def number(block: tuple[str, bytes]) -> tuple[int, np.ndarray, int]:
        text = _plain(block[1]) if plain else block[1]
        i = free.get()
        try:
            ids, longest = tables[i].number(text)
        finally:
            free.put(i)  # also after an error, or the other threads would wait for it forever
        return i, ids, longest

    pieces, longest = [], 0
    ended = True  # whether the previous line is complete: a line feed then ends an empty line
    with open(file, "wb") as f, ThreadPoolExecutor(threads) as pool:
        for i, ids, line in _ahead(pool, number, blocks, threads):
            if ended and len(ids) and ids[0] == SENTENCE_END:
                ids = ids[1:]
            f.write(ids.data)
            pieces.append((i, len(ids)))
            longest = max(longest, line)
            if len(ids):
                ended = ids[-1] == SENTENCE_END
    return tables, pieces, longest


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, n: int) -> Iterator:
    """`map` in order with at most n items in flight, which bounds the memory for what is read ahead."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > n:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _plain(text: bytes) -> pa.Buffer:
    """Lower-cased, with everything except letters, digits and line ends replaced by spaces."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lower = pc.utf8_lower(pa.scalar(text.decode(), pa.large_string()))
    words = pc.replace_substring_regex(lower, r"[^\pL\pM\pN\n]+", " ")
    return words.as_buffer()


# ---------------------------------------------------------------- from provisional to final numbers


def _vocabulary(tables: list[Table], min_count: int, max_words: int | None) -> tuple[list[str], np.ndarray, list]:
    """Words and counts, most frequent first, and for each table the final number of each of its words."""
    count: dict[bytes, int] = {}
    spelled = [table.words() for table in tables]
    for words, table in zip(spelled, tables, strict=True):
        for word, n in zip(words, table.counts[: table.size].tolist(), strict=True):
            count[word] = count.get(word, 0) + n
    if not count:
        raise BadInput("the text holds no words: the files are empty or hold only white space")
    # equally frequent words are sorted by their bytes: the numbering must not depend on which thread was first
    kept = sorted((item for item in count.items() if item[1] >= min_count), key=lambda item: (-item[1], item[0]))
    kept = kept[:max_words]
    if not kept:
        word, most = max(count.items(), key=lambda item: item[1])
        raise BadInput(
            f"--min_count {min_count} leaves no word: of {len(count):,} different words the most frequent, "
            f"{word.decode()!r}, occurs {most} times; lower it"
        )
    number = {word: i for i, (word, _) in enumerate(kept)}
    renumber = [np.array([number.get(word, DROPPED) for word in words], np.int32) for words in spelled]
    return [word.decode() for word in number], np.array([n for _, n in kept], np.int64), renumber


def _renumber(provisional: Path, final: Path, pieces: list[tuple[int, int]], renumber: list[np.ndarray]) -> None:
    from mmssl.kernels import SENTENCE_END

    lookup = [np.append(numbers, np.int32(SENTENCE_END)) for numbers in renumber]  # -1 selects the last
    with open(provisional, "rb") as before, open(final, "wb") as after:
        for table, length in pieces:
            ids = lookup[table][np.fromfile(before, np.int32, length)]
            after.write(ids[ids != DROPPED].data)
