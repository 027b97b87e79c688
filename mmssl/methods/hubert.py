"""HuBERT: parts of a recording are masked, and the cluster of each masked frame is predicted.

Hsu et al. 2021, arXiv:2106.07447. The clusters are those of k-means, first on cepstral coefficients, then on the
features of a middle layer of the encoder itself, which are clustered again every few epochs. A HubertModel of
transformers. Differs: the encoder is trained on where the paper starts a new one for each clustering; a frozen copy of
its first layers gives the features of a batch and thus its targets, instead of stored labels; every recording counts
the same; masks are functions of a recording's key; no dropout or LayerDrop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.audio.mfcc import DIM, mfcc
from mmssl.data.audio.spans import masked_spans
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.methods.deepcluster import kmeans, nearest
from mmssl.models import speech_encoders
from mmssl.models.dropout import set_dropout

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import HubertModel

    from mmssl.data.audio.recordings import Recordings


CHUNK = 64  # crops that are encoded at once
CLUSTERED = 100_000  # frames that k-means sees, at most
TEMPERATURE = 0.1  # tau of equation 3


class Hubert(Method):
    """
    model:      the encoder.
    recordings: the training data, with keys.
    clusters:   number of targets.
    layer:      the features that are clustered are those after so many layers of the encoder.
    every:      epochs between two clusterings.
    acoustic:   whether the first targets are clusters of cepstral coefficients, for a new encoder, or of its features.
    share:      probability that a frame begins a masked span. span: its length in frames.
    dim:        in which predictions are compared with the clusters' embeddings.
    """

    unit = "recordings"

    def __init__(
        self,
        model: HubertModel,
        recordings: Recordings,
        clusters: int = 100,
        layer: int = 2,
        every: int = 10,
        acoustic: bool = True,
        share: float = 0.08,  # section 4.2: p, and the span l
        span: int = 10,
        dim: int = 128,
    ) -> None:
        super().__init__()
        if not 0 < layer <= model.config.num_hidden_layers:
            raise BadInput(f"--cluster_layer {layer}: the encoder has {model.config.num_hidden_layers} layers")
        self.model, self.recordings, self.every, self.acoustic = model, recordings, every, acoustic
        self.share, self.span = share, span
        width, config = model.config.hidden_size, model.config
        self.window, self.hop = speech_encoders.receptive_field(config), math.prod(config.conv_stride)
        self.of_predictions, self.embeddings = nn.Linear(width, dim), nn.Parameter(torch.randn(clusters, dim))
        set_dropout(model, 0.0)  # for exact gradients of micro-batches
        self.labeller = copy.deepcopy(model).requires_grad_(False)
        del self.labeller.encoder.layers[layer:]
        self.register_buffer("on_features", torch.tensor(not acoustic))
        for name, size in (("mfcc", DIM), ("feature", width)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_deviation", torch.ones(size))
            self.register_buffer(f"{name}_centroids", torch.randn(clusters, size))
        self.register_buffer("usage", torch.full((clusters,), 1 / clusters))

    def start_epoch(self, epoch: int, accelerator: Accelerator, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if epoch % self.every:
            return
        self.cluster(epoch)
        for optimizer in optimizers:
            for parameter in (*self.of_predictions.parameters(), self.embeddings):
                optimizer.state.pop(parameter, None)

    @torch.no_grad()
    def cluster(self, epoch: int) -> None:
        """New clusters, and new weights to predict them with. Every process computes all of it from the same crops, and
        so gets the same. Raises BadInput if the features are not finite, or fewer than the clusters."""
        self.on_features.fill_(not self.acoustic or epoch > 0)
        current = self.model.state_dict()
        self.labeller.load_state_dict({name: current[name] for name in self.labeller.state_dict()})
        points = self._points(epoch)
        if not points.isfinite().all():
            raise BadInput(
                f"the features of the recordings are not finite before epoch {epoch}: the training has diverged. Lower "
                "--learning_rate, or set --max_grad_norm"
            )
        mean, deviation, centroids = self._clusters()
        if len(points) < len(centroids):
            raise BadInput(f"--clusters {len(centroids)}: more clusters than the {len(points):,} frames of the data")
        mean.copy_(points.mean(0))
        deviation.copy_(points.std(0).clamp(min=1e-6))
        found, labels = kmeans((points - mean) / deviation, len(centroids), epoch)
        centroids.copy_(found)
        self.usage.copy_(torch.bincount(labels, minlength=len(found)) / len(labels))
        generator, width = torch.Generator().manual_seed(epoch), self.of_predictions.in_features
        for parameter, scale in ((self.embeddings, 1.0), (self.of_predictions.weight, width**-0.5)):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        self.of_predictions.bias.zero_()

    def _points(self, epoch: int) -> Tensor:
        """(frames, dim): what is clustered, of at most CLUSTERED frames of crops from all over the data."""
        recordings = copy.copy(self.recordings)
        recordings.set_epoch(epoch)
        per_crop = max(1, (recordings.crop - self.window) // self.hop + 1)
        count = min(len(recordings), max(1, CLUSTERED // per_crop))
        chosen, parts = torch.linspace(0, len(recordings) - 1, count).long(), []
        for some in chosen.split(CHUNK):
            batch = recordings.__getitems__(some.tolist())
            waves, lengths = (batch[name].to(self.usage.device) for name in ("input_values", "lengths"))
            parts.append(self.described(*speech_encoders.normalised(waves, lengths), self.frames(lengths)))
        return torch.cat(parts)

    def described(self, samples: Tensor, attention_mask: Tensor, frames: Tensor) -> Tensor:
        """(frames of all recordings, dim) fp32: what is clustered. samples: (batch, samples), normalised. frames:
        (batch,), without padding."""
        with torch.no_grad(), torch.autocast(samples.device.type, enabled=False):
            if self.on_features:
                found = self.labeller.eval()(samples, attention_mask=attention_mask).last_hidden_state
            else:
                found = mfcc(samples, frames, self.recordings.rate, self.window, self.hop)
            return found[torch.arange(found.shape[1], device=frames.device) < frames[:, None]]

    def forward(self, input_values: Tensor, lengths: Tensor, key: Tensor) -> Output:
        """input_values: (batch, samples), zero where padded. lengths: (batch,), samples without padding. key: (batch,)
        int64, from which masks are drawn."""
        samples, attention_mask = speech_encoders.normalised(input_values, lengths)
        frames = self.frames(lengths)
        longest = int(self.frames(torch.tensor(samples.shape[1])))
        masked = masked_spans(key, frames, longest, self.share, self.span)
        kept = torch.arange(longest, device=frames.device) < frames[:, None]
        labels = torch.zeros_like(kept, dtype=torch.long)
        labels[kept] = self.labels(self.described(samples, attention_mask, frames))
        states = self.model(samples, attention_mask=attention_mask, mask_time_indices=masked).last_hidden_state
        targets = labels[masked]
        with torch.autocast(samples.device.type, enabled=False):
            predicted = F.normalize(self.of_predictions(states[masked].float()), dim=-1)
            scores = predicted @ F.normalize(self.embeddings.float(), dim=-1).T / TEMPERATURE
            # the mean over a recording's masked frames, then over recordings
            weight = (masked / masked.sum(1, keepdim=True))[masked] / len(masked)
            loss = F.cross_entropy(scores, targets, reduction="none") @ weight
            trivial = -self.usage.clamp(min=1e-9).log()[targets] @ weight
            right = (scores.argmax(1) == targets).float() @ weight
        metrics = {"accuracy": right.detach(), "chance": self.usage.max().detach().clone()}
        return Output(loss, metrics, speech_encoders.mean_over(states.detach().float(), kept), trivial)

    def labels(self, points: Tensor) -> Tensor:
        """(frames,) int64: the nearest cluster. points: (frames, dim)."""
        mean, deviation, centroids = self._clusters()
        return nearest((points - mean) / deviation, centroids)

    def frames(self, lengths: Tensor) -> Tensor:
        return speech_encoders.frames(self.model.config, lengths)

    def _clusters(self) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, deviation, centroids) of what is clustered now."""
        kind = "feature" if self.on_features else "mfcc"
        return tuple(getattr(self, f"{kind}_{name}") for name in ("mean", "deviation", "centroids"))

    @property
    def card(self) -> Card:
        return Card(
            about="HuBERT: parts of a recording are masked, and the cluster of each masked frame is predicted: first "
            "clusters of cepstral coefficients, then of the encoder's own features. The encoder is exported as a "
            "`HubertModel`; a further run clusters its features again.",
            task="audio-classification",
            limits=speech_encoders.LIMITS,
            trivial="a model that knows only the clusters' sizes",
            snippets=speech_encoders.SNIPPETS,
            tags=("hubert", "audio"),
        )

    def _heads(self) -> dict[str, Tensor]:
        """Nothing: clusters and what predicts them are made again at the start of a run, perhaps of other data."""
        return {}
