"""Masked language modelling (BERT, ModernBERT): trains on text, leaves an encoder for fill-mask, fine-tuning and
sentence-transformers.

accelerate launch recipes/bert.py                                         # about 100 Wikipedia articles, built in
accelerate launch recipes/bert.py --dataset my_text.txt --size small      # your text, with a tokenizer trained on it
accelerate launch recipes/bert.py --dataset my_text.txt --model_name_or_path google-bert/bert-base-uncased   # continue

13,943 unlabelled IMDb reviews, 12 minutes of one core of an EPYC (Zen 5) in bf16, seed 0, starting from word vectors of
the same reviews (recipes/word2vec.py --dimension 256 --num_train_epochs 5 --threads 1):

    recipes/bert.py --dataset unsup15k.parquet --init_vectors runs/word2vec --vocab_size 16384 --mlm_probability 0.4 \
        --max_seq_length 512 --per_device_train_batch_size 8 --max_steps 1200

Held-out text: 38.4 % of the masked tokens are predicted correctly, loss 3.77 (unigram 4.3 %, 6.65). Accuracy in per
cent, mean and deviation over three seeds, of recipes/transfer.py --mode linear finetune --labels 50 500 --batch_size 16
--max_steps 200 --max_length 512, beside those word vectors:

                                  fine-tuned                linear probe
                            pretrained    word2vec    pretrained    word2vec
    SST-2     100 labels    69.8 ± 5.9  68.7 ± 2.2    73.0 ± 4.5  69.7 ± 4.7
            1,000 labels    78.1 ± 0.4  77.6 ± 0.9    76.3 ± 0.8  77.1 ± 1.0
    IMDb      100 labels    79.1 ± 2.4  77.7 ± 1.5    78.1 ± 1.5  75.2 ± 1.8
            1,000 labels    85.9 ± 0.9  84.1 ± 0.8    82.4 ± 0.2  83.7 ± 0.8

Reviews want long sequences: with --max_seq_length 256 --per_device_train_batch_size 16 --max_steps 1500, and 256 tokens
read, in fp32 on a Xeon, 34 minutes, fine-tuned (--max_steps 120):

                            pretrained      word2vec   from scratch        tf-idf
    SST-2     100 labels    70.8 ± 3.2    69.0 ± 2.7    57.6 ± 2.2    57.2 ± 2.6
            1,000 labels    77.2 ± 2.3    77.5 ± 0.4    70.5 ± 0.5    68.0 ± 1.8
    IMDb      100 labels    79.2 ± 2.3    76.2 ± 1.6    61.6 ± 3.2    71.9 ± 0.9
            1,000 labels    82.0 ± 0.7    83.0 ± 0.6    78.2 ± 1.0    81.4 ± 0.5

256 tokens of this model are some 200 words, and a linear probe of word2vec with 1,000 labels reaches 79.0 if it reads
128 words, 82.2 with 256, 83.7 with 512, 84.2 with 1,024. Most of the gain over an encoder from scratch comes from the
word vectors: without them masked modelling did not help. ModernBERT is the default because it learns in a fraction of
BERT's steps. Initial weights with a deviation of width^-0.5 instead of 0.02, and positions as large as the word
vectors, do not help BERT: 9.5 % of the masked tokens after 120 steps, 12.1 % without. recipes/README.md has these
experiments.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.data.text import documents, packed
from mmssl.evaluation import masked_lm
from mmssl.methods import bert
from mmssl.models import text_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class BertArgs(bert.MaskedTextArgs):
    output_dir: str = flag("runs/bert", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "a masked language model to continue from; default: from scratch")
    architecture: str = flag(
        "modernbert",
        "architecture of a new model; modernbert needs fewer steps",
        text_encoders.ARCHITECTURES,
        of_new_model=True,
    )


def main(args: BertArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(
        args.dataset, args.text_column, held_out=args.held_out, streaming=args.streaming
    )
    model, tokenizer = text_encoders.build(args, documents.some(train_rows)["text"], args.architecture)
    training, held_out, counts = packed.train_and_held_out(
        train_rows, test_rows, tokenizer, args.max_seq_length, args.seed
    )
    packed.refuse_unknown(counts, tokenizer, args.model_name_or_path or args.tokenizer_name or args.tokenizer)

    method = bert.BERT(model, tokenizer, args.mlm_probability, args.masking, args.cross_documents, args.dropout)
    questions = masked_lm.questions(tokenizer, test_rows["text"], args.max_seq_length)
    evaluation = masked_lm.MaskedTokens(held_out, counts, args.per_device_train_batch_size, tokenizer, questions)
    method.unigram_loss = evaluation.entropy(method)
    optimizer = optim.from_args(method, args)
    pretrain(
        args, method, tokenizer, training, [optimizer], evaluation,
        trained_on=documents.described(train_rows, test_rows),
        held_out=f"{len(test_rows):,} documents",
        example={"text": [*[q.text for q in questions[:1]], f"This is a {tokenizer.mask_token} text.", "A text."]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, BertArgs, __doc__)
