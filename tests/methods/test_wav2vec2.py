from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import wav2vec2 as tiny
from torch.utils.data import default_collate
from transformers import HubertModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from mmssl.data.audio.spans import masked_spans
from mmssl.errors import BadInput
from mmssl.methods import wav2vec2
from mmssl.models import speech_encoders
from mmssl.models.dropout import set_dropout


@pytest.fixture
def method() -> wav2vec2.Wav2Vec2:
    return tiny.tiny().method


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    found = default_collate([tiny.Keyed()[i] for i in range(8)])
    found.pop("index")
    return found


def test_spans_are_whole_lie_in_the_recording_and_are_a_function_of_the_key():
    key, frames = torch.arange(4000) * 7919, torch.arange(4000) % 40 + 10
    masked = masked_spans(key, frames, 49, 0.065, 6)
    assert not masked[torch.arange(49) >= frames[:, None]].any() and (masked.sum(1) >= 6).all()
    edges = F.pad(masked.long(), (1, 1)).diff(dim=1)
    for row in range(50):
        starts, ends = (edges[row] == 1).nonzero()[:, 0], (edges[row] == -1).nonzero()[:, 0]
        assert (ends - starts >= 6).all()
    assert torch.equal(masked_spans(key[7:9], frames[7:9], 49, 0.065, 6), masked[7:9])
    long = masked_spans(key, torch.full_like(key, 49), 49, 0.065, 6)[:, 10:39].float().mean()
    assert long == pytest.approx(1 - (1 - 0.065) ** 6, abs=0.01)  # unless one of the six frames before begins a span


def test_contrastive_loss_is_that_of_the_softmax_written_out():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    codes = torch.arange(12).reshape(2, 6, 1)
    codes[0, 3] = codes[0, 1]  # of the same code: no negative
    masked = torch.tensor([[0, 1, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]]).bool()
    nats, right, candidates = wav2vec2.contrastive(predicted, target, codes, masked)
    others = {(0, 1): (2, 5), (0, 3): (2, 5), (0, 2): (1, 3, 5), (1, 0): (1,)}
    for (i, t), negatives in others.items():
        scores = [F.cosine_similarity(predicted[i, t], target[i, u], dim=0) / 0.1 for u in (t, *negatives)]
        assert nats[i, t] == pytest.approx(-torch.stack(scores).log_softmax(0)[0].item(), abs=1e-4)
        assert right[i, t] == (max(scores) == scores[0]) and candidates[i, t] == len(scores)


def test_the_noise_is_a_gumbel_distribution_and_a_function_of_the_key():
    noise = wav2vec2.gumbel(torch.arange(200) * 104729, 5, 2, 8)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02) and noise.isfinite().all()
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)
    assert torch.equal(wav2vec2.gumbel(torch.tensor([3 * 104729]), 5, 2, 8)[0], noise[3])


@pytest.mark.parametrize("drawn", [0.0, 1 - 2.0**-24])
def test_the_noise_is_finite_for_the_smallest_and_the_largest_draw(drawn, monkeypatch):
    monkeypatch.setattr(wav2vec2.draws, "uniform", lambda key, stream: torch.full((len(key), len(stream)), drawn))
    assert wav2vec2.gumbel(torch.tensor([1]), 1, 1, 2).isfinite().all()


def test_a_quantised_frame_is_one_entry_of_each_codebook_and_gradients_pass_to_all():
    torch.manual_seed(0)
    quantiser = wav2vec2.Quantiser(6, groups=2, entries=5, dim=3)
    frames = torch.randn(4, 6, requires_grad=True)
    quantised, probabilities, codes = quantiser(frames, None, temperature=2.0)
    expected = torch.cat([quantiser.codebooks[g, codes[:, g]] for g in range(2)], dim=1)
    torch.testing.assert_close(quantised, expected)
    assert torch.equal(codes, probabilities.argmax(-1)) and probabilities.shape == (4, 2, 5)
    quantised.sum().backward()
    assert frames.grad.abs().min() > 0


def test_diversity_is_nothing_where_all_entries_are_used_alike_and_falls_with_use(method):
    rows = {name: torch.zeros(4) for name in ("nats", "right", "chance", "trivial")} | {"features": torch.zeros(4, 2)}
    alike = method.loss(probabilities=torch.full((4, 16), 1 / 8), **rows)
    one = method.loss(probabilities=F.one_hot(torch.tensor([0]), 8).float().repeat(4, 2), **rows)
    assert alike.loss.item() == pytest.approx(0, abs=1e-6) and alike.metrics["codes_in_use"] == pytest.approx(8)
    assert one.loss.item() == pytest.approx(0.1 * 7 / 8) and one.metrics["codes_in_use"] == pytest.approx(1)


def test_an_entry_of_probability_zero_has_a_finite_gradient(method):
    rows = {name: torch.zeros(4) for name in ("nats", "right", "chance", "trivial")} | {"features": torch.zeros(4, 2)}
    probabilities = F.one_hot(torch.tensor([0]), 8).float().repeat(4, 2).requires_grad_()
    method.loss(probabilities=probabilities, **rows).loss.backward()
    assert probabilities.grad.isfinite().all()


def test_the_softmax_of_the_codebooks_cools_with_the_training(method, batch):
    heats = []
    method.quantiser.register_forward_pre_hook(lambda _, given: heats.append(given[2]))
    for progress in (0.0, 0.5, 1.0):
        method.progress = progress
        method.embed(**batch)
    assert heats == pytest.approx([2.0, 1.0, 0.5])


def test_padding_changes_nothing(method, batch):
    longer = batch | {"input_values": F.pad(batch["input_values"], (0, 50))}
    with torch.no_grad():
        for name, rows in method.eval().embed(**batch).items():
            torch.testing.assert_close(method.embed(**longer)[name], rows, atol=1e-5, rtol=1e-5, msg=name)


def test_training_normalises_recordings_as_the_exported_extractor_does(batch):
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=1000, do_normalize=True, return_attention_mask=True)
    whole = [wave[:n].cpu().numpy() for wave, n in zip(batch["input_values"], batch["lengths"], strict=True)]
    given = extractor(whole, sampling_rate=1000, padding=True, return_tensors="pt")
    samples, mask = speech_encoders.normalised(batch["input_values"], batch["lengths"])
    longest = int(batch["lengths"].max())
    torch.testing.assert_close(samples[:, :longest], given["input_values"], atol=1e-5, rtol=1e-5)
    assert torch.equal(mask[:, :longest], given["attention_mask"].long())


def test_frames_are_those_of_the_model():
    model, _ = speech_encoders.from_scratch("Wav2Vec2", 8000, 32, 1, 16, [16, 8, 4], [8, 5, 2])
    lengths = torch.tensor([speech_encoders.receptive_field(model.config), 4000, 5119])
    assert torch.equal(speech_encoders.frames(model.config, lengths), model._get_feat_extract_output_lengths(lengths))
    assert speech_encoders.frames(model.config, lengths)[0] == 1


def test_an_export_is_continued_from_and_others_are_refused(method, tmp_path):
    method.save_pretrained(tmp_path / "ours")
    tiny.encoder()[1].save_pretrained(tmp_path / "ours")
    model, _ = speech_encoders.from_pretrained(str(tmp_path / "ours"), "Wav2Vec2")
    torch.testing.assert_close(model.state_dict(), method.model.state_dict())
    with pytest.raises(BadInput, match="a Wav2Vec2Model, not a HubertModel"):
        speech_encoders.from_pretrained(str(tmp_path / "ours"), "Hubert")
    model.config.feat_extract_norm = "group"
    model.config.save_pretrained(tmp_path / "ours")
    with pytest.raises(BadInput, match="continue from one with layer norms|do not match"):
        speech_encoders.from_pretrained(str(tmp_path / "ours"), "Wav2Vec2")


@pytest.mark.parametrize("model_class", [Wav2Vec2Model, HubertModel])
@pytest.mark.parametrize(
    "settings",
    [{"apply_spec_augment": False}, {"mask_time_prob": 0.0}, {"mask_time_prob": 0.0, "mask_feature_prob": 0.5}],
)
def test_a_checkpoint_with_other_masks_or_none_hides_what_the_method_masks_and_nothing_else(
    model_class, settings, tmp_path
):
    kind = model_class.__name__.removesuffix("Model")
    model, extractor = tiny.encoder(kind)
    model.config.update(settings)
    model_class(model.config).save_pretrained(tmp_path / "given")
    extractor.save_pretrained(tmp_path / "given")
    model, _ = speech_encoders.from_pretrained(str(tmp_path / "given"), kind)
    set_dropout(model.train(), 0.0)
    waves = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(2, 39, dtype=torch.bool)
    some = none.clone()
    some[:, 5:15] = True
    plain, hidden, again = (model(waves, mask_time_indices=mask).last_hidden_state for mask in (none, some, some))
    assert torch.equal(hidden, again) and not torch.allclose(plain, hidden)
    model.save_pretrained(tmp_path / "ours")
    loaded = model_class.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.masked_spec_embed, model.masked_spec_embed)
