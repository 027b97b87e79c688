"""Word vectors as a transformers model: an embedding table, and the mean over a text's words. Imports only torch and
transformers."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


class Word2VecConfig(PreTrainedConfig):
    model_type = "mmssl_word2vec"

    vocab_size: int = 2
    hidden_size: int = 100


@dataclass
class Word2VecOutput(ModelOutput):
    """last_hidden_state: (batch, tokens, dim), the words' vectors. pooler_output: (batch, dim), their mean."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


class Word2VecModel(PreTrainedModel):
    """A table of word vectors. The last two rows, <unk> and <pad>, are zero and are not counted in the mean."""

    config_class = Word2VecConfig
    base_model_prefix = "word2vec"
    main_input_name = "input_ids"

    def __init__(self, config: Word2VecConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.5 / module.embedding_dim, 0.5 / module.embedding_dim)  # as word2vec.c

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused) -> Word2VecOutput:
        """input_ids, attention_mask: (batch, tokens)."""
        vectors = self.embedding(input_ids)
        known = input_ids < self.config.vocab_size - 2
        if attention_mask is not None:
            known = known & attention_mask.bool()
        weight = known.to(vectors.dtype)[..., None]
        mean = (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)
        return Word2VecOutput(last_hidden_state=vectors, pooler_output=mean)
