"""How well a masked language model predicts masked tokens of held-out text, compared with token frequencies.

python -m mmssl.evaluation.masked_lm --model_name_or_path runs/bert --dataset wikipedia

15 % of the single tokens are masked, always the same ones, whatever the model was trained to predict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.arguments import Flags, command, flag
from mmssl.data import draws
from mmssl.data.text import documents, masking, packed
from mmssl.device import best_device
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.hub.table import print_table
from mmssl.methods.bert import BERT
from mmssl.models import text_encoders
from mmssl.plain_text import markdown, say_markdown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MASKED = 0.15  # fraction of the tokens
SEQUENCES = 1000  # at most
UNITS = "Loss in nats per masked token, accuracy in per cent; 15 % of the tokens of held-out text are masked."


@dataclass(frozen=True)
class MaskedTokens(Evaluation):
    """held_out: at most SEQUENCES of it are used. counts: (vocabulary,), how often each token occurs in the training
    data. tokenizer, questions: sentences with a masked word, to show the model's predictions."""

    held_out: packed.Packed
    counts: np.ndarray
    batch_size: int = 32
    tokenizer: PreTrainedTokenizerBase | None = None
    questions: Sequence[Question] = ()

    units = UNITS

    @torch.no_grad()
    def __call__(self, method: BERT) -> dict[str, float]:
        """{"loss": nats per masked token, "accuracy": in per cent}."""
        loss = right = masked = 0.0
        for batch, chosen, at, targets in questions_of(method, self.held_out, self.batch_size):
            logits = method.guess(batch["input_ids"], chosen, at, batch["draw"])[0].float()
            finite(logits, "logits of masked tokens")
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right += (logits.argmax(-1) == targets).sum().item()
            masked += len(targets)
        return {"loss": loss / masked, "accuracy": 100 * right / masked}

    def baselines(self, method: BERT) -> Columns:
        """The same results for a model that knows only the counts, with one added to each."""
        counts = torch.from_numpy(self.counts + 1).double()
        counts[method.special] = 0  # never masked
        logs, likeliest = (counts / counts.sum()).log(), int(counts.argmax())
        targets = torch.cat([targets.cpu() for *_, targets in questions_of(method, self.held_out, 256)])
        accuracy = 100 * (targets == likeliest).float().mean().item()
        return {"unigram": {"loss": -logs[targets].mean().item(), "accuracy": accuracy}}

    @torch.no_grad()
    def text(self, method: BERT) -> str:
        """Held-out sentences, the masked words, and the model's most likely words."""
        if not self.questions:
            return ""
        lines = []
        for question in self.questions:
            words = ", ".join(guesses(method.model, self.tokenizer, question.text))
            lines.append(f"- {markdown(question.text)} (*{markdown(question.word)}*): {markdown(words)}")
        mask = markdown(self.tokenizer.mask_token)
        return f"Held-out sentences, the word at {mask} and the most likely predictions:\n\n" + "\n".join(lines)

    def entropy(self, method: BERT) -> float:
        """Nats per token of the training data, for a model that knows the counts."""
        counts = self.counts.astype(np.float64)
        counts[method.special] = 0
        frequency = counts[counts > 0] / counts.sum()
        return float(-(frequency * np.log(frequency)).sum())


def questions_of(
    method: BERT, held_out: packed.Packed, batch_size: int
) -> Iterator[tuple[dict, Tensor, Tensor, Tensor]]:
    """(batch, chosen: (batch, length) bool, their places in the flattened batch, the chosen tokens: (chosen,) each)."""
    n = min(len(held_out), SEQUENCES)
    for start in range(0, n, batch_size):
        batch = held_out.__getitems__(list(range(start, min(n, start + batch_size))))
        batch = {name: value.to(method.model.device) for name, value in batch.items()}
        maskable = method.maskable(batch["input_ids"])
        chosen = masking.choose(batch["draw"], maskable, batch["begins_word"], MASKED)
        at = masking.places(chosen)
        yield batch, chosen, at, batch["input_ids"].flatten()[at]


@dataclass(frozen=True)
class Question:
    """text: a sentence with the mask token in it. word: the word that was masked."""

    text: str
    word: str


def questions(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int, n: int = 5) -> list[Question]:
    """One sentence from each of the first texts with a suitable one; a word of at least four letters is masked."""
    found = []
    for text in texts:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", text) if 8 <= len(s.split()) <= 24]
        for sentence in sentences[1:]:
            words = [w for w in re.finditer(r"(?<= )[^\W\d_]{4,30}(?=[ ,.;])", sentence)]
            words = [w for w in words if len(tokenizer.tokenize(f" {w[0]}")) == 1]
            if words:
                word = words[int(draws.draw(torch.tensor(len(sentence)), 0, 0)) % len(words)]
                masked = sentence[: word.start()] + tokenizer.mask_token + sentence[word.end() :]
                if len(tokenizer(masked)["input_ids"]) > max_length:
                    continue
                found.append(Question(masked, word[0]))
                break
        if len(found) == n:
            break
    return found


@torch.no_grad()
def guesses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, n: int = 5) -> list[str]:
    """The n most likely words at the mask token of `text`, best first."""
    encoded = tokenizer(text, return_tensors="pt").to(model.device)
    logits = model(**encoded).logits[encoded["input_ids"] == tokenizer.mask_token_id][0]
    return [tokenizer.decode(token).strip() for token in logits.topk(n)[1]]


@dataclass
class MaskedLMArgs(Flags):
    model_name_or_path: str = flag("runs/bert", "a directory or a Hub id")
    dataset: str = flag("wikipedia", "text files, a built-in name, Parquet or a Hub id")
    text_column: str | None = flag(None, "text column of a table; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents that the recipe held out, if the data has no test part", at_least=1)
    max_seq_length: int = flag(128, "tokens per sequence", at_least=8, at_most=10**6)
    batch_size: int = flag(32, "sequences at a time", at_least=1)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")
    trust_remote_code: bool = flag(False, "run the code that comes with the checkpoint")


def main(args: MaskedLMArgs) -> None:
    model, tokenizer = text_encoders.from_pretrained(
        args.model_name_or_path, args.max_seq_length, args.trust_remote_code
    )
    method = BERT(model.to(best_device(args.use_cpu)), tokenizer).eval()
    train, test = documents.load(args.dataset, args.text_column, held_out=args.held_out)
    held_out = packed.Packed(*packed.number(test, tokenizer), tokenizer, args.max_seq_length)
    counts = packed.counts(packed.number(train, tokenizer)[0], len(tokenizer))
    asked = questions(tokenizer, test["text"], args.max_seq_length)
    evaluation = MaskedTokens(held_out, counts, args.batch_size, tokenizer, asked)
    columns = {"this checkpoint": evaluation(method)} | evaluation.baselines(method)
    print_table(f"{min(len(held_out), SEQUENCES):,} held-out sequences of {args.dataset}. {UNITS}", columns)
    say_markdown(evaluation.text(method))


if __name__ == "__main__":
    command(main, MaskedLMArgs, __doc__)
