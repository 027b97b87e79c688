from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from device import accelerator
from scipy.fft import dct
from tiny import hubert as tiny
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmssl.data.audio.mfcc import COEFFICIENTS, mfcc
from mmssl.data.audio.spans import masked_spans
from mmssl.errors import BadInput
from mmssl.methods.hubert import Hubert
from mmssl.models import speech_encoders


@pytest.fixture
def method() -> Hubert:
    return tiny.method(every=2)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    found = tiny.Stored().__getitems__(list(range(8)))
    found.pop("index")
    return found


def test_mfcc_are_those_of_transformers_spectrogram_and_their_differences():
    samples, frames = torch.randn(2, 800, generator=torch.Generator().manual_seed(0)), torch.tensor([8, 5])
    found = mfcc(samples, frames, 8000, window=200, hop=80)
    filters = mel_filter_bank(129, 40, 20.0, 4000, 8000)
    for i in range(2):
        bands = spectrogram(
            samples[i].double().cpu().numpy(), window_function(200, "hann"), 200, 80, 256, power=2.0, center=False,
            mel_filters=filters, mel_floor=1e-8, log_mel="log",
        )  # fmt: skip
        static = torch.from_numpy(dct(bands.T, norm="ortho")[:, :COEFFICIENTS]).float()
        n = frames[i]
        torch.testing.assert_close(found[i, :n, :COEFFICIENTS], static[:n], atol=2e-2, rtol=1e-3)
        first = found[i, :n, COEFFICIENTS : 2 * COEFFICIENTS]
        torch.testing.assert_close(first[1:-1], (static[2:n] - static[: n - 2]) / 2, atol=2e-2, rtol=1e-3)


def test_loss_is_the_cross_entropy_of_masked_frames_written_out(method, batch):
    method.eval()
    with torch.no_grad():
        output = method(**batch)
        samples, mask = speech_encoders.normalised(batch["input_values"], batch["lengths"])
        frames, losses = method.frames(batch["lengths"]), []
        masked = masked_spans(batch["key"], frames, int(method.frames(torch.tensor(240))), 0.08, 4)
        states = method.model(samples, attention_mask=mask, mask_time_indices=masked).last_hidden_state
        described = method.described(samples, mask, frames).split(frames.tolist())
        for i in range(8):
            hidden, targets = masked[i, : frames[i]], method.labels(described[i])
            scores = F.cosine_similarity(
                method.of_predictions(states[i, : frames[i]][hidden])[:, None], method.embeddings[None], dim=-1
            )
            losses.append(F.cross_entropy(scores / 0.1, targets[hidden]))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_first_targets_are_clusters_of_mfcc_and_later_ones_of_the_encoders_own_features(method, batch):
    optimizers = [torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)]
    samples, mask = speech_encoders.normalised(batch["input_values"], batch["lengths"])
    given, seen = (samples, mask, method.frames(batch["lengths"])), []
    for epoch in range(3):
        method.start_epoch(epoch, accelerator(), optimizers)
        seen.append(method.labels(method.described(*given)))
        method(**batch).loss.backward()
        optimizers[0].step()
        assert method.on_features == (epoch == 2)  # every two epochs
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert method.embeddings in optimizers[0].state and len(seen[2].unique()) > 1


def test_targets_stay_the_same_while_the_encoder_is_trained_between_two_clusterings(batch):
    method = tiny.method(acoustic=False)
    samples, mask = speech_encoders.normalised(batch["input_values"], batch["lengths"])
    given = samples, mask, method.frames(batch["lengths"])
    before = method.labels(method.described(*given))
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(method.labels(method.described(*given)), before)
    method.cluster(1)
    assert not torch.equal(method.labels(method.described(*given)), before)


def test_the_features_that_are_clustered_are_those_after_the_layer(method, batch):
    method.on_features.fill_(True)
    samples, mask = speech_encoders.normalised(batch["input_values"], batch["lengths"])
    method.cluster(2)
    found = method.described(samples, mask, method.frames(batch["lengths"]))
    model, hidden = method.model.eval(), []
    model.encoder.layers[0].register_forward_hook(lambda *given: hidden.append(given[2]))
    with torch.no_grad():
        model(samples, attention_mask=mask)
    states = hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]
    expected = model.encoder.layer_norm(states)[0, : method.frames(batch["lengths"])[0]]
    torch.testing.assert_close(found[: len(expected)], expected.detach())


def test_the_trivial_loss_is_the_entropy_of_clusters_of_equal_size(method, batch):
    method.usage.fill_(1 / 6)
    output = method(**batch)
    assert output.trivial_loss == pytest.approx(torch.log(torch.tensor(6.0)).item(), rel=1e-5)
    assert output.metrics["chance"] == pytest.approx(1 / 6)


def test_padding_changes_nothing(method, batch):
    longer = batch | {"input_values": F.pad(batch["input_values"], (0, 50))}
    with torch.no_grad():
        torch.testing.assert_close(method.eval()(**longer).loss, method(**batch).loss)


def test_what_cannot_be_clustered_is_refused(method):
    with pytest.raises(BadInput, match="--cluster_layer 3: the encoder has 2 layers"):
        Hubert(method.model, tiny.Stored(), layer=3)
    with pytest.raises(BadInput, match=r"--clusters 5000: more clusters than the [\d,]+ frames"):
        Hubert(method.model, tiny.Stored(), clusters=5000, layer=1).cluster(0)
    with torch.no_grad():
        method.model.encoder.layer_norm.weight[0] = torch.nan
    method.on_features.fill_(True)
    with pytest.raises(BadInput, match="not finite before epoch 2: the training has diverged"):
        method.cluster(2)
