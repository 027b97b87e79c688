"""wav2vec 2.0: parts of a recording are masked, and each masked frame is picked out among the recording's others.

Baevski et al. 2020, arXiv:2006.11477. Convolutions turn the waveform into frames; spans of them are masked before a
transformer; its output at a masked frame must select the quantised frame that was there among those of the other masked
frames (equation 3). The targets come from codebooks, chosen by a Gumbel softmax, which a diversity loss keeps in use
(equation 4). A Wav2Vec2Model of transformers. Differs: all other masked frames of the recording are negatives, none are
sampled; one with the same codes as the target is none; every recording counts the same; masks and Gumbel noise are
functions of a recording's key; no dropout, LayerDrop or penalty on the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.audio.spans import masked_spans
from mmssl.distributed import gather
from mmssl.method import Card, Method, Output
from mmssl.models import speech_encoders
from mmssl.models.dropout import set_dropout

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


NOISE = 1 << 24  # first stream of the Gumbel noise
EXCLUDED = -1e4  # score of what is not a candidate: probability 0, and a finite gradient
TEMPERATURE = 0.1  # kappa of equation 3
DIVERSITY = 0.1  # alpha of equation 2
HOTTEST, COLDEST = 2.0, 0.5  # the Gumbel softmax's temperatures at the start and at the end, of the base model


class Quantiser(nn.Module):
    """Each of `groups` codebooks contributes one of its `entries` vectors (product quantisation)."""

    def __init__(self, width: int, groups: int, entries: int, dim: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, groups * entries)
        self.codebooks = nn.Parameter(torch.rand(groups, entries, dim))
        nn.init.normal_(self.scores.weight, std=1.0)
        nn.init.zeros_(self.scores.bias)

    def forward(self, frames: Tensor, noise: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """(quantised (..., groups * dim), probabilities (..., groups, entries), codes (..., groups) int64).

        frames: (..., width). noise: (..., groups, entries), of a Gumbel distribution; None: the likeliest entries. The
        gradient is that of the softmax at `temperature` (the straight-through estimator).
        """
        scores = self.scores(frames).float().unflatten(-1, self.codebooks.shape[:2])
        noisy = scores if noise is None else scores + noise
        codes, soft = noisy.argmax(-1), (noisy / temperature).softmax(-1)
        chosen = F.one_hot(codes, scores.shape[-1]).to(soft.dtype) + soft - soft.detach()
        return torch.einsum("...gv,gvd->...gd", chosen, self.codebooks).flatten(-2), scores.softmax(-1), codes


def gumbel(key: Tensor, frames: int, groups: int, entries: int) -> Tensor:
    """(batch, frames, groups, entries) of a Gumbel distribution, a function of key: (batch,) int64."""
    stream = NOISE + torch.arange(frames * groups * entries, device=key.device)
    uniform = draws.uniform(key[:, None], stream).clamp(min=2.0**-25)  # not 0; a sum would round some up to 1
    return -(-uniform.log()).log().unflatten(1, (frames, groups, entries))


def contrastive(predicted: Tensor, target: Tensor, codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(nats, whether the own target has the largest score, number of candidates), all (batch, time), where masked.

    predicted, target: (batch, time, dim). codes: (batch, time, groups). masked: (batch, time) bool. Candidates of a
    frame are its own target and those of the other masked frames of its recording that have other codes.
    """
    scores = F.normalize(predicted, dim=-1) @ F.normalize(target, dim=-1).mT / TEMPERATURE
    own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    alike = (codes[:, :, None] == codes[:, None]).all(-1)
    candidate = own | (masked[:, None] & ~alike)
    scores = scores.masked_fill(~candidate, EXCLUDED)
    mine = scores.diagonal(dim1=1, dim2=2)
    best_other = scores.masked_fill(own, EXCLUDED).amax(-1)
    return scores.logsumexp(-1) - mine, mine > best_other, candidate.sum(-1)


class Wav2Vec2(Method):
    """
    model:   the encoder.
    share:   probability that a frame begins a masked span. span: its length in frames.
    groups:  number of codebooks. entries: of each. dim: in which predictions and targets are compared.
    """

    unit = "recordings"
    couples_samples = True  # the codebooks' use is that of the whole batch

    def __init__(
        self,
        model: Wav2Vec2Model,
        share: float = 0.065,  # section 4.2: p, and the span M
        span: int = 10,
        groups: int = 2,
        entries: int = 64,
        dim: int = 128,
    ) -> None:
        super().__init__()
        self.model, self.share, self.span = model, share, span
        self.quantiser = Quantiser(model.config.conv_dim[-1], groups, entries, dim // groups)
        self.of_targets = nn.Linear(dim // groups * groups, dim)
        self.of_predictions = nn.Linear(model.config.hidden_size, dim)
        set_dropout(model, 0.0)  # for exact gradients of micro-batches

    def embed(self, input_values: Tensor, lengths: Tensor, key: Tensor) -> dict[str, Tensor]:
        """input_values: (batch, samples), zero where padded. lengths: (batch,), samples without padding. key: (batch,)
        int64, from which masks and noise are drawn.

        nats, right, chance: (batch,), means over the masked frames. probabilities: (batch, groups, entries), of the
        codes there. features: (batch, width), the mean over frames.
        """
        samples, attention_mask = speech_encoders.normalised(input_values, lengths)
        frames = speech_encoders.frames(self.model.config, lengths)
        longest = int(speech_encoders.frames(self.model.config, torch.tensor(samples.shape[1])))
        masked = masked_spans(key, frames, longest, self.share, self.span)
        output = self.model(samples, attention_mask=attention_mask, mask_time_indices=masked)
        with torch.autocast(samples.device.type, enabled=False):
            groups, entries, _ = self.quantiser.codebooks.shape
            noise = gumbel(key, longest, groups, entries) if self.training else None
            heat = HOTTEST * (COLDEST / HOTTEST) ** self.progress
            quantised, probabilities, codes = self.quantiser(output.extract_features.float(), noise, heat)
            predicted, target = self.of_predictions(output.last_hidden_state.float()), self.of_targets(quantised)
            nats, right, candidates = contrastive(predicted, target, codes, masked)
            kept = torch.arange(longest, device=frames.device) < frames[:, None]
            columns = {"nats": nats, "right": right, "chance": 1 / candidates, "trivial": candidates.log()}
            rows = {name: speech_encoders.mean_over(c.float()[..., None], masked)[:, 0] for name, c in columns.items()}
            rows["probabilities"] = speech_encoders.mean_over(probabilities.flatten(2), masked)
            return rows | {"features": speech_encoders.mean_over(output.last_hidden_state.detach().float(), kept)}

    def loss(
        self,
        nats: Tensor,
        right: Tensor,
        chance: Tensor,
        trivial: Tensor,
        probabilities: Tensor,
        features: Tensor,
    ) -> Output:
        """All as `embed` returns them. The trivial loss is that of even odds and of evenly used codebooks."""
        groups, entries, _ = self.quantiser.codebooks.shape
        mean = gather(probabilities).mean(0).unflatten(0, (groups, entries))
        # the number of entries in use, for each codebook; 1e-7: the slope of x log(x) is infinite at 0
        perplexity = torch.exp(-(mean * (mean + 1e-7).log()).sum(-1))
        loss = nats.mean() + DIVERSITY * (1 - perplexity.mean() / entries)
        metrics = {"accuracy": right.mean(), "chance": chance.mean(), "codes_in_use": perplexity.mean()}
        metrics = {name: value.detach() for name, value in metrics.items()}
        return Output(loss, metrics, features.detach(), trivial.mean().detach())

    @property
    def card(self) -> Card:
        return Card(
            about="wav2vec 2.0: parts of a recording are masked, and each masked frame is picked out among the "
            "recording's others. The encoder is exported as a `Wav2Vec2Model`; the codebooks, to continue from, are in "
            "`pretraining/`.",
            task="audio-classification",
            limits=speech_encoders.LIMITS,
            trivial="chance: log(candidates)",
            snippets=speech_encoders.SNIPPETS,
            tags=("wav2vec2", "audio"),
        )
