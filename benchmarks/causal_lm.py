"""Tokens per second of causal language modelling: the shared loop, and transformers' Trainer as run_clm.py sets it up.

    python benchmarks/causal_lm.py                                         # speed on the built-in Wikipedia articles
    python benchmarks/causal_lm.py --size tiny --quality_steps 300         # and the held-out loss after as many tokens
    python benchmarks/causal_lm.py --bf16 no --quality_steps 400 --fewer 4   # in fp32, and after a quarter of the steps

Same architecture, initial weights, tokens and batch. Ours runs in bf16 if the machine computes it fast; Trainer in
fp32, its default, and, as a second side, in bf16. Trainer has run_clm's defaults: texts joined and cut into full
sequences without regard to documents, labels equal to the inputs, the config's dropout (0.1 in GPT-2, none in Llama),
fused AdamW. For the held-out loss Trainer runs twice: with our learning rate, schedule, betas and weight decay, and
with run_clm's (5e-5, linear, no warm-up). Another side, ours across documents, shows what keeping them apart costs. The
sides take turns, a few steps each; results are medians over turns of ratios within a turn.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import turns
from torch.utils.data import Dataset
from transformers import Trainer, default_data_collator
from transformers.utils import logging

from mmssl.arguments import Flags, command, flag
from mmssl.data.loader import Loader
from mmssl.data.text import documents, packed
from mmssl.data.text.tokens import train_causal_bpe
from mmssl.evaluation import perplexity
from mmssl.methods import causal_lm
from mmssl.training import optim
from mmssl.training.loop import train

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from causal_lm import CausalLMArgs


@dataclass
class BenchmarkArgs(Flags):
    dataset: str = flag("wikipedia", "text: a built-in name, files, a folder or a Hub id")
    size: str = flag("micro", "layers and width, see recipes/causal_lm.py", (*causal_lm.SIZES,))
    architecture: str = flag("gpt2", "of the model", causal_lm.ARCHITECTURES)
    vocab_size: int = flag(50257, "of the tokenizer, trained on the text; GPT-2's has so many", at_least=258)
    max_seq_length: int = flag(256, "tokens of a sequence", at_least=2)
    batch_size: int = flag(8, "sequences in a step; run_clm's default", at_least=1)
    turns: int = flag(5, "of every side", at_least=1)
    steps: int = flag(4, "in a turn", at_least=1)
    bf16: str = flag("auto", "of our loop; auto: if the machine computes it fast", ("auto", "yes", "no"))
    quality_steps: int = flag(0, "train Trainer so long, and print the held-out results beside ours", at_least=0)
    fewer: int = flag(1, "ours trains so many times fewer steps there", at_least=1)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")


class Joined(Dataset):
    """The tokens in full sequences, as run_clm's group_texts gives them."""

    def __init__(self, sequences: packed.NextTokens) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        ids = self.sequences.__getitems__([row])["targets"][0].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    train_rows, test_rows = documents.load(args.dataset, whole=True)
    test_rows = perplexity.beginning(test_rows)
    tokenizer = train_causal_bpe(documents.each(train_rows), args.vocab_size, args.max_seq_length)
    tokens, held_out = (
        packed.number(rows, tokenizer, causal_lm.around(tokenizer))[0] for rows in (train_rows, test_rows)
    )
    sequences = packed.NextTokens(tokens, args.max_seq_length)
    with tempfile.TemporaryDirectory() as place:
        given = (args, tokenizer, sequences, place)
        sides: turns.Sides = {
            turns.OURS: Ours(*given),
            "mmssl, across documents": Ours(*given, cross_documents=True),
            "Trainer": Theirs(*given),
            "Trainer, bf16": Theirs(*given, bf16=True),
        }
        seconds = turns.take_turns(sides, args.turns, args.steps, warm_up=1)
        precision = {"yes": "bf16", "no": "fp32"}.get(args.bf16) or turns.precision(args.use_cpu)
        print(
            f"{args.turns} turns of {args.steps} steps of {args.batch_size} x {args.max_seq_length} tokens, "
            f"{args.architecture} {args.size}, vocabulary {len(tokenizer):,}, {args.threads} threads; mmssl in "
            f"{precision}"
        )
        turns.report(seconds, args.steps * args.batch_size * args.max_seq_length, "tokens")
        if args.quality_steps:
            evaluation = perplexity.Perplexity(
                tokens, held_out, perplexity.size(test_rows["text"]), args.max_seq_length, len(tokenizer)
            )
            ours = Ours(*given)
            for name, side, steps in (
                (turns.OURS, ours, args.quality_steps // args.fewer),
                ("Trainer, our learning rate", Theirs(*given), args.quality_steps),
                ("Trainer, run_clm's", Theirs(*given, own_rate=True), args.quality_steps),
            ):
                took, result = side(steps), evaluation(side.judged())
                print(f"{name:<32}{steps} steps, {took:.0f} s, bits per byte {result['bits_per_byte']:.3f}")
            for name, result in evaluation.baselines(ours.method).items():
                print(f"{name:<32}bits per byte {result['bits_per_byte']:.3f}")


class Ours:
    """The recipe's own parts. Called with a number of steps; returns seconds."""

    def __init__(
        self, args: BenchmarkArgs, tokenizer, sequences: packed.NextTokens, place: str, cross_documents: bool = False
    ) -> None:
        torch.manual_seed(0)
        model = causal_lm.from_scratch(tokenizer, args.architecture, args.size)
        self.method = causal_lm.CausalLM(model, tokenizer, cross_documents)
        self.loader = Loader(sequences, args.batch_size)
        self.settings = {"output_dir": f"{place}/ours", "use_cpu": args.use_cpu, "bf16": args.bf16, **turns.RUN}

    def __call__(self, steps: int) -> float:
        recipe = CausalLMArgs(**self.settings, max_steps=steps)
        return train(self.method, self.loader, recipe, [optim.from_args(self.method, recipe)]).seconds

    def judged(self) -> causal_lm.CausalLM:
        return self.method.eval()


class Theirs:
    """Trainer, see above. Called with a number of steps; returns seconds."""

    def __init__(
        self,
        args: BenchmarkArgs,
        tokenizer,
        sequences: packed.NextTokens,
        place: str,
        bf16: bool = False,
        own_rate: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = causal_lm.from_scratch(tokenizer, args.architecture, args.size)
        self.args, self.tokenizer, self.data, self.bf16 = args, tokenizer, Joined(sequences), bf16
        self.place, self.own_rate = f"{place}/theirs", own_rate

    def __call__(self, steps: int) -> float:
        recipe = CausalLMArgs(save_steps=0, max_steps=steps)
        learning = ("learning_rate", "warmup_steps", "weight_decay", "adam_beta2", "lr_scheduler_type")
        settings = turns.trainer_settings(
            self.args.use_cpu,
            output_dir=self.place,
            max_steps=steps,
            per_device_train_batch_size=self.args.batch_size,
            bf16=self.bf16,
            **{} if self.own_rate else {name: getattr(recipe, name) for name in learning},
        )
        trainer = Trainer(self.model, settings, train_dataset=self.data, data_collator=default_data_collator)
        return trainer.train().metrics["train_runtime"]

    def judged(self) -> causal_lm.CausalLM:
        """Across documents, as it was trained; the wrapper switches dropout off, which training is over for."""
        return causal_lm.CausalLM(self.model, self.tokenizer, cross_documents=True).eval()


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
