"""Videos: how files are decoded, what is said of odd ones, which windows are drawn; 20 malformed files are named."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import videos
from PIL import Image
from small import adam, arguments, bits
from tiny import video_lstm
from transformers import ViTImageProcessorPil

from mmssl.arguments import TrainArgs
from mmssl.data.loader import Loader
from mmssl.data.video import clips, decoding
from mmssl.data.video.frames import Kept, Rows, Streamed
from mmssl.errors import BadInput
from mmssl.training import steps
from mmssl.training.loop import train

WHOLE = ViTImageProcessorPil(size={"height": 48, "width": 64}, resample=0)
SMALL = ViTImageProcessorPil(size={"height": 16, "width": 16})


@dataclass
class Args(clips.ClipArgs, TrainArgs):
    dataset: str = "moving_digits"


def brightness(found: decoding.Video) -> list[float]:
    return [float(np.median(frame[:, 12:20][frame[:, 12:20] > 90])) for frame in found.frames]


@pytest.mark.parametrize("form", videos.CODECS)
def test_every_kind_of_file_gives_its_frames_in_order(form):
    found = decoding.read(videos.video(form=form), WHOLE)
    assert found.frames.shape == (12, 3, 48, 64) and found.rate == pytest.approx(10, rel=0.05)
    expected = [120 + 10 * i for i in range(12)]
    assert brightness(found) == pytest.approx(expected, abs=25)
    assert decoding.length(videos.video(form=form)) == 12


def test_a_list_of_images_is_a_video():
    stored = []
    for frame in videos.frames():
        Image.fromarray(frame).save(file := io.BytesIO(), "PNG")
        stored.append(file.getvalue())
    found = decoding.read(stored, WHOLE, fps=5, own_rate=10)
    assert np.array_equal(found.frames[:, :, 0, 0], np.full((6, 3), 60)) and decoding.length(stored, 5, 10) == 6


def test_a_lower_rate_takes_every_other_frame_and_a_higher_one_repeats_them():
    content = videos.video()
    slow, fast = decoding.read(content, WHOLE, fps=5), decoding.read(content, WHOLE, fps=20)
    assert len(slow.frames) == 6 and len(fast.frames) == 24
    assert brightness(slow) == pytest.approx([120 + 20 * i for i in range(6)], abs=15)


def test_a_variable_rate_becomes_equal_times_and_is_noted():
    times = [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17]
    found = decoding.read(videos.video(times=times), WHOLE, fps=10)
    assert "variable frame rate" in found.notes and len(found.frames) == 18
    bright = brightness(found)
    assert np.ptp(bright[3:10]) < 6 and bright[10] > bright[9] + 4  # the fourth frame is shown for seven


def test_a_turned_video_is_upright_and_noted():
    upright, found = (decoding.read(content, SMALL) for content in (videos.video(), videos.turned(videos.video())))
    assert any("turned" in note for note in found.notes)
    expected = np.rot90(upright.frames, -1, (2, 3)).astype(int)
    assert np.abs(found.frames - expected).mean() < 12 and np.abs(found.frames - upright.frames.astype(int)).mean() > 12


def test_silent_files_are_noted_and_those_with_sound_are_not():
    assert "no sound" in decoding.read(videos.video(), SMALL).notes
    assert "no sound" not in decoding.read(videos.video(sound=True), SMALL).notes


def test_black_bars_are_cut_off_and_a_dark_scene_is_not():
    images = np.zeros((12, 48, 64, 3), np.uint8)
    images[:, 8:40] = videos.frames(12, 32, 64)
    found = decoding.read(videos.video(images), SMALL)
    assert "black bars" in found.notes and found.frames[:, :, 0].min() > 30
    night = np.zeros((12, 48, 64, 3), np.uint8)
    night[:, 20:28, 30:38] = 255
    assert "black bars" not in decoding.read(videos.video(night), SMALL).notes


@pytest.mark.parametrize("form", ["mp4", "webm", "avi"])
def test_a_window_is_the_same_frames_as_of_the_whole(form):
    content = videos.video(videos.frames(100, 32, 32) // 2, form)
    whole, part = decoding.read(content, SMALL), decoding.read(content, SMALL, first=80, count=7)
    assert np.array_equal(part.frames, whole.frames[80:87])


# ---------------------------------------------------------------- files that cannot be used


def malformed(place: Path) -> dict[str, object]:
    """20 rows that hold no video; name -> what is stored."""
    whole, picture = videos.video(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    other = io.BytesIO()
    Image.new("RGB", (9, 9)).save(other, "PNG")
    gif = videos.video(form="gif")
    avi, webm = videos.video(form="avi"), videos.video(form="webm")
    (place / "folder.mp4").mkdir()
    os.mkfifo(place / "pipe.mp4")
    files = {
        "empty.mp4": b"",
        "text.mp4": b"not a video at all " * 40,
        "playlist.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "live.mp4": b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "picture.mp4": picture.getvalue(),
        "cut.mp4": whole[: len(whole) // 3],
        "header.mp4": whole[:32],
        "holes.mp4": whole[:40] + bytes(len(whole) - 40),
        "sound.mp4": videos.sound_alone(),
        "one.gif": gif[:6],
        "cut.gif": gif[:40],
        "head.avi": avi[:100],
        "random.avi": b"RIFF\x00\x10\x00\x00AVI " + np.random.default_rng(0).bytes(4000),
        "head.webm": webm[:60],
        "random.webm": webm[:4] + np.random.default_rng(1).bytes(4000),
    }
    for name, content in files.items():
        (place / name).write_bytes(content)
    rows: dict[str, object] = {name: str(place / name) for name in files}
    return rows | {
        "folder.mp4": str(place / "folder.mp4"),
        "pipe.mp4": str(place / "pipe.mp4"),
        "missing.mp4": str(place / "missing.mp4"),
        "sizes": [picture.getvalue(), other.getvalue()],
        "broken image": [picture.getvalue(), b"broken"],
    }


def test_twenty_malformed_files_are_named_and_none_stops_the_others(tmp_path):
    bad = malformed(tmp_path)
    assert len(bad) == 20
    for name, stored in bad.items():
        with pytest.raises(BadInput) as raised:
            decoding.read(stored, SMALL)
        assert str(raised.value), name
    (tmp_path / "good.mp4").write_bytes(videos.video())
    files = [stored for stored in bad.values() if isinstance(stored, str)]
    rows = datasets.Dataset.from_dict({"video": [*files, str(tmp_path / "good.mp4")]})
    lists = datasets.Dataset.from_dict({"video": [stored for stored in bad.values() if not isinstance(stored, str)]})
    kept, streamed = Kept(Rows(rows, "video"), SMALL, 0.0, 1.0), Streamed(Rows(rows, "video"), SMALL, 0.0)
    assert kept.lengths.tolist() == [0] * len(files) + [12] and streamed.lengths[-1] == 12
    for row, file in enumerate(files):
        assert kept.broken[row].startswith(file)
        if row not in streamed.broken:  # its frames are counted, but none can be decoded
            with pytest.raises(BadInput, match=f"row {row}: {file}"):
                streamed.read(row, torch.tensor([0]))
        else:
            assert streamed.broken[row].startswith(file)
    with pytest.raises(BadInput, match="row 0: holds frames of different sizes; row 1: frame 1 cannot be decoded"):
        Kept(Rows(lists, "video"), SMALL, 0.0, 1.0)


def folder(place: Path, good: int, bad: dict[str, bytes]) -> Path:
    (place / "videos").mkdir()
    for i in range(good):
        (place / "videos" / f"good{i:02}.mp4").write_bytes(videos.video(videos.frames(12 + i % 3, 32, 32)))
    for name, content in bad.items():
        (place / "videos" / name).write_bytes(content)
    return place / "videos"


def rows_of(place: Path) -> Rows:
    return Rows(clips.load(str(place))["train"], "video")


def test_what_cannot_be_used_is_left_out_counted_and_named(tmp_path, caplog):
    place = folder(tmp_path, 30, {"broken.mp4": b"broken", "short.mp4": videos.video(videos.frames(3, 32, 32))})
    data = clips.Clips(Kept(rows_of(place), SMALL, 0.0, 1.0), 8, seed=0)
    said = " ".join(caplog.messages)
    assert "broken.mp4 is not a video" in said and "of fewer than 8 frames (row 31 (3 frames))" in said
    assert "no sound" in said and len(data) == 30
    assert clips.described(data, data)["trained_on"] == "30 clips in an epoch of 30 videos, without labels"


def test_too_many_broken_files_are_an_error(tmp_path):
    place = folder(tmp_path, 3, {"broken.mp4": b"broken", "broken too.mp4": b""})
    with pytest.raises(BadInput, match="broken.mp4 is not a video.*too many to leave out"):
        clips.Clips(Kept(rows_of(place), SMALL, 0.0, 1.0), 8)


def test_frames_beyond_the_budget_of_disk_are_refused_with_the_size_that_they_take(tmp_path):
    with pytest.raises(BadInput, match="GB as frames, more than --disk_gb 1e-05.*--streaming"):
        Kept(rows_of(folder(tmp_path, 3, {})), SMALL, 0.0, 1e-5)


def test_a_column_of_numbers_is_refused():
    with pytest.raises(BadInput, match="--video_column n holds Value"):
        Rows(datasets.Dataset.from_dict({"n": [1, 2]}), "n")


def test_a_folder_of_several_kinds_gives_labels_and_splits(tmp_path):
    for part, label, form in (("train", "a", "mp4"), ("train", "b", "webm"), ("test", "a", "gif")):
        (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / label / f"x.{form}").write_bytes(videos.video(form=form))
    parts = clips.load(str(tmp_path))
    assert parts["train"]["label"] == ["a", "b"] and parts["test"]["label"] == ["a"]


def test_the_video_feature_of_datasets_is_read_from_parquet(tmp_path):
    content = videos.video()
    rows = datasets.Dataset.from_dict({"video": [{"bytes": content, "path": "a.mp4"}] * 3})
    rows.cast_column("video", datasets.Video(decode=False)).to_parquet(tmp_path / "train.parquet")
    found = Kept(Rows(clips.load(str(tmp_path))["train"], "video"), SMALL, 0.0, 1.0)
    assert found.lengths.tolist() == [12, 12, 12] and not found.broken


# ---------------------------------------------------------------- windows


def test_streamed_clips_are_those_that_are_kept(tmp_path):
    rows = rows_of(folder(tmp_path, 4, {}))
    kept, streamed = (clips.Clips(f, 4, 2, seed=3) for f in (Kept(rows, SMALL, 0.0, 1.0), Streamed(rows, SMALL, 0.0)))
    for epoch in (0, 1):
        kept.set_epoch(epoch)
        streamed.set_epoch(epoch)
        one, other = (data.__getitems__(list(range(len(data)))) for data in (kept, streamed))
        assert all(torch.equal(one[name], other[name]) for name in one)


class Made:
    """Two videos of 40 frames; frame t shows the number t. The second moves in frames 20 to 30 alone."""

    def __init__(self) -> None:
        self.lengths, self.broken, self.size = torch.tensor([40, 40]), {}, (2, 2)

    def read(self, row, numbers):
        return numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2) + 100 * row

    def motion(self, row):
        changes = torch.ones(40)
        changes[0] = 0
        if row:
            changes[:20] = changes[30:] = 0
        return changes


def first_frames(data: clips.Clips, row: int) -> torch.Tensor:
    found = []
    for epoch in range(100):
        data.set_epoch(epoch)
        batch = data.__getitems__([i for i in range(len(data)) if data.rows[i] == row])
        found.append(batch["pixel_values"][:, 0, 0, 0, 0].int() - 100 * row)
    return torch.cat(found)


def test_a_window_lies_anywhere_in_its_video_and_another_epoch_has_others():
    starts = first_frames(clips.Clips(Made(), 8, seed=0), 0)
    assert starts.min() == 0 and starts.max() == 32 and len(set(starts.tolist())) == 33


def test_weighted_windows_lie_where_a_video_moves():
    starts = first_frames(clips.Clips(Made(), 8, seed=0, motion=2.0), 1)
    assert ((starts > 12) & (starts < 30)).float().mean() > 0.95
    assert 0.3 < ((first_frames(clips.Clips(Made(), 8, seed=0), 1) > 12).float().mean()) < 0.75


def test_windows_of_the_beginning_of_a_video_see_nothing_after_it():
    for motion in (0.0, 2.0):
        data = clips.Clips(Made(), 8, seed=0, motion=motion, beginning=0.7)
        assert len(data) == 6 and first_frames(data, 0).max() <= 20 and first_frames(data, 1).max() <= 20
    said = r"videos, their first 10%, of fewer than 8 frames \(row 0 \(4 frames\).* lower --frames"
    with pytest.raises(BadInput, match=said):
        clips.Clips(Made(), 8, seed=0, beginning=0.1)


def test_held_out_windows_follow_each_other_and_never_change():
    data = clips.Clips(Made(), 4, 2)
    batch = data.__getitems__(list(range(5)))
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[7 * i + s for s in (0, 2, 4, 6)] for i in range(5)]
    data.set_epoch(5)
    assert torch.equal(data.__getitems__([1])["pixel_values"], batch["pixel_values"][1:2])


def test_decoding_workers_give_the_batches_of_none_also_from_the_middle(tmp_path):
    rows = rows_of(folder(tmp_path, 6, {}))
    data = clips.Clips(Streamed(rows, SMALL, 0.0), 4, seed=1, motion=0.0)
    alone = list(Loader(data, 4, seed=1).epoch(1))
    helped = list(Loader(data, 4, seed=1, num_workers=2).epoch(1, start=2))
    assert len(helped) == len(alone) - 2 > 0
    for one, other in zip(alone[2:], helped, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_resume_with_decoding_workers_is_exact(tmp_path):
    rows = rows_of(folder(tmp_path, 6, {}))

    def run(workers: int, **flags) -> dict[str, bytes]:
        method = video_lstm.method()
        args = arguments(tmp_path / "run", max_steps=6, save_steps=4, **flags)
        data = clips.Clips(Streamed(rows, SMALL, 0.0), video_lstm.TIME, seed=1)
        loader = Loader(data, 4, seed=1, num_workers=workers)
        train(method, loader, args, [adam(method)], steps.standard)
        return bits(method)

    whole = run(2)
    middle = str(tmp_path / "run/checkpoints/step_00000004")  # one step into the second epoch
    assert run(2, resume_from_checkpoint=middle) == run(0, resume_from_checkpoint=middle) == whole


def test_flags_that_drawn_clips_have_no_use_for_are_refused():
    with pytest.raises(BadInput, match="--fps has no effect with --dataset moving_digits"):
        clips.find(Args(fps=5.0)).decoded(SMALL)
