"""Contrastive predictive coding on text: the sentences that come next.

accelerate launch recipes/cpc_text.py                                   # a hundred Wikipedia articles, built in
accelerate launch recipes/cpc_text.py --dataset reviews.parquet --output_dir runs/reviews --min_count 5

Pretrained on 14,943 unlabelled IMDb reviews, beginning with word vectors of the same reviews (recipes/word2vec.py
--dimension 256 --num_train_epochs 5 --threads 1), as follows, seven minutes on one core:

    recipes/cpc_text.py --dataset unsup15k.parquet --min_count 5 --init_vectors runs/word2vec --negatives all \
        --hidden_size 2048 --context_size 512 --num_train_epochs 3

then recipes/transfer.py --mode linear --labels 100% --seeds 1, one run, per cent:

              CPC   untrained   word2vec, averaged   tf-idf   chance
    IMDb     86.7        80.5                 83.8     86.2     50.0
    SST-2    80.6        74.3                 78.1     78.7     50.9

Settings were chosen on parts of the training sets (1,293 reviews and 3,000 sentences), after 2 epochs, IMDb and SST-2:

    candidates across the batch, new word vectors of deviation 1     74.7    64.7   (kernel of 3 words, 256 wide)
    of deviation 0.05                                                80.7    69.6
    and --learning_rate 6e-3                                         80.8    71.8
    and --negatives all                                              82.1    71.3
    word2vec's vectors, averaged                                     84.6    78.9
    word2vec's vectors at the start, 512 wide, not trained           84.7    78.1
    trained                                                          86.8    78.2
    one word at a time, 1024 wide                                    86.3    79.8
    2048 wide                                                        86.5    80.5

Without word2vec's vectors to begin with, CPC learns less of sentiment from so few reviews than word2vec does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from mmssl import figures
from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.built_in import wikipedia
from mmssl.data.loader import Loader
from mmssl.data.text import documents, sentences
from mmssl.errors import BadInput
from mmssl.evaluation import features
from mmssl.evaluation.downstream.probe import Probed
from mmssl.evaluation.prediction import Prediction
from mmssl.hub import export
from mmssl.methods import cpc
from mmssl.models import word_vectors
from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel
from mmssl.training.loop import Summary, start, train
from mmssl.training.optim import adamw


@dataclass
class CpcTextArgs(TrainArgs):
    output_dir: str = flag("runs/cpc_text", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (blank lines apart), Parquet, a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents kept for evaluation where the data has no test split (at most a tenth)")
    model_name_or_path: str | None = flag(None, "go on from this CPC: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    init_vectors: str | None = flag(
        None, "begin with these vectors of words: a run of recipes/word2vec.py, its Hub id, or a word2vec file"
    )
    negatives: str = flag(
        "across",
        "candidates: sentences of the document, as far on in the batch's others, or all of the batch, which teach more",
        ("within", "across", "all"),
    )
    prediction_steps: int = flag(3, "sentences ahead, at most")  # section 3.3
    sentences: int = flag(12, "of a document, at most, in a batch")
    max_words: int = flag(50, "of a sentence, at most")
    vocab_size: int = flag(20000, "most frequent words")
    min_count: int = flag(2, "leave out words that occur less often")
    embedding_size: int = flag(128, "of words; the paper: 620")
    hidden_size: int = flag(256, "of sentences; the paper: 2400")
    context_size: int = flag(256, "of the GRU; the paper: 2400")
    kernel_size: int = flag(1, "words that the convolution sees at a time, odd")

    num_train_epochs: float = flag(20, "passes over the data")
    per_device_train_batch_size: int = flag(32, "documents per process")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "on matrices only")
    warmup_steps: float = flag(0.05, "steps of linear warm-up; below 1, a share of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")
        sizes = ("vocab_size", "min_count", "embedding_size", "hidden_size", "context_size", "kernel_size")
        for name in ("held_out", "prediction_steps", "max_words", *sizes):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be 1 or more")
        if self.model_name_or_path:
            self.refuse((*sizes, "init_vectors"), "a checkpoint to start from: it has words and sizes of its own")
        if self.init_vectors:
            self.refuse(("embedding_size",), f"--init_vectors {self.init_vectors}, which have a size of their own")
        if self.kernel_size % 2 == 0:
            raise BadInput(f"--kernel_size {self.kernel_size} is even: no word would be in the middle")
        if self.sentences <= self.prediction_steps:
            raise BadInput(f"--sentences {self.sentences} must be more than --prediction_steps {self.prediction_steps}")


def build(args: CpcTextArgs, texts):
    """(model, tokenizer): new, with the words of `texts`, or from a checkpoint."""
    if args.model_name_or_path:
        return cpc.from_pretrained(args.model_name_or_path, args.trust_remote_code, CpcTextConfig.model_type)
    words = sentences.vocabulary(texts, args.vocab_size, args.min_count)
    if not words:
        raise BadInput(f"no word of {args.dataset} occurs {args.min_count} times; lower --min_count")
    tokenizer = word_vectors.tokenizer(words, plain=True)
    vectors = word_vectors.load(args.init_vectors)[0] if args.init_vectors else None
    config = CpcTextConfig(
        vocab_size=len(tokenizer), embedding_size=vectors.vector_size if vectors is not None else args.embedding_size,
        hidden_size=args.hidden_size, context_size=args.context_size, kernel_size=args.kernel_size,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CpcTextModel(config)
    if vectors is not None:
        known = word_vectors.take_over(model.embedding.weight, words, vectors)
        word_vectors.say_taken_over(known, len(words), args.init_vectors)
    return model, tokenizer


def main(args: CpcTextArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    model, tokenizer = build(args, train_rows["text"])
    size = {"sentences": args.sentences, "fewest": args.prediction_steps + 1, "max_words": args.max_words}
    texts = sentences.Documents(train_rows["text"], tokenizer, **size, seed=args.seed)
    held_out = sentences.Documents(test_rows["text"], tokenizer, **size)
    loader = Loader(texts, args.per_device_train_batch_size, seed=args.seed, num_workers=args.dataloader_num_workers)

    method = cpc.CPC(model, args.prediction_steps, args.negatives, unit="documents")
    if args.model_name_or_path:
        method.load_predictions(args.model_name_or_path)
    optimizer = adamw(method, args.learning_rate, args.weight_decay, (args.adam_beta1, args.adam_beta2))
    evaluation = Prediction(held_out)
    probed = Probed(evaluation, args, method, tokenizer)
    uploads = export.Uploads(args, method, tokenizer)
    summary = train(method, loader, args, [optimizer], evaluate=probed, after_save=uploads)
    if PartialState().is_main_process:
        finish(args, summary, method, tokenizer, texts, evaluation, probed)


def finish(
    args: CpcTextArgs, summary: Summary, method: cpc.CPC, tokenizer, texts, evaluation: Prediction, probed: Probed
) -> None:
    """Export, prove that it loads, draw, describe, print."""
    directory, started = Path(args.output_dir), args.model_name_or_path or args.init_vectors
    before = "before training" if started else "untrained"
    columns = {"trained": summary.evaluations[-1], before: summary.evaluations[0], "chance": evaluation.chances}
    figures.prediction_curve(
        {name: [values[f"accuracy_{k}_ahead"] for k in range(1, method.steps + 1)] for name, values in columns.items()},
        "sentences ahead", directory / "figures" / "prediction.png",
    )  # fmt: skip
    results = {name: {k: v for k, v in values.items() if k != "step"} for name, values in columns.items()}
    probed.beside(results)
    record = export.Record(
        title=directory.name,
        description=f"{cpc.__doc__.splitlines()[0]} A `CpcTextModel`: of sentences, `pooler_output` is the vector; of "
        "documents, `last_hidden_state` is the context after each sentence.",
        data=f"{args.dataset}: {len(texts.counts):,} documents of {int(texts.counts.sum()):,} sentences, and "
        f"{len(evaluation.held_out.counts):,} held out; {texts.too_short:,} were too short. "
        + (wikipedia.LICENCE if args.dataset == "wikipedia" else ""),
        task="feature-extraction",
        dataset=args.dataset,
        results=results,
        units=f"Per cent: how often the coming sentence is found among the candidates ({args.negatives}).",
        snippets=cpc.TEXT_SNIPPETS,
        limits="It has learned which sentences follow each other in these texts; test it on your own.",
        figures={"prediction.png": "How often the true sentence is found, against how far ahead it stands."},
        tags=["cpc"],
        base_model=started,
    )
    features.print_table(f"{len(evaluation.held_out.counts):,} held-out documents of {args.dataset}", results)
    example = {"text": ["The train was late, and we waited.", "music"]}
    export.finish(
        method, tokenizer, method.model, example, record, summary, args, trivial="log(candidates), that of chance"
    )


if __name__ == "__main__":
    command(main, CpcTextArgs, __doc__)
