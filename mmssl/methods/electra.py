"""ELECTRA: a small generator replaces some words of a text with plausible ones; the encoder tells which were replaced.

Replaced-token detection, Clark et al. 2020, arXiv:2003.10555. The generator is a masked language model; its samples at
the masked tokens are the discriminator's input, and no gradient passes through them. A sample that equals the original
counts as original. The paper's networks are BERTs. Differs: a ModernBERT, too, whose generator has as wide but fewer
layers, as in DeBERTaV3 (He et al. 2021, arXiv:2111.09543); masks and samples are drawn from a number per sequence and
epoch; no dropout by default.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.errors import BadInput
from mmssl.hub import sentence_transformers
from mmssl.method import Card, Output
from mmssl.methods.bert import BERT, apart, logits_at
from mmssl.models import text_encoders
from mmssl.models.dropout import set_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT = 50.0  # of the discriminator's loss, section 3.2 and appendix A
GENERATOR_SIZE = 0.5  # of the discriminator, section 3.2: between a quarter and a half
ARCHITECTURES = ("modernbert", "electra")
REPLACED = "Which words of a text do not belong there"

SNIPPETS = {
    REPLACED: """
import torch
from transformers import AutoModelForPreTraining, AutoTokenizer

name = "..."
model, tokenizer = AutoModelForPreTraining.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
inputs = tokenizer({text[0]!r}, truncation=True, return_tensors="pt")
with torch.no_grad():
    replaced = model(**inputs).logits[0].sigmoid()
for token, probability in zip(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), replaced):
    print(f"{{probability:.2f}} {{token}}")
""",
    **text_encoders.SNIPPETS,
}
SNIPPETS_OF_A_BARE_ENCODER = {
    REPLACED: """
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

name = "..."
model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
head = torch.nn.Sequential(
    torch.nn.Linear(model.config.hidden_size, model.config.hidden_size), torch.nn.GELU(),
    torch.nn.Linear(model.config.hidden_size, 1),
)
heads = load_file(cached_file(name, "pretraining/heads.safetensors"))
head.load_state_dict({{key[5:]: value for key, value in heads.items() if key.startswith("head.")}})
inputs = tokenizer({text[0]!r}, truncation=True, return_tensors="pt")
with torch.no_grad():
    replaced = head(model(**inputs).last_hidden_state)[0, :, 0].sigmoid()
for token, probability in zip(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), replaced):
    print(f"{{probability:.2f}} {{token}}")
""",
    **text_encoders.SNIPPETS,
}


@torch.no_grad()
def sample(logits: Tensor, key: Tensor) -> Tensor:
    """(rows,) int64: a token of each row's softmax, by the inverse of its distribution function. logits: (rows,
    vocabulary) fp32. key: (rows,) int64; one uniform number follows from each."""
    reached = logits.softmax(1).cumsum(1)
    drawn = draws.uniform(key, torch.zeros_like(key))[:, None] * reached[:, -1:]  # rounding: the last is not quite 1
    return torch.searchsorted(reached, drawn, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def entropy(share: Tensor) -> Tensor:
    """Nats of a yes-or-no question whose answer is yes with probability `share`."""
    return -torch.xlogy(share, share) - torch.xlogy(1 - share, 1 - share)


class ELECTRA(BERT):
    """The BERT in it is the generator, `model`.

    discriminator: an ElectraForPreTraining or a ModernBertModel, which is exported.
    generator_size: see `smaller`.
    weight: of the discriminator's loss.
    The other arguments are those of BERT, for both networks.
    """

    def __init__(
        self,
        discriminator: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        share: float = 0.15,
        unit: str = "tokens",
        cross_documents: bool = True,
        dropout: float = 0.0,
        unigram_loss: float = 0.0,
        generator_size: float = GENERATOR_SIZE,
        weight: float = WEIGHT,
    ) -> None:
        generator = smaller(discriminator, generator_size)
        super().__init__(generator, tokenizer, share, unit, cross_documents, dropout, unigram_loss)
        self.discriminator, self.weight, width = discriminator, weight, discriminator.config.hidden_size
        if discriminator.base_model is discriminator:  # an ElectraForPreTraining has a head of its own
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        set_dropout(discriminator, dropout)

    def forward(self, input_ids: Tensor, begins_word: Tensor, draw: Tensor) -> Output:
        """See BERT. The loss is the generator's over masked tokens plus `weight` times the discriminator's over all."""
        chosen = self.choose(input_ids, begins_word, draw)
        at = self.places(chosen)
        logits, _ = self.guess(input_ids, chosen, at, draw)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            seen = self.replace(input_ids, chosen, at, draw, logits)  # first: the next line overwrites the logits
            generated, accuracy = self.masked_loss(input_ids, chosen, at, logits)
        replaced = seen != input_ids
        judged, hidden = self.judge(seen)
        with torch.autocast(logits.device.type, enabled=False):
            detected = F.binary_cross_entropy_with_logits(judged.float(), replaced.float())
            ignorant = self.unigram_loss + self.weight * entropy(replaced.float().mean())
        hit = (judged > 0) == replaced
        metrics = {
            "generator_loss": generated.detach(),
            "generator_accuracy": accuracy,
            "detection_loss": detected.detach(),
            "detected_replaced": (hit & replaced).sum() / replaced.sum().clamp(min=1),
            "detected_original": (hit & ~replaced).sum() / (~replaced).sum().clamp(min=1),
        }
        features = hidden.flatten(0, 1).index_select(0, at)
        return Output(generated + self.weight * detected, metrics, features.detach(), ignorant)

    def guess(self, input_ids: Tensor, chosen: Tensor, at: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, features) of the generator at some places; it sees all chosen tokens as [MASK] (section 2)."""
        masked = input_ids.masked_fill(chosen, self.mask_token)
        return logits_at(self.model, at, input_ids=masked, attention_mask=self.attention(input_ids))

    def replace(self, input_ids: Tensor, chosen: Tensor, at: Tensor, draw: Tensor, logits: Tensor) -> Tensor:
        """(batch, length): input_ids with the chosen tokens replaced by samples. logits: (n, vocabulary) fp32, at the
        places `at`, among which all chosen ones are."""
        key = draw[:, None] | (1 + torch.arange(input_ids.shape[1], device=draw.device)) << 32  # one for each place
        sampled = input_ids.flatten().scatter(0, at, sample(logits, key.flatten()[at])).view_as(input_ids)
        return torch.where(chosen, sampled, input_ids)

    def judge(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(logits that a token is replaced, hidden states): (batch, length) and (batch, length, width)."""
        encoder = self.discriminator.base_model
        hidden = encoder(input_ids=input_ids, attention_mask=self.attention(input_ids)).last_hidden_state
        if self.discriminator is encoder:
            return self.head(hidden)[..., 0], hidden
        return self.discriminator.discriminator_predictions(hidden), hidden

    def attention(self, input_ids: Tensor) -> Tensor | None:
        return None if self.cross_documents else apart(input_ids, self.separator, self.model.config)

    @property
    def card(self) -> Card:
        bare = self.discriminator.base_model is self.discriminator
        return Card(
            about="ELECTRA: a small generator replaces some words of a text with plausible ones, and the discriminator "
            f"tells which were replaced. The discriminator, a `{type(self.discriminator).__name__}`, is exported; what "
            "else training needs, to continue from, is in `pretraining/`.",
            task="feature-extraction",
            limits="It reproduces the content, style and prejudices of its training text. It was not trained on texts "
            f"longer than {self.max_length} tokens.",
            trivial="a model that knows only how often each token occurs, and how many are replaced",
            snippets=SNIPPETS_OF_A_BARE_ENCODER if bare else SNIPPETS,
            fill=True,
            tags=("electra", "sentence-transformers"),
            auto_class=auto_class("modernbert" if bare else "electra"),
        )

    def exported(self) -> PreTrainedModel:
        return self.discriminator

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the discriminator, the files that let SentenceTransformer load it, and in a separate file the generator
        and the head of a bare encoder."""
        self.discriminator.save_pretrained(directory)
        width = self.discriminator.config.hidden_size
        sentence_transformers.write_mean_pooling(Path(directory), width, self.max_length)
        self.save_heads(directory)


def auto_class(architecture: str) -> str:
    """The class of transformers that loads a discriminator of this model type."""
    return "AutoModelForPreTraining" if architecture == "electra" else "AutoModel"


def smaller(discriminator: PreTrainedModel, size: float) -> PreTrainedModel:
    """A masked language model with the discriminator's embeddings. Of an ElectraForPreTraining: as deep, and of `size`
    times its width. Of a ModernBertModel: as wide, and of `size` times its layers. Raises BadInput for other models."""
    from transformers import ElectraForMaskedLM, ElectraForPreTraining, ModernBertForMaskedLM, ModernBertModel

    config = copy.deepcopy(discriminator.config)
    config.tie_word_embeddings = True
    if isinstance(discriminator, ElectraForPreTraining):
        config.num_attention_heads = heads = max(1, round(size * config.num_attention_heads))
        config.hidden_size = max(1, round(size * config.hidden_size / heads)) * heads
        config.intermediate_size = max(1, round(size * config.intermediate_size))
        generator = ElectraForMaskedLM(config)
    elif isinstance(discriminator, ModernBertModel):
        config.num_hidden_layers = max(1, round(size * config.num_hidden_layers))
        config.layer_types = config.layer_types[: config.num_hidden_layers]
        generator = ModernBertForMaskedLM(config)
    else:
        raise BadInput(
            f"--model_name_or_path: a {type(discriminator).__name__}, not an ELECTRA discriminator; give an "
            "ElectraForPreTraining or a ModernBERT, or leave out the flag to train a new one"
        )
    generator.base_model.embeddings = discriminator.base_model.embeddings
    generator.tie_weights()
    return generator
