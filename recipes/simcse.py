"""SimCSE, unsupervised: trains on sentences, leaves an encoder of sentences for sentence-transformers and AutoModel.

accelerate launch recipes/simcse.py                                          # sentences of Wikipedia articles, built in
accelerate launch recipes/simcse.py --dataset my_text.txt --model_name_or_path runs/bert     # continue an encoder
accelerate launch recipes/simcse.py --dataset lines.csv --text_column line --whole_texts     # a text is a sentence

30,000 captions of 6,000 photographs of Flickr8k (Hodosh et al. 2013, for research only; one in a line, a blank line
between photographs), 300 steps, seed 0, bf16, a minute and a half of one core of an EPYC (Zen 5). The encoder is one of
recipes/bert.py on film reviews (its docstring, with --max_seq_length 512 --per_device_train_batch_size 8 --max_steps
1200):

    recipes/simcse.py --dataset captions --model_name_or_path runs/bert --learning_rate 1e-4 --max_steps 300

1,000 pairs of captions of the same held-out photograph and 1,000 of different ones:

                             trained   before training   its word embeddings   tf-idf, fitted on these captions
    Spearman's rho x 100        67.2              60.8                  54.9                               73.1
    alignment                   0.98              0.41                  0.35
    uniformity                 -2.94             -1.34                 -1.04

A new encoder gains little. 20,742 sentences of the built-in articles, 150 steps (--size tiny --learning_rate 1e-3
--max_steps 150); 1,000 pairs of neighbouring held-out sentences and 1,000 of different documents (only 6 are held out):

                             trained         untrained   its word embeddings   tf-idf, fitted on these sentences
    Spearman's rho x 100        43.8              40.0                  40.9                                51.8
    alignment                   1.45              1.27                  1.29
    uniformity                 -3.21             -2.82                 -2.86

Its two passes are so alike that the loss is 5e-5 after half of the steps. Shared words (tf-idf) tell more in both.
Agreement with people's judgements (STS-B, SICK: --sts_file) was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.data.text import documents
from mmssl.data.text.sentences import Sentences, of_each
from mmssl.errors import BadInput
from mmssl.evaluation.sentence_similarity import SentenceSimilarity, neighbours, read_pairs
from mmssl.methods import simcse
from mmssl.models import text_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class SimcseArgs(text_encoders.TextArgs):
    output_dir: str = flag("runs/simcse", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "a text encoder to continue from; default: from scratch")
    architecture: str = flag(
        "modernbert", "architecture of a new model", text_encoders.ARCHITECTURES, of_new_model=True
    )
    whole_texts: bool = flag(False, "take each text as one sentence; default: cut texts into sentences")
    fewest_words: int = flag(4, "leave out sentences of fewer words", at_least=1, at_most=10**4)
    max_seq_length: int = flag(64, "tokens of a sentence; the rest is cut off")
    sts_file: str | None = flag(
        None, "scored pairs to evaluate on, CSV, TSV or Parquet in the form of STS-B or SICK; default: pairs of "
        "neighbouring held-out sentences and of sentences of different documents; of halves where a text is a sentence",
    )  # fmt: skip
    pooling: str = flag("mean", "a sentence's vector: the mean of its tokens, or the first one", simcse.POOLING)
    temperature: float = flag(0.05, "softmax temperature", above=0, at_most=100)
    dropout: float = flag(0.1, "dropout of hidden states, drawn anew in each pass", above=0, below=1)
    attention_dropout: float = flag(
        0.0,
        "torch's dropout of attention probabilities; micro-batches then differ from the batch",
        at_least=0,
        below=1,
    )

    num_train_epochs: float = flag(1.0, "passes over the sentences")
    per_device_train_batch_size: int = flag(64, "sentences per process in one micro-batch")


def main(args: SimcseArgs) -> None:
    start(args)
    pairs = read_pairs(args.sts_file) if args.sts_file else None
    train, test = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    found, held_out = (of_each(documents.each(rows), args.fewest_words, args.whole_texts) for rows in (train, test))
    kept = list(dict.fromkeys(sentence for sentences in found for sentence in sentences))
    if not kept:
        raise BadInput(f"--dataset {args.dataset}: no sentence of {args.fewest_words} words; lower --fewest_words")
    encoder, tokenizer = simcse.build(args, kept)
    method = simcse.SimCSE(
        encoder, args.max_seq_length, args.temperature, args.pooling, args.dropout, args.attention_dropout
    )
    unseen = [sentence for sentences in held_out for sentence in sentences]
    pairs = pairs or neighbours(held_out)
    pretrain(
        args, method, tokenizer, Sentences(kept, tokenizer, args.max_seq_length, args.seed),
        [optim.from_args(method, args)],
        SentenceSimilarity(pairs, unseen, tokenizer, method, args.per_device_train_batch_size),
        trained_on=f"{len(kept):,} sentences of {len(train):,} documents; {sum(map(len, found)) - len(kept):,} others "
        f"repeat one of them, and those of fewer than {args.fewest_words} words are left out",
        held_out=f"{len(unseen):,} sentences of {len(test):,} documents",
        example={"text": ["The train was late, and we waited.", "Music"]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, SimcseArgs, __doc__)
