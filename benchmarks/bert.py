"""Tokens per second of masked language modelling: the shared loop, and transformers' Trainer as run_mlm.py sets it up.

    python benchmarks/bert.py                                         # speed on the built-in Wikipedia articles
    python benchmarks/bert.py --size tiny --quality_steps 300         # and the held-out loss after as many tokens

Same architecture, initial weights, tokens and batch. Ours runs in bf16 if the machine computes it fast; Trainer in
fp32, its default, and, as a second side, in bf16. The vocabulary has the size of BERT's. Trainer has run_mlm's
defaults: texts joined and cut into full sequences, DataCollatorForLanguageModeling, 15 %, the config's dropout of 0.1,
fused AdamW; for the held-out loss also our learning rate and warm-up, because its own 5e-5 would learn almost nothing
in this time. The other sides show where the difference comes from: ours with dropout, ours with logits for all tokens.
The sides take turns, a few steps each; results are medians over turns of ratios within a turn.

Trainer's logits are 500 MB per step. If the system is slow to allocate memory, as in virtual machines, this takes much
of its time: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=40000000000 makes malloc keep its memory, for every side.

At the end: our step's matrix products (counted) as a fraction of this machine's measured peak, and a profile.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import turns
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer
from transformers.utils import logging

from mmssl.arguments import Flags, command, flag
from mmssl.data.loader import Loader
from mmssl.data.text import documents, masking, packed
from mmssl.data.text.tokens import train_wordpiece
from mmssl.evaluation.masked_lm import MaskedTokens
from mmssl.methods import bert
from mmssl.models import text_encoders
from mmssl.training import optim
from mmssl.training.loop import train

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from bert import BertArgs

KINDS = {  # of operators, by what their names hold; the first that fits
    "matrix products": ("mm", "linear", "mkldnn"),
    "attention": ("attention",),
    "layer norm, GELU": ("layer_norm", "gelu"),
    "optimizer": ("adam", "clip", "norm_", "foreach"),
    "softmax and loss": ("softmax", "nll", "cross_entropy"),
    "embedding and gathering": ("embedding", "index", "gather", "scatter"),
}


@dataclass
class BenchmarkArgs(Flags):
    dataset: str = flag("wikipedia", "text: a built-in name, files, a folder or a Hub id")
    size: str = flag("mini", "layers and width, see recipes/bert.py", (*text_encoders.SIZES,))
    architecture: str = flag("bert", "of the model", text_encoders.ARCHITECTURES)
    vocab_size: int = flag(30522, "of the tokenizer, trained on the text; BERT's has so many", at_least=1)
    max_seq_length: int = flag(128, "tokens of a sequence", at_least=1)
    batch_size: int = flag(32, "sequences in a step", at_least=1)
    turns: int = flag(5, "of every side", at_least=1)
    steps: int = flag(4, "in a turn", at_least=1)
    quality_steps: int = flag(0, "train ours and Trainer so long, and print the held-out loss of both", at_least=0)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")


class Joined(Dataset):
    """The sequences of `packed.Packed`, as run_mlm's group_texts would leave them to the collator."""

    def __init__(self, sequences: packed.Packed) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        ids = self.sequences.__getitems__([row])["input_ids"][0].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


class EveryLogit(bert.BERT):
    """Ours, but with the head over all tokens."""

    def guess(self, input_ids, chosen, at, draw):
        everything = torch.arange(chosen.numel())
        seen = masking.corrupt(draw, input_ids, chosen, self.mask_token, self.vocab_size)
        logits, features = bert.logits_at(self.model, everything, input_ids=seen)
        return logits[at], features[at]


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    train_rows, test_rows = documents.load(args.dataset)
    tokenizer = train_wordpiece(train_rows["text"], args.vocab_size, args.max_seq_length)
    sequences, held_out = (
        packed.Packed(*packed.number(rows, tokenizer), tokenizer, args.max_seq_length)
        for rows in (train_rows, test_rows)
    )
    with tempfile.TemporaryDirectory() as place:
        given = (args, tokenizer, sequences, place)
        sides: turns.Sides = {
            turns.OURS: Ours(*given),
            "mmssl, dropout 0.1": Ours(*given, dropout=0.1),
            "mmssl, all logits": Ours(*given, method=EveryLogit),
            "Trainer": Theirs(*given),
        }
        sides["Trainer, bf16"] = Theirs(*given, bf16=True)
        seconds = turns.take_turns(sides, args.turns, args.steps, warm_up=1)
        print(
            f"{args.turns} turns of {args.steps} steps of {args.batch_size} x {args.max_seq_length} tokens, "
            f"{args.architecture} {args.size}, vocabulary {args.vocab_size:,}, {args.threads} threads; mmssl in "
            f"{turns.precision(args.use_cpu)}"
        )
        turns.report(seconds, args.steps * args.batch_size * args.max_seq_length, "tokens")
        where_it_goes(sides[turns.OURS])
        if args.quality_steps:
            evaluation = MaskedTokens(held_out, packed.counts(sequences.tokens, len(tokenizer)))
            ours, theirs = Ours(*given), Theirs(*given)
            for name, side in (("mmssl loop", ours), ("Trainer", theirs)):
                before = evaluation(side.judged())["loss"]
                side(args.quality_steps)
                tokens = args.quality_steps * args.batch_size * args.max_seq_length
                after = evaluation(side.judged())
                print(f"{name:<24}held-out loss {before:.3f} -> {after['loss']:.3f} after {tokens:,} tokens")
            unigram = evaluation.baselines(ours.method)["unigram"]
            print(f"{'unigram':<24}held-out loss {unigram['loss']:.3f}")


def where_it_goes(ours: Ours) -> None:
    """Our step against the measured peak of this machine, and the shares of its time."""
    device = ours.method.model.device
    print(f"the step: {turns.share_of_peak(ours, device)}; its time:")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiled:
        ours(3)
    shares: dict[str, float] = {}
    for event in profiled.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next((k for k, names in KINDS.items() if any(n in event.key.lower() for n in names)), "all else")
        shares[kind] = shares.get(kind, 0.0) + own
    for kind, own in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"    {kind:<24}{own / sum(shares.values()):6.1%}")


class Ours:
    """The recipe's own parts. Called with a number of steps; returns seconds."""

    def __init__(
        self, args: BenchmarkArgs, tokenizer, sequences, place: str, dropout: float = 0.0, method: type = bert.BERT
    ) -> None:
        torch.manual_seed(0)
        model = text_encoders.from_scratch(tokenizer, args.architecture, args.size)
        self.method, self.loader = method(model, tokenizer, dropout=dropout), Loader(sequences, args.batch_size)
        self.settings = {"output_dir": f"{place}/ours", "use_cpu": args.use_cpu, **turns.RUN}

    def __call__(self, steps: int) -> float:
        recipe = BertArgs(**self.settings, max_steps=steps)
        return train(self.method, self.loader, recipe, [optim.from_args(self.method, recipe)]).seconds

    def judged(self) -> bert.BERT:
        return self.method.eval()


class Theirs:
    """Trainer, see above. Called with a number of steps; returns seconds."""

    def __init__(self, args: BenchmarkArgs, tokenizer, sequences, place: str, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.model = text_encoders.from_scratch(tokenizer, args.architecture, args.size)
        self.args, self.tokenizer, self.data, self.bf16 = args, tokenizer, Joined(sequences), bf16
        self.place = f"{place}/theirs"

    def __call__(self, steps: int) -> float:
        recipe = BertArgs(save_steps=0, max_steps=steps)
        settings = turns.trainer_settings(
            self.args.use_cpu,
            output_dir=self.place,
            max_steps=steps,
            per_device_train_batch_size=self.args.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            bf16=self.bf16,
        )
        collate = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=0.15)
        trainer = Trainer(self.model, settings, train_dataset=self.data, data_collator=collate)
        return trainer.train().metrics["train_runtime"]

    def judged(self) -> bert.BERT:
        """The same questions for both; the wrapper switches dropout off, which training is over for."""
        return bert.BERT(self.model, self.tokenizer, dropout=0.1).eval()


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
