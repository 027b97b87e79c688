"""The losses against closed forms and a loop written out; causality; what the exports promise."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from tiny.cpc import RATE, VARIANTS, audio_model
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, default_collate

from mmssl.errors import BadInput
from mmssl.evaluation.prediction import Prediction
from mmssl.hub import export
from mmssl.method import HEADS
from mmssl.methods.cpc import CPC, EXCLUDED, across, everywhere, within
from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioForAudioClassification, CpcAudioModel
from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel


class Batches(Dataset):
    """The items of another, fetched by the batch."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return default_collate([self.data[row] for row in rows])


def batch(variant: str) -> tuple[CPC, dict[str, torch.Tensor]]:
    tiny = VARIANTS[variant]()
    rows = tiny.data.__getitems__(list(range(8))) if variant == "text" else None
    if rows is None:
        rows = Batches(tiny.data).__getitems__(list(range(8)))
    rows.pop("index")
    return tiny.method, rows


def sequences():
    generator = torch.Generator().manual_seed(0)
    prediction, encoded = torch.randn(2, 4, 6, 5, generator=generator)
    return prediction, encoded, torch.tensor([6, 4, 5, 3])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_scores_are_those_of_two_loops_written_out(k):
    prediction, encoded, frames = sequences()
    inside, _, valid = within(prediction, encoded, frames, k)
    between, _, also_valid = across(prediction, encoded, frames, k, encoded, frames, 0)
    anywhere, _, everywhere_valid = everywhere(prediction, encoded, frames, k, encoded, frames, 0)
    assert torch.equal(valid, also_valid) and torch.equal(valid, everywhere_valid)
    assert valid.sum() == (frames - k).clamp(min=0).sum()
    for b, t in valid.nonzero().tolist():
        for s in range(6):
            expected = prediction[b, t] @ encoded[b, s] / 5**0.5 if s < frames[b] else torch.tensor(EXCLUDED)
            torch.testing.assert_close(inside[b, t, s], expected)
        for a in range(4):
            expected = prediction[b, t] @ encoded[a, t + k] / 5**0.5 if t + k < frames[a] else torch.tensor(EXCLUDED)
            torch.testing.assert_close(between[b, t, a], expected)
            for s in range(6):
                expected = prediction[b, t] @ encoded[a, s] / 5**0.5 if s < frames[a] else torch.tensor(EXCLUDED)
                torch.testing.assert_close(anywhere[b, t, 6 * a + s], expected)


def test_the_true_one_is_where_it_is_said_to_be():
    _, encoded, frames = sequences()
    k = 2
    perfect = 100 * torch.nn.functional.normalize(encoded, dim=-1).roll(-k, 1)
    for scores, true, valid in (
        within(perfect, perfect.roll(k, 1), frames, k),
        across(perfect, perfect.roll(k, 1), frames, k, perfect.roll(k, 1), frames, 0),
        everywhere(perfect, perfect.roll(k, 1), frames, k, perfect.roll(k, 1), frames, 0),
    ):
        assert (scores.argmax(-1) == true)[valid].all()
        assert cross_entropy(scores[valid], true[valid]) < 1e-6


def test_a_sequence_of_another_speaker_is_no_candidate():
    prediction, encoded, frames = sequences()
    speaker = torch.tensor([0, 1, 0, 1])
    scores, _, valid = across(prediction, encoded, frames, 1, encoded, frames, 0, alike=speaker[:, None] == speaker)
    assert (scores[..., 0, :][valid[:, 0]] > EXCLUDED).sum(-1).tolist() == [2, 2, 2, 2]
    assert (scores[0, :, [1, 3]] == EXCLUDED).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_starts_at_the_log_of_the_number_of_candidates(variant):
    method, rows = batch(variant)
    output = method(**rows)
    assert output.loss.item() == pytest.approx(float(output.trivial_loss), rel=0.02)


def test_of_whole_sequences_that_number_is_their_length_or_the_batch():
    for negatives, candidates in (("within", 24), ("across", 8)):
        method, rows = batch(negatives)
        rows["lengths"] = torch.full_like(rows["lengths"], 240)
        assert float(method(**rows).trivial_loss) == pytest.approx(math.log(candidates), rel=1e-5)


def test_padding_changes_nothing():
    for negatives in ("within", "across"):
        method, rows = batch(negatives)
        torch.nn.init.normal_(method.predict.weight)
        before = method(**rows).loss
        for wave, n in zip(rows["input_values"], rows["lengths"].tolist(), strict=True):
            wave[n // 10 * 10 :] = 7.0
        torch.testing.assert_close(method(**rows).loss, before)


def test_a_batch_of_recordings_too_short_to_predict_is_refused():
    method, rows = batch("within")
    with pytest.raises(BadInput, match="too short to predict 3 ahead"):
        method(input_values=rows["input_values"][:, :30], lengths=torch.full((8,), 30))


def test_changing_the_future_of_a_recording_changes_no_past_context():
    model = audio_model().eval()
    wave = torch.randn(1, 400)
    for frame in (0, 7, 20):
        other = wave.clone()
        other[:, (frame + 1) * model.config.hop :] += 3 * torch.randn(1, 400 - (frame + 1) * model.config.hop)
        one, two = model(wave), model(other)
        for name in ("encoded", "last_hidden_state"):
            assert torch.equal(one[name][:, : frame + 1], two[name][:, : frame + 1])
            assert not torch.allclose(one[name][:, frame + 1], two[name][:, frame + 1])


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_sentences_have_the_same_vectors_in_documents_and_by_themselves(kernel_size):
    torch.manual_seed(0)
    shape = {"embedding_size": 6, "hidden_size": 5, "context_size": 4, "kernel_size": kernel_size}
    model = CpcTextModel(CpcTextConfig(vocab_size=20, **shape)).eval()
    mask = torch.arange(7) < torch.tensor([[7, 1, 4], [2, 0, 0]])[..., None]  # two sentences are padding
    ids = torch.randint(1, 20, mask.shape)
    encoded = model(ids, mask.long()).encoded
    alone = model(ids.flatten(0, 1), mask.flatten(0, 1).long()).pooler_output
    torch.testing.assert_close(encoded.flatten(0, 1)[mask.any(-1).flatten()], alone[mask.any(-1).flatten()])
    assert not encoded[1, 1:].any()


def test_changing_a_later_sentence_changes_no_past_context():
    method, rows = batch("text")
    other = dict(rows, input_ids=rows["input_ids"].clone())
    other["input_ids"][:, 3] = (rows["input_ids"][:, 3] + 1) % 30
    one, two = method.model(**rows).last_hidden_state, method.model(**other).last_hidden_state
    assert torch.equal(one[:, :3], two[:, :3]) and not torch.allclose(one[:, 3], two[:, 3])


def test_a_recording_has_as_many_frames_as_its_rate_in_hz_says():
    for shape in (
        {"sampling_rate": 16000},
        {"sampling_rate": 8000, "conv_kernel": [16, 8, 4], "conv_stride": [8, 5, 2]},
    ):
        config = CpcAudioConfig(hidden_size=8, context_size=4, **shape)
        assert config.frame_rate == 100.0
        second = CpcAudioModel(config)(torch.randn(1, config.sampling_rate))
        assert second.last_hidden_state.shape == (1, 100, 4) and second.encoded.shape == (1, 100, 8)


def test_the_vector_of_a_recording_is_the_mean_over_what_is_no_padding():
    model = audio_model().eval()
    waves = torch.randn(2, 200)
    mask = torch.ones(2, 200, dtype=torch.long)
    mask[1, 120:] = 0
    together = model(waves * mask, mask).pooler_output
    torch.testing.assert_close(together[1], model(waves[1:, :120]).pooler_output[0])
    torch.testing.assert_close(together[0], model(waves[:1]).last_hidden_state.mean(1)[0])


def test_the_export_of_sentences_is_a_sentence_transformer(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tiny, texts = VARIANTS["text"](), ["A0 b1, unknown.", "c2 " * 600]
    export.write(tiny.method, tiny.processor, tmp_path)
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    with torch.no_grad():
        expected = tiny.method.model.eval()(**tiny.processor(texts, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(torch.from_numpy(loaded.encode(texts)), expected)


def test_a_sentence_is_the_same_alone_padded_and_in_a_document():
    tiny = VARIANTS["text"]()
    model, words = tiny.method.model.eval(), tiny.processor
    texts = ["a1 a2 b3", "c1", "d4 e0 f2 a1"]
    padded = words(texts, padding=True, return_tensors="pt")
    vectors = model(**padded).pooler_output
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(model(**words([text], return_tensors="pt")).pooler_output[0], vector)
    document = model(**{name: value[None] for name, value in padded.items()})
    torch.testing.assert_close(document.encoded[0], vectors)
    torch.testing.assert_close(document.pooler_output[0], document.last_hidden_state[0].mean(0))


def test_before_training_accuracy_is_chance():
    tiny = VARIANTS["text"]()
    evaluation = Prediction(tiny.data, "sentences ahead", "all", batch_size=8)
    found = evaluation(tiny.method)
    assert found == pytest.approx(evaluation.chances) and found["accuracy"] == pytest.approx(100 / (8 * 5))


@pytest.mark.parametrize("variant", ["across", "speaker"])
def test_chance_is_a_number_where_no_sequence_is_as_long_as_the_batch_allows(variant):
    tiny = VARIANTS[variant]()
    tiny.data.lengths.clamp_(max=200)  # of 240: all have ended before
    evaluation = Prediction(Batches(tiny.data), "frames ahead", variant, batch_size=8)
    assert evaluation(tiny.method) == pytest.approx(evaluation.chances)
    assert all(100 / 8 <= chance <= 100 for chance in evaluation.chances.values())


FINE_TUNE_AND_CLASSIFY = f"""
import sys
sys.modules["mmssl"] = None  # as where it is not installed
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
place, tuned = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(place)
names = {{"id2label": {{0: "low", 1: "high"}}, "label2id": {{"low": 0, "high": 1}}}}
model = AutoModelForAudioClassification.from_pretrained(place, trust_remote_code=True, num_labels=2, **names)
time, optimizer = np.arange(400), torch.optim.Adam(model.parameters(), 1e-2)
waves = [np.sin(time * speed).astype(np.float32) for speed in (0.1, 1.0)]
inputs = extractor(waves, sampling_rate={RATE}, return_tensors="pt")
for _ in range(30):
    loss = model(**inputs, labels=torch.tensor([0, 1])).loss
    loss.backward(); optimizer.step(); optimizer.zero_grad()
model.save_pretrained(tuned); extractor.save_pretrained(tuned)
classify = pipeline("audio-classification", model=tuned, trust_remote_code=True)
print([classify(wave)[0]["label"] for wave in waves])
"""


def test_fine_tuned_without_mmssl_it_works_in_the_audio_classification_pipeline(tmp_path):
    tiny = VARIANTS["within"]()
    export.write(tiny.method, tiny.processor, tmp_path / "encoder")
    done = subprocess.run(
        [sys.executable, "-c", FINE_TUNE_AND_CLASSIFY, tmp_path / "encoder", tmp_path / "tuned"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("['low', 'high']")


def test_predictions_are_gone_on_with_as_far_as_they_are_known(tmp_path):
    method, _ = batch("within")
    torch.nn.init.normal_(method.predict.weight)
    method.save_pretrained(tmp_path)
    for steps in (2, 3, 5):
        other = CPC(audio_model(), steps=steps)
        other.continue_from(str(tmp_path))
        known = min(steps, 3) * other.dimension
        assert torch.equal(other.predict.weight[:known], method.predict.weight[:known])
        assert (other.predict.weight[known:] == 0).all()


def test_predictions_of_another_model_and_damaged_ones_are_refused_and_none_are_no_fault(tmp_path):
    method, _ = batch("within")
    method.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="of predict.weight does not fit its model"):
        CPC(CpcAudioModel(CpcAudioConfig(hidden_size=16, context_size=8))).continue_from(str(tmp_path))
    file = tmp_path / HEADS
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(BadInput, match="heads.safetensors is cut off or damaged"):
        method.continue_from(str(tmp_path))
    file.unlink()
    method.continue_from(str(tmp_path))
    assert (method.predict.weight == 0).all()


def test_a_classifier_begins_with_the_weights_of_the_encoder(tmp_path):
    model = audio_model()
    model.save_pretrained(tmp_path)
    classifier = CpcAudioForAudioClassification.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(classifier.cpc.state_dict()[name], value)
