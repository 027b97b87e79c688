"""Files that let sentence-transformers load a text encoder's directory: a text's vector is the mean over its tokens, or
its first token."""

from __future__ import annotations

import json
from pathlib import Path


def write_mean_pooling(directory: Path, dimension: int, max_length: int | None = None) -> None:
    """`write_pooling` of the mean over a text's tokens."""
    write_pooling(directory, "mean", dimension, max_length)


def write_pooling(directory: Path, pooling: str, dimension: int, max_length: int | None = None) -> None:
    """Write modules.json and the files it names, in a form that all releases of sentence-transformers read. pooling:
    "mean" or "cls". dimension: size of the encoder's hidden states. max_length: tokens; None for an encoder that takes
    texts of any length."""
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": dimension} | modes,
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    _write(directory, files)


def write_static_embedding(directory: Path) -> None:
    """The same for a table of word vectors, which is in the directory's model and tokenizer files."""
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    files = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": kind}],
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    _write(directory, files)


def _write(directory: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(content, indent=2))
