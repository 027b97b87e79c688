"""ELECTRA, replaced-token detection: trains on text, leaves an encoder (ElectraForPreTraining) for fine-tuning.

accelerate launch recipes/electra.py                                        # about 100 Wikipedia articles, built in
accelerate launch recipes/electra.py --dataset my_text.txt --size small     # your text, with a tokenizer trained on it
accelerate launch recipes/electra.py --dataset my_text.txt --model_name_or_path google/electra-small-discriminator

13,943 unlabelled IMDb reviews, seed 0, bf16, starting from word vectors of the same reviews (recipes/word2vec.py
--dimension 256 --num_train_epochs 5 --threads 1), 600 steps of 8 sequences of 512 tokens, 21 minutes of one core of a
Xeon (AMX) that had other work beside it:

    recipes/electra.py --dataset unsup15k.parquet --init_vectors runs/word2vec --vocab_size 16384 --max_seq_length 512 \
        --per_device_train_batch_size 8 --max_steps 600

1,000 held-out reviews, in per cent:

                                       trained   before training   unigram
    AUC, replaced against original        66.2              51.2      50.0
    generator, masked words               28.1               0.1       4.3
    generator, nats                       4.53              11.2      6.65

Beside recipes/bert.py with the flags of its docstring and --max_steps 900, which took 17 minutes there: accuracy in per
cent, mean and deviation over three seeds (IMDb: two), of recipes/transfer.py --mode linear finetune --labels 50 500
--batch_size 16 --max_steps 200 --max_length 128 (IMDb: 256):

                                 fine-tuned              linear probe
                             ELECTRA        BERT      ELECTRA        BERT
    SST-2     100 labels  65.9 ± 3.9  71.0 ± 2.6   61.0 ± 7.0  71.3 ± 3.6
            1,000 labels  76.2 ± 2.2  79.0 ± 1.8   75.2 ± 2.1  75.8 ± 1.2
    IMDb      100 labels  70.2 ± 1.8  76.6 ± 0.3   72.5 ± 2.1  73.2 ± 3.1
            1,000 labels  80.2 ± 0.3  83.1 ± 0.0   80.2 ± 0.6  79.0 ± 1.1

In runs as short as these BERT is the better choice; the paper trains on thousands of times as much text.

The paper's networks, which are BERTs (--architecture electra), learn in as many steps how often words occur, and little
more: AUC 56.4 after 400 steps of 32 sequences of 128 tokens at a learning rate of 5e-4, a quarter of the width for the
generator and a weight of 50 for the discriminator, generator 6.69 nats. At 1e-3, 1,200 steps of 8 sequences of 512
tokens, all tokens get the same probability. With the paper's generator and weight at 5e-4, a ModernBERT had not learned
more after 80 steps, either.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.data.text import documents, packed
from mmssl.evaluation.masked_lm import MaskedTokens
from mmssl.evaluation.replaced_tokens import ReplacedTokens
from mmssl.methods import bert, electra
from mmssl.models import pretrained, text_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class ElectraArgs(bert.MaskedTextArgs):
    output_dir: str = flag("runs/electra", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(
        None, "an ELECTRA discriminator or a ModernBERT to continue from; default: from scratch"
    )
    architecture: str = flag("modernbert", "architecture of a new model", electra.ARCHITECTURES, of_new_model=True)
    generator_size: float = flag(
        electra.GENERATOR_SIZE,
        "width (electra) or layers (modernbert) of the generator, as a fraction of the other's",
        above=0,
        at_most=1,
    )
    discriminator_weight: float = flag(
        5.0, "weight of the discriminator's loss; 50 in the paper", above=0, at_most=10**4
    )
    mlm_probability: float = flag(0.25, "fraction of the tokens that the generator replaces", above=0, below=1)


def main(args: ElectraArgs) -> None:
    start(args)
    train, test = documents.load(args.dataset, args.text_column, held_out=args.held_out, streaming=args.streaming)
    name, kind = args.model_name_or_path, args.architecture
    auto_class = electra.auto_class(pretrained.model_type(name) if name else kind)
    model, tokenizer = text_encoders.build(args, documents.some(train)["text"], kind, auto_class)
    training, held_out, counts = packed.train_and_held_out(train, test, tokenizer, args.max_seq_length, args.seed)
    packed.refuse_unknown(counts, tokenizer, args.model_name_or_path or args.tokenizer_name or args.tokenizer)
    method = electra.ELECTRA(
        model, tokenizer, args.mlm_probability, args.masking, args.cross_documents, args.dropout,
        generator_size=args.generator_size, weight=args.discriminator_weight,
    )  # fmt: skip

    masked = MaskedTokens(held_out, counts, args.per_device_train_batch_size, tokenizer)
    method.unigram_loss = masked.entropy(method)
    pretrain(
        args, method, tokenizer, training, [optim.from_args(method, args)], ReplacedTokens(masked),
        trained_on=documents.described(train, test),
        held_out=f"{len(test):,} documents",
        example={"text": ["The cook ate the book in the kitchen.", "A text."]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, ElectraArgs, __doc__)
