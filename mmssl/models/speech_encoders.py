"""Encoders of speech from transformers: strided convolutions over the waveform, then a transformer over their frames.

Wav2Vec2Model and HubertModel share this form and its config. New ones are small, with layer norms in place of the group
norm over time, so that a frame does not depend on padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.arguments import Flags, flag
from mmssl.data import sources
from mmssl.data.audio import recordings
from mmssl.data.audio.recordings import Recordings
from mmssl.errors import BadInput
from mmssl.models import memory, pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor


LIMITS = "The model was trained on these recordings alone; test it on your own before you rely on it."
SNIPPETS = {
    "Features of a recording": """
import torch
from transformers import AutoFeatureExtractor, AutoModel

name = "..."
extractor, model = AutoFeatureExtractor.from_pretrained(name), AutoModel.from_pretrained(name).eval()
recording = torch.randn(2 * extractor.sampling_rate).numpy()  # two seconds of your own, at that rate
with torch.no_grad():
    features = model(**extractor(recording, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
print(features.last_hidden_state.shape)
""",
    "A classifier of recordings, to be fine-tuned; then `pipeline` takes its directory": """
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

name = "..."
extractor = AutoFeatureExtractor.from_pretrained(name)
model = AutoModelForAudioClassification.from_pretrained(name, num_labels=10)
classify = pipeline("audio-classification", model=model, feature_extractor=extractor)
""",
}


@dataclass
class SpeechArgs(Flags):
    """Flags of recipes that train such an encoder: its size, and the recordings."""

    model_name_or_path: str | None = flag(None, "continue from this encoder, a directory or a Hub id")
    dataset: str = flag("voices", "voices (built in, synthetic), a folder, Parquet, a Hub id; several with commas")
    audio_column: str | None = flag(None, "column of recordings; default: the first column with a usual name")
    held_out: int = flag(1000, "recordings held out if the data has no test split (at most 10 %)", at_least=1)
    crop_seconds: float = flag(0.64, "seconds of a recording in a batch, at most", above=0, at_most=3600)
    sampling_rate: int = flag(
        8000, "sampling rate in Hz; other recordings are resampled", at_least=1000, at_most=768_000, of_new_model=True
    )
    width: int = flag(
        128, "width of the transformer, a multiple of 32; base models: 768", at_least=32, at_most=16384,
        of_new_model=True,
    )  # fmt: skip
    layers: int = flag(4, "layers of the transformer; base models: 12", at_least=1, at_most=200, of_new_model=True)
    conv_width: int = flag(
        128, "channels of the convolutions; base models: 512", at_least=1, at_most=16384, of_new_model=True
    )
    conv_kernel: list[int] = flag(
        [16, 8, 4], "kernel size of each convolution; base models, at 16 kHz: 10 3 3 3 3 2 2", at_least=1,
        at_most=10**5, of_new_model=True,
    )  # fmt: skip
    conv_stride: list[int] = flag(
        [8, 5, 2], "strides; their product: samples per frame; base models: 5 2 2 2 2 2 2", at_least=1, at_most=10**5,
        of_new_model=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.conv_kernel) != len(self.conv_stride):
            raise BadInput(f"--conv_kernel has {len(self.conv_kernel)} layers, --conv_stride {len(self.conv_stride)}")
        if self.width % 32:
            raise BadInput(f"--width {self.width} is not a multiple of 32, the width of an attention head")


def build(args: SpeechArgs, kind: str) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor]:
    """The encoder and feature extractor that the flags describe. kind: "Wav2Vec2" or "Hubert"."""
    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, kind)
    return from_scratch(
        kind, args.sampling_rate, args.width, args.layers, args.conv_width, args.conv_kernel, args.conv_stride
    )


def from_scratch(
    kind: str,
    sampling_rate: int,
    width: int,
    layers: int,
    conv_width: int,
    conv_kernel: list[int],
    conv_stride: list[int],
) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor]:
    """A new encoder, with attention heads of width 32 (64 from 512 on) and MLPs of four times the width."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // (64 if width >= 512 and width % 64 == 0 else 32),
        intermediate_size=4 * width,
        conv_dim=[conv_width] * len(conv_kernel),
        conv_kernel=list(conv_kernel),
        conv_stride=list(conv_stride),
        num_feat_extract_layers=len(conv_kernel),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=32,  # frames
        num_conv_pos_embedding_groups=16,
        layerdrop=0.0,
    )
    sizes = f"--width {width}, --layers {layers}, --conv_width {conv_width}, --conv_kernel {conv_kernel}"
    model = memory.build(lambda: getattr(transformers, f"{kind}Model")(config), sizes)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=True, return_attention_mask=True
    )
    return model, extractor


def from_pretrained(name: str, kind: str) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor]:
    """Any checkpoint of that kind. Raises BadInput if `name` is not one, or is one that padding changes."""
    flag = f"--model_name_or_path {name}"
    model, processor = pretrained.load(name)
    extractor = getattr(processor, "feature_extractor", processor)
    if type(model).__name__ != f"{kind}Model" or not hasattr(extractor, "sampling_rate"):
        raise BadInput(f"{flag} is a {type(model).__name__}, not a {kind}Model with its feature extractor")
    if model.config.feat_extract_norm != "layer" or not extractor.do_normalize:
        raise BadInput(
            f"{flag} normalises over the whole recording with its padding (feat_extract_norm "
            f"{model.config.feat_extract_norm!r}), so that a recording would depend on its batch; continue from one "
            "with layer norms, such as the large models"
        )
    model.config.layerdrop = 0.0
    only_our_masks(model)
    extractor.return_attention_mask = True
    return model, extractor


def only_our_masks(model: PreTrainedModel) -> None:
    """The model hides the frames of `mask_time_indices`, and draws no mask of its own; many checkpoints that were
    fine-tuned do the opposite. The config of the export says so, too: without it, the export would lack the vector that
    hidden frames become."""
    config = model.config
    config.apply_spec_augment, config.mask_feature_prob = True, 0.0
    config.mask_time_prob = config.mask_time_prob or type(config)().mask_time_prob
    if not hasattr(model, "masked_spec_embed"):  # transformers makes none if both probabilities are 0
        model.masked_spec_embed = torch.nn.Parameter(torch.rand(config.hidden_size))


def recordings_of(
    args: SpeechArgs, model: PreTrainedModel, extractor: Wav2Vec2FeatureExtractor, shortest: int
) -> tuple[Recordings, Recordings]:
    """(training, held out): crops with keys. shortest: frames; shorter recordings are left out.
    Raises BadInput if a crop would be no longer than that."""
    config, rate = model.config, extractor.sampling_rate
    samples = receptive_field(config) + (shortest - 1) * math.prod(config.conv_stride)
    crop = round(args.crop_seconds * rate)
    if crop < samples:
        raise BadInput(
            f"--crop_seconds {args.crop_seconds} holds fewer than {shortest} frames, of which some are masked and some "
            f"not; give at least {samples / rate:.2f}"
        )
    train_rows, test_rows = sources.split(recordings.load(args.dataset, args.audio_column), args.held_out)
    size = {"sampling_rate": rate, "crop": crop, "shortest": samples, "keys": True}
    training = recordings.Recordings(train_rows, **size, seed=args.seed)
    return training, recordings.Recordings(test_rows, **size, what="held-out recordings")


def described(training: Recordings, held_out: Recordings) -> dict:
    """The arguments of `pretrain` that say what it is trained on, and examples."""
    examples = held_out.__getitems__([0, len(held_out) - 1])["input_values"]
    return {
        "trained_on": f"{len(training.rows):,} recordings, {training.seconds / 60:.1f} minutes, no labels",
        "held_out": f"{len(held_out):,} recordings",
        "example": {"raw_speech": examples, "sampling_rate": training.rate},
    }


def receptive_field(config) -> int:
    """Samples that one frame is computed from."""
    field, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field, step = field + (kernel - 1) * step, step * stride
    return field


def frames(config, lengths: Tensor) -> Tensor:
    """The number of frames of recordings of so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        lengths = (lengths - kernel) // stride + 1
    return lengths.clamp(min=0)


def normalised(input_values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(samples with mean 0 and variance 1 over each recording, zero where padded; attention_mask), both (batch,
    samples): what Wav2Vec2FeatureExtractor gives."""
    mask = torch.arange(input_values.shape[1], device=lengths.device) < lengths[:, None]
    kept, count = input_values * mask, lengths[:, None]
    mean = kept.sum(1, keepdim=True) / count
    variance = ((kept - mean).square() * mask).sum(1, keepdim=True) / count
    return (kept - mean) / (variance + 1e-7).sqrt() * mask, mask.long()


def mean_over(states: Tensor, keep: Tensor) -> Tensor:
    """(batch, dim): the mean over the frames where `keep`, (batch, time), is True. states: (batch, time, dim)."""
    keep = keep.to(states.dtype)
    return (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
