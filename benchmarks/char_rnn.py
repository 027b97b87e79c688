"""Held-out loss after equal processor time: our character RNN and causal language model, beside a plain char-rnn and
nanoGPT's CPU settings.

    python benchmarks/char_rnn.py --dataset tinyshakespeare.txt --seconds 360      # three minutes on two cores

Every side trains from scratch, in turns of some seconds, until it has used `--seconds` of processor time. Each learning
rate schedule spans that time, and evaluation is not counted. The result is nats per character of the held-out text.

    ours        recipes/char_rnn.py at its defaults: its model, data, optimizer and schedule
    causal_lm   recipes/causal_lm.py at its defaults, in the precision that it chooses: a Llama over a byte-level BPE of
                the text; the nats of all held-out tokens, over the number of characters
    char-rnn    two LSTM layers of 512, batches of 64 x 128, AdamW 4e-3 with cosine, dropout 0.2; torch's initialisation
    nanoGPT     its shakespeare_char example for a CPU: 4 layers, 4 heads, width 128, batches of 12 x 64, AdamW 1e-3
                (GPT2LMHeadModel); scored on windows of 64 that overlap by half, the second half of each counted
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from mmssl.arguments import Flags, command, flag
from mmssl.data.loader import Loader
from mmssl.data.text import characters, documents, packed
from mmssl.data.text.tokens import train_causal_bpe
from mmssl.device import precision
from mmssl.evaluation import perplexity
from mmssl.evaluation.language_model import LanguageModelEvaluation, entropy, nats
from mmssl.hub.table import print_table
from mmssl.methods import causal_lm, char_rnn
from mmssl.training.optim import adamw, schedule, set_learning_rate

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from causal_lm import CausalLMArgs
from char_rnn import CharRNNArgs

TURN = 5.0  # seconds of processor time
WINDOW = 64  # of nanoGPT


@dataclass
class BenchmarkArgs(Flags):
    dataset: str = flag("wikipedia", "as in recipes/char_rnn.py")
    seconds: float = flag(360.0, "of processor time, for every side", above=0)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)
    sides: str = flag("ours,causal_lm,char-rnn,nanoGPT", "which, with commas between")


@dataclass
class Data:
    """The text, and its characters as numbers."""

    tokenizer: PreTrainedTokenizerBase
    text: str
    held_out: str
    ids: np.ndarray


@dataclass
class Side:
    """losses: each next() takes one optimizer step. share: of its time used, which the schedule is laid over."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Iterator[Tensor]
    warmup: float  # share of the time
    last: float  # factor on the learning rate at the end
    score: Callable[[nn.Module, Tensor], float] = nats
    spent: float = 0.0
    steps: int = 0

    def turn(self, budget: float) -> None:
        self.module.train()
        until = min(self.spent + TURN, budget)
        while self.spent < until:
            began = time.process_time()
            set_learning_rate([self.optimizer], self._factor(self.spent / budget))
            next(self.losses).backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            self.spent += time.process_time() - began

    def _factor(self, share: float) -> float:
        fine = 1_000_000  # `schedule` counts in steps
        factor = schedule(int(share * fine), fine, self.warmup * fine)
        return factor if share < self.warmup else self.last + (1 - self.last) * factor


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    text, held_out = map(characters.join, documents.load(args.dataset, whole=True))
    tokenizer = characters.tokenizer(text, "characters")
    ids, held_out_ids = (characters.encode(part, tokenizer, "characters") for part in (text, held_out))
    data = Data(tokenizer, text, held_out, ids)
    builders = {"ours": ours, "causal_lm": causal, "char-rnn": plain, "nanoGPT": nano_gpt}
    sides = {}
    for name in args.sides.split(","):
        torch.manual_seed(0)
        sides[name] = builders[name](data)
    while any(side.spent < args.seconds for side in sides.values()):
        for side in sides.values():
            side.turn(args.seconds)
    evaluation = LanguageModelEvaluation(ids, held_out_ids, len(tokenizer))
    scored = torch.from_numpy(held_out_ids.astype(np.int64))
    columns = {}
    for name, side in sides.items():
        figures = evaluation.results(side.score(side.module.eval(), scored))
        columns[name] = figures | {"steps": side.steps, "weights": sum(p.numel() for p in side.module.parameters())}
    title = f"{args.dataset}: {len(scored):,} held-out characters after {args.seconds:.0f} s of processor time each"
    print_table(f"{title}, {args.threads} threads", columns | evaluation.baselines(None), digits=3)


def ours(data: Data) -> Side:
    """The recipe, its loop apart."""
    recipe = CharRNNArgs()
    network = char_rnn.from_scratch(data.tokenizer, **{name: getattr(recipe, name) for name in char_rnn.SIZES})
    return recurrent(data.ids, network, recipe)


def causal(data: Data) -> Side:
    """The recipe, its loop apart."""
    recipe, bf16 = CausalLMArgs(), precision(CausalLMArgs()) == "bf16"
    tokenizer = train_causal_bpe([data.text], recipe.vocab_size, recipe.max_seq_length)
    tokens, held_out = (
        packed.number(Dataset.from_dict({"text": [part]}), tokenizer, causal_lm.around(tokenizer))[0]
        for part in (data.text, data.held_out)
    )
    model = causal_lm.from_scratch(tokenizer, recipe.architecture, recipe.size)
    method = causal_lm.CausalLM(model, tokenizer, dropout=recipe.dropout)
    loader = Loader(packed.NextTokens(tokens, recipe.max_seq_length), recipe.per_device_train_batch_size)

    def losses() -> Iterator[Tensor]:
        for epoch in count():
            for batch in loader.epoch(epoch):
                batch.pop("index")
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = method(**batch).loss
                yield loss

    def score(_: nn.Module, characters: Tensor) -> float:
        evaluation = perplexity.Perplexity(
            tokens, held_out, len(data.held_out.encode()), recipe.max_seq_length, len(tokenizer)
        )
        return evaluation(method)["bits_per_byte"] * math.log(2) * evaluation.size / len(characters)

    betas = (recipe.adam_beta1, recipe.adam_beta2)
    optimizer = adamw(method, recipe.learning_rate, recipe.weight_decay, betas)
    return Side(method, optimizer, losses(), recipe.warmup_steps, 0.0, score)


def plain(data: Data) -> Side:
    recipe = CharRNNArgs(
        per_device_train_batch_size=64, chunk_length=128, learning_rate=4e-3, dropout=0.2, forget=0.0,
        weight_decay=0.01, adam_beta2=0.999, warmup_steps=0.0,
    )  # fmt: skip
    sizes = {"hidden_size": 512, "num_hidden_layers": 2, "embedding_size": 512, "dropout": 0.2}
    sizes["skip_connections"] = False
    network = char_rnn.from_scratch(data.tokenizer, vocabulary="characters", **sizes)
    for module in network.modules():
        if isinstance(module, (nn.Embedding, nn.LSTM, nn.Linear)):
            module.reset_parameters()  # torch's own
    return recurrent(data.ids, network, recipe)


def recurrent(ids: np.ndarray, network: nn.Module, recipe: CharRNNArgs) -> Side:
    streams = recipe.per_device_train_batch_size
    loader = Loader(characters.Streams(ids, streams, recipe.chunk_length, recipe.forget), streams, shuffle=False)
    method = char_rnn.CharRNN(network, streams, entropy(ids))

    def losses() -> Iterator[Tensor]:
        for epoch in count():
            method.start_epoch(epoch, None, [])
            for batch in loader.epoch(epoch):
                batch.pop("index")
                yield method(**batch).loss

    betas = (recipe.adam_beta1, recipe.adam_beta2)
    optimizer = adamw(network, recipe.learning_rate, recipe.weight_decay, betas)
    return Side(network, optimizer, losses(), recipe.warmup_steps, 0.0)


def nano_gpt(data: Data) -> Side:
    config = GPT2Config(
        vocab_size=len(data.tokenizer), n_positions=WINDOW, n_layer=4, n_head=4, n_embd=128, bos_token_id=None,
        eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model, text = GPT2LMHeadModel(config), torch.from_numpy(data.ids.astype(np.int64))

    def losses() -> Iterator[Tensor]:
        while True:
            at = torch.randint(len(text) - WINDOW, (12, 1)) + torch.arange(WINDOW + 1)
            logits = model(text[at[:, :-1]]).logits
            yield F.cross_entropy(logits.flatten(0, 1), text[at[:, 1:]].flatten())

    return Side(model, adamw(model, 1e-3, 0.1, (0.9, 0.99)), losses(), 0.05, 0.1, windows)


@torch.no_grad()
def windows(model: nn.Module, ids: Tensor) -> float:
    """Mean nats, each symbol predicted from the 32 to 63 before it."""
    half, total, n = WINDOW // 2, 0.0, 0
    starts = torch.arange(0, len(ids) - WINDOW, half)
    for some in starts.split(64):
        at = some[:, None] + torch.arange(WINDOW + 1)
        logits = model(ids[at[:, :-1]]).logits[:, half:]
        total += F.cross_entropy(logits.flatten(0, 1), ids[at[:, 1 + half :]].flatten(), reduction="sum").item()
        n += len(some) * half
    return total / n


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
