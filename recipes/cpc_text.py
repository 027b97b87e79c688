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

from mmssl.arguments import command, flag
from mmssl.data.text import documents, sentences
from mmssl.errors import BadInput
from mmssl.evaluation.prediction import Prediction
from mmssl.methods import cpc
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CpcTextArgs(cpc.CpcArgs):
    output_dir: str = flag("runs/cpc_text", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (blank lines apart), Parquet, a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents kept for evaluation where there is no test split (at most 10 %)", at_least=1)
    init_vectors: str | None = flag(
        None, "start from these word vectors: a run of recipes/word2vec.py, its Hub id, or a word2vec file",
        of_new_model=True,
    )  # fmt: skip
    negatives: str = flag(
        "across",
        "candidates: sentences of the document; those as far ahead in the batch's other documents; or all of the "
        "batch, which teach more",
        ("within", "across", "all"),
    )
    prediction_steps: int = flag(3, "sentences ahead, at most", at_least=1, at_most=1000)  # section 3.3
    sentences: int = flag(12, "sentences of a document in a batch, at most", at_least=2, at_most=10**4)
    max_words: int = flag(50, "words of a sentence, at most", at_least=1, at_most=10**4)
    vocab_size: int = flag(20000, "most frequent words", at_least=1, at_most=10**7, of_new_model=True)
    min_count: int = flag(2, "leave out words that occur less often", at_least=1, of_new_model=True)
    embedding_size: int = flag(128, "width of words; the paper: 620", at_least=1, at_most=16384, of_new_model=True)
    hidden_size: int = flag(256, "width of sentences; the paper: 2400", at_least=1, at_most=16384, of_new_model=True)
    context_size: int = flag(256, "width of the GRU; the paper: 2400", at_least=1, at_most=16384, of_new_model=True)
    kernel_size: int = flag(1, "words that the convolution sees, odd", at_least=1, at_most=99, of_new_model=True)

    num_train_epochs: float = flag(20, "passes over the data")
    per_device_train_batch_size: int = flag(32, "documents per process")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_vectors:
            self.refuse(("embedding_size",), f"--init_vectors {self.init_vectors}, which have a size of their own")
        if self.kernel_size % 2 == 0:
            raise BadInput(f"--kernel_size {self.kernel_size} is even: no word would be in the middle")
        if self.sentences <= self.prediction_steps:
            raise BadInput(f"--sentences {self.sentences} must be more than --prediction_steps {self.prediction_steps}")


def main(args: CpcTextArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    model, tokenizer = cpc.build_text(args, train_rows["text"])
    size = {"sentences": args.sentences, "fewest": args.prediction_steps + 1, "max_words": args.max_words}
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
        base_model=args.model_name_or_path or args.init_vectors,
    )  # fmt: skip


if __name__ == "__main__":
    command(main, CpcTextArgs, __doc__)
