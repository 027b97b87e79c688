"""BERT: some tokens of a text are masked, and the model predicts them from the tokens on both sides.

The masked language model of Devlin et al. 2018, arXiv:1810.04805. Works with any AutoModelForMaskedLM of transformers
(BERT, ModernBERT, RoBERTa, DistilBERT, ...). Differs: no next-sentence task, and masks drawn again in each epoch, as in
RoBERTa (arXiv:1907.11692, section 4); the head is computed only for masked tokens; no dropout by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.arguments import flag
from mmssl.data.text import documents, masking
from mmssl.hub import sentence_transformers
from mmssl.kernels.cross_entropy import cross_entropy_
from mmssl.method import Card, Method, Output
from mmssl.models import text_encoders
from mmssl.models.dropout import set_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SNIPPETS = {
    "Fill in a word": """
from transformers import pipeline

name = "..."
fill = pipeline("fill-mask", model=name)
for guess in fill({text[0]!r}):
    print(f"{{guess['score']:.2f}} {{guess['token_str']}}")
""",
    **text_encoders.SNIPPETS,
}


@dataclass
class MaskedTextArgs(documents.StreamingArgs, text_encoders.TextArgs):
    """Flags that the recipes share in which tokens of packed sequences are masked."""

    mlm_probability: float = flag(0.15, "fraction of the tokens that are masked", above=0, below=1)
    masking: str = flag("tokens", "mask single tokens, whole words or spans of words", masking.UNITS)
    cross_documents: bool = flag(True, "let tokens attend to the other documents in their sequence")
    dropout: float = flag(0.0, "dropout probability in training", at_least=0, below=1)
    per_device_train_batch_size: int = flag(32, "sequences per process in one micro-batch")


def sequence_mean(chosen: Tensor) -> Tensor:
    """(batch, length) weights, 0 for tokens that are not masked, for the mean over the masked ones of each sequence and
    then over sequences: each counts the same, however a batch is split. chosen: the same shape, bool, True = masked."""
    return chosen / chosen.sum(1, keepdim=True).clamp(min=1) / len(chosen)


def logits_at(model: PreTrainedModel, at: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, features) of some tokens: (n, vocabulary) and (n, dim).

    The model's own head gets these tokens as if they were one text. For a small encoder, the head on all tokens would
    cost more than everything else. at: (n,) int64, their places in the flattened batch.
    """
    features = []

    def only_chosen(encoder: nn.Module, arguments: tuple, output):
        features.append(output.last_hidden_state.flatten(0, 1).index_select(0, at))
        output.last_hidden_state = features[0][None]
        return output

    hook = model.base_model.register_forward_hook(only_chosen)
    try:
        return model(**inputs).logits.flatten(0, 1), features[0]  # [0] would be copied in backward
    finally:
        hook.remove()


def apart(input_ids: Tensor, separator: int, config) -> Tensor | dict[str, Tensor]:
    """Attention masks that restrict a token to its own document: (batch, 1, length, length) bool, True = may attend.

    A document ends with the separator. If some layers have a window (ModernBERT): a mask for each kind of layer.
    """
    ends = input_ids == separator
    document = ends.cumsum(1) - ends.long()  # a separator belongs to the document that it ends
    same = (document[:, :, None] == document[:, None, :])[:, None]
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return same
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    near = (place[:, None] - place).abs() <= config.sliding_window
    return {"full_attention": same, "sliding_attention": same & near}


class BERT(Method):
    """
    model:        any AutoModelForMaskedLM.
    tokenizer:    has a mask token.
    share:        fraction of the tokens that is masked. unit: one of masking.UNITS.
    cross_documents: whether a token may attend to the other documents of its sequence.
    dropout:      in training, for all dropout of the model; the exported config keeps its usual values.
    unigram_loss: nats per token of a model that knows only how often each token occurs.
    """

    unit = "sequences"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        share: float = 0.15,  # section 3.1
        unit: str = "tokens",
        cross_documents: bool = True,
        dropout: float = 0.0,
        unigram_loss: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.share, self.masked_unit, self.cross_documents = model, share, unit, cross_documents
        self.mask_token, self.separator = tokenizer.mask_token_id, tokenizer.sep_token_id
        self.vocab_size, self.max_length, self.unigram_loss = len(tokenizer), tokenizer.model_max_length, unigram_loss
        self.special = sorted(tokenizer.all_special_ids)
        self.register_buffer("special_ids", torch.tensor(self.special), persistent=False)
        set_dropout(model, dropout)

    def forward(self, input_ids: Tensor, begins_word: Tensor, draw: Tensor) -> Output:
        """input_ids: (batch, length) int64, full sequences. begins_word: the same shape, bool. draw: (batch,) int64,
        from which all random choices for a sequence are derived."""
        chosen = self.choose(input_ids, begins_word, draw)
        at = self.places(chosen)
        logits, features = self.guess(input_ids, chosen, at, draw)
        with torch.autocast(logits.device.type, enabled=False):
            loss, accuracy = self.masked_loss(input_ids, chosen, at, logits.float())
        return Output(loss, {"accuracy": accuracy}, features.detach(), self.unigram_loss)

    def choose(self, input_ids: Tensor, begins_word: Tensor, draw: Tensor) -> Tensor:
        """(batch, length) bool: the tokens to mask."""
        return masking.choose(draw, self.maskable(input_ids), begins_word, self.share, self.masked_unit)

    def places(self, chosen: Tensor) -> Tensor:
        """(n,) int64: all masked tokens, and some others where sequences have fewer than usual; see masking.places."""
        return masking.places(chosen, masking.most(chosen.shape[1], self.share, self.masked_unit))

    def maskable(self, input_ids: Tensor) -> Tensor:
        return ~torch.isin(input_ids, self.special_ids)

    def guess(self, input_ids: Tensor, chosen: Tensor, at: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, features) of the tokens at some places, the chosen ones being masked; see logits_at."""
        corrupted = masking.corrupt(draw, input_ids, chosen, self.mask_token, self.vocab_size)
        mask = None if self.cross_documents else apart(input_ids, self.separator, self.model.config)
        return logits_at(self.model, at, input_ids=corrupted, attention_mask=mask)

    @staticmethod
    def masked_loss(input_ids: Tensor, chosen: Tensor, at: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, accuracy) of the chosen tokens. logits: (n, vocabulary) fp32, at the places `at`; overwritten."""
        targets, weight = input_ids.flatten()[at], sequence_mean(chosen).flatten()[at]
        loss, right = cross_entropy_(logits, targets, weight)
        return loss, (right & chosen.flatten()[at]).sum() / chosen.sum().clamp(min=1)

    @property
    def card(self) -> Card:
        return Card(
            about="BERT: some tokens of a text are masked, and the model predicts them from the tokens around them. A "
            f"`{type(self.model).__name__}`, with encoder and head.",
            task="fill-mask",
            limits="It reproduces the content, style and prejudices of its training text. It was not trained on texts "
            f"longer than {self.max_length} tokens.",
            trivial="a model that knows only how often each token occurs",
            snippets=SNIPPETS,
            fill=True,
            tags=("bert", "fill-mask", "sentence-transformers"),
            auto_class="AutoModelForMaskedLM",
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder with its head, and the files that let SentenceTransformer load it."""
        self.model.save_pretrained(directory)
        sentence_transformers.write_mean_pooling(Path(directory), self.model.config.hidden_size, self.max_length)
