"""BERT: some tokens of a text are masked, and the model predicts them from the tokens on both sides.

The masked language model of Devlin et al. 2018, arXiv:1810.04805. Works with any AutoModelForMaskedLM of transformers
(BERT, ModernBERT, RoBERTa, DistilBERT, ...). Differs: no next-sentence task, and masks drawn again in each epoch, as in
RoBERTa (arXiv:1907.11692, section 4); the head is computed only for masked tokens; no dropout by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers.models import WordPiece
from torch import Tensor, nn

from mmssl.arguments import TrainArgs, flag
from mmssl.data.text import documents, masking
from mmssl.data.text.tokens import train_bpe, train_wordpiece
from mmssl.errors import BadInput, first_line
from mmssl.hub import sentence_transformers
from mmssl.kernels.cross_entropy import cross_entropy_
from mmssl.method import Card, Method, Output
from mmssl.models import memory, pretrained, remote_code, word_vectors

if TYPE_CHECKING:
    from datasets import Dataset
    from gensim.models import KeyedVectors
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mmssl.data.sources import Data


SIZES = {  # layers, width; from BERT and from the miniatures of Turc et al. 2019, arXiv:1908.08962
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
ARCHITECTURES = ("bert", "modernbert")
TOKENIZERS = {"wordpiece": train_wordpiece, "bpe": train_bpe}
STREAMED = 10_000  # documents of a stream that the tokenizer is trained on

# of any text encoder with mean pooling
ENCODER_SNIPPETS = {
    "Fine-tune it to classify texts (here with two of them)": """
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "..."
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
tokenizer = AutoTokenizer.from_pretrained(name)
batch = tokenizer(["one text", "and another one"], padding=True, truncation=True, return_tensors="pt")
print(model(**batch).logits)
""",
    "Features of every token; the same directory is a sentence-transformers model (their mean), too": """
import torch
from transformers import AutoModel, AutoTokenizer

name = "..."
model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
with torch.no_grad():
    print(model(**tokenizer("one text", return_tensors="pt")).last_hidden_state.shape)
""",
}
SNIPPETS = {
    "Fill in a word": """
from transformers import pipeline

name = "..."
fill = pipeline("fill-mask", model=name)
for guess in fill({text[0]!r}):
    print(f"{{guess['score']:.2f}} {{guess['token_str']}}")
""",
    **ENCODER_SNIPPETS,
}


@dataclass
class TextArgs(TrainArgs):
    """Flags that the recipes of text encoders share: the text, and the encoder and its tokenizer."""

    dataset: str = flag("wikipedia", "wikipedia (built in), text files (.txt, .gz; with commas), Parquet, a Hub id")
    text_column: str | None = flag(None, "text column of a table; default: text, or the only column of strings")
    held_out: int = flag(1000, "documents held out if the data has no test split (at most a tenth)", at_least=1)
    model_name_or_path: str | None = flag(None, "a checkpoint to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    size: str = flag(
        "mini", "size of a new model: layers x width 2x128 4x256 4x512 8x512 12x768 24x1024", SIZES, of_new_model=True
    )
    init_vectors: str | None = flag(
        None, "start from these word vectors: a run of recipes/word2vec.py, its Hub id, or a word2vec file",
        of_new_model=True,
    )  # fmt: skip
    tokenizer_name: str | None = flag(
        None, "use this checkpoint's tokenizer; default: train one on the text", of_new_model=True
    )
    tokenizer: str = flag(
        "wordpiece", "kind of a new tokenizer: WordPiece (lower-cased) or byte-level BPE", TOKENIZERS, of_new_model=True
    )
    vocab_size: int = flag(8192, "size of the tokenizer to train", at_least=16, at_most=10**6, of_new_model=True)
    max_seq_length: int = flag(128, "tokens per sequence", at_least=8, at_most=10**6)

    lr_scheduler_type: str = flag("linear", "schedule after the warm-up", ("cosine", "linear", "constant"))
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_name:
            self.refuse(("tokenizer", "vocab_size"), f"--tokenizer_name {self.tokenizer_name}")


@dataclass
class MaskedTextArgs(TextArgs):
    """Flags that the recipes share in which tokens of packed sequences are masked."""

    streaming: bool = flag(False, "read and tokenise during training, for data larger than the disk")
    mlm_probability: float = flag(0.15, "fraction of the tokens that are masked", above=0, below=1)
    masking: str = flag("tokens", "mask single tokens, whole words or spans of words", masking.UNITS)
    cross_documents: bool = flag(True, "let tokens attend to the other documents in their sequence")
    dropout: float = flag(0.0, "dropout probability in training", at_least=0, below=1)
    per_device_train_batch_size: int = flag(32, "sequences per process in one micro-batch")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.max_steps <= 0:
            raise BadInput("--streaming: a stream has no length; set the length of the run with --max_steps")


def sequence_mean(chosen: Tensor) -> Tensor:
    """(masked,) weights of the masked tokens, for the mean over each sequence and then over sequences: every sequence
    counts the same, however a batch is split. chosen: (batch, length) bool, True = masked."""
    return (chosen / chosen.sum(1, keepdim=True).clamp(min=1))[chosen] / len(chosen)


def logits_at(model: PreTrainedModel, chosen: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, features) of the chosen tokens: (masked, vocabulary) and (masked, dim).

    The model's own head gets these tokens as if they were one text. For a small encoder, the head on all tokens would
    cost more than everything else. chosen: (batch, length) bool, True = masked.
    """
    features = []

    def only_chosen(encoder: nn.Module, arguments: tuple, output):
        features.append(output.last_hidden_state[chosen])
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
    dropout:      in training, for all dropout modules of the model; the exported config keeps its usual values.
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
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, input_ids: Tensor, begins_word: Tensor, draw: Tensor) -> Output:
        """input_ids: (batch, length) int64, full sequences. begins_word: the same shape, bool. draw: (batch,) int64,
        from which all random choices for a sequence are derived."""
        chosen = self.choose(input_ids, begins_word, draw)
        logits, features = self.guess(input_ids, chosen, draw)
        with torch.autocast(logits.device.type, enabled=False):
            loss, right = cross_entropy_(logits.float(), input_ids[chosen], sequence_mean(chosen))
        return Output(loss, {"accuracy": right.float().mean()}, features.detach(), self.unigram_loss)

    def choose(self, input_ids: Tensor, begins_word: Tensor, draw: Tensor) -> Tensor:
        """(batch, length) bool: the tokens to mask."""
        return masking.choose(draw, self.maskable(input_ids), begins_word, self.share, self.masked_unit)

    def maskable(self, input_ids: Tensor) -> Tensor:
        return ~torch.isin(input_ids, torch.tensor(self.special, device=input_ids.device))

    def guess(self, input_ids: Tensor, chosen: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, features) of the chosen tokens, see logits_at."""
        corrupted = masking.corrupt(draw, input_ids, chosen, self.mask_token, self.vocab_size)
        mask = None if self.cross_documents else apart(input_ids, self.separator, self.model.config)
        return logits_at(self.model, chosen, input_ids=corrupted, attention_mask=mask)

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


def load_documents(args: MaskedTextArgs) -> tuple[Data, Dataset, Iterable[str], str]:
    """(train, held out, the texts that a tokenizer is trained on, the training data in words). See documents.load."""
    options = {"held_out": args.held_out, "streaming": args.streaming}
    train, held_out = documents.load(args.dataset, args.text_column, **options)
    if args.streaming:
        return train, held_out, [row["text"] for row in islice(train, STREAMED)], "a stream of documents"
    return train, held_out, train["text"], str(documents.count(train, held_out))


def build(
    args: TextArgs, texts: Iterable[str], architecture: str, auto_class: str = "AutoModelForMaskedLM"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the flags describe: a checkpoint, or a new model with a tokenizer that is trained on
    `texts` or taken from another checkpoint. architecture, auto_class: see `from_scratch`."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.max_seq_length, args.trust_remote_code, auto_class)
    vectors = load_vectors(args) if args.init_vectors else None
    if args.tokenizer_name:
        tokenizer = load_tokenizer(args.tokenizer_name, args.max_seq_length)
    else:
        tokenizer = TOKENIZERS[args.tokenizer](texts, args.vocab_size, args.max_seq_length)
    model = from_scratch(tokenizer, architecture, args.size, auto_class)
    if vectors is not None:
        known = begin_with(model, tokenizer, vectors)
        word_vectors.say_taken_over(known, len(tokenizer), args.init_vectors)
    return model, tokenizer


def load_vectors(args) -> KeyedVectors:
    """The vectors of --init_vectors. Raises BadInput if their dimension is not the model's width."""
    vectors, (_, width) = word_vectors.load(args.init_vectors)[0], SIZES[args.size]
    if vectors.vector_size != width:
        raise BadInput(
            f"--init_vectors {args.init_vectors}: vectors of {vectors.vector_size} dimensions for a model of width "
            f"{width}; choose another --size, or train them with recipes/word2vec.py --dimension {width}"
        )
    return vectors


def from_scratch(
    tokenizer: PreTrainedTokenizerBase, architecture: str, size: str, auto_class: str = "AutoModelForMaskedLM"
) -> PreTrainedModel:
    """A new model for texts up to the tokenizer's model_max_length. architecture: of ARCHITECTURES, or "electra". size:
    of SIZES. auto_class: the class of transformers that makes it."""
    import transformers

    layers, width = SIZES[size]
    given = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    if architecture == "modernbert":
        config = transformers.ModernBertConfig(intermediate_size=3 * width // 2, **given)  # as of its base model
    elif architecture == "electra":
        del given["cls_token_id"], given["sep_token_id"]
        config = transformers.ElectraConfig(embedding_size=width, intermediate_size=4 * width, **given)
    else:
        config = transformers.BertConfig(intermediate_size=4 * width, **given)
    sizes = f"--size {size}, a vocabulary of {len(tokenizer):,}, {tokenizer.model_max_length:,} positions"
    return memory.build(lambda: getattr(transformers, auto_class).from_config(config), sizes)


@torch.no_grad()
def begin_with(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vectors: KeyedVectors) -> int:
    """Initialise the embeddings of tokens that are whole words with their vectors, and all others except padding with
    noise of the same deviation. Returns the number of words with a vector."""
    table = model.get_input_embeddings().weight
    known = vectors.key_to_index
    words = [word if word in known else word.lower() for word in whole_words(tokenizer)]
    others = torch.tensor([word not in known for word in words])
    others[tokenizer.pad_token_id] = False
    found = word_vectors.take_over(table, words, vectors)
    if found:
        deviation = table[[i for i, word in enumerate(words) if word in known]].std()
        table[others] = torch.randn_like(table[others]) * deviation
    return found


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """For each id, the word that its token is, or "" for special tokens and pieces that continue a word."""
    tokens, special = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), set(tokenizer.all_special_tokens)
    if isinstance(tokenizer.backend_tokenizer.model, WordPiece):
        return ["" if token.startswith("##") or token in special else token for token in tokens]
    # byte-level and SentencePiece tokens that start a word begin with the space before it
    return [
        tokenizer.convert_tokens_to_string([token]).strip() if token[0] in "Ġ▁" and token not in special else ""
        for token in tokens
    ]


def from_pretrained(
    name: str, max_length: int, trust_remote_code: bool = False, auto_class: str = "AutoModelForMaskedLM"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any checkpoint of a masked language model, or of another class with such a tokenizer, and its tokenizer, for
    texts of at most max_length tokens. Raises BadInput if `name` is not one."""

    model, tokenizer = pretrained.load(name, trust_remote_code, auto_class=auto_class)
    check_tokenizer(tokenizer, f"--model_name_or_path {name}")
    if len(tokenizer) > model.config.vocab_size:
        raise BadInput(
            f"--model_name_or_path {name}: a tokenizer of {len(tokenizer)} tokens for a model of "
            f"{model.config.vocab_size}; they are not from the same checkpoint"
        )
    tokenizer.model_max_length = pretrained.longest(model, tokenizer)  # many tokenizers leave it unset
    if max_length > tokenizer.model_max_length:
        raise BadInput(f"--max_seq_length {max_length}: {name} takes {tokenizer.model_max_length} tokens at most")
    return model, tokenizer


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, for a new model. Raises BadInput if it is not suitable."""
    from transformers import AutoTokenizer

    pretrained.read_configs(name, f"--tokenizer_name {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged file raises many kinds
        raise BadInput(f"--tokenizer_name {name}: {first_line(error)}") from error
    remote_code.drop(None, tokenizer)
    check_tokenizer(tokenizer, f"--tokenizer_name {name}")
    tokenizer.model_max_length = max_length
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises BadInput, starting with `name`, if the tokenizer cannot be used for masked language modelling."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise BadInput(f"{name}: a {type(tokenizer).__name__}, not a tokenizer of the tokenizers library")
    for what in ("mask", "cls", "sep", "pad"):
        if tokenizer.special_tokens_map.get(f"{what}_token") is None:
            raise BadInput(
                f"{name}: its tokenizer has no {what} token, so it is not that of a masked language model; give that "
                "of a BERT, or leave out the flag to train one on your text"
            )
