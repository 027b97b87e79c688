"""A recurrent language model over characters or bytes: stacked LSTM or GRU layers between an embedding and a softmax.

Imports only torch and transformers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

CELLS = {"lstm": (nn.LSTM, 2), "gru": (nn.GRU, 1)}  # class, and vectors in a layer's state: hidden (and cell)


class CharRNNConfig(PreTrainedConfig):
    """vocabulary: the tokens, "characters" or "bytes". skip_connections: feed all layers to the softmax, not only the
    last (Graves 2013, arXiv:1308.0850, section 2). dropout: on the inputs of all layers but the first, and of the
    softmax (Zaremba et al. 2014, arXiv:1409.2329)."""

    model_type = "mmssl_char_rnn"

    vocab_size: int = 258
    vocabulary: str = "bytes"
    cell: str = "lstm"
    embedding_size: int = 64
    hidden_size: int = 512
    num_hidden_layers: int = 1
    skip_connections: bool = True
    dropout: float = 0.0
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


@dataclass
class CharRNNOutput(ModelOutput):
    """last_hidden_state: (batch, tokens, hidden); with skip connections (batch, tokens, layers * hidden).
    state: (batch, layers, 1 or 2, hidden), after the last token of each row: hidden, and for LSTMs cell.
    """

    last_hidden_state: Tensor | None = None
    state: Tensor | None = None


@dataclass
class CharRNNCausalLMOutput(ModelOutput):
    """loss: mean nats per token. logits: (batch, tokens, vocabulary). state: as in CharRNNOutput."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Tensor | None = None


class CharRNNPreTrainedModel(PreTrainedModel):
    config_class = CharRNNConfig
    base_model_prefix = "rnn"
    main_input_name = "input_ids"
    _is_stateful = True  # the state cannot be rewound: no assisted generation

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            width = module.hidden_size
            for name, parameter in module.named_parameters():
                if name.startswith("bias"):
                    init.zeros_(parameter)
                    if name.startswith("bias_ih") and isinstance(module, nn.LSTM):
                        init.ones_(parameter[width : 2 * width])  # remember at first (Jozefowicz et al. 2015)
                    continue
                for gate in parameter.split(width):
                    if name.startswith("weight_hh"):
                        init.orthogonal_(gate)  # Saxe et al. 2013, arXiv:1312.6120
                    else:
                        init.xavier_uniform_(gate)


class CharRNNModel(CharRNNPreTrainedModel):
    """An embedding and a stack of recurrent layers."""

    def __init__(self, config: CharRNNConfig) -> None:
        super().__init__(config)
        cell, self.carried = CELLS[config.cell]
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(cell(width, config.hidden_size, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def empty_state(self, batch: int) -> Tensor:
        """(batch, layers, 1 or 2, hidden), zero: nothing read yet."""
        shape = (batch, self.config.num_hidden_layers, self.carried, self.config.hidden_size)
        return self.embedding.weight.new_zeros(shape)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: Tensor | None = None,
        use_cache: bool | None = None,
        **unused,
    ) -> CharRNNOutput:
        """input_ids: (batch, tokens). attention_mask: (batch, tokens or more), 0 = padding on either side, which is
        skipped; if it is longer, its last columns are used. state: that of an earlier call, to continue from."""
        x = self.embedding(input_ids)
        state = self.empty_state(len(x)) if state is None else state
        mask = None if attention_mask is None else attention_mask[:, -x.shape[1] :].bool()
        if mask is None or mask.all():
            hidden, state = self._read(x, state, None)
        else:
            # move each row's tokens to the left, in order, and move the outputs back afterwards
            order = (~mask).int().argsort(dim=1, stable=True)[..., None]
            hidden, after = self._read(x.gather(1, order.expand_as(x)), state, mask.sum(1))
            hidden = torch.zeros_like(hidden).scatter(1, order.expand_as(hidden), hidden)
            state = torch.where(mask.any(1)[:, None, None, None], after, state)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return CharRNNOutput(last_hidden_state=hidden, state=state if use_cache else None)

    def _read(self, x: Tensor, state: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: (batch, tokens, width). lengths: (batch,), tokens of each row; None: all."""
        tokens, outputs, after = x.shape[1], [], []
        for i, layer in enumerate(self.layers):
            x = x if i == 0 else self.dropout(x)
            before = [part[None].contiguous() for part in state[:, i].to(x.dtype).unbind(1)]
            given = tuple(before) if self.carried == 2 else before[0]
            if lengths is None:
                x, last = layer(x, given)
            else:
                packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
                x, last = layer(packed, given)
                x, _ = pad_packed_sequence(x, batch_first=True, total_length=tokens)
            outputs.append(x)
            after.append(torch.stack(last if self.carried == 2 else (last,), 2)[0])
        return torch.cat(outputs, -1) if self.config.skip_connections else x, torch.stack(after, 1)


class CharRNNForCausalLM(CharRNNPreTrainedModel, GenerationMixin):
    """Predicts the next token. With tied embeddings, a projection maps the hidden size to the embedding size."""

    _tied_weights_keys = {"head.weight": "rnn.embedding.weight"}

    def __init__(self, config: CharRNNConfig) -> None:
        super().__init__(config)
        self.rnn = CharRNNModel(config)
        tied, narrow = config.tie_word_embeddings, config.embedding_size
        wide = config.hidden_size * (config.num_hidden_layers if config.skip_connections else 1)
        self.projection = nn.Linear(wide, narrow, bias=False) if tied and wide != narrow else nn.Identity()
        self.head = nn.Linear(narrow if tied else wide, config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: Tensor | None = None,
        use_cache: bool | None = None,
        **unused,
    ) -> CharRNNCausalLMOutput:
        """labels: (batch, tokens), the input_ids themselves, -100 = ignored; they are shifted here. For the other
        arguments see CharRNNModel."""
        output = self.rnn(input_ids, attention_mask, state, use_cache)
        logits = self.head(self.projection(self.dropout(output.last_hidden_state)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CharRNNCausalLMOutput(loss=loss, logits=logits, state=output.state)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is `state`, of constant size

    @staticmethod
    def _reorder_cache(state: Tensor, beams: Tensor) -> Tensor:
        return state.index_select(0, beams)
