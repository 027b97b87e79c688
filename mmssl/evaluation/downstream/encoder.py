"""Any encoder of images, video, texts or audio: one vector per example, from the last layer or from every layer."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
import transformers  # its classes are imported on first use
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmssl import durable, progress
from mmssl.data import sources
from mmssl.data.images.decoding import normalisation
from mmssl.data.images.views import WHOLE, View, Views
from mmssl.data.labelled import CLIP_FRAMES, VISUAL, Labelled
from mmssl.data.video.clips import viewed
from mmssl.errors import BadInput, first_line, not_written
from mmssl.evaluation.finite import finite
from mmssl.models import pretrained
from mmssl.models.image_encoders import to_vit
from mmssl.plain_text import say

# the class of a processor, and its name as part of a combined one; text last, because models of images and sound often
# have a tokenizer too
MODALITIES = {
    "image": ("ImageProcessingMixin", "image_processor"),
    "audio": ("FeatureExtractionMixin", "feature_extractor"),
    "text": ("PreTrainedTokenizerBase", "tokenizer"),
}
TOWERS = {"vision": "image", "text": "text"}


class Encoder(nn.Module):
    """
    model:     from AutoModel, or one tower of such a model.
    processor: the image processor, tokenizer or feature extractor of the checkpoint.
    modality:  "image", "video", "text" or "audio". An encoder of images takes clips, too: its output is then the mean
               over their frames.
    pooling:   "mean" over the tokens without padding; the "first" token; "concat" (images only), all tokens
               concatenated, which keeps positions; or the model's own "pooler".
    view:      augmentation of images in training; otherwise the whole image is used.
    """

    def __init__(self, model: nn.Module, processor, modality: str, pooling: str, view: View = WHOLE) -> None:
        from mmssl.models.patch_encoder import exact_on_one_pixel

        super().__init__()
        self.model = exact_on_one_pixel(model) if modality in VISUAL else model
        self.processor, self.modality = processor, modality
        self.pooling, self.view = pooling, view
        self.views = Views([view], *normalisation(processor)) if modality in VISUAL else None

    @property
    def frames(self) -> int:
        """Of a clip."""
        return getattr(self.model.config, "num_frames", CLIP_FRAMES)

    def forward(self, lengths: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """(batch, width); with "concat", (batch, tokens * width). inputs, lengths: as from data.labelled. In training,
        images need a key: (batch,) int64, from which their views are drawn."""
        prepared, clips = self._of_frames(self._prepared(inputs))
        found = self._of_last(self.model(**prepared), inputs, lengths)
        return found if clips is None else found.unflatten(0, clips).mean(1)

    def _of_last(self, output, inputs: dict[str, Tensor], lengths: Tensor | None) -> Tensor:
        if self.pooling == "pooler":
            if getattr(output, "pooler_output", None) is None:
                raise BadInput(f"--pooling pooler: a {type(self.model).__name__} has none; use mean")
            return output.pooler_output.flatten(1)
        return self._pool(output.last_hidden_state, inputs, lengths)

    def layers(self, lengths: Tensor | None = None, **inputs: Tensor) -> list[Tensor]:
        """(batch, width) of the embeddings and of each layer."""
        prepared, clips = self._of_frames(self._prepared(inputs))
        hidden = getattr(self.model(**prepared, output_hidden_states=True), "hidden_states", None)
        if not hidden:
            raise BadInput(f"--layers all: a {type(self.model).__name__} does not return its layers; use last")
        pooled = [self._pool(states, inputs, lengths) for states in hidden]
        return pooled if clips is None else [each.unflatten(0, clips).mean(1) for each in pooled]

    def _of_frames(self, prepared: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
        """(what the model takes; (clips, frames of a clip) if it takes images and is given clips)."""
        pixels = prepared.get("pixel_values")
        if self.modality != "image" or pixels.ndim != 5:
            return prepared, None
        return prepared | {"pixel_values": pixels.flatten(0, 1)}, tuple(pixels.shape[:2])

    def untrained(self, seed: int = 0) -> Encoder:
        """The same architecture with new weights."""
        torch.manual_seed(seed)
        model = type(self.model)(self.model.config)
        return Encoder(model, self.processor, self.modality, self.pooling, self.view).eval()

    def _prepared(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: value for name, value in inputs.items() if name not in ("index", "key")}
        if self.views is not None:
            pixels = given["pixel_values"]
            key = inputs["key"] if self.training else None
            if pixels.ndim == 5:
                shown = viewed(self.views, pixels, key)
            else:
                shown = self.views.whole(pixels) if key is None else self.views(pixels, key)[0]
            given["pixel_values"] = shown
        return given

    def _pool(self, states: Tensor, inputs: dict[str, Tensor], lengths: Tensor | None) -> Tensor:
        """states: (batch, tokens, width), or (batch, width, height, width) of a convolutional network."""
        if self.pooling == "concat":
            return states.flatten(1)
        if states.ndim == 4:
            return states.mean((2, 3))
        if self.pooling == "first":
            return states[:, 0]
        tokens = torch.arange(states.shape[1], device=states.device)
        if self.modality == "text":
            keep = inputs["attention_mask"].bool()
        elif lengths is not None and inputs[self.processor.model_input_names[0]].shape[1] == lengths.max():
            # the model reads samples: a recording has the same fraction of the longest one's frames as of its samples
            keep = tokens < (states.shape[1] * lengths / lengths.max()).ceil().to(states.device)[:, None]
        else:
            return states.mean(1)
        weight = keep[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def load(
    name: str, pooling: str = "auto", tower: str = "vision", trust_remote_code: bool = False, view: View = WHOLE
) -> Encoder:
    """An export of this toolkit, or any checkpoint that AutoModel and a processor class of transformers load.

    pooling: "auto" is the pooler for one tower of an image–text model, which was trained with it, else the mean.
    tower: "vision" or "text", for a model with both. view: augmentation of images in training.
    Raises BadInput if `name` is not an encoder.
    """
    model, processor = pretrained.load(name, trust_remote_code, may_lack="" if pooling == "pooler" else "pooler")
    if isinstance(model, transformers.ViTMAEModel):
        model = to_vit(model)
    both = hasattr(model, "vision_model") and hasattr(model, "text_model")
    if both:
        model, wanted = getattr(model, f"{tower}_model"), TOWERS[tower]
    for modality, (kind, part) in MODALITIES.items():
        whole = getattr(processor, part, processor)
        if isinstance(whole, getattr(transformers, kind)) and (not both or modality == wanted):
            if modality == "image" and getattr(model, "input_modalities", None) == "video":
                modality = "video"
            if pooling == "concat" and modality not in VISUAL:
                raise BadInput(f"--pooling concat: the number of tokens differs between {modality}s; use mean")
            if modality == "text":
                whole.model_max_length = pretrained.longest(model, whole)  # many tokenizers leave it unset
            pooled = pooling if pooling != "auto" else "pooler" if both else "mean"
            return Encoder(model, whole, modality, pooled, view).eval()
    raise BadInput(
        f"--model_name_or_path {name}: its {type(processor).__name__} does not read images, texts or audio; an image "
        "processor, a tokenizer or a feature extractor is needed"
    )


@torch.no_grad()
def features(
    encoder: Encoder, data: Labelled, batch_size: int = 64, layers: str = "last", cached: bool = True
) -> list[Tensor]:
    """(examples, width) fp32 on the CPU, for the last layer; with layers="all", for the embeddings and each layer.

    Computed once per model and data, and kept in MMSSL_HOME/features, which may be deleted. Raises BadInput if the
    model cannot take the inputs, or if a feature is not finite.
    """
    file = sources.home() / "features" / f"{_identity(encoder, data, layers)}.safetensors"
    if cached and (found := _kept(file)):
        return [finite(layer, f"features, layer {i} of {len(found)}") for i, layer in enumerate(found, start=1)]
    device, inputs = next(encoder.parameters()).device, data.inputs
    batches, rows = data.batches(batch_size), []
    was_training = encoder.training
    encoder.eval()
    for chunk in progress.bar(iterable=batches, desc="features", unit="batch", disable=len(batches) < 20):
        batch = {name: value.to(device) for name, value in inputs.__getitems__(chunk.tolist()).items()}
        try:
            found = [encoder(**batch)] if layers == "last" else encoder.layers(**batch)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            kind = type(encoder.model).__name__
            raise BadInput(f"a {kind} gives no features of these {encoder.modality}s: {first_line(error)}") from error
        rows.append([layer.float().cpu() for layer in found])
    encoder.train(was_training)
    back = torch.cat(batches).argsort()
    result = [torch.cat(parts)[back] for parts in zip(*rows, strict=True)]
    for i, layer in enumerate(result):
        finite(layer, f"features of a {type(encoder.model).__name__}, layer {i + 1} of {len(result)}")
    if cached:
        _keep(file, result)
    return result


def _kept(file: Path) -> list[Tensor]:
    """The features of each layer that `_keep` wrote; [] if there are none, or if the file is damaged."""
    try:
        found = load_file(file)
        return [found[str(i)] for i in range(len(found))]
    except (OSError, SafetensorError, KeyError):
        return []


def _keep(file: Path, layers: list[Tensor]) -> None:
    """A full disk costs the next evaluation some time; this one has its features."""
    try:
        durable.replace(file, save({str(i): layer.contiguous() for i, layer in enumerate(layers)}))
    except OSError as error:
        say(f"warning: the features are not kept: {not_written(file, error)}", sys.stderr)


def _identity(encoder: Encoder, data: Labelled, layers: str) -> str:
    digest = hashlib.sha256(f"{data.identity} {encoder.pooling} {layers} {encoder.processor}".encode())
    digest.update(encoder.model.config.to_json_string().encode())  # the same weights compute other things with it
    if hasattr(encoder.processor, "get_vocab"):  # a tokenizer; its text above does not name its tokens
        fast = getattr(encoder.processor, "backend_tokenizer", None)
        digest.update((fast.to_str() if fast else repr(sorted(encoder.processor.get_vocab().items()))).encode())
    for name, value in encoder.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
