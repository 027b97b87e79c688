"""Encoders of texts and their tokenizers: new ones by name and size, or checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers.models import WordPiece

from mmssl.arguments import TrainArgs, flag, layers_by_width
from mmssl.data.text import documents
from mmssl.data.text.tokens import train_bpe, train_wordpiece
from mmssl.errors import BadInput, first_line
from mmssl.models import memory, pretrained, remote_code, word_vectors

if TYPE_CHECKING:
    from gensim.models import KeyedVectors
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

# of any of them, with mean pooling
SNIPPETS = {
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


@dataclass
class TextArgs(documents.DocumentArgs, TrainArgs):
    """Flags that the recipes of text encoders share: the text, and the encoder and its tokenizer."""

    model_name_or_path: str | None = flag(None, "a checkpoint to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    size: str = flag(
        "mini",
        f"size of a new model, layers x width: {layers_by_width(SIZES)}",
        SIZES, of_new_model=True,
    )  # fmt: skip
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
    model, tokenizer = pretrained.load_language_model(name, max_length, trust_remote_code, auto_class)
    check_tokenizer(tokenizer, f"--model_name_or_path {name}")
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
    pretrained.check_tokenizer(tokenizer, name)
    for what in ("mask", "cls", "sep", "pad"):
        if tokenizer.special_tokens_map.get(f"{what}_token") is None:
            raise BadInput(
                f"{name}: its tokenizer has no {what} token, so it is not that of a masked language model; give that "
                "of a BERT, or leave out the flag to train one on your text"
            )
