"""word2vec: words that occur in similar contexts get similar vectors.

Skip-gram with negative sampling, Mikolov et al. 2013, arXiv:1310.4546. Each context word of a window must distinguish
the centre word from `negative` noise words. Two tables are learned: `inputs`, the word vectors, and `outputs`, only for
training. Differs from word2vec.c and gensim: the context words of a window share their noise words
(pWord2Vec, arXiv:1604.04661), and the sigmoid is computed, not looked up in a table.

Three implementations of the same update:
    kernels.word2vec_torch.update_window   plain torch, one window: the reference that the tests compare the others with
    kernels.word2vec                       compiled for the CPU, lock-free on several threads
    kernels.word2vec_torch.update_batch    thousands of windows at once, for GPUs, and where numba cannot compile
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmssl.data.text.skip_grams import Draws, draw, keep_probability, noise_pool, windows
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.hub import sentence_transformers
from mmssl.kernels.word2vec_torch import asked, masked_loss, update_batch
from mmssl.method import Card, Method, Output
from mmssl.models import memory, word_vectors
from mmssl.models.word_vectors import take_over

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

    from mmssl.models.word2vec import Word2VecModel


TURN = 10_000  # largest number of words, about, that a thread trains on between two exchanges of its private rows
SETTLED = 400  # occurrences after which a word's vector has moved most of the way (1 - 1/e) to its target
HOT = 300  # most frequent rows; with several threads, each thread has private copies of them
IN_FLIGHT = 4096  # windows of one batched update
CACHE_LINE = 64  # bytes

SNIPPETS = {
    "With gensim": """
from gensim.models import KeyedVectors
from transformers.utils import cached_file

name = "..."
vectors = KeyedVectors.load_word2vec_format(cached_file(name, "vectors.bin"), binary=True)
print(vectors.most_similar({text[0]!r}, topn=5))
""",
    "With transformers; the same directory is a sentence-transformers model, too": """
from transformers import AutoModel, AutoTokenizer

name = "..."
model = AutoModel.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
print(model(**tokenizer([{text[0]!r}], return_tensors="pt")).pooler_output.shape)
""",
}


@cache
def _kernel():
    """The kernel. numba is imported, and the kernel compiled or read from disk, on first use."""
    from mmssl.kernels import word2vec

    return word2vec


@cache
def why_no_kernel() -> str:
    """The reason why the compiled kernel does not work, or "" if it does."""
    try:
        _kernel()
    except Exception as error:  # numba does not support this Python, or LLVM this processor
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads of all steps: starting them for each step of 20 ms takes a tenth of the time."""
    return ThreadPoolExecutor(threads)


class Word2Vec(Method):
    """
    words, counts: the vocabulary and how often each occurs, most frequent first.
    dimension: of the vectors. window: the largest distance of context. negative: noise words for each centre word.
    sample:    words that are more frequent than this fraction of the text are subsampled; 0: none.
    threads:   of the kernel; several threads train without locks: fast, but runs are not repeatable.
    batched:   use the implementation for GPUs; also used if the kernel cannot be compiled.
    """

    unit = "thousand words"  # the pieces of data.skip_grams.Pieces

    def __init__(
        self,
        words: list[str],
        counts: np.ndarray,
        dimension: int = 100,
        window: int = 5,
        negative: int = 5,
        sample: float = 1e-3,
        seed: int = 0,
        threads: int = 1,
        batched: bool = False,
    ) -> None:
        super().__init__()
        self.words, self.counts, self.dimension, self.window, self.negative = words, counts, dimension, window, negative
        self.seed, self.threads, self.batched = seed, threads, batched or bool(why_no_kernel())
        self.keep = keep_probability(counts, sample)
        self.noise = noise_pool(counts, np.random.default_rng([seed, 1]))
        self.hot = min(HOT, len(words)) if threads > 1 and not self.batched else 0
        lanes = 1 if why_no_kernel() else _kernel().LANES
        self._shape = len(words) + threads * self.hot, -(-dimension // lanes) * lanes
        weights = 2 * self._shape[0] * self._shape[1]  # trained in place, without gradients and moments
        memory.refuse_too_large(weights, f"--dimension {dimension}, {len(words):,} words", each=4)
        self.inputs, self.outputs = nn.Parameter(self._table()), nn.Parameter(self._table())
        with torch.no_grad():
            start = np.random.default_rng([seed, 0]).random((len(words), dimension), dtype=np.float32)
            self.inputs.copy_(torch.from_numpy((start - 0.5) / dimension))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.batched:
            self.register_buffer("inputs_seen", torch.zeros(len(words)))
            self.register_buffer("outputs_seen", torch.zeros(len(words)))

    def forward(self, ids: Tensor) -> Output:
        """Loss without training. ids: (pieces, length) int32, -1 at the end of a sentence."""
        contexts, targets = windows(self._draw(ids.cpu().numpy().ravel(), 0), self.window, self.negative)
        contexts, targets = contexts.to(self.inputs.device), targets.to(self.inputs.device)
        scores = self.inputs[contexts.clamp(min=0)] @ self.outputs[targets].mT
        return self._output(masked_loss(scores, asked(contexts, targets)), (contexts >= 0).sum())

    @torch.no_grad()
    def train_on(self, ids: Tensor, learning_rate: float) -> Output:
        """Make one pass over the windows of `ids`, updating the tables in place. ids: as in `forward`."""
        if self.batched:
            total, pairs = self._train_batched(ids, learning_rate)
        else:
            total, pairs = self._train_threads(ids.numpy().ravel(), learning_rate)
        return self._output(total, pairs)

    def after_step(self) -> None:
        """Count the steps: the random choices of the next one depend on the count."""
        self.step += 1

    def share(self, processes: int, micro_batches: Sequence[dict[str, Tensor]]) -> Tensor:
        """(words, 1): the factor on the summed updates of all processes, so that the result is about what they would
        have learned one after the other. Each process trains on as much text as `micro_batches`.

        After n occurrences a word's vector has moved the fraction a = 1 - exp(-n / SETTLED) of the way to its target.
        After N processes in sequence it is 1 - (1 - a) ** N, while the sum of their updates is N a. The factor is 1 for
        rare words (the sum) and 1 / N for frequent ones (the mean).
        """
        text = sum(batch["ids"].numel() for batch in micro_batches)
        occurrences = text * torch.from_numpy(self.counts / self.counts.sum() * self.keep[:-1])
        a = -torch.expm1(-occurrences / SETTLED).clamp(max=-1e-9)
        return ((1 - (1 - a) ** processes) / (processes * a))[:, None].float().to(self.inputs.device)

    def _train_threads(self, ids: np.ndarray, learning_rate: float) -> tuple[float, int]:
        inputs, outputs = self._whole(self.inputs), self._whole(self.outputs)
        number = -(-max(1, len(ids) // TURN) // self.threads) * self.threads  # as many for each thread
        turns = iter(np.array_split(ids, number))

        kernel = _kernel()

        def work(thread: int) -> list[tuple[float, int]]:
            rng = self._random(thread)
            private = len(self.words) + thread * self.hot
            before = (
                inputs[: self.hot].copy(),
                outputs[: self.hot].copy(),
            )  # read once: other threads are already writing
            for table, rows in zip((inputs, outputs), before, strict=True):
                table[private : private + self.hot] = rows
            done = []
            for turn in turns:  # next() on a shared iterator is atomic: a fast thread takes more turns
                draws = draw(turn, self.keep, self.window, self.noise, self.negative, rng)
                done.append(
                    kernel.train_windows(
                        draws.words, draws.reach, draws.negatives, self.negative, inputs, outputs, self.hot, private,
                        learning_rate,
                    )
                )  # fmt: skip
                if self.hot:
                    kernel.exchange(inputs, self.hot, private, before[0])
                    kernel.exchange(outputs, self.hot, private, before[1])
            return done

        if self.threads == 1:
            done = work(0)
        else:
            done = [turn for thread in _pool(self.threads).map(work, range(self.threads)) for turn in thread]
        return math.fsum(total for total, _ in done), sum(pairs for _, pairs in done)

    def _train_batched(self, ids: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        device = self.inputs.device
        contexts, targets = windows(self._draw(ids.cpu().numpy().ravel(), 0), self.window, self.negative)
        total, pairs = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
        order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(self.seed + int(self.step)))
        for part in order.split(IN_FLIGHT):
            summed, found = update_batch(
                (self.inputs, self.outputs), (self.inputs_seen, self.outputs_seen),
                contexts[part].to(device), targets[part].to(device), learning_rate,
            )  # fmt: skip
            total, pairs = total + summed, pairs + found
        return total, pairs

    def _random(self, thread: int) -> np.random.Generator:
        """A generator seeded only by the position in the training, so that a resume is exact."""
        return np.random.default_rng([self.seed, 2, int(self.step), rank(), thread])

    def _draw(self, ids: np.ndarray, thread: int) -> Draws:
        return draw(ids, self.keep, self.window, self.noise, self.negative, self._random(thread))

    def _output(self, total: float | Tensor, pairs: int | Tensor) -> Output:
        device = self.inputs.device
        total = torch.as_tensor(total, dtype=torch.float32, device=device)
        mean = total / torch.as_tensor(pairs, device=device).clamp(min=1)
        # all scores zero: every probability is one half
        return Output(mean, trivial_loss=(1 + self.negative) * math.log(2))

    def _table(self) -> Tensor:
        """Zeros of (words, dimension), the upper left corner of a larger table for the kernel. In that table rows are
        padded to whole registers and aligned to cache lines, and the threads' private rows follow."""
        rows, width = self._shape
        whole = np.zeros(rows * width + CACHE_LINE // 4, np.float32)  # numpy requests huge pages
        start = -whole.ctypes.data % CACHE_LINE // 4
        whole = torch.from_numpy(whole[start : start + rows * width]).view(rows, width)
        return whole[: len(self.words), : self.dimension]

    def _whole(self, parameter: nn.Parameter) -> np.ndarray:
        """(rows, width): the table that `parameter` is a view of; rebuilt if a move between devices has packed it."""
        rows, width = self._shape
        if parameter.stride() != (width, 1) or parameter.untyped_storage().nbytes() < 4 * rows * width:
            parameter.set_(self._table().copy_(parameter))
        return parameter.detach().as_strided((rows, width), (width, 1)).numpy()

    # ------------------------------------------------------------ in and out

    def start_from(self, vectors: KeyedVectors, outputs: Tensor | None = None) -> int:
        """Copy the vectors of words in both vocabularies (and their outputs, if from an export of mmssl). Returns the
        number of these words."""
        if vectors.vector_size != self.dimension:
            raise BadInput(
                f"--init_vectors has {vectors.vector_size} dimensions; give --dimension {vectors.vector_size}"
            )
        if outputs is not None:
            take_over(self.outputs, self.words, vectors, outputs)
        return take_over(self.inputs, self.words, vectors)

    def keyed_vectors(self) -> KeyedVectors:
        """The word vectors as gensim's KeyedVectors."""
        from gensim.models import KeyedVectors

        vectors = KeyedVectors(self.dimension)
        vectors.vectors = self.inputs.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
        vectors.index_to_key = list(self.words)  # what add_vectors does one word at a time
        vectors.key_to_index = {word: i for i, word in enumerate(self.words)}
        vectors.next_index = len(self.words)
        vectors.allocate_vecattrs(["count"], [np.int64])  # all at once: one by one takes a second
        vectors.expandos["count"][:] = self.counts
        return vectors

    @property
    def card(self) -> Card:
        return Card(
            about="Word vectors: word2vec's skip-gram with negative sampling. "
            f"{len(self.words):,} words, {self.dimension} dimensions; the input table is exported.",
            task="feature-extraction",
            limits="A word has one vector, whatever it means in a sentence. The vectors repeat the prejudices of their "
            "training text; see the bias probe above.",
            trivial="all scores zero",
            snippets=SNIPPETS,
            fill=True,
            tags=("word2vec", "sentence-transformers"),
        )

    def exported(self) -> Word2VecModel:
        """The word vectors as a transformers model; the last two rows, <unk> and <pad>, are zero."""
        from mmssl.models.word2vec import Word2VecConfig, Word2VecModel

        model = Word2VecModel(Word2VecConfig(vocab_size=len(self.words) + 2, hidden_size=self.dimension))
        with torch.no_grad():
            model.embedding.weight.zero_()
            model.embedding.weight[: len(self.words)] = self.inputs.cpu()
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that AutoModel, SentenceTransformer and gensim read; pretraining/ holds the outputs."""
        directory = Path(directory)
        self.exported().save_pretrained(directory)
        sentence_transformers.write_static_embedding(directory)
        vectors = self.keyed_vectors()
        vectors.save_word2vec_format(directory / "vectors.bin", fvocab=directory / "counts.txt", binary=True)
        word_vectors.write_text(directory / "vectors.txt", self.words, vectors.vectors)
        (directory / "pretraining").mkdir(exist_ok=True)
        save_file(
            {"outputs": self.outputs.detach().cpu().contiguous()}, directory / "pretraining" / "outputs.safetensors"
        )
