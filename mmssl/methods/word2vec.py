"""word2vec: words that occur in the same surroundings get vectors that point the same way.

Skip-gram with negative sampling, Mikolov et al. 2013, arXiv:1310.4546. Every word of a window is asked to tell the word
in its middle from `negative` noise words. Two tables are learned: `inputs`, which are the word vectors, and `outputs`,
which stay behind. Differs from word2vec.c and gensim: the context words of a window share their noise words (pWord2Vec,
arXiv:1604.04661), and the sigmoid is computed, not looked up.

Three forms of the same mathematics:
    kernels.word2vec_torch.update_window   plain torch, one window: the definition, which the tests hold the others to
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


TURN = 10_000  # words that a thread trains on between two exchanges of its private rows
SETTLED = 400  # meetings after which a word has gone most of the way to where its surroundings draw it
HOT = 300  # rows of which each thread has private copies, where there are several threads
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
model = AutoModel.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
print(model(**tokenizer([{text[0]!r}], return_tensors="pt")).pooler_output.shape)
""",
}


@cache
def _kernel():
    """numba is imported, and the kernel compiled or read from disk, when it is first needed."""
    from mmssl.kernels import word2vec

    return word2vec


@cache
def why_no_kernel() -> str:
    """Nothing where the compiled kernel works, else the reason."""
    try:
        _kernel()
    except Exception as error:  # numba does not know this Python, or LLVM this processor
        return f"{type(error).__name__}: {error}"
    return ""


class Word2Vec(Method):
    """
    words, counts: the vocabulary and how often each occurs, most frequent first.
    dimension: of the vectors. window: the largest distance of context. negative: noise words for each centre word.
    sample:    words of a larger share of the text than this are thinned out; 0 thins none.
    threads:   of the kernel; more than one train without locks: fast, and no two runs alike.
    batched:   the form for GPUs; also what happens where the kernel cannot be compiled.
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
        """One pass over the windows of `ids`, tables changed in place. ids: as in `forward`."""
        if self.batched:
            total, pairs = self._train_batched(ids, learning_rate)
        else:
            total, pairs = self._train_threads(ids.numpy().ravel(), learning_rate)
        return self._output(total, pairs)

    def after_step(self) -> None:
        """Count it: the random choices of the next one depend on that."""
        self.step += 1

    def share(self, processes: int, micro_batches: Sequence[dict[str, Tensor]]) -> Tensor:
        """(words, 1): how much of the sum of what so many processes have learned of each word, each from as much text
        as these, to keep, so that it is what they would have learned one after the other.

        A word met n times moves by a = 1 - exp(-n / SETTLED) of its way, so that after all of them 1 - (1 - a) ** N of
        it are done; the sum is N a. Of rare words that is all of it, of frequent ones 1 / N, the mean.
        """
        text = sum(batch["ids"].numel() for batch in micro_batches)
        met = text * torch.from_numpy(self.counts / self.counts.sum() * self.keep[:-1])
        a = -torch.expm1(-met / SETTLED).clamp(max=-1e-9)
        return ((1 - (1 - a) ** processes) / (processes * a))[:, None].float().to(self.inputs.device)

    def _train_threads(self, ids: np.ndarray, learning_rate: float) -> tuple[float, int]:
        inputs, outputs = self._whole(self.inputs), self._whole(self.outputs)
        turns = iter(np.array_split(ids, max(1, len(ids) // TURN)))

        kernel = _kernel()

        def work(thread: int) -> list[tuple[float, int]]:
            rng = self._random(thread)
            private = len(self.words) + thread * self.hot
            before = inputs[: self.hot].copy(), outputs[: self.hot].copy()  # read once: others are writing already
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
            with ThreadPoolExecutor(self.threads) as pool:
                done = [turn for thread in pool.map(work, range(self.threads)) for turn in thread]
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
        """Random numbers that depend on nothing but where the training stands: what exact resume needs."""
        return np.random.default_rng([self.seed, 2, int(self.step), rank(), thread])

    def _draw(self, ids: np.ndarray, thread: int) -> Draws:
        return draw(ids, self.keep, self.window, self.noise, self.negative, self._random(thread))

    def _output(self, total: float | Tensor, pairs: int | Tensor) -> Output:
        device = self.inputs.device
        total = torch.as_tensor(total, dtype=torch.float32, device=device)
        mean = total / torch.as_tensor(pairs, device=device).clamp(min=1)
        # all scores zero: every question answered with one half
        return Output(mean, trivial_loss=(1 + self.negative) * math.log(2))

    def _table(self) -> Tensor:
        """Zeros of (words, dimension) that are the upper left corner of a table for the kernel: rows padded to whole
        registers, the threads' private rows below, the first on the border of two cache lines, as then are all."""
        rows, width = self._shape
        whole = np.zeros(rows * width + CACHE_LINE // 4, np.float32)  # numpy asks the system for huge pages
        start = -whole.ctypes.data % CACHE_LINE // 4
        whole = torch.from_numpy(whole[start : start + rows * width]).view(rows, width)
        return whole[: len(self.words), : self.dimension]

    def _whole(self, parameter: nn.Parameter) -> np.ndarray:
        """The table that `parameter` is the corner of; laid out anew where a move between devices has packed it."""
        rows, width = self._shape
        if parameter.stride() != (width, 1) or parameter.untyped_storage().nbytes() < 4 * rows * width:
            parameter.set_(self._table().copy_(parameter))
        return parameter.detach().as_strided((rows, width), (width, 1)).numpy()

    # ------------------------------------------------------------ in and out

    def start_from(self, vectors: KeyedVectors, outputs: Tensor | None = None) -> int:
        """Take over the vectors of words that both know (and their outputs, from our own export). Returns how many."""
        if vectors.vector_size != self.dimension:
            raise BadInput(f"the vectors to start from have {vectors.vector_size} dimensions; set --dimension to that")
        if outputs is not None:
            take_over(self.outputs, self.words, vectors, outputs)
        return take_over(self.inputs, self.words, vectors)

    def keyed_vectors(self) -> KeyedVectors:
        """The word vectors as gensim knows them."""
        from gensim.models import KeyedVectors

        vectors = KeyedVectors(self.dimension)
        vectors.add_vectors(self.words, self.inputs.detach().cpu().contiguous().numpy())
        vectors.allocate_vecattrs(["count"], [np.int64])  # at once: word for word takes a second
        vectors.expandos["count"][:] = self.counts
        return vectors

    @property
    def card(self) -> Card:
        return Card(
            about="Word vectors: word2vec's skip-gram with negative sampling. "
            f"{len(self.words):,} words, {self.dimension} dimensions; the input table is exported.",
            task="feature-extraction",
            limits="A word has one vector, whatever it means in a sentence; vectors repeat the prejudices of their "
            "text, see the bias probe above.",
            trivial="all scores zero",
            snippets=SNIPPETS,
            fill=True,
            tags=("word2vec", "sentence-transformers"),
        )

    def exported(self) -> Word2VecModel:
        """The word vectors as a transformers model; <unk> and <pad> are two rows of zeros at the end."""
        from mmssl.models.word2vec import Word2VecConfig, Word2VecModel

        model = Word2VecModel(Word2VecConfig(vocab_size=len(self.words) + 2, hidden_size=self.dimension))
        with torch.no_grad():
            model.embedding.weight.zero_()
            model.embedding.weight[: len(self.words)] = self.inputs.cpu()
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """One directory that AutoModel, SentenceTransformer and gensim read; pretraining/ holds the outputs."""
        directory = Path(directory)
        model = self.exported()
        type(model.config).register_for_auto_class()
        type(model).register_for_auto_class("AutoModel")
        model.save_pretrained(directory)
        sentence_transformers.write_static_embedding(directory)
        vectors = self.keyed_vectors()
        vectors.save_word2vec_format(directory / "vectors.bin", fvocab=directory / "counts.txt", binary=True)
        word_vectors.write_text(directory / "vectors.txt", self.words, vectors.vectors)
        (directory / "pretraining").mkdir(exist_ok=True)
        save_file(
            {"outputs": self.outputs.detach().cpu().contiguous()}, directory / "pretraining" / "outputs.safetensors"
        )
