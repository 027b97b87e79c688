"""A character-level language model: an LSTM or GRU, trained on text by truncated backpropagation through time. Leaves a
causal language model.

python recipes/char_rnn.py                                       # about 100 Wikipedia articles, built in
python recipes/char_rnn.py --dataset my_text.txt                 # your text; its last tenth is held out
python recipes/char_rnn.py --dataset my_text.txt --vocabulary bytes --cell gru --num_hidden_layers 2
python recipes/char_rnn.py --dataset my_text.txt --model_name_or_path runs/char_rnn     # continue an earlier run

tinyshakespeare.txt (1.1 million characters, the last tenth held out), defaults, seed 0, after 1,715 steps: 1.486 nats
(2.144 bits) per character, 75 s on two cores of an EPYC (Zen 4) in bf16; 1.489 in 236 s on one core of a Xeon in fp32.
Baselines: unigram 3.35, Kneser-Ney 5-gram 1.58. nanoGPT's README reports 1.88 with its CPU settings and 1.47 on a GPU.
benchmarks/char_rnn.py trains other implementations for the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.text import characters, documents
from mmssl.distributed import world_size
from mmssl.evaluation.language_model import LanguageModelEvaluation, entropy
from mmssl.methods import char_rnn
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CharRNNArgs(documents.DocumentArgs, TrainArgs):
    output_dir: str = flag("runs/char_rnn", "where the model, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", f"{documents.SOURCES}. A document is a row of a table, or a whole text file")
    model_name_or_path: str | None = flag(None, "a character RNN to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    vocabulary: str = flag(
        "characters", "the characters of the training text, or 256 bytes", ("characters", "bytes"), of_new_model=True
    )
    cell: str = flag("lstm", "type of the recurrent layers", ("lstm", "gru"), of_new_model=True)
    hidden_size: int = flag(256, "width of each layer", at_least=1, at_most=16384, of_new_model=True)
    num_hidden_layers: int = flag(2, "number of recurrent layers", at_least=1, at_most=100, of_new_model=True)
    skip_connections: bool = flag(True, "feed all layers to the softmax, not only the last", of_new_model=True)
    embedding_size: int = flag(64, "width of a symbol's embedding", at_least=1, at_most=16384, of_new_model=True)
    tie_word_embeddings: bool = flag(False, "share the weights of input and output embeddings", of_new_model=True)
    dropout: float = flag(
        0.0, "dropout between layers and before the softmax; useful with many epochs", at_least=0, below=1,
        of_new_model=True,
    )  # fmt: skip
    chunk_length: int = flag(64, "symbols that gradients are backpropagated through", at_least=1, at_most=10**6)
    forget: float = flag(0.05, "probability that a stream starts a chunk with an empty state", at_least=0, below=1)

    per_device_train_batch_size: int = flag(32, "streams that a process reads in parallel")
    num_train_epochs: float = flag(3.5, "passes over the text")
    learning_rate: float = flag(4e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    adam_beta2: float = flag(0.99, "AdamW's beta2")
    warmup_steps: float = flag(0.02, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")


def main(args: CharRNNArgs) -> None:
    start(args)
    parts = documents.load(args.dataset, args.text_column, held_out=args.held_out, whole=True, seed=args.seed)
    text, held_out = map(characters.join, parts)
    model, tokenizer = char_rnn.build(args, text)
    ids, held_out_ids = (characters.encode(part, tokenizer, model.config.vocabulary) for part in (text, held_out))
    characters.refuse_unknown(ids, tokenizer, f"--model_name_or_path {args.model_name_or_path}")

    streams = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    training = characters.Streams(ids, streams, args.chunk_length, args.forget, args.seed)
    method = char_rnn.CharRNN(model, streams, entropy(ids))
    unit, prompt = characters.UNITS[model.config.vocabulary], held_out[:50]
    optimizer = optim.from_args(method, args)
    evaluation = LanguageModelEvaluation(ids, held_out_ids, len(tokenizer), unit, tokenizer, prompt)
    pretrain(
        args, method, tokenizer, training, [optimizer], evaluation,
        shuffle=False,
        trained_on=f"{len(ids):,} {unit}s in chunks of {args.chunk_length}",
        held_out=f"{len(held_out_ids):,} {unit}s",
        example={"text": [prompt, held_out[:200]]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, CharRNNArgs, __doc__)
