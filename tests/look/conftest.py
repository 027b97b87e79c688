"""Small finished runs of each modality, and data for them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_clip
import tiny_encoders
import torch
from PIL import Image

from mmssl.look.run import Run

EVIL = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"
COLOURS = {"red square": (220, 20, 20), "blue circle": (20, 20, 220), "green triangles": (20, 160, 20)}


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("look")


def finished(directory: Path, dataset: str | None = None, **args) -> Path:
    """What a run leaves beside its model."""
    results = {"trained": {"loss": 1.0, "R@1": 50.0}, "untrained": {"loss": 2.0}}
    metrics = {"results": results, "args": {"dataset": dataset, **args}}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    lines = [{"step": step, "epoch": 0, "loss": 4.0 / step, "trivial_loss": 3.0} for step in range(1, 11)]
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.fixture(scope="session")
def captioned(place: Path) -> str:
    """Images with captions and classes; one caption is an attack on the page."""
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        name = list(COLOURS)[i % 3]
        pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-20, 20, (24, 24, 3)), 0, 255)
        caption = EVIL if i < 3 else f"a {name}"
        image, label = Image.fromarray(pixels.astype(np.uint8)), EVIL if i % 3 else name
        rows.append({"image": image, "caption": caption, "label": label})
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.Value("string")}
    file = place / "captioned" / "train.parquet"
    file.parent.mkdir()
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(file)
    return str(file.parent)


@pytest.fixture(scope="session")
def clip_run(place: Path, captioned: str) -> Run:
    (place / "clip").mkdir()
    return Run(str(finished(tiny_clip.export(place / "clip"), captioned)), captioned, use_cpu=True)


@pytest.fixture(scope="session")
def image_data(place: Path) -> str:
    return tiny_encoders.images(place / "image_data")


@pytest.fixture(scope="session")
def vit_run(place: Path, image_data: str) -> Run:
    directory = tiny_encoders.vit(place / "vit")
    return Run(str(finished(Path(directory), image_data)), use_cpu=True)


@pytest.fixture(scope="session")
def mae_run(place: Path, image_data: str) -> Run:
    from mmssl.data.images.views import WHOLE, Views
    from mmssl.methods import mae

    torch.manual_seed(0)
    model, processor = mae.from_scratch(mae.Size(32, 1, 2, 32, 1, 2), 16, 4)
    method = mae.MAE(model, Views([WHOLE], processor.image_mean, processor.image_std))
    directory = place / "mae"
    method.save_pretrained(directory)
    processor.save_pretrained(directory)
    return Run(str(finished(directory, image_data)), use_cpu=True)


@pytest.fixture(scope="session")
def audio_run(place: Path) -> Run:
    data = tiny_encoders.sounds(place / "sound_data")
    return Run(str(finished(Path(tiny_encoders.wav2vec(place / "wav2vec")), data)), use_cpu=True)


@pytest.fixture(scope="session")
def bert_run(place: Path) -> Run:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    torch.manual_seed(0)
    tokenizer = BertTokenizer().train_new_from_iterator([" ".join(tiny_encoders.WORDS.values())], 200)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    directory = Path(tiny_encoders.save(place / "bert", BertForMaskedLM(config), tokenizer))
    return Run(str(finished(directory, tiny_encoders.texts(place / "text_data"))), use_cpu=True)


@pytest.fixture(scope="session")
def gpt_run(place: Path) -> Run:
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmssl.data.text.tokens import train_causal_bpe

    torch.manual_seed(0)
    tokenizer = train_causal_bpe([" ".join(tiny_encoders.WORDS.values())], 300, 32)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=32, **ends)
    return Run(str(finished(Path(tiny_encoders.save(place / "gpt", GPT2LMHeadModel(config), tokenizer)))), use_cpu=True)


@pytest.fixture(scope="session")
def words_run(place: Path) -> Run:
    """Vectors in which king - man + woman is queen."""
    from gensim.models import KeyedVectors

    vectors = KeyedVectors(4)
    table = {"man": (1, 0, 0, 0), "woman": (0, 1, 0, 0), "king": (1, 0, 1, 0), "queen": (0, 1, 1, 0),
             "water": (0, 0, 0, 1), "king's": (1, 0, 0.9, 0.1)}  # fmt: skip
    vectors.add_vectors(list(table), np.array(list(table.values()), np.float32))
    directory = place / "words"
    directory.mkdir()
    vectors.save_word2vec_format(str(directory / "vectors.bin"), binary=True)
    (directory / "config.json").write_text('{"model_type": "mmssl_word2vec"}')
    return Run(str(finished(directory)), use_cpu=True)
