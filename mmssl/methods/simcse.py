"""SimCSE: a sentence passes through the encoder twice, with different dropout; the two vectors are more similar than
those of different sentences.

Unsupervised, Gao et al. 2021, arXiv:2104.08821, section 3: the cosine of one pass with the other pass of all sentences
in the batch, divided by the temperature. Differs: the dropout masks of hidden states are a function of the sentence's
key and not of a generator, so that micro-batches and processes train like the whole batch; attention probabilities have
torch's own dropout, by default none. In-batch negatives are those of all processes. The MLP is for training only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.hub import sentence_transformers
from mmssl.method import Card, Method, Output
from mmssl.models import pretrained, remote_code, text_encoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLING = ("mean", "cls")
OF_TRANSFORMERS = {
    "mean": "mask = batch['attention_mask'][..., None]\nvectors = (states * mask).sum(1) / mask.sum(1)",
    "cls": "vectors = states[:, 0]",
}
SNIPPETS = {
    "Vectors of sentences, and their similarity": """
from sentence_transformers import SentenceTransformer

name = "..."
model = SentenceTransformer(name)
vectors = model.encode(["The train was late.", "We waited for the train.", "Music"])
print(model.similarity(vectors, vectors))
""",
    "The same with transformers alone": """
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

name = "..."
model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
batch = tokenizer(["The train was late.", "Music"], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
{pooled}
print(normalize(vectors, dim=1) @ normalize(vectors, dim=1).T)
""",
}


class KeyedDropout(nn.Dropout):
    """Dropout of hidden states whose mask is a function of each row's key, of the token's place and of the feature: it
    does not depend on the other rows, on padding or on a generator. `key`, (batch,) int64, is set before a pass.

    number: of this layer, whose masks differ from those of the others. rate: fraction of the features that is dropped.
    p: what attention layers read for torch's dropout of their probabilities.
    """

    def __init__(self, number: int, rate: float, p: float) -> None:
        super().__init__(p)
        self.number, self.rate, self.key = number, rate, None

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, features). Attention probabilities, (batch, heads, tokens, tokens): torch's dropout."""
        if x.ndim != 3:
            return super().forward(x)
        if not self.training or not self.rate:
            return x
        key = draws.draw(self.key, self.number, 0)[:, None, None]
        place = torch.arange(x.shape[1] * x.shape[2], device=x.device).view(x.shape[1:])
        return x * (draws.uniform(key, place) >= self.rate).to(x.dtype) / (1 - self.rate)


def in_batch(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(loss, accuracy): equation 4, averaged over this process's sentences, and the fraction of them whose most similar
    second vector is their own. first, second: (batch, dim), of unit length. Negatives come from all processes."""
    similarity = first @ gather(second).T / temperature
    own = torch.arange(len(first), device=first.device) + rank() * len(first)
    found = (similarity.argmax(1) == own).float().mean()
    return F.cross_entropy(similarity, own), found.detach()


class SimCSE(Method):
    """
    encoder:     gives `last_hidden_state`; its dropout layers are replaced by KeyedDropout.
    max_length:  tokens of a sentence, for the card and the export.
    temperature: of the softmax over cosines; section 3 of the paper has 0.05.
    pooling:     "mean" over tokens, or "cls", the first token, which the paper takes.
    dropout:     of hidden states, drawn from the key. attention_dropout: of attention probabilities, drawn by torch.
    """

    couples_samples = True
    unit = "sentences"

    def __init__(
        self,
        encoder: PreTrainedModel,
        max_length: int,
        temperature: float = 0.05,
        pooling: str = "mean",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.max_length, self.temperature, self.pooling = encoder, max_length, temperature, pooling
        self.dropouts: list[KeyedDropout] = []
        for module in list(encoder.modules()):
            if isinstance(getattr(module, "attention_dropout", None), (int, float)):
                module.attention_dropout = attention_dropout  # ModernBERT's attention reads a number, not a layer
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    self.dropouts.append(KeyedDropout(len(self.dropouts), dropout, attention_dropout))
                    setattr(module, name, self.dropouts[-1])
        if not self.dropouts:
            raise BadInput(f"a {type(encoder).__name__} has no dropout layer, without which the two passes are equal")
        width = encoder.config.hidden_size
        self.projection = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def embed(self, input_ids: Tensor, attention_mask: Tensor, key: Tensor) -> dict[str, Tensor]:
        """input_ids, attention_mask: (batch, tokens). key: (batch,) int64, from which both passes' masks are drawn."""
        n, both = len(key), torch.cat([draws.draw(key, 0, 1), draws.draw(key, 0, 2)])
        for layer in self.dropouts:
            layer.key = both  # kept until the next batch: gradient checkpointing repeats the pass in backward
        features = self.represent(input_ids.repeat(2, 1), attention_mask.repeat(2, 1))
        z = F.normalize(self.projection(features).float(), dim=1)
        return {"first": z[:n], "second": z[n:], "features": features[:n]}

    def represent(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, width): the vectors of sentences, as the export gives them."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states[:, 0] if self.pooling == "cls" else mean(states, attention_mask)

    def loss(self, first: Tensor, second: Tensor, features: Tensor) -> Output:
        """first, second: (batch, width), of unit length. features: (batch, width), of the first pass."""
        with torch.autocast(first.device.type, enabled=False):
            loss, found = in_batch(first, second, self.temperature)
        sentences = len(gather(first.detach()))
        return Output(loss, {"partner_found": found}, features.detach().float(), trivial_loss=math.log(sentences))

    @property
    def card(self) -> Card:
        pooled = OF_TRANSFORMERS[self.pooling]
        return Card(
            about="SimCSE: two passes of a sentence with different dropout are more similar than passes of different "
            f"sentences. A `{type(self.encoder).__name__}`; the vector of a sentence is the "
            f"{'mean over its tokens' if self.pooling == 'mean' else 'hidden state of its first token'}. The MLP that "
            "only training uses is in `pretraining/`.",
            task="sentence-similarity",
            limits="It was trained on these sentences alone, and on nobody's judgement of their similarity: sentences "
            "of the same words may be close though they differ in meaning. What exceeds "
            f"{self.max_length} tokens of a text was cut off in training.",
            trivial="chance: log(batch)",
            snippets={heading: code.replace("{pooled}", pooled) for heading, code in SNIPPETS.items()},
            tags=("simcse", "contrastive", "sentence-transformers"),
        )

    def exported(self) -> PreTrainedModel:
        return self.encoder

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder, the files that let SentenceTransformer load it, and in a separate file the MLP."""
        self.encoder.save_pretrained(directory)
        width = self.encoder.config.hidden_size
        sentence_transformers.write_pooling(Path(directory), self.pooling, width, self.max_length)
        self.save_heads(directory)


def mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """(batch, width): the mean over tokens without padding. states: (batch, tokens, width)."""
    weight = attention_mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def build(args: text_encoders.TextArgs, texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and tokenizer that the flags of recipes/simcse.py describe: new, or from a checkpoint."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.max_seq_length, args.trust_remote_code)
    model, tokenizer = text_encoders.build(args, texts, args.architecture, "AutoModel")
    if args.architecture == "bert":
        model.pooler = None  # nothing would train it
    return model, tokenizer


def from_pretrained(
    name: str, max_length: int, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any text encoder that AutoModel loads, and its tokenizer, for sentences of max_length tokens. A pooler is kept as
    it is. Raises BadInput if `name` is not one."""
    from transformers import PreTrainedTokenizerBase

    flag = f"--model_name_or_path {name}"
    model, tokenizer = pretrained.load(name, trust_remote_code, may_lack="pooler", remove_missing=True)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.pad_token_id is None:
        raise BadInput(f"{flag}: it has no tokenizer with a padding token, which batches of sentences need")
    if remote_code.is_ours(model.config.model_type) or model.config.is_encoder_decoder:
        raise BadInput(f"{flag}: a {type(model).__name__}; give an encoder of transformers, as recipes/bert.py leaves")
    tokenizer.model_max_length = pretrained.longest(model, tokenizer)
    if max_length > tokenizer.model_max_length:
        raise BadInput(f"--max_seq_length {max_length}: {name} takes {tokenizer.model_max_length} tokens at most")
    for key, value in model.named_parameters():
        value.requires_grad_("pooler" not in key.split("."))
    return model, tokenizer
