"""ELECTRA, replaced-token detection: trains on text, leaves an encoder (ElectraForPreTraining) for fine-tuning.

accelerate launch recipes/electra.py                                        # about 100 Wikipedia articles, built in
accelerate launch recipes/electra.py --dataset my_text.txt --size small     # your text, with a tokenizer trained on it
accelerate launch recipes/electra.py --dataset my_text.txt --model_name_or_path google/electra-small-discriminator

13,943 unlabelled IMDb reviews, 400 steps of 32 sequences (1.6 million tokens), seed 0, bf16, under two and a half
minutes of one core of an EPYC (Zen 4):

    recipes/electra.py --dataset unsup15k.parquet --size tiny --learning_rate 2e-3 --max_steps 400

1,000 held-out reviews, in per cent:

                                       trained   untrained   always "original"   unigram
    accuracy at replaced tokens            0.0        80.0                 0.0
    accuracy at original tokens          100.0        18.1               100.0
    AUC, replaced against original        52.7        48.6                50.0
    generator, masked words                4.1         0.0                           4.1
    generator, nats                       6.63        9.04                          6.61

So short a run learns how often words occur and how many are replaced, and no more: its loss, 27.4, is the trivial one,
27.5, and the monitor says so. The paper trains on thousands of times as much text. Not measured yet: longer runs,
--init_vectors, and what is left after fine-tuning beside BERT in equal time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.data.text import documents, packed
from mmssl.evaluation.masked_lm import MaskedTokens
from mmssl.evaluation.replaced_tokens import ReplacedTokens
from mmssl.methods import bert, electra
from mmssl.models import text_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class ElectraArgs(bert.MaskedTextArgs):
    output_dir: str = flag("runs/electra", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "an ELECTRA discriminator to continue from; default: from scratch")
    generator_size: float = flag(
        electra.GENERATOR_SIZE, "width of the generator, as a fraction of the discriminator's", above=0, at_most=1
    )
    discriminator_weight: float = flag(electra.WEIGHT, "weight of the discriminator's loss", above=0, at_most=10**4)


def main(args: ElectraArgs) -> None:
    start(args)
    train, test = documents.load(args.dataset, args.text_column, held_out=args.held_out, streaming=args.streaming)
    model, tokenizer = text_encoders.build(args, documents.some(train)["text"], "electra", "AutoModelForPreTraining")
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
        base_model=args.model_name_or_path or args.init_vectors,
    )  # fmt: skip


if __name__ == "__main__":
    command(main, ElectraArgs, __doc__)
