"""Character RNN: read a text one symbol at a time, and predict the next one.

Mikolov et al. 2010 (Recurrent neural network based language model, Interspeech); on characters, Graves 2013,
arXiv:1308.0850, section 3, and Karpathy's char-rnn. Trained by truncated backpropagation through time: gradients stop
at the start of a chunk, the state is carried on. Differs: every epoch starts at another position of the text, and a
stream's state is reset at random, because a network that never starts from an empty state does so badly (measured: half
a nat).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.text import characters
from mmssl.distributed import gather
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import memory, pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from mmssl.models.char_rnn import CharRNNForCausalLM


SIZES = ("vocabulary", "cell", "hidden_size", "num_hidden_layers", "skip_connections", "embedding_size",
         "tie_word_embeddings", "dropout")  # fmt: skip
SNIPPETS = {
    "Continue a text": """
from transformers import pipeline

name = "..."
write = pipeline("text-generation", model=name)
print(write({text[0]!r}, max_new_tokens=200, do_sample=True, temperature=0.8)[0]["generated_text"])
""",
    "The loss on a text, in nats per symbol, and the state after it": """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "..."
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer({text[1]!r}, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs, labels=inputs["input_ids"])
print(output.loss, output.state.shape)
""",
}


class CharRNN(Method):
    """
    model:        predicts each next token, and returns its state.
    streams:      number of texts read in parallel, over all processes and micro-batches of a step.
    trivial_loss: nats of a model that knows only how frequent each symbol is.
    """

    unit = "chunks"

    def __init__(self, model: CharRNNForCausalLM, streams: int, trivial_loss: float) -> None:
        super().__init__()
        self.model, self.trivial_loss = model, trivial_loss
        # every process holds the state of all streams, so that a run can continue on another number of processes
        self.register_buffer("state", model.rnn.empty_state(streams))

    def start_epoch(self, epoch, accelerator, optimizers) -> None:
        self.state.zero_()  # the streams start at other positions

    def forward(self, input_ids: Tensor, stream: Tensor, fresh: Tensor) -> Output:
        """input_ids: (batch, chunk + 1), the next chunk of each stream and the symbol after it. stream: (batch,), the
        number of each stream. fresh: (batch,) bool, True = reset the state before this chunk."""
        state = self.state[stream].masked_fill(fresh[:, None, None, None], 0.0)
        output = self.model(input_ids[:, :-1], state=state)
        with torch.autocast(input_ids.device.type, enabled=False):
            loss = F.cross_entropy(output.logits.float().flatten(0, 1), input_ids[:, 1:].flatten())
        with torch.no_grad():
            self.state[gather(stream)] = gather(output.state.detach().float().contiguous())
        bits = loss.detach() / math.log(2)
        features = output.state[:, -1, 0].detach().float()  # (batch, hidden_size): the last layer's state
        return Output(loss, {"bits": bits}, features=features, trivial_loss=self.trivial_loss)

    @property
    def card(self) -> Card:
        config = self.model.config
        return Card(
            about="Character RNN: read a text one symbol at a time, and predict the next one. "
            f"{config.cell.upper()} over {config.vocabulary}, {self.model.num_parameters():,} parameters.",
            task="text-generation",
            limits="It generates text that resembles its training text; the content need not be true.",
            trivial="symbol frequencies",
            snippets=SNIPPETS,
            fill=True,
            tags=("char-rnn",),
            auto_class="AutoModelForCausalLM",
        )

    def save_heads(self, directory: str | Path) -> None:
        """None: the state of the streams is of no use to another run."""


def build(args, text: str) -> tuple[CharRNNForCausalLM, PreTrainedTokenizerBase]:
    """The model and tokenizer that the flags of recipes/char_rnn.py describe: a checkpoint, or a new model with a
    vocabulary for `text`."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code)
    tokenizer = characters.tokenizer(text, args.vocabulary)
    return from_scratch(tokenizer, **{name: getattr(args, name) for name in SIZES}), tokenizer


def from_scratch(tokenizer: PreTrainedTokenizerBase, **sizes) -> CharRNNForCausalLM:
    """A new model. sizes: arguments of CharRNNConfig. Raises BadInput if one is below 1."""
    from mmssl.models.char_rnn import CharRNNConfig, CharRNNForCausalLM

    for name, value in sizes.items():
        if name.endswith(("_size", "_layers")) and value < 1:
            raise BadInput(f"--{name} is {value}; it must be 1 or more")
    config = CharRNNConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    sizes = f"--hidden_size {config.hidden_size}, --num_hidden_layers {config.num_hidden_layers}"
    return memory.build(lambda: CharRNNForCausalLM(config), sizes)


def from_pretrained(name: str, trust_remote_code: bool) -> tuple[CharRNNForCausalLM, PreTrainedTokenizerBase]:
    """An export of mmssl, to continue from. Raises BadInput if `name` is not one."""
    from mmssl.models.char_rnn import CharRNNConfig

    model, tokenizer = pretrained.load(name, trust_remote_code, auto_class="AutoModelForCausalLM")
    if model.config.model_type != CharRNNConfig.model_type:
        raise BadInput(f"--model_name_or_path {name} is a {type(model).__name__}, not a character RNN of mmssl")
    if len(tokenizer) != model.config.vocab_size:
        raise BadInput(
            f"--model_name_or_path {name}: a tokenizer of {len(tokenizer)} tokens for a model of "
            f"{model.config.vocab_size}"
        )
    return model, tokenizer
