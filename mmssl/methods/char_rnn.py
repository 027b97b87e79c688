"""Character RNN: read a text symbol by symbol, and at each say what comes next.

Mikolov et al. 2010 (Recurrent neural network based language model, Interspeech); over characters, Graves 2013,
arXiv:1308.0850, section 3, and Karpathy's char-rnn. Trained by truncated backpropagation through time: gradients stop
at the beginning of a chunk, the state goes on. Differs: every epoch begins at another place of the text, and now and
then a stream forgets; a network that never has to begin with nothing does it badly (measured: half a nat).
"""

from __future__ import annotations

import math
from pathlib import Path
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
    from transformers import PreTrainedTokenizerBase

    from mmssl.models.char_rnn import CharRNNForCausalLM


SIZES = ("vocabulary", "cell", "hidden_size", "num_hidden_layers", "skip_connections", "embedding_size",
         "tie_word_embeddings", "dropout")  # fmt: skip
SNIPPETS = {
    "Let it go on with a text": """
from transformers import pipeline

name = "..."
write = pipeline("text-generation", model=name, trust_remote_code=True)
print(write({text[0]!r}, max_new_tokens=200, do_sample=True, temperature=0.8)[0]["generated_text"])
""",
    "How likely it finds a text, in nats a symbol; and what it remembers of it": """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "..."
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
inputs = tokenizer({text[1]!r}, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs, labels=inputs["input_ids"])
print(output.loss, output.state.shape)
""",
}


class CharRNN(Method):
    """
    model:        predicts each next token, and hands on its state.
    streams:      how many texts are read side by side, over all processes and micro-batches of a step.
    trivial_loss: nats of a model that knows how frequent each symbol is, and nothing else.
    """

    unit = "chunks"

    def __init__(self, model: CharRNNForCausalLM, streams: int, trivial_loss: float) -> None:
        super().__init__()
        self.model, self.trivial_loss = model, trivial_loss
        # of all streams on every process, so that a run can go on with another number of them
        self.register_buffer("state", model.rnn.empty_state(streams))

    def start_epoch(self, epoch, accelerator, optimizers) -> None:
        self.state.zero_()  # the streams begin elsewhere

    def forward(self, input_ids: Tensor, stream: Tensor, fresh: Tensor) -> Output:
        """input_ids: (batch, chunk + 1), the next chunk of each stream and the symbol behind it. stream: (batch,), its
        number. fresh: (batch,) bool, True where it forgets what it has read."""
        state = self.state[stream].masked_fill(fresh[:, None, None, None], 0.0)
        output = self.model(input_ids[:, :-1], state=state)
        with torch.autocast(input_ids.device.type, enabled=False):
            loss = F.cross_entropy(output.logits.float().flatten(0, 1), input_ids[:, 1:].flatten())
        with torch.no_grad():
            self.state[gather(stream)] = gather(output.state.detach().float().contiguous())
        bits = loss.detach() / math.log(2)
        features = output.state[:, -1, 0].detach().float()  # the upper layer's hidden state at the end of the chunk
        return Output(loss, {"bits": bits}, features=features, trivial_loss=self.trivial_loss)

    @property
    def card(self) -> Card:
        config = self.model.config
        return Card(
            about="Character RNN: read a text symbol by symbol, and at each say what comes next. "
            f"{config.cell.upper()} over {config.vocabulary}, {self.model.num_parameters():,} weights.",
            task="text-generation",
            limits="It writes what looks like its training text; none of it need be true.",
            trivial="single symbols counted",
            snippets=SNIPPETS,
            fill=True,
            tags=("char-rnn",),
            auto_class="AutoModelForCausalLM",
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """The network and its code: AutoModelForCausalLM and AutoModel load it where mmssl is not installed."""
        from mmssl.models.char_rnn import CharRNNConfig, CharRNNForCausalLM, CharRNNModel

        CharRNNConfig.register_for_auto_class()
        CharRNNForCausalLM.register_for_auto_class("AutoModelForCausalLM")
        code = CharRNNModel.__module__.rpartition(".")[2]
        self.model.config.auto_map = {"AutoModel": f"{code}.{CharRNNModel.__name__}"}
        self.model.save_pretrained(directory)


def build(args, text: str) -> tuple[CharRNNForCausalLM, PreTrainedTokenizerBase]:
    """As the flags of recipes/char_rnn.py have it: a checkpoint, or from scratch with a vocabulary for `text`."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code)
    tokenizer = characters.tokenizer(text, args.vocabulary)
    return from_scratch(tokenizer, **{name: getattr(args, name) for name in SIZES}), tokenizer


def from_scratch(tokenizer: PreTrainedTokenizerBase, **sizes) -> CharRNNForCausalLM:
    """sizes: those of CharRNNConfig. Raises BadInput where one is not above 0."""
    from mmssl.models.char_rnn import CharRNNConfig, CharRNNForCausalLM

    for name, value in sizes.items():
        if name.endswith(("_size", "_layers")) and value < 1:
            raise BadInput(f"--{name} is {value}; it must be 1 or more")
    config = CharRNNConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    sizes = f"--hidden_size {config.hidden_size}, --num_hidden_layers {config.num_hidden_layers}"
    return memory.build(lambda: CharRNNForCausalLM(config), sizes)


def from_pretrained(name: str, trust_remote_code: bool) -> tuple[CharRNNForCausalLM, PreTrainedTokenizerBase]:
    """Our own export, to go on from. Raises BadInput where `name` is none."""
    from mmssl.models.char_rnn import CharRNNConfig

    model, tokenizer = pretrained.load(name, trust_remote_code, auto_class="AutoModelForCausalLM")
    if model.config.model_type != CharRNNConfig.model_type:
        raise BadInput(f"--model_name_or_path {name} is a {type(model).__name__}, not a character RNN of this project")
    if len(tokenizer) != model.config.vocab_size:
        raise BadInput(
            f"--model_name_or_path {name}: a tokenizer of {len(tokenizer)} tokens for a model of "
            f"{model.config.vocab_size}"
        )
    return model, tokenizer
