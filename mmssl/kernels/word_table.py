"""Words of a text to numbers, in the order of first sight: a hash table, and the loop that cuts bytes into words and
looks them up, compiled by numba. A word is what stands between white space, exactly as `str.split()` has it.

What compiled code writes to has a size that follows from the text, not from an assumption about it: each number is
written for at least one byte of its own (a word's first byte, or a line feed), so a text of n bytes has at most n.
"""

from __future__ import annotations

import numpy as np

from mmssl.kernels import SENTENCE_END

try:
    from numba import njit

    from mmssl.kernels.compiled import compiled

    COMPILED = True
except Exception:  # no numba for this Python or processor: words are split by str.split(), about thirty times slower

    def njit(**options):
        return lambda function: function

    compiled = njit
    COMPILED = False


LONGEST_WORD = 1000  # bytes; longer words are cut (word2vec.c: 100)


class Table:
    """A hash table from the bytes of a word to its number, in order of first occurrence. Open addressing; grows when
    half full."""

    def __init__(self) -> None:
        self.size = 0
        self.cut = 0  # occurrences of words longer than LONGEST_WORD
        self.slots = np.full(1 << 17, -1, np.int32)  # the word in each slot
        self.hashes = np.empty(1 << 16, np.uint64)  # of each word
        self.counts = np.zeros(1 << 16, np.int64)
        self.ends = np.zeros((1 << 16) + 1, np.int64)  # word i is letters[ends[i] : ends[i + 1]]
        self.letters = np.empty(1 << 20, np.uint8)

    def number(self, text: bytes | np.ndarray) -> tuple[np.ndarray, int]:
        """The words of text (UTF-8) as numbers, with SENTENCE_END at the line ends, and the length in words of its
        longest line.

        A line without words has no end of its own. Only where the text begins with one is its end kept: it may be the
        end of a line that began in the text before.
        """
        text = np.frombuffer(text, np.uint8)
        text.flags.writeable = False  # one type for the compiled code, whatever type the text has
        if not COMPILED:
            return self._number_in_python(text.tobytes())
        ids = np.empty(len(text), np.int32)
        at = found = line = longest = 0
        while True:
            at, found, line, longest, self.size, self.cut, full = _number_words(
                text, at, ids, found, line, longest, self.slots, self.hashes, self.counts, self.ends, self.letters,
                self.size, self.cut
            )  # fmt: skip
            if not full:
                return ids[:found], longest
            self._grow()

    def words(self) -> list[bytes]:
        letters, ends = self.letters.tobytes(), self.ends[: self.size + 1].tolist()
        return [letters[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    def _grow(self) -> None:
        if _crowded.py_func(self.slots, self.size):
            self.slots = np.full(2 * len(self.slots), -1, np.int32)
            for name in ("hashes", "counts", "ends"):
                before = getattr(self, name)
                after = np.zeros(2 * len(before), before.dtype)
                after[: len(before)] = before
                setattr(self, name, after)
            _rehash(self.slots, self.hashes, self.size)
        if _no_room.py_func(self.letters, self.ends, self.size):
            letters = np.empty(2 * len(self.letters), np.uint8)
            letters[: len(self.letters)] = self.letters
            self.letters = letters

    def _number_in_python(self, text: bytes) -> tuple[np.ndarray, int]:
        if self.size == 0:
            self.known: dict[bytes, int] = {}
        ids, longest = [], 0
        *lines, rest = text.decode(errors="surrogateescape").split("\n")
        for i, (line, ended) in enumerate([*((line, True) for line in lines), (rest, False)]):
            words = [word.encode(errors="surrogateescape") for word in line.split()]
            longest = max(longest, len(words))
            self.cut += sum(len(word) > LONGEST_WORD for word in words)
            ids += [self.known.setdefault(_beginning(word), len(self.known)) for word in words]
            if ended and (words or i == 0):
                ids.append(SENTENCE_END)
        ids = np.array(ids, np.int32)
        counts = np.bincount(ids[ids >= 0], minlength=len(self.known))
        counts[: self.size] += self.counts[: self.size]
        self.size, self.counts = len(self.known), counts
        self.letters = np.frombuffer(b"".join(self.known), np.uint8)
        self.ends = np.concatenate([[0], np.cumsum([len(word) for word in self.known])]).astype(np.int64)
        return ids, longest


def _beginning(word: bytes) -> bytes:
    """The word cut to at most LONGEST_WORD bytes, between two characters."""
    end = len(word)
    if end > LONGEST_WORD:
        end = LONGEST_WORD
        while end > LONGEST_WORD - 3 and 0x80 <= word[end] < 0xC0:
            end -= 1
    return word[:end]


@njit(nogil=True)
def _crowded(slots, size):
    """True if half of the slots are taken. A search ends at an empty slot, so the table must not fill up."""
    return 2 * size >= len(slots) - 2


@njit(nogil=True)
def _no_room(letters, ends, size):
    return ends[size] + LONGEST_WORD > len(letters)


@njit(nogil=True)
def _space(text, at):
    """The length in bytes of the white space at `at`, 0 for none. White space is what str.split() splits at."""
    first = text[at]
    if first <= 32:
        return 1 if first == 32 or 9 <= first <= 13 or 28 <= first <= 31 else 0
    if first < 0xC2:
        return 0
    left = len(text) - at
    if first == 0xC2:  # next line, no-break space
        return 2 if left > 1 and (text[at + 1] == 0x85 or text[at + 1] == 0xA0) else 0
    if left < 3:
        return 0
    second, third = text[at + 1], text[at + 2]
    if first == 0xE2:  # en quad to hair space, line and paragraph separators, narrow no-break and mathematical space
        if second == 0x80 and (third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF):
            return 3
        return 3 if second == 0x81 and third == 0x9F else 0
    if first == 0xE1:  # ogham space mark
        return 3 if second == 0x9A and third == 0x80 else 0
    return 3 if first == 0xE3 and second == 0x80 and third == 0x80 else 0  # ideographic space


@compiled()
def _number_words(text, at, ids, found, line, longest, slots, hashes, counts, ends, letters, size, cut):
    """Number words from text[at] on, until the text ends or the table is full. Returns the state to continue from."""
    mask = np.uint64(len(slots) - 1)
    begun = found > 0  # False until a word or a line's end has been seen
    while at < len(text):
        if _crowded(slots, size) or _no_room(letters, ends, size):
            return at, found, line, longest, size, cut, True
        space = _space(text, at)
        if space:
            if text[at] == 10:
                if line > 0 or not begun:
                    ids[found] = SENTENCE_END
                    found += 1
                    begun = True
                longest = max(longest, line)
                line = 0
            at += space
            continue
        begun = True
        start = at
        key = np.uint64(14695981039346656037)  # FNV-1a
        while at < len(text) and not _space(text, at):
            if at - start < LONGEST_WORD - 3:
                key = (key ^ np.uint64(text[at])) * np.uint64(1099511628211)
            at += 1
        key ^= key >> np.uint64(32)
        length = at - start
        if length > LONGEST_WORD:
            cut += 1
            length = LONGEST_WORD
            while length > LONGEST_WORD - 3 and 0x80 <= text[start + length] < 0xC0:  # not within a character
                length -= 1
        slot = key & mask
        word = slots[slot]
        while word >= 0:
            if hashes[word] == key and ends[word + 1] - ends[word] == length:
                same = True
                for i in range(length):
                    if letters[ends[word] + i] != text[start + i]:
                        same = False
                        break
                if same:
                    break
            slot = (slot + np.uint64(1)) & mask
            word = slots[slot]
        if word < 0:
            word = size
            slots[slot], hashes[word] = word, key
            for i in range(length):
                letters[ends[word] + i] = text[start + i]
            ends[word + 1] = ends[word] + length
            size += 1
        counts[word] += 1
        ids[found] = word
        found += 1
        line += 1
    return at, found, line, max(longest, line), size, cut, False


@compiled()
def _rehash(slots, hashes, size):
    mask = np.uint64(len(slots) - 1)
    for word in range(size):
        slot = hashes[word] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = word
