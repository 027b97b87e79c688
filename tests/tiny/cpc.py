from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Wav2Vec2FeatureExtractor

from mmssl.data.text.sentences import Documents
from mmssl.methods.cpc import CPC
from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioModel
from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel
from mmssl.models.word_vectors import tokenizer
from tiny import Tiny

RATE = 800  # Hz
WORDS = [f"{chr(97 + topic)}{i}" for topic in range(6) for i in range(5)]


class Tones(Dataset):
    """Gliding tones of two speakers, of different lengths, under noise."""

    SAMPLES = 240

    def __init__(self, n: int = 24, speakers: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        time, start = torch.arange(self.SAMPLES), 0.05 + 0.2 * torch.rand(n, 1, generator=generator)
        self.waves = torch.sin(time * start * (1 + time / 200)) + 0.1 * torch.randn(n, len(time), generator=generator)
        self.lengths = torch.randint(120, self.SAMPLES + 1, (n,), generator=generator)
        self.waves[time >= self.lengths[:, None]] = 0
        self.speakers = speakers

    def __len__(self) -> int:
        return len(self.waves)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = {"input_values": self.waves[i], "lengths": self.lengths[i], "index": i}
        return item | {"speaker": torch.tensor(i % 2)} if self.speakers else item


def audio_model() -> CpcAudioModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "context_size": 12, "conv_kernel": [8, 4], "conv_stride": [5, 2]}
    return CpcAudioModel(CpcAudioConfig(**shape, sampling_rate=RATE))


def audio(negatives: str) -> Tiny:
    method = CPC(audio_model(), steps=3, negatives=negatives)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False, return_attention_mask=True)
    data = Tones(speakers=negatives == "speaker")
    example = {"raw_speech": data.waves[:2], "sampling_rate": RATE}
    return Tiny(method, data, batch_size=8, processor=extractor, example=example)


def documents() -> list[str]:
    """Each of a topic of its own: what was said tells what will be."""
    generator, texts = torch.Generator().manual_seed(0), []
    for i in range(24):
        drawn = torch.randint(0, 5, (7, 4), generator=generator).tolist()
        texts.append(" ".join(f"{' '.join(WORDS[i % 6 * 5 + w] for w in words).capitalize()}." for words in drawn))
    return texts


def text() -> Tiny:
    words = tokenizer(WORDS, plain=True)
    torch.manual_seed(0)
    shape = {"vocab_size": len(words), "embedding_size": 8, "hidden_size": 16, "context_size": 12, "kernel_size": 3}
    method = CPC(CpcTextModel(CpcTextConfig(**shape, pad_token_id=words.pad_token_id)), steps=2, negatives="all")
    data = Documents(documents(), words, sentences=5, fewest=3, seed=0)
    return Tiny(method, data, batch_size=8, processor=words, example={"text": ["A0 b1, unknown.", "c2"]})


VARIANTS = {negatives: partial(audio, negatives) for negatives in ("within", "across", "speaker")} | {"text": text}
