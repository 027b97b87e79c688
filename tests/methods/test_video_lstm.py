"""Video LSTM: what it reads and writes; its measures; plain loading; that it learns to predict."""

from __future__ import annotations

import math

import collapse
import pytest
import torch
from tiny.video_lstm import SIDE, TIME, Clips, method
from torch import Tensor
from transformers import AutoModel

from mmssl.evaluation.clip_prediction import ERROR, ClipPrediction
from mmssl.methods.video_lstm import VideoLSTM, cross_entropy, squared_error
from mmssl.models import remote_code


def batch(n: int = 4) -> dict[str, Tensor]:
    clips = Clips()
    return {"pixel_values": clips.pixels[:n], "key": torch.arange(n)}


def test_a_frame_of_grey_predicted_as_grey_costs_a_bit_for_each_pixel_whatever_the_channels():
    for channels in (1, 3):
        logits, target = torch.zeros(2, channels, 5, 4), torch.full((2, channels, 5, 4), 0.5)
        torch.testing.assert_close(cross_entropy(logits, target), torch.full((2,), 20 * math.log(2)))
        torch.testing.assert_close(squared_error(target, target * 0), torch.full((2,), 20 * 0.25))


@pytest.mark.parametrize("conditional", [False, True])
def test_predictions_do_not_depend_on_the_frames_that_are_predicted(conditional):
    one = method(conditional=conditional).eval()
    clips = batch()["pixel_values"].float() / 255
    seen = clips[:, : TIME // 2]
    future, past, features = one.write(seen)
    assert future.shape == past.shape == (4, TIME // 2, 3, SIDE, SIDE) and features.shape == (4, 32)
    other = seen.clone()
    other[:, 0] = 1 - other[:, 0]
    assert not torch.allclose(one.write(other)[0], future)  # but on those read, on all of them


def test_the_reconstruction_is_of_the_frames_read_the_last_one_first():
    one = method("autoencoder").eval()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(one.parameters(), lr=3e-3)
    for _ in range(150):
        one(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seen = batch()["pixel_values"][:, : TIME // 2].float() / 255
    written = one.write(seen)[1].sigmoid()
    error = [(written[:, 0] - seen[:, t]).square().mean() for t in (-1, 0)]
    assert error[0] < 0.7 * error[1]


def test_the_figure_shows_the_true_clip_and_as_many_written_frames():
    shown = method().eval().shown(**batch())
    assert shown["true"].shape == shown["written"].shape == (4, TIME, 3, SIDE, SIDE)
    assert shown["written"].min() >= 0 and shown["written"].max() <= 1


def test_it_loads_with_its_own_file_and_takes_clips_of_any_length(tmp_path):
    one = method().eval()
    one.save_pretrained(tmp_path)
    remote_code.add_own(tmp_path)
    assert (tmp_path / "video_lstm.py").exists()
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    clips = torch.rand(2, 9, 3, SIDE, SIDE)
    with torch.no_grad():
        found, expected = loaded(clips), one.model(clips)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    assert found.last_hidden_state.shape == (2, 9, 16)


def test_a_feature_depends_on_the_order_of_the_frames():
    model = method().eval().model
    clips = torch.rand(2, 5, 3, SIDE, SIDE)
    assert not torch.allclose(model(clips).pooler_output, model(clips.flip(1)).pooler_output, atol=1e-4)


def test_the_baselines_are_those_of_copying():
    data, one = Batches(), method()
    evaluation = ClipPrediction(data, data, 8, "")
    found = evaluation.baselines(one.eval())
    whole = data.pixels.float() / 255
    seen, future = whole[:, : TIME // 2], whole[:, TIME // 2 :]
    expected = (seen[:, -1:] - future).square().mean(2).sum((2, 3)).mean()
    assert found["last frame"][ERROR] == pytest.approx(expected.item(), rel=1e-5)
    assert found.keys() == {"input ignored", "last frame", "mean of the clip", "mean frame"}


class Batches(Clips):
    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[rows], "key": torch.tensor(rows), "index": torch.tensor(rows)}


def test_trained_on_moving_stripes_it_predicts_better_than_copying_the_last_frame():
    torch.manual_seed(0)
    one, data = method("prediction"), Batches()
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    for _ in range(150):
        one(**batch(24)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    one.eval()
    evaluation = ClipPrediction(data, data, 8, "")
    with torch.no_grad():
        error = evaluation(one)[ERROR]
    baselines = evaluation.baselines(one)
    assert error < 0.75 * baselines["last frame"][ERROR] and error < 0.75 * baselines["mean frame"][ERROR]


class Blind(VideoLSTM):
    def write(self, seen: Tensor):
        return super().write(torch.zeros_like(seen))


def blind() -> VideoLSTM:
    one = method()
    one.__class__ = Blind
    return one


def test_a_model_that_gets_no_frames_learns_nothing_and_the_monitor_says_so():
    assert "features have collapsed" in collapse.said(blind(), batch=batch(24))


def test_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(), batch=batch(24)) is None
