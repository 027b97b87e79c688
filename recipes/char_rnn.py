"""A character-level language model from text: an LSTM or GRU, trained by truncated backpropagation through time.

python recipes/char_rnn.py                                       # a hundred Wikipedia articles, built in
python recipes/char_rnn.py --dataset my_text.txt                 # your own: the last tenth is held out
python recipes/char_rnn.py --dataset my_text.txt --vocabulary bytes --cell gru --num_hidden_layers 2
python recipes/char_rnn.py --dataset my_text.txt --model_name_or_path runs/char_rnn     # go on from an earlier run

tinyshakespeare.txt (1.1 million characters, the last tenth held out), the defaults, seed 0: 1.486 nats (2.144 bits) a
character after 1,715 steps, 75 s on two cores of an EPYC (Zen 4) in bf16; 1.489 after 236 s on one core of a Xeon in
fp32. Unigram 3.35, Kneser-Ney 5-gram 1.58. nanoGPT's README reports 1.88 for its CPU setting and 1.47 on a GPU.
benchmarks/char_rnn.py trains the peers for equal time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.built_in import wikipedia
from mmssl.data.loader import Loader
from mmssl.data.text import characters, documents
from mmssl.distributed import world_size
from mmssl.errors import BadInput
from mmssl.evaluation import features
from mmssl.evaluation.downstream.probe import Probed
from mmssl.evaluation.language_model import LanguageModelEvaluation, entropy, samples
from mmssl.hub import export
from mmssl.methods import char_rnn
from mmssl.training.loop import Summary, start, train
from mmssl.training.optim import adamw

TEMPERATURES = (0.5, 0.8, 1.0)
LENGTH = 300  # symbols of each sample
SIZES = ("vocabulary", "cell", "hidden_size", "num_hidden_layers", "skip_connections", "embedding_size",
         "tie_word_embeddings", "dropout")  # fmt: skip
MOST_UNKNOWN = 0.05  # of the text's characters, to a model that is trained on


@dataclass
class CharRNNArgs(TrainArgs):
    output_dir: str = flag("runs/char_rnn", "where the model, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", "wikipedia (built in), text files (comma between), Parquet, a folder, a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents kept for evaluation where the data has no test part (at most a tenth)")
    model_name_or_path: str | None = flag(None, "a character RNN to go on from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    vocabulary: str = flag("characters", "those of the training text, or the 256 bytes", ("characters", "bytes"))
    cell: str = flag("lstm", "of the layers", ("lstm", "gru"))
    hidden_size: int = flag(256, "of each layer")
    num_hidden_layers: int = flag(2, "one above the other")
    skip_connections: bool = flag(True, "the softmax reads all layers, not the upper one alone")
    embedding_size: int = flag(64, "of a character")
    tie_word_embeddings: bool = flag(False, "one table for input and output")
    dropout: float = flag(0.0, "between layers and before the softmax; for a text that is read many times")
    chunk_length: int = flag(64, "characters that gradients go back through")
    forget: float = flag(0.05, "probability that a stream begins a chunk without what it has read")

    per_device_train_batch_size: int = flag(32, "streams that a process reads side by side")
    num_train_epochs: float = flag(3.5, "passes over the text")
    learning_rate: float = flag(4e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "on matrices only")
    adam_beta2: float = flag(0.99, "AdamW")
    warmup_steps: float = flag(0.02, "steps of linear warm-up; below 1, a share of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")
        if self.model_name_or_path:
            self.refuse(SIZES, "a checkpoint to start from: it has a vocabulary and sizes of its own")
        for name in ("chunk_length", "held_out"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("forget", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be a probability below 1")


def build(args: CharRNNArgs, text: str):
    """(model, tokenizer): a checkpoint, or from scratch with a vocabulary for `text`."""
    if args.model_name_or_path:
        return char_rnn.from_pretrained(args.model_name_or_path, args.trust_remote_code)
    tokenizer = characters.tokenizer(text, args.vocabulary)
    return char_rnn.from_scratch(tokenizer, **{name: getattr(args, name) for name in SIZES}), tokenizer


def main(args: CharRNNArgs) -> None:
    start(args)
    parts = documents.load(args.dataset, args.text_column, held_out=args.held_out, whole=True, seed=args.seed)
    text, held_out = map(characters.join, parts)
    model, tokenizer = build(args, text)
    ids, held_out_ids = (characters.encode(part, tokenizer, model.config.vocabulary) for part in (text, held_out))
    unknown = float((ids == tokenizer.unk_token_id).mean())
    if unknown > MOST_UNKNOWN:
        raise BadInput(f"--model_name_or_path {args.model_name_or_path} does not know {unknown:.0%} of the characters")

    batch = args.per_device_train_batch_size
    streams = batch * args.gradient_accumulation_steps * world_size()
    training = characters.Streams(ids, streams, args.chunk_length, args.forget, args.seed)
    loader = Loader(training, batch, shuffle=False, seed=args.seed, num_workers=args.dataloader_num_workers)
    method = char_rnn.CharRNN(model, streams, entropy(ids))
    optimizer = adamw(method, args.learning_rate, args.weight_decay, (args.adam_beta1, args.adam_beta2))
    evaluation = LanguageModelEvaluation(ids, held_out_ids, len(tokenizer), model.config.vocabulary.rstrip("s"))
    probed = Probed(evaluation, args, method, tokenizer)
    uploads = export.Uploads(args, method, tokenizer)
    summary = train(method, loader, args, [optimizer], evaluate=probed, after_save=uploads)
    if PartialState().is_main_process:
        finish(args, summary, method, tokenizer, evaluation, probed, held_out)


def finish(args: CharRNNArgs, summary: Summary, method, tokenizer, evaluation, probed: Probed, held_out: str) -> None:
    """Export, prove that it loads, draw, describe, print."""
    model, unit = method.model.eval(), evaluation.unit
    before = "before training" if args.model_name_or_path else "untrained"
    results = {
        name: {k: v for k, v in values.items() if k != "step"}
        for name, values in (("trained", summary.evaluations[-1]), (before, summary.evaluations[0]))
    } | evaluation.baselines()
    probed.beside(results)
    prompt = held_out[:50]
    written = samples(model, tokenizer, prompt, TEMPERATURES, LENGTH)
    shown = (f"Temperature {temperature}:\n\n```\n{text}\n```" for temperature, text in written.items())
    licence = wikipedia.LICENCE if args.dataset == "wikipedia" else ""
    record = export.Record(
        title=Path(args.output_dir).name,
        description=f"{char_rnn.__doc__.splitlines()[0]} {method.model.config.cell.upper()}, "
        f"{model.num_parameters():,} weights. What it makes of the first {len(prompt)} characters of the held-out "
        "text:\n\n" + "\n\n".join(shown),
        data=f"Data: {args.dataset}, {len(evaluation.train):,} {unit}s, and {len(evaluation.held_out):,} held out, "
        f"each predicted once. A sample is a chunk of {args.chunk_length} {unit}s. {licence}",
        task="text-generation",
        dataset=args.dataset,
        results=results,
        units=f"Nats and bits a {unit}, less is better; 5-gram: interpolated Kneser-Ney on the same training text.",
        snippets={k: v.format(prompt=prompt, text=held_out[:200], unit=unit) for k, v in char_rnn.SNIPPETS.items()},
        limits="It writes what looks like its training text; nothing of it need be true, and none of it is checked.",
        tags=["char-rnn"],
        base_model=args.model_name_or_path,
    )
    features.print_table(f"{len(evaluation.held_out):,} held-out {unit}s of {args.dataset}", results)
    example = {"text": [prompt, prompt[:9]]}
    trivial = f"that of single {unit}s counted"
    export.finish(method, tokenizer, model, example, record, summary, args, trivial, "AutoModelForCausalLM")


if __name__ == "__main__":
    command(main, CharRNNArgs, __doc__)
