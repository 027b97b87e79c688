"""Contrastive predictive coding on text: learns to predict the next sentences of documents, leaves a text encoder.

accelerate launch recipes/cpc_text.py                                   # about 100 Wikipedia articles, built in
accelerate launch recipes/cpc_text.py --dataset reviews.parquet --output_dir runs/reviews --min_count 5

13,943 unlabelled IMDb reviews (1,000 more held out), seven minutes on one core (Xeon, fp32), starting from word vectors
of the same reviews (recipes/word2vec.py --dimension 256 --num_train_epochs 5 --threads 1):

    recipes/cpc_text.py --dataset unsup15k.parquet --min_count 5 --init_vectors runs/word2vec --negatives all \
        --hidden_size 2048 --context_size 512 --num_train_epochs 3

Linear probe, recipes/transfer.py --mode linear --labels 100% --seeds 1, one run, accuracy in per cent:

              CPC   untrained   word2vec, averaged   tf-idf   chance
    IMDb     86.7        80.5                 83.8     86.2     50.0
    SST-2    80.6        74.3                 78.1     78.7     50.9

Without word2vec's vectors at the start, CPC learns less about sentiment from so few reviews than word2vec does.
recipes/README.md lists the settings that were tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.data.text import documents, sentences
from mmssl.errors import BadInput
from mmssl.evaluation.prediction import Prediction
from mmssl.methods import cpc
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CpcTextArgs(documents.DocumentArgs, cpc.CpcArgs):
    output_dir: str = flag("runs/cpc_text", "where the encoder, log, figures and checkpoints go")
    init_vectors: str | None = flag(
        None, "start from these word vectors: a run of recipes/word2vec.py, its Hub id, or a word2vec file",
        of_new_model=True,
    )  # fmt: skip
    negatives: str = flag(
        "across",
        "negatives: other sentences of the document (within); sentences equally far ahead in the batch's other "
        "documents (across); all sentences of the batch (all), which gives better features",
        ("within", "across", "all"),
    )
    prediction_steps: int = flag(
        3, "largest number of sentences to predict ahead", at_least=1, at_most=1000
    )  # section 3.3
    sentences: int = flag(12, "largest number of sentences of a document in a batch", at_least=2, at_most=10**4)
    sentence_words: int = flag(50, "words of a sentence that are read; others are cut off", at_least=1, at_most=10**4)
    vocab_size: int = flag(
        20000, "largest vocabulary; the most frequent words are kept", at_least=1, at_most=10**7, of_new_model=True
    )
    min_count: int = flag(2, "leave out words that occur less often", at_least=1, of_new_model=True)
    embedding_size: int = flag(128, "width of word vectors; paper: 620", at_least=1, at_most=16384, of_new_model=True)
    hidden_size: int = flag(
        256, "width of sentence vectors; the paper: 2400", at_least=1, at_most=16384, of_new_model=True
    )
    context_size: int = flag(256, "width of the GRU; the paper: 2400", at_least=1, at_most=16384, of_new_model=True)
    kernel_size: int = flag(1, "words in the convolution's kernel, odd", at_least=1, at_most=99, of_new_model=True)

    num_train_epochs: float = flag(20, "passes over the data")
    per_device_train_batch_size: int = flag(32, "documents per process")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_vectors:
            self.refuse(("embedding_size",), f"--init_vectors {self.init_vectors}, which decide it")
        if self.kernel_size % 2 == 0:
            raise BadInput(f"--kernel_size {self.kernel_size} is even; it must be odd, with a word in the middle")
        if self.sentences <= self.prediction_steps:
            raise BadInput(f"--sentences {self.sentences} must be more than --prediction_steps {self.prediction_steps}")


def main(args: CpcTextArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    model, tokenizer = cpc.build_text(args, train_rows["text"])
    size = {"sentences": args.sentences, "fewest": args.prediction_steps + 1, "max_words": args.sentence_words}
    training = sentences.Documents(train_rows["text"], tokenizer, **size, seed=args.seed)
    held_out = sentences.Documents(test_rows["text"], tokenizer, **size)

    method = cpc.CPC(model, args.prediction_steps, args.negatives, unit="documents")
    optimizer = optim.from_args(method, args)
    evaluation = Prediction(held_out, "sentences ahead", args.negatives)
    pretrain(
        args, method, tokenizer, training, [optimizer], evaluation,
        trained_on=f"{len(training.counts):,} documents of {int(training.counts.sum()):,} sentences, "
        f"{training.too_short:,} others were too short",
        held_out=f"{len(held_out.counts):,} documents",
        example={"text": ["The train was late, and we waited.", "music"]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, CpcTextArgs, __doc__)
