"""How well a masked language model guesses hidden tokens of text that it has not seen, beside one that knows only how
often each token occurs.

python -m mmssl.evaluation.masked_lm --model_name_or_path runs/bert --dataset wikipedia

Always 15 % of single tokens, the same ones each time, whatever the model was trained to guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.arguments import best_device, command, flag
from mmssl.data import draws
from mmssl.data.text import documents, masking, packed
from mmssl.evaluation.features import print_table
from mmssl.evaluation.finite import finite
from mmssl.methods.bert import BERT, from_pretrained

SHARE = 0.15
SEQUENCES = 1000  # at most
UNITS = "Loss in nats per hidden token, accuracy in per cent; 15 % of the tokens of held-out text are hidden."


@dataclass(frozen=True)
class Evaluation:
    """held_out: of which at most SEQUENCES are used. counts: (vocabulary,), how often each token occurs in training."""

    held_out: packed.Packed
    counts: np.ndarray
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, method: BERT) -> dict[str, float]:
        """{"loss": nats per hidden token, "accuracy": in per cent}."""
        loss = right = hidden = 0.0
        for batch, chosen, targets in _questions(method, self.held_out, self.batch_size):
            logits = method.guess(batch["input_ids"], chosen, batch["draw"])[0].float()
            finite(logits, "logits of hidden tokens")
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right += (logits.argmax(-1) == targets).sum().item()
            hidden += len(targets)
        return {"loss": loss / hidden, "accuracy": 100 * right / hidden}

    def unigram(self, method: BERT) -> dict[str, float]:
        """The same figures of a model that knows only the counts, each raised by one."""
        share = torch.from_numpy(self.counts + 1).double()
        share[method.special] = 0  # never hidden
        logs, likeliest = (share / share.sum()).log(), int(share.argmax())
        targets = torch.cat([targets.cpu() for _, _, targets in _questions(method, self.held_out, 256)])
        return {"loss": -logs[targets].mean().item(), "accuracy": 100 * (targets == likeliest).float().mean().item()}

    def entropy(self, method: BERT) -> float:
        """Nats per token of the training data, for one who knows the counts."""
        counts = self.counts.astype(np.float64)
        counts[method.special] = 0
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())


def _questions(method: BERT, held_out: packed.Packed, batch_size: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
    """(batch, chosen, the tokens that were chosen)."""
    n = min(len(held_out), SEQUENCES)
    for start in range(0, n, batch_size):
        batch = held_out.__getitems__(list(range(start, min(n, start + batch_size))))
        batch = {name: value.to(method.model.device) for name, value in batch.items()}
        maskable = method.maskable(batch["input_ids"])
        chosen = masking.choose(batch["draw"], maskable, batch["begins_word"], SHARE)
        yield batch, chosen, batch["input_ids"][chosen]


@dataclass(frozen=True)
class Example:
    """text: with the mask token in it. word: what stood there. guesses: the likeliest first."""

    text: str
    word: str
    guesses: list[str]

    def __str__(self) -> str:
        return f"{self.text} (*{self.word}*): {', '.join(self.guesses)}"


@torch.no_grad()
def fill_mask(method: BERT, tokenizer, texts: Iterable[str], n: int = 5, guesses: int = 5) -> list[Example]:
    """One sentence of each of the first texts that have a fitting one, a word of at least four letters hidden."""
    examples, model = [], method.model
    for text in texts:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", text) if 8 <= len(s.split()) <= 24]
        for sentence in sentences[1:]:
            words = [w for w in re.finditer(r"(?<= )[^\W\d_]{4,}(?=[ ,.;])", sentence)]
            words = [w for w in words if len(tokenizer.tokenize(f" {w[0]}")) == 1]
            if words:
                word = words[int(draws.draw(torch.tensor(len(sentence)), 0, 0)) % len(words)]
                hidden = sentence[: word.start()] + tokenizer.mask_token + sentence[word.end() :]
                encoded = tokenizer(hidden, return_tensors="pt").to(model.device)
                if encoded["input_ids"].shape[1] > method.max_length:
                    continue
                logits = model(**encoded).logits[encoded["input_ids"] == tokenizer.mask_token_id][0]
                found = [tokenizer.decode(token).strip() for token in logits.topk(guesses)[1]]
                examples.append(Example(hidden, word[0], found))
                break
        if len(examples) == n:
            break
    return examples


@dataclass
class MaskedLMArgs:
    model_name_or_path: str = flag("runs/bert", "a directory or a Hub id")
    dataset: str = flag("wikipedia", "text files, a built-in name, Parquet or a Hub id")
    text_column: str | None = flag(None, "of tables; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents that the recipe held out, where the data has no test part")
    max_seq_length: int = flag(128, "tokens of a sequence")
    batch_size: int = flag(32, "sequences at a time")
    use_cpu: bool = flag(False, "leave the GPU alone")
    trust_remote_code: bool = flag(False, "run the code that comes with the checkpoint")


def main(args: MaskedLMArgs) -> None:
    model, tokenizer = from_pretrained(args.model_name_or_path, args.max_seq_length, args.trust_remote_code)
    method = BERT(model.to(best_device(args.use_cpu)), tokenizer).eval()
    train, test = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    held_out = packed.Packed(*packed.number(test, tokenizer), tokenizer, args.max_seq_length)
    counts = packed.counts(packed.number(train, tokenizer)[0], len(tokenizer))
    evaluation = Evaluation(held_out, counts, args.batch_size)
    columns = {"this checkpoint": evaluation(method), "unigram": evaluation.unigram(method)}
    print_table(f"{min(len(held_out), SEQUENCES):,} held-out sequences of {args.dataset}. {UNITS}", columns)
    for example in fill_mask(method, tokenizer, test["text"]):
        print(example)


if __name__ == "__main__":
    command(main, MaskedLMArgs, __doc__)
