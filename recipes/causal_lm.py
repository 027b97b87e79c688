"""Causal language modelling (GPT-2, Llama): trains on text, leaves a model for text-generation.

accelerate launch recipes/causal_lm.py                                         # about 100 Wikipedia articles, built in
accelerate launch recipes/causal_lm.py --dataset my_text.txt --size mini       # your text; its last tenth is held out
accelerate launch recipes/causal_lm.py --dataset my_text.txt --model_name_or_path openai-community/gpt2    # continue

A text file is one document, a row of a table another; --blank_lines True cuts text files at blank lines.

Tinyshakespeare, the defaults, three minutes of one core of an EPYC (Zen 4) in bf16, beside nanoGPT's settings for a CPU
in as much processor time (benchmarks/char_rnn.py --dataset tinyshakespeare.txt --seconds 180 --threads 1 --sides
causal_lm,nanoGPT), nats per character of held-out text: 1.783, nanoGPT 1.815, unigram 3.347, 5-gram 1.579.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag, layers_by_width
from mmssl.data.text import documents, packed
from mmssl.evaluation import perplexity
from mmssl.evaluation.language_model import entropy
from mmssl.methods import causal_lm
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CausalLMArgs(documents.StreamingArgs, documents.DocumentArgs, TrainArgs):
    output_dir: str = flag("runs/causal_lm", "where the model, log, figures and checkpoints go")
    dataset: str = flag("wikipedia", f"{documents.SOURCES}. A document is a row of a table, or a whole text file")
    blank_lines: bool = flag(False, "cut text files into documents at blank lines")
    model_name_or_path: str | None = flag(None, "a causal language model to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    architecture: str = flag("llama", "architecture of a new model", causal_lm.ARCHITECTURES, of_new_model=True)
    size: str = flag(
        "micro",
        f"size of a new model, layers x width: {layers_by_width(causal_lm.SIZES)}",
        causal_lm.SIZES, of_new_model=True,
    )  # fmt: skip
    vocab_size: int = flag(
        2048, "size of the byte-level BPE to train on the text; more for more text", at_least=258, at_most=10**6,
        of_new_model=True,
    )  # fmt: skip
    max_seq_length: int = flag(256, "tokens per sequence", at_least=2, at_most=10**6)
    cross_documents: bool = flag(False, "let tokens attend to the documents before their own in the sequence")
    dropout: float = flag(0.0, "dropout probability in training; useful with many epochs", at_least=0, below=1)

    per_device_train_batch_size: int = flag(8, "sequences per process in one micro-batch")
    num_train_epochs: float = flag(3.0, "passes over the text")
    learning_rate: float = flag(2e-3, "peak learning rate; lower for large models, and to continue a checkpoint")
    weight_decay: float = flag(0.1, "weight decay of matrices; biases and norms have none")
    adam_beta2: float = flag(0.95, "AdamW's beta2")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: CausalLMArgs) -> None:
    start(args)
    train_rows, test_rows = documents.load(
        args.dataset, args.text_column,
        held_out=args.held_out, whole=not args.blank_lines, streaming=args.streaming, seed=args.seed,
    )  # fmt: skip
    trained_on, test_rows = documents.described(train_rows, test_rows), perplexity.beginning(test_rows)
    some = documents.some(train_rows)
    model, tokenizer = causal_lm.build(args, documents.each(some))
    around, vocabulary = causal_lm.around(tokenizer), len(tokenizer)
    training, tokens = packed.next_tokens(train_rows, some, tokenizer, args.max_seq_length, around, args.seed)
    held_out, _ = packed.number(test_rows, tokenizer, around)
    packed.refuse_unknown(
        packed.counts(tokens, vocabulary), tokenizer, f"--model_name_or_path {args.model_name_or_path}"
    )

    method = causal_lm.CausalLM(model, tokenizer, args.cross_documents, args.dropout, entropy(tokens))
    optimizer = optim.from_args(method, args)
    prompts = [perplexity.prompt(text) for text in test_rows["text"][:2]]
    evaluation = perplexity.Perplexity(
        tokens, held_out, perplexity.size(test_rows["text"]), args.max_seq_length, vocabulary,
        args.per_device_train_batch_size, tokenizer, prompts[0],
    )  # fmt: skip
    pretrain(
        args, method, tokenizer, training, [optimizer], evaluation,
        trained_on=f"{trained_on}; {len(training):,} sequences of {args.max_seq_length} tokens",
        held_out=f"{len(held_out):,} tokens",
        example={"text": [*prompts, "A text."][:2]},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, CausalLMArgs, __doc__)
