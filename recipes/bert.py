"""BERT-style masked language modelling: text to an encoder that fill-mask, fine-tuning and sentence-transformers load.

accelerate launch recipes/bert.py                                         # a hundred Wikipedia articles, built in
accelerate launch recipes/bert.py --dataset my_text.txt --size small      # your own text, a tokenizer trained on it
accelerate launch recipes/bert.py --dataset my_text.txt --model_name_or_path google-bert/bert-base-uncased   # go on

ModernBERT is the default because it learns in a fraction of BERT's steps. On 13,943 unlabelled IMDb reviews
(--max_seq_length 256 --per_device_train_batch_size 16, one core), loss of training after

                            300     600     900 steps
    ModernBERT 4x256       5.54    4.82    4.41
    BERT 4x256             6.44    6.27    6.16

Pretraining pays where few labels are to be enough, if it begins with word vectors of the same reviews
(recipes/word2vec.py --dimension 256 --num_train_epochs 5 --threads 1). In 34 minutes of one core

    recipes/bert.py --dataset unsup15k.parquet --init_vectors runs/word2vec --vocab_size 16384 --mlm_probability 0.4 \
        --max_seq_length 256 --per_device_train_batch_size 16 --max_steps 1500

reaches 39.0 % of hidden tokens of held-out text, loss 3.66 (unigram 4.3 %, 6.64). Fine-tuned by recipes/transfer.py
--mode finetune --labels 50 500 --batch_size 16 --max_steps 120, three seeds, per cent (tf-idf: linear probe):

                            pretrained      word2vec   from scratch        tf-idf
    SST-2     100 labels    70.8 ± 3.2    69.0 ± 2.7    57.6 ± 2.2    57.2 ± 2.6
            1,000 labels    77.2 ± 2.3    77.5 ± 0.4    70.5 ± 0.5    68.0 ± 1.8
    IMDb      100 labels    79.2 ± 2.3    76.2 ± 1.6    61.6 ± 3.2    71.9 ± 0.9
            1,000 labels    82.0 ± 0.7    83.0 ± 0.6    78.2 ± 1.0    81.4 ± 0.5

(another pretraining of the same loss: 71.9, 78.4, 77.6, 83.3). Most of that is the words' own: what masked modelling
adds to word2vec is two points with 100 labels and nothing with 1,000. Without the vectors
(2,310 steps at 15 %, vocabulary of 8,192) it did not pay: IMDb under the linear probe 57.7 and 66.5, an untrained
encoder 59.9 and 66.5. Hiding 40 % instead of 15 % took, after 500 steps with the vectors, the loss at 15 % hidden from
4.28 to 4.13; a step costs a quarter more. That the vectors keep their own scale was not compared with others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from accelerate import PartialState
from gensim.models import KeyedVectors

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.built_in import wikipedia
from mmssl.data.loader import Loader
from mmssl.data.text import documents, masking, packed
from mmssl.data.text.tokens import train_bpe, train_wordpiece
from mmssl.errors import BadInput
from mmssl.evaluation import features, masked_lm
from mmssl.evaluation.downstream.probe import Probed
from mmssl.hub import export
from mmssl.methods import bert
from mmssl.models import word_vectors
from mmssl.training.loop import Summary, start, train
from mmssl.training.optim import adamw

TOKENIZERS = {"wordpiece": train_wordpiece, "bpe": train_bpe}
MOST_UNKNOWN = 0.2  # of the text's tokens, to a tokenizer that comes from elsewhere
STREAMED = 10_000  # documents of a stream that the tokenizer is trained on


@dataclass
class BertArgs(TrainArgs):
    output_dir: str = flag("runs/bert", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (also .gz; comma between), Parquet, a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents kept for evaluation where the data has no test split (at most a tenth)")
    streaming: bool = flag(False, "read and number as it goes, for data larger than the disk")
    model_name_or_path: str | None = flag(None, "a masked language model to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    architecture: str = flag("modernbert", "from scratch; it learns in a fraction of bert's steps", bert.ARCHITECTURES)
    size: str = flag("mini", "from scratch: layers and width, 2x128 4x256 4x512 8x512 12x768 24x1024", (*bert.SIZES,))
    init_vectors: str | None = flag(
        None, "begin with these vectors of words: a run of recipes/word2vec.py, its Hub id, or a word2vec file"
    )
    tokenizer_name: str | None = flag(None, "take this checkpoint's tokenizer; default: train one on the text")
    tokenizer: str = flag("wordpiece", "to train: lower-cased pieces of words, or bytes with case", (*TOKENIZERS,))
    vocab_size: int = flag(8192, "of the tokenizer to train")
    max_seq_length: int = flag(128, "tokens of a sequence")
    mlm_probability: float = flag(0.15, "share of the tokens that are hidden")
    masking: str = flag("tokens", "what is hidden together", masking.UNITS)
    cross_documents: bool = flag(True, "tokens may look at the other documents of their sequence")
    dropout: float = flag(0.0, "in training")

    per_device_train_batch_size: int = flag(32, "sequences per process in one micro-batch")
    num_train_epochs: float = flag(10, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    lr_scheduler_type: str = flag("linear", "shape after the warm-up", ("cosine", "linear", "constant"))
    weight_decay: float = flag(0.01, "on matrices only")
    warmup_steps: float = flag(0.1, "steps of linear warm-up; below 1, a share of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.max_steps <= 0:
            raise BadInput("--streaming: a stream has no length; give the run one with --max_steps")
        tokenizer = ("tokenizer", "vocab_size")
        if self.model_name_or_path:
            of_its_own = "a checkpoint to start from: it has sizes and a tokenizer of its own"
            self.refuse((*tokenizer, "tokenizer_name", "architecture", "size", "init_vectors"), of_its_own)
        if self.tokenizer_name:
            self.refuse(tokenizer, f"--tokenizer_name {self.tokenizer_name}")
        if self.max_seq_length < 8:
            raise BadInput(f"--max_seq_length {self.max_seq_length}: it must be 8 or more")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"--dropout {self.dropout}: it must be a probability below 1")
        if not 0 < self.mlm_probability < 1:
            raise BadInput(f"--mlm_probability {self.mlm_probability}: it must lie between 0 and 1")


def build(args: BertArgs, texts):
    """(model, tokenizer): a checkpoint, or from scratch with a tokenizer trained on `texts` or taken from another."""
    if args.model_name_or_path:
        return bert.from_pretrained(args.model_name_or_path, args.max_seq_length, args.trust_remote_code)
    vectors = load_vectors(args) if args.init_vectors else None
    if args.tokenizer_name:
        tokenizer = bert.load_tokenizer(args.tokenizer_name, args.max_seq_length)
    else:
        tokenizer = TOKENIZERS[args.tokenizer](texts, args.vocab_size, args.max_seq_length)
    model = bert.from_scratch(tokenizer, args.architecture, args.size)
    if vectors is not None:
        known = bert.begin_with(model, tokenizer, vectors)
        word_vectors.say_taken_over(known, len(tokenizer), args.init_vectors)
    return model, tokenizer


def load_vectors(args: BertArgs) -> KeyedVectors:
    """Those of --init_vectors. Raises BadInput where they are not as wide as the model."""
    vectors, (_, width) = word_vectors.load(args.init_vectors)[0], bert.SIZES[args.size]
    if vectors.vector_size != width:
        raise BadInput(
            f"--init_vectors {args.init_vectors}: vectors of {vectors.vector_size} dimensions for a model {width} "
            f"wide; choose another --size, or train them with recipes/word2vec.py --dimension {width}"
        )
    return vectors


def main(args: BertArgs) -> None:
    start(args)
    options = {"held_out": args.held_out, "streaming": args.streaming}
    train_rows, test_rows = documents.load(args.dataset, args.text_column, **options)
    if args.streaming:
        of, texts = "a stream", [row["text"] for row in islice(train_rows, STREAMED)]
    else:
        of, texts = str(documents.count(train_rows, test_rows)), train_rows["text"]
    if PartialState().is_main_process:
        print(f"{args.dataset}: {of}")
    model, tokenizer = build(args, texts)
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
    if tokenizer.unk_token_id is not None and (unknown := counts[tokenizer.unk_token_id] / counts.sum()) > MOST_UNKNOWN:
        name = args.model_name_or_path or args.tokenizer_name or args.tokenizer
        raise BadInput(f"{name}: its tokenizer does not know {unknown:.0%} of the text; train one on the text instead")
    batch, workers = args.per_device_train_batch_size, args.dataloader_num_workers
    loader = Loader(training, batch, collate, seed=args.seed, num_workers=workers)

    method = bert.BERT(model, tokenizer, args.mlm_probability, args.masking, args.cross_documents, args.dropout)
    evaluation = masked_lm.Evaluation(held_out, counts, batch)
    method.unigram_loss = evaluation.entropy(method)
    optimizer = adamw(method, args.learning_rate, args.weight_decay, (args.adam_beta1, args.adam_beta2))
    uploads = export.Uploads(args, method, tokenizer)
    probed = Probed(evaluation, args, method, tokenizer)
    summary = train(method, loader, args, [optimizer], evaluate=probed, after_save=uploads)
    if PartialState().is_main_process:
        finish(args, summary, method, tokenizer, evaluation, probed, of, test_rows["text"])


def finish(
    args: BertArgs, summary: Summary, method: bert.BERT, tokenizer, evaluation, probed: Probed, of: str, texts
) -> None:
    """Export, prove that it loads, draw, describe, print."""
    examples = masked_lm.fill_mask(method.eval(), tokenizer, texts)
    (first, last), started = (summary.evaluations[i] for i in (0, -1)), args.model_name_or_path or args.init_vectors
    results = {
        "trained": {name: value for name, value in last.items() if name != "step"},
        "before training" if started else "untrained": {name: value for name, value in first.items() if name != "step"},
        "unigram": evaluation.unigram(method),
    }
    probed.beside(results)
    guesses = "\n".join(f"- {example}" for example in examples)
    shown = examples[0].text if examples else f"This is a {tokenizer.mask_token} text."
    record = export.Record(
        title=Path(args.output_dir).name,
        description=f"{bert.__doc__.splitlines()[0]} A `{type(method.model).__name__}`, encoder and head exported.\n\n"
        f"Held-out sentences, what stood at {tokenizer.mask_token} and the likeliest guesses:\n\n{guesses}",
        data=f"{args.dataset}: {of}. {wikipedia.LICENCE if args.dataset == 'wikipedia' else ''}",
        task="fill-mask",
        dataset=args.dataset,
        results=results,
        units=masked_lm.UNITS,
        snippets={heading: code.format(text=shown) for heading, code in bert.SNIPPETS.items()},
        limits="It repeats what its training text says and how, with all its prejudices; texts longer than "
        f"{args.max_seq_length} tokens are new to it.",
        tags=["bert", "fill-mask", "sentence-transformers"],
        base_model=started,
    )
    features.print_table(f"held-out text of {args.dataset}. {masked_lm.UNITS}", results)
    print(guesses)
    example = {"text": [shown, "A text."]}
    trivial = "that of a model that knows only how often each token occurs"
    export.finish(method, tokenizer, method.model, example, record, summary, args, trivial, "AutoModelForMaskedLM")


if __name__ == "__main__":
    command(main, BertArgs, __doc__)
