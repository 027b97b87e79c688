"""word2vec, skip-gram with negative sampling: trains on text, leaves word vectors.

python recipes/word2vec.py                                       # about 100 Wikipedia articles, built in
python recipes/word2vec.py --dataset my_text.txt.gz --plain False   # one sentence per line, tokenised by spaces
python recipes/word2vec.py --dataset my_text.txt --init_vectors vectors.bin      # continue from gensim's vectors

The first command trains for half a minute on two cores: WordSim-353 .48 (60 % of its pairs covered), SimLex-999 .25
(48 %), analogies .04 (16 %); before training -.00, -.06, .00.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.text import corpus
from mmssl.data.text.skip_grams import Pieces
from mmssl.device import cores
from mmssl.evaluation.word_similarity import WordVectors
from mmssl.methods import word2vec
from mmssl.models import word_vectors
from mmssl.plain_text import say
from mmssl.pretrain import pretrain, start
from mmssl.training import steps

OF_GRADIENTS = ("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "max_skipped_steps", "bf16",
                "torch_compile", "gradient_checkpointing", "ddp_find_unused_parameters")  # fmt: skip


@dataclass
class Word2VecArgs(TrainArgs):
    output_dir: str = flag("runs/word2vec", "where the vectors, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (.txt, .gz; with commas), Parquet, a Hub id")
    text_column: str | None = flag(None, "text column of a table; default: text, or the only column of strings")
    plain: bool = flag(True, "lower-case the text and keep only letters and digits; False: split it at spaces only")
    phrases: bool = flag(False, "join frequent word pairs: new_york (gensim's Phrases)")
    min_count: int = flag(5, "leave out words that occur less often", at_least=1)
    max_words: int | None = flag(None, "largest vocabulary; the most frequent words are kept", at_least=1)
    dimension: int = flag(100, "dimension of the vectors", at_least=1, at_most=16384)
    window: int = flag(5, "largest number of context words on either side", at_least=1, at_most=1000)
    negative: int = flag(5, "noise words for each word", at_least=1, at_most=1000)
    sample: float = flag(1e-3, "subsample words with a higher frequency than this; 0: none", at_least=0, at_most=1)
    init_vectors: str | None = flag(None, "continue from these vectors: a run, its Hub id, or a word2vec file")
    threads: int = flag(
        cores(), "threads; 1: the same flags give the same vectors; more: lock-free, not repeatable",
        at_least=1, at_most=1024,
    )  # fmt: skip
    batched: bool = flag(False, "use the batched form for GPUs (row-wise Adagrad); always on with a GPU")

    per_device_train_batch_size: int = flag(
        50, "thousands of words per process in one step, after which processes synchronise: 50 means 50,000 words"
    )
    num_train_epochs: float = flag(30, "passes over the text; 3 to 5 for ten million words and more")
    learning_rate: float = flag(0.025, "initial learning rate")
    bf16: str = flag("no", "the tables are updated in fp32", ("auto", "yes", "no"))
    lr_scheduler_type: str = flag("linear", "learning rate schedule", ("cosine", "linear", "constant"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(OF_GRADIENTS, "word2vec, whose tables are updated in place, without gradients or an optimizer")
        self.refuse(("dataloader_num_workers",), "word2vec, whose batches are slices of an array on disk")
        if self.batched:
            self.refuse(("threads",), "--batched, which uses torch's threads")


def main(args: Word2VecArgs) -> None:
    from accelerate import PartialState

    start(args)
    batched = args.batched or (torch.cuda.is_available() and not args.use_cpu)
    if word2vec.why_no_kernel() and not batched:
        say(f"the kernel cannot be compiled ({word2vec.why_no_kernel()}); using torch, about ten times slower")
    with PartialState().main_process_first():  # the other processes then read it from disk
        text = corpus.from_args(args)
    words, counts, vectors, outputs = text.words, text.counts, None, None
    if args.init_vectors:
        vectors, outputs = word_vectors.load(args.init_vectors)
        words, counts = word_vectors.with_words(words, counts, vectors.index_to_key)
    method = word2vec.Word2Vec(
        words, counts, args.dimension, args.window, args.negative, args.sample, args.seed, args.threads, batched
    )
    if vectors is not None:
        word_vectors.say_taken_over(method.start_from(vectors, outputs), len(words), args.init_vectors)
    torch.set_num_threads(1)  # torch's idle threads would compete with the kernel's
    evaluation = WordVectors(words)
    pretrain(
        args,
        method,
        word_vectors.tokenizer(method.words, args.plain),
        Pieces(text.ids),
        [
            torch.optim.SGD(method.parameters(), lr=args.learning_rate)
        ],  # only holds the learning rate for steps.in_place
        evaluation,
        step=steps.in_place,
        trained_on=f"{text.total:,} words",
        held_out="",
        example={"text": [*evaluation.asked, " ".join(evaluation.asked)]},
    )


if __name__ == "__main__":
    command(main, Word2VecArgs, __doc__)
