"""How well a discriminator finds the tokens of held-out text that a generator replaced, and how well that predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.evaluation.masked_lm import MaskedTokens, questions_of
from mmssl.plain_text import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmssl.methods.electra import ELECTRA

SHOWN, LENGTH = 3, 40  # held-out sequences on the card, and tokens of each


@dataclass(frozen=True)
class ReplacedTokens(Evaluation):
    """masked: the evaluation of the generator; its held-out sequences and masked tokens are the discriminator's too."""

    masked: MaskedTokens

    units = (
        "In per cent, the generator's loss in nats per masked token. Each discriminator judges the samples of the "
        "generator that it was trained with, so that columns differ in the text they judge. AUC: how often a replaced "
        "token is given a higher probability than an original one; chance 50."
    )

    @torch.no_grad()
    def __call__(self, method: ELECTRA) -> dict[str, float]:
        """The fraction of replaced and of original tokens that are recognised as such, and of all; the area under the
        curve; and the generator's results."""
        from sklearn.metrics import roc_auc_score

        parts = [(judged.float().cpu(), replaced.cpu()) for _, judged, replaced in self._judged(method)]
        judged, replaced = (torch.cat([part.flatten() for part in each]) for each in zip(*parts, strict=True))
        finite(judged, "logits of the discriminator")
        right = (judged > 0) == replaced
        results = {"accuracy_at_replaced": right[replaced], "accuracy_at_original": right[~replaced], "accuracy": right}
        results = {name: 100 * values.float().mean().item() for name, values in results.items()}
        if replaced.any():
            results["auc"] = 100 * float(roc_auc_score(replaced.numpy(), judged.numpy()))
        results["replaced"] = 100 * replaced.float().mean().item()
        return results | {f"generator_{name}": value for name, value in self.masked(method).items()}

    @torch.no_grad()
    def baselines(self, method: ELECTRA) -> Columns:
        """A discriminator that always answers "original", and a generator that knows only the tokens' frequencies."""
        share = torch.cat([replaced.flatten().cpu() for *_, replaced in self._judged(method)]).float().mean().item()
        always = {"accuracy_at_replaced": 0.0, "accuracy_at_original": 100.0, "accuracy": 100 * (1 - share)}
        unigram = self.masked.baselines(method)["unigram"]
        return {
            'always "original"': always | {"auc": 50.0, "replaced": 100 * share},
            "unigram": {f"generator_{name}": value for name, value in unigram.items()},
        }

    @torch.no_grad()
    def text(self, method: ELECTRA) -> str:
        """Beginnings of held-out sequences, with the replaced words and what the discriminator says of them."""
        tokenizer = self.masked.tokenizer
        if tokenizer is None:
            return ""
        (original, seen), judged, replaced = next(self._judged(method))
        lines = []
        for row in range(min(SHOWN, len(seen))):
            words: list[str] = []
            for place in range(1, min(LENGTH, seen.shape[1] - 1)):
                token, was = tokenizer.convert_ids_to_tokens([int(seen[row, place]), int(original[row, place])])
                percent = f"{100 * judged[row, place].sigmoid().item():.0f} %"
                if replaced[row, place]:
                    words.append(f"**{markdown(token)}** ({markdown(was)}, {percent})")
                elif judged[row, place] > 0:
                    words.append(f"*{markdown(token)}* ({percent})")
                else:
                    words.append(markdown(token))
            lines.append("- " + " ".join(words))
        return (
            "Held-out text. Bold: replaced, with the original and the probability that the discriminator gives to a "
            "replacement; italic: original, but taken for a replacement.\n\n" + "\n".join(lines)
        )

    def _judged(self, method: ELECTRA) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor, Tensor]]:
        """((original tokens, tokens that the discriminator sees), its logits, which are replaced), each (batch,
        length)."""
        for batch, chosen, at, _ in questions_of(method, self.masked.held_out, self.masked.batch_size):
            ids, draw = batch["input_ids"], batch["draw"]
            seen = method.replace(ids, chosen, at, draw, method.guess(ids, chosen, at, draw)[0].float())
            yield (ids, seen), method.judge(seen)[0], seen != ids
