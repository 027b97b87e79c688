"""Causal language model: predict each token of a text from those before it.

GPT-2 (Radford et al. 2019, Language models are unsupervised multitask learners) or Llama (Touvron et al. 2023,
arXiv:2302.13971), in the classes of transformers, or any AutoModelForCausalLM to continue from. Documents are packed
into full sequences without padding, with a token between them that ends one and begins the next. Differs from GPT-2: a
token does not attend to other documents, and positions are counted from the beginning of its document (a mask that
transformers derives from the positions, for eager and sdpa attention alike); with cross_documents, as in GPT-2, only
the token between them tells documents apart. Logits are computed for a chunk of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.text.tokens import train_causal_bpe
from mmssl.errors import BadInput, first_line
from mmssl.kernels.cross_entropy import linear_cross_entropy
from mmssl.method import Card, Method, Output
from mmssl.models import memory, pretrained
from mmssl.models.dropout import set_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mmssl.data.text.packed import Around


SIZES = {  # layers, width; from 12 layers on, the four of GPT-2
    "tiny": (2, 128),
    "micro": (4, 256),
    "mini": (6, 384),
    "small": (12, 768),
    "medium": (24, 1024),
    "large": (36, 1280),
    "xl": (48, 1600),
}
ARCHITECTURES = ("llama", "gpt2")
WATCHED = 8  # the features of one token in so many go to the collapse monitor

SNIPPETS = {
    "Continue a text": """
from transformers import pipeline

name = "..."
write = pipeline("text-generation", model=name)
print(write({text[0]!r}, max_new_tokens=100, do_sample=True, temperature=0.8)[0]["generated_text"])
""",
    "The perplexity of a text": """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "..."
model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
inputs = tokenizer({text[1]!r}, return_tensors="pt", truncation=True)
with torch.no_grad():
    print(model(**inputs, labels=inputs["input_ids"]).loss.exp())
""",
}


def positions(input_ids: Tensor, begin: int) -> Tensor:
    """(batch, length): the position of each token in its document, from 0. A document begins with the token `begin`, or
    with the sequence."""
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return place - place.masked_fill(input_ids != begin, 0).cummax(1).values


def hidden_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """(batch, length, width): what the last layer, the head, gets. position_ids: where they do not rise by one, a new
    document begins; None: the sequence is one document."""
    # no cache: with one, transformers takes the sequence for one document
    return model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state


class CausalLM(Method):
    """
    model:        an AutoModelForCausalLM whose logits are a linear function of its features.
    tokenizer:    has an end-of-text token.
    cross_documents: whether a token may attend to the documents before it in its sequence.
    dropout:      in training, for all dropout of the model; the exported config keeps its usual values.
    unigram_loss: nats per token of a model that knows only how often each token occurs.
    """

    unit = "sequences"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cross_documents: bool = False,
        dropout: float = 0.0,
        unigram_loss: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.cross_documents, self.unigram_loss = model, cross_documents, unigram_loss
        self.begin, self.end = first_and_last(tokenizer)
        self.max_length = tokenizer.model_max_length
        set_dropout(model, dropout)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Output:
        """input_ids: (batch, length) int64, full sequences. targets: the same shape, the token after each."""
        features, scored = self.features(input_ids), self.scored(targets)
        weight = scored / scored.sum(1, keepdim=True).clamp(min=1) / len(scored)  # every sequence counts the same
        loss, _, right = self.cross_entropy(features, targets, weight)
        watched = features[:, ::WATCHED].detach().flatten(0, 1)
        return Output(loss, {"accuracy": (right * weight).sum()}, watched, self.unigram_loss)

    def features(self, input_ids: Tensor) -> Tensor:
        """(batch, length, width)"""
        return hidden_states(self.model, input_ids, None if self.cross_documents else positions(input_ids, self.begin))

    def scored(self, targets: Tensor) -> Tensor:
        """(batch, length) bool: the tokens to predict, which are all, unless a document begins with a token of its own:
        that one always follows the last of another document."""
        return targets != self.begin if self.begin != self.end else torch.ones_like(targets, dtype=torch.bool)

    def cross_entropy(self, features: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nats, right), see linear_cross_entropy; the latter two (batch, length)."""
        head = self.model.get_output_embeddings()
        loss, nats, right = linear_cross_entropy(
            features.flatten(0, 1), head.weight, head.bias, targets.flatten(), weight.float().flatten()
        )
        return loss, nats.view_as(targets), right.view_as(targets)

    @property
    def card(self) -> Card:
        kind = self.model.config.model_type
        return Card(
            about="Causal language model: each token of a text is predicted from those before it. A "
            f"`{type(self.model).__name__}` with {self.model.num_parameters():,} parameters.",
            task="text-generation",
            limits="It generates text that resembles its training text, with its prejudices; the content need not be "
            f"true. It was not trained on texts longer than {self.max_length} tokens.",
            trivial="a model that knows only how often each token occurs",
            snippets=SNIPPETS,
            fill=True,
            tags=(kind, "text-generation"),
            auto_class="AutoModelForCausalLM",
        )


def first_and_last(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens that begin and end a document; the same one where the tokenizer has no token for the beginning."""
    end = tokenizer.eos_token_id
    return end if tokenizer.bos_token_id is None else tokenizer.bos_token_id, end


def around(tokenizer: PreTrainedTokenizerBase) -> Around:
    """The tokens before and after each document, for `packed.number`. An end that is also a beginning is there once."""
    begin, end = first_and_last(tokenizer)
    return [begin] * (begin != end), [end]


def build(args, texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the flags of recipes/causal_lm.py describe: a checkpoint, or a new model with a
    tokenizer that is trained on `texts`."""
    if args.model_name_or_path:
        return from_pretrained(
            args.model_name_or_path, args.max_seq_length, args.cross_documents, args.trust_remote_code
        )
    tokenizer = train_causal_bpe(texts, args.vocab_size, args.max_seq_length)
    return from_scratch(tokenizer, args.architecture, args.size), tokenizer


def from_scratch(tokenizer: PreTrainedTokenizerBase, architecture: str, size: str) -> PreTrainedModel:
    """A new model for texts up to the tokenizer's model_max_length, with input and output embeddings tied.
    architecture: of ARCHITECTURES. size: of SIZES."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    layers, width = SIZES[size]
    given = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    if architecture == "llama":
        hidden = -(-8 * width // 3 // 64) * 64  # section 2.2: two thirds of 4 d; a multiple of 64
        config = LlamaConfig(intermediate_size=hidden, **given)
    else:
        config = GPT2Config(**given)
    sizes = f"--size {size}, a vocabulary of {len(tokenizer):,}, {tokenizer.model_max_length:,} positions"
    model = memory.build(lambda: AutoModelForCausalLM.from_config(config), sizes)
    # the pipeline's default of 256 would exceed the positions, which is an error in GPT-2
    model.generation_config.max_new_tokens = max(1, tokenizer.model_max_length // 2)
    return model


def from_pretrained(
    name: str, max_length: int, cross_documents: bool = False, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any checkpoint of a causal language model, and its tokenizer, for sequences of max_length tokens. Raises BadInput
    if `name` is not one, or if it cannot be trained in this way."""
    flag = f"--model_name_or_path {name}"
    model, tokenizer = pretrained.load_language_model(name, max_length, trust_remote_code, "AutoModelForCausalLM")
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{flag}: its tokenizer has no eos token, which is needed between documents")
    check(model, flag, cross_documents)
    return model, tokenizer


@torch.no_grad()
def check(model: PreTrainedModel, flag: str, cross_documents: bool) -> None:
    """Raises BadInput, starting with `flag`, if the model's logits are not a linear function of its features or, unless
    cross_documents, if documents in one sequence are not kept apart. It is tried on a few tokens, because classes
    ignore positions that they do not know."""
    model.eval()
    ids = torch.arange(7, device=model.device)[None] % model.config.vocab_size
    second, place = slice(3, None), torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=model.device)  # two documents
    try:
        logits, features = model(input_ids=ids, use_cache=False).logits, hidden_states(model, ids, None)
        packed, alone = (
            hidden_states(model, ids, place)[:, second],
            hidden_states(model, ids[:, second], None),
        )
        head = model.get_output_embeddings()
        linear = F.linear(features, head.weight, head.bias)
    except (AttributeError, TypeError) as error:
        raise BadInput(
            f"{flag}: a {type(model).__name__}, which cannot be trained here: {first_line(error)}"
        ) from error
    if not torch.allclose(logits, linear, rtol=1e-3, atol=1e-3):
        raise BadInput(f"{flag}: the logits of a {type(model).__name__} are more than a linear layer; choose another")
    if not cross_documents and not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3):
        raise BadInput(
            f"{flag}: a {type(model).__name__} does not keep the documents of a sequence apart; add --cross_documents "
            "True, and only the token between them tells it where one ends"
        )
