"""Directories of small random encoders of each modality, and labelled data for each, in which the class can be told."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import soundfile
import tiny_clip
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

WORDS = {"animal": "cat dog horse bird", "food": "bread soup apple rice", "place": "house river city road"}


def save(directory: Path, model, processor) -> str:
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def vit(directory: Path) -> str:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return save(directory, ViTModel(config, add_pooling_layer=False), processor)


def resnet(directory: Path) -> str:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
    return save(directory, ResNetModel(config), ViTImageProcessorPil(size={"height": 16, "width": 16}))


def bert(directory: Path) -> str:
    torch.manual_seed(0)
    tokenizer = BertTokenizer().train_new_from_iterator([" ".join(WORDS.values())], 200)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return save(directory, BertModel(config, add_pooling_layer=False), tokenizer)


def wav2vec(directory: Path) -> str:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(32, 32),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return save(directory, Wav2Vec2Model(config), Wav2Vec2FeatureExtractor(sampling_rate=4000))


def clip(directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    return str(tiny_clip.export(directory))


def images(directory: Path, n: int = 60) -> str:
    """Noise, redder or bluer."""
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        pixels = rng.integers(0, 120, (16, 16, 3))
        pixels[..., 2 * (i % 2)] += 120
        rows.append({"image": Image.fromarray(pixels.astype(np.uint8)), "label": ("red", "blue")[i % 2]})
    return _write(directory, rows, datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}))


def texts(directory: Path, n: int = 60) -> str:
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        label = list(WORDS)[i % 3]
        rows.append({"text": " ".join(rng.choice(WORDS[label].split(), rng.integers(2, 9))), "label": label})
    return _write(directory, rows)


def sounds(directory: Path, n: int = 40) -> str:
    """Tones of 300 or 900 Hz, of several lengths, at 8 kHz, by two voices."""
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        time = np.arange(rng.integers(1600, 3200)) / 8000
        wave = np.sin(2 * np.pi * (300, 900)[i % 2] * time) + 0.1 * rng.standard_normal(len(time))
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.5 * wave, 8000, format="FLAC")
        audio = {"bytes": buffer.getvalue(), "path": f"{i}.flac"}
        rows.append({"audio": audio, "label": i % 2, "speaker": ("ann", "bob")[i // 2 % 2]})
    return _write(directory, rows)


def _write(directory: Path, rows: list[dict], features: datasets.Features | None = None) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_list(rows, features=features).train_test_split(test_size=len(rows) // 3, seed=0)
    for part in ("train", "test"):
        data[part].to_parquet(directory / f"{part}.parquet")
    return str(directory)
