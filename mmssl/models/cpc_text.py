"""CPC's text encoder: a convolution over the words of a sentence, their mean, and a recurrent context over sentences.
Imports only torch and transformers.

van den Oord et al. 2018, arXiv:1807.03748, section 3.3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


class CpcTextConfig(PreTrainedConfig):
    """embedding_size: of word vectors. hidden_size: of sentence vectors. context_size: width of the GRU. kernel_size:
    in words, odd."""

    model_type = "mmssl_cpc_text"

    vocab_size: int = 20000
    embedding_size: int = 620
    hidden_size: int = 2400
    context_size: int = 2400
    kernel_size: int = 1
    pad_token_id: int = 0
    initializer_range: float = 0.05


@dataclass
class CpcTextOutput(ModelOutput):
    """For sentences, (batch, words): last_hidden_state (batch, words, hidden_size), after the convolution;
    pooler_output (batch, hidden_size), its mean over the words, the vector of the sentence.

    For documents, (batch, sentences, words): encoded (batch, sentences, hidden_size), the vectors of the sentences;
    last_hidden_state (batch, sentences, context_size), the context after each sentence; pooler_output (batch,
    context_size), the mean context."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    encoded: Tensor | None = None


class CpcTextModel(PreTrainedModel):
    """The context after a sentence does not depend on later sentences."""

    config_class = CpcTextConfig
    base_model_prefix = "cpc"
    main_input_name = "input_ids"

    def __init__(self, config: CpcTextConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.convolution = nn.Conv1d(
            config.embedding_size, config.hidden_size, config.kernel_size, padding=config.kernel_size // 2
        )
        self.context = nn.GRU(config.hidden_size, config.context_size, batch_first=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(
                module.weight, std=self.config.initializer_range
            )  # small, so that what is learned soon dominates
            init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                if "weight_hh" in name:
                    init.orthogonal_(parameter)
                elif "weight_ih" in name:
                    init.xavier_uniform_(parameter)
                else:
                    init.zeros_(parameter)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of documents of `lengths` sentences: one per sentence."""
        return lengths

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused) -> CpcTextOutput:
        """input_ids, attention_mask: (batch, words), or (batch, sentences, words), where a sentence without words is
        padding."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.ndim == 2:
            weight = attention_mask[..., None].to(self.embedding.weight.dtype)
            words = self.convolution((self.embedding(input_ids) * weight).mT).relu().mT * weight
            mean = words.sum(1) / weight.sum(1).clamp(min=1)
            return CpcTextOutput(last_hidden_state=words, pooler_output=mean)
        there = attention_mask.any(-1)
        mean = self._packed(input_ids[there], attention_mask[there].bool())
        encoded = mean.new_zeros(*there.shape, mean.shape[-1])
        encoded[there] = mean
        context, _ = self.context(encoded)
        weight = there[..., None].to(context.dtype)
        pooled = (context * weight).sum(1) / weight.sum(1).clamp(min=1)
        return CpcTextOutput(last_hidden_state=context, pooler_output=pooled, encoded=encoded)

    def _packed(self, input_ids: Tensor, there: Tensor) -> Tensor:
        """(sentences, words) -> (sentences, hidden): the mean over words. Nothing is computed for padding, which is two
        thirds of a batch of sentences of different lengths. there: (sentences, words) bool, True = a word."""
        size, count = self.convolution.kernel_size[0], there.sum(1)
        if size == 1:  # a word's output does not depend on its neighbours: compute it once per distinct word
            occurring, place = input_ids[there].unique(return_inverse=True)
            seen = self.embedding(occurring)
        else:  # all words in one sequence, with zeros between sentences; for each word, the words in its kernel
            kept, is_word = (F.pad(there, (0, size // 2), value=gap) for gap in (True, False))
            is_word, place = is_word[kept], torch.arange(int(count.sum()), device=there.device)
            row = self.embedding(F.pad(input_ids, (0, size // 2))[kept]) * is_word[:, None]
            row = F.pad(row, (0, 0, size // 2, size // 2))
            seen = torch.cat([row[i : i + len(is_word)][is_word] for i in range(size)], 1)  # (words, size * embedding)
        words = F.linear(seen, self.convolution.weight.transpose(1, 2).flatten(1), self.convolution.bias).relu()
        words = words.to(seen.dtype)  # means are not taken in autocast's bf16
        return F.embedding_bag(place, words, offsets=count.cumsum(0) - count, mode="mean")
