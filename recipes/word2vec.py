"""Word vectors from text: word2vec's skip-gram with negative sampling.

The defaults, two CPU cores, half a minute of training: WordSim-353 .48 (60 % of its pairs covered), SimLex-999 .25 (48
%), analogies .04 (16 %); before training -.00, -.06, .00.

python recipes/word2vec.py                                       # a hundred Wikipedia articles, built in
python recipes/word2vec.py --dataset my_text.txt.gz --plain no   # your own: a sentence a line, words between spaces
python recipes/word2vec.py --dataset my_text.txt --init_vectors vectors.bin      # go on from gensim's vectors
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from mmssl import figures
from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.built_in import wikipedia
from mmssl.data.loader import Loader
from mmssl.data.text import corpus
from mmssl.data.text.skip_grams import Pieces
from mmssl.errors import BadInput
from mmssl.evaluation import word_similarity
from mmssl.evaluation.downstream.probe import FIGURE, Probed
from mmssl.hub import export
from mmssl.methods import word2vec
from mmssl.models import word_vectors
from mmssl.training import steps
from mmssl.training.loop import Summary, start, train

OF_GRADIENTS = ("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "max_skipped_steps", "bf16",
                "torch_compile", "gradient_checkpointing", "ddp_find_unused_parameters")  # fmt: skip


@dataclass
class Word2VecArgs(TrainArgs):
    output_dir: str = flag("runs/word2vec", "where the vectors, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (also .gz; comma between), Parquet, a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    plain: str = flag(
        "yes", "lower-case, letters and digits alone; no: words are what stands between spaces", ("yes", "no")
    )
    phrases: bool = flag(False, "join words that belong together: new_york (gensim's Phrases)")
    min_count: int = flag(5, "leave out words that occur less often")
    max_words: int | None = flag(None, "the most frequent ones are kept")
    dimension: int = flag(100, "of the vectors")
    window: int = flag(5, "words to either side, at most")
    negative: int = flag(5, "noise words for each word")
    sample: float = flag(1e-3, "thin out words of a larger share of the text than this; 0 thins none")
    init_vectors: str | None = flag(None, "go on from these words: our own export, its Hub id, or a word2vec file")
    threads: int = flag(
        os.cpu_count() or 1, "1: every run with these flags gives the same vectors; more: lock-free, not so"
    )
    batched: bool = flag(False, "the form for GPUs (row-wise Adagrad); taken where there is a GPU")

    per_device_train_batch_size: int = flag(50, "thousand words per process and step; processes meet after each")
    num_train_epochs: float = flag(30, "passes over the text; 3 to 5 for ten million words and more")
    learning_rate: float = flag(0.025, "first one; falls linearly to zero")
    lr_scheduler_type: str = flag("linear", "how it falls", ("cosine", "linear", "constant"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(OF_GRADIENTS, "two tables that are updated in place, without a gradient or an optimizer's moments")
        self.refuse(("dataloader_num_workers",), "an array on disk that batches are slices of")
        if self.batched:
            self.refuse(("threads",), "--batched, which has torch's own threads")
        for name in ("min_count", "max_words", "dimension", "window", "negative", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be 1 or more")


def main(args: Word2VecArgs) -> None:
    start(args)
    batched = args.batched or (torch.cuda.is_available() and not args.use_cpu)
    if word2vec.WHY_NO_KERNEL and not batched:
        print(f"no compiled kernel here ({word2vec.WHY_NO_KERNEL}); training with torch, about ten times slower")
    with PartialState().main_process_first():  # the others find it on disk
        text = read(args)
    words, counts, vectors, outputs = text.words, text.counts, None, None
    if args.init_vectors:
        vectors, outputs = word_vectors.load(args.init_vectors)
        words, counts = word_vectors.with_words(words, counts, vectors.index_to_key)
    loader = Loader(Pieces(text.ids), args.per_device_train_batch_size, seed=args.seed)
    method = word2vec.Word2Vec(
        words, counts, args.dimension, args.window, args.negative, args.sample, args.seed, args.threads, batched
    )  # fmt: skip
    if vectors is not None:
        word_vectors.say_taken_over(method.start_from(vectors, outputs), len(words), args.init_vectors)
    optimizer = torch.optim.SGD(method.parameters(), lr=args.learning_rate)  # carries the rate; it never steps
    torch.set_num_threads(1)  # torch's idle threads would spin beside the kernel's
    tokenizer = word_vectors.tokenizer(method.words, args.plain == "yes")
    uploads = export.Uploads(args, method, tokenizer)
    probed = Probed(evaluate, args, method, tokenizer)
    summary = train(method, loader, args, [optimizer], steps.in_place, probed, uploads)
    if PartialState().is_main_process:
        finish(args, summary, method, tokenizer, text, probed)


def evaluate(method: word2vec.Word2Vec) -> dict[str, float]:
    return word_similarity.evaluate(method.keyed_vectors())


def read(args: Word2VecArgs) -> corpus.Corpus:
    source = args.dataset.split(",") if "," in args.dataset else args.dataset
    options = {"column": args.text_column, "min_count": args.min_count, "max_words": args.max_words}
    return corpus.load(source, **options, plain=args.plain == "yes", phrases=args.phrases)


def finish(
    args: Word2VecArgs, summary: Summary, method: word2vec.Word2Vec, tokenizer, text: corpus.Corpus, probed: Probed
) -> None:
    """Export, prove that it loads, draw, describe, print."""
    directory, vectors = Path(args.output_dir), method.keyed_vectors()
    examples = [word for word in ("king", "war", "music", "water", "city") if word in vectors]
    examples = examples or method.words[100:105] or method.words[:5]
    near = word_similarity.neighbours(vectors, examples)
    figures.word_map(vectors, method.words[50:350] or method.words, directory / "figures" / "map.png")
    results = {
        name: {k: v if k == FIGURE else 100 * v for k, v in values.items() if k != "step"}
        for name, values in (("trained", summary.evaluations[-1]), ("before training", summary.evaluations[0]))
    }
    probed.beside(results)
    licence = wikipedia.LICENCE if args.dataset == "wikipedia" else ""
    record = export.Record(
        title=directory.name,
        description="Word vectors, "
        + word2vec.__doc__.splitlines()[0].removeprefix("word2vec: ")
        + f" {len(method.words):,} words, {method.dimension} dimensions; the input table is exported.\n\n"
        + "\n".join(f"- {word}: {', '.join(words)}" for word, words in near.items()),
        data=f"Data: {args.dataset}, {text.total:,} words. {licence}",
        task="feature-extraction",
        dataset=args.dataset,
        results=results,
        units="Times 100: Spearman's rho, accuracy, share of pairs covered.",
        snippets={heading: code.format(word=examples[0]) for heading, code in word2vec.SNIPPETS.items()},
        limits=word_similarity.bias_report(vectors),
        figures={"map.png": "Frequent words in the plane of their vectors' first two principal components."},
        tags=["word2vec", "sentence-transformers"],
        base_model=args.init_vectors,
    )
    example = {"text": examples + [" ".join(examples)]}
    export.finish(method, tokenizer, method.model(), example, record, summary, args, trivial="all scores zero")
    for k, v in results["trained"].items():
        print(f"{k:24} {v:5.1f}   before training {results['before training'][k]:5.1f}")
    print(f"vectors, model, card and figures: {directory}")


if __name__ == "__main__":
    command(main, Word2VecArgs, __doc__)
