"""Masked language modelling (BERT, ModernBERT): trains on text, leaves an encoder for fill-mask, fine-tuning and
sentence-transformers.

accelerate launch recipes/bert.py                                         # about 100 Wikipedia articles, built in
accelerate launch recipes/bert.py --dataset my_text.txt --size small      # your text, with a tokenizer trained on it
accelerate launch recipes/bert.py --dataset my_text.txt --model_name_or_path google-bert/bert-base-uncased   # continue

13,943 unlabelled IMDb reviews, 34 minutes on one core (Xeon, fp32), starting from word vectors of the same reviews
(recipes/word2vec.py --dimension 256 --num_train_epochs 5 --threads 1):

    recipes/bert.py --dataset unsup15k.parquet --init_vectors runs/word2vec --vocab_size 16384 --mlm_probability 0.4 \
        --max_seq_length 256 --per_device_train_batch_size 16 --max_steps 1500

Held-out text: 39.0 % of the masked tokens are predicted correctly, loss 3.66 (unigram 4.3 %, 6.64). Fine-tuned with
recipes/transfer.py --mode finetune --labels 50 500 --batch_size 16 --max_steps 120, accuracy in per cent, mean and
deviation over three seeds (tf-idf: linear probe):

                            pretrained      word2vec   from scratch        tf-idf
    SST-2     100 labels    70.8 ± 3.2    69.0 ± 2.7    57.6 ± 2.2    57.2 ± 2.6
            1,000 labels    77.2 ± 2.3    77.5 ± 0.4    70.5 ± 0.5    68.0 ± 1.8
    IMDb      100 labels    79.2 ± 2.3    76.2 ± 1.6    61.6 ± 3.2    71.9 ± 0.9
            1,000 labels    82.0 ± 0.7    83.0 ± 0.6    78.2 ± 1.0    81.4 ± 0.5

Most of the gain comes from the word vectors: masked modelling adds two points with 100 labels and nothing with 1,000.
Without the vectors it did not help. ModernBERT is the default because it learns in a fraction of BERT's steps.
recipes/README.md has these experiments in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.text import documents, masking, packed
from mmssl.errors import BadInput
from mmssl.evaluation import masked_lm
from mmssl.methods import bert
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

STREAMED = 10_000  # documents of a stream that the tokenizer is trained on


@dataclass
class BertArgs(TrainArgs):
    output_dir: str = flag("runs/bert", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (.txt, .gz; with commas), Parquet, a Hub id")
    text_column: str | None = flag(None, "text column of a table; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents held out if the data has no test split (at most a tenth)", at_least=1)
    streaming: bool = flag(False, "read and tokenise during training, for data larger than the disk")
    model_name_or_path: str | None = flag(None, "a masked language model to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    architecture: str = flag(
        "modernbert", "architecture of a new model; modernbert needs fewer steps", bert.ARCHITECTURES, of_new_model=True
    )
    size: str = flag(
        "mini", "size of a new model: layers x width 2x128 4x256 4x512 8x512 12x768 24x1024", bert.SIZES,
        of_new_model=True,
    )  # fmt: skip
    init_vectors: str | None = flag(
        None, "start from these word vectors: a run of recipes/word2vec.py, its Hub id, or a word2vec file",
        of_new_model=True,
    )  # fmt: skip
    tokenizer_name: str | None = flag(
        None, "use this checkpoint's tokenizer; default: train one on the text", of_new_model=True
    )
    tokenizer: str = flag(
        "wordpiece", "kind of a new tokenizer: WordPiece (lower-cased) or byte-level BPE", bert.TOKENIZERS,
        of_new_model=True,
    )  # fmt: skip
    vocab_size: int = flag(8192, "size of the tokenizer to train", at_least=16, at_most=10**6, of_new_model=True)
    max_seq_length: int = flag(128, "tokens per sequence", at_least=8, at_most=10**6)
    mlm_probability: float = flag(0.15, "fraction of the tokens that are masked", above=0, below=1)
    masking: str = flag("tokens", "mask single tokens, whole words or spans of words", masking.UNITS)
    cross_documents: bool = flag(True, "let tokens attend to the other documents in their sequence")
    dropout: float = flag(0.0, "dropout probability in training", at_least=0, below=1)

    per_device_train_batch_size: int = flag(32, "sequences per process in one micro-batch")
    lr_scheduler_type: str = flag("linear", "schedule after the warm-up", ("cosine", "linear", "constant"))
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.max_steps <= 0:
            raise BadInput("--streaming: a stream has no length; set the length of the run with --max_steps")
        if self.tokenizer_name:
            self.refuse(("tokenizer", "vocab_size"), f"--tokenizer_name {self.tokenizer_name}")


def main(args: BertArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(
        args.dataset, args.text_column, held_out=args.held_out, streaming=args.streaming
    )
    if args.streaming:
        trained_on, texts = "a stream of documents", [row["text"] for row in islice(train_rows, STREAMED)]
    else:
        trained_on, texts = str(documents.count(train_rows, test_rows)), train_rows["text"]
    model, tokenizer = bert.build(args, texts)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    held_out = packed.Packed(*packed.number(test_rows, tokenizer), tokenizer, args.max_seq_length)
    if args.streaming:
        training, collate = packed.stream(train_rows, tokenizer, args.max_seq_length), packed.Collate(tokenizer)
        counts = packed.counts(held_out.tokens, len(tokenizer))
    else:
        tokens, begins_word = packed.number(train_rows, tokenizer)
        training, collate = packed.Packed(tokens, begins_word, tokenizer, args.max_seq_length, args.seed), None
        counts = packed.counts(tokens, len(tokenizer))
    packed.refuse_unknown(counts, tokenizer, args.model_name_or_path or args.tokenizer_name or args.tokenizer)

    method = bert.BERT(model, tokenizer, args.mlm_probability, args.masking, args.cross_documents, args.dropout)
    questions = masked_lm.questions(tokenizer, test_rows["text"], args.max_seq_length)
    evaluation = masked_lm.MaskedTokens(held_out, counts, args.per_device_train_batch_size, tokenizer, questions)
    method.unigram_loss = evaluation.entropy(method)
    optimizer = optim.from_args(method, args)
    pretrain(
        args, method, tokenizer, training, [optimizer], evaluation,
        collate=collate,
        trained_on=trained_on,
        held_out=f"{len(test_rows):,} documents",
        example={"text": [*[q.text for q in questions[:1]], f"This is a {tokenizer.mask_token} text.", "A text."]},
        base_model=args.model_name_or_path or args.init_vectors,
    )  # fmt: skip


if __name__ == "__main__":
    command(main, BertArgs, __doc__)
