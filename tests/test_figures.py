import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import figures
from mmssl.errors import BadInput
from mmssl.training.output_dir import OutputDir

GREEN = (44, 160, 44)  # matplotlib's tab:green


def framed(file) -> np.ndarray:
    """Columns of the picture with a run of the frame's colour, left to right."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return np.flatnonzero((pixels == GREEN).all(-1).sum(0) > 40)


def grey(n: int) -> torch.Tensor:
    shades = torch.linspace(20, 230, n).to(torch.uint8)
    return shades[:, None, None, None].expand(n, 3, 16, 16)


def test_retrieval_grid_frames_the_own_image_where_it_stands(tmp_path):
    best = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.4, 0.5]])  # its own, image 0, comes first
    figures.retrieval_grid(grey(6), ["a text"], [0], best, tmp_path / "first.png")
    figures.retrieval_grid(grey(6), ["a text"], [0], best.flip(1).roll(1, 1), tmp_path / "other.png")
    figures.retrieval_grid(grey(6), ["a text"], [0], 1 - best, tmp_path / "absent.png")
    first, other = framed(tmp_path / "first.png"), framed(tmp_path / "other.png")
    assert len(first) and len(other) and len(framed(tmp_path / "absent.png")) == 0
    assert first.max() - first.min() < Image.open(tmp_path / "first.png").width / 5, "one frame only"


def test_retrieval_grid_takes_fewer_images_than_it_would_show(tmp_path):
    figures.retrieval_grid(grey(2), ["one", "two " * 60], [0, 1], torch.eye(2), tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").width > 300


@pytest.mark.parametrize("losses", [[3.0], [3.0, 2.0, 1.0], [-0.2, -0.9]])
def test_loss_curve_is_drawn_for_one_point_many_points_and_negative_losses(tmp_path, losses):
    lines = [{"step": 0, "eval_accuracy": 3.0}]
    lines += [{"step": i + 1, "loss": loss, "trivial_loss": 2.5} for i, loss in enumerate(losses)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figures.loss_curve(tmp_path / "log.jsonl", tmp_path / "figures" / "loss.png", "chance")
    pixels = np.asarray(Image.open(tmp_path / "figures" / "loss.png").convert("RGB"))
    inside = pixels[: int(0.7 * len(pixels))]  # above the legend
    assert ((inside == (31, 119, 180)).all(-1)).sum() > 20, "the curve is to be seen"


def test_a_logarithmic_axis_has_the_measured_numbers_and_no_formulas(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters stay letters
        points = [(54, [21.7]), (540, [25.0]), (5400, [30.0])]
        figures.accuracy_curves({"ours": points}, "training labels", tmp_path / "curve.svg", log=True)
    texts = re.findall(r"<text[^>]*>([^<]*)<", (tmp_path / "curve.svg").read_text())
    assert {"54", "540", "5,400"} <= set(texts) and "$" not in "".join(texts)


def test_the_only_point_of_a_short_run_is_drawn_whole(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 10, "loss": 6.7, "trivial_loss": 6.4}))
    figures.loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png", "chance")
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    rows, columns = np.nonzero((pixels[: int(0.7 * len(pixels))] == (31, 119, 180)).all(-1))
    assert np.ptp(rows) == np.ptp(columns), "a round dot"


def test_the_highest_point_of_nearly_equal_values_is_drawn_whole(tmp_path):
    figures.curves(
        {"trained": [2.1, 2.2], "chance": [2.1, 2.1]}, "steps ahead", "right", ["chance"], tmp_path / "curve.png"
    )
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    blue = (abs(pixels[:, int(0.9 * pixels.shape[1]) :] - (31, 119, 180)) < 10).all(-1)  # the last point
    assert blue.any(1).sum() >= 5


@pytest.mark.parametrize(("trivial", "caption"), [(2.5, "Training loss; dashed, chance."), (None, "Training loss.")])
def test_the_caption_of_a_loss_curve_names_a_dashed_line_only_where_there_is_one(tmp_path, trivial, caption):
    line = {"step": 1, "loss": 3.0} | ({"trivial_loss": trivial} if trivial else {})
    (tmp_path / "log.jsonl").write_text(json.dumps(line))
    assert figures.loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png", "chance") == caption


def test_picture_is_written_pixel_by_pixel(tmp_path):
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    figures.picture(pixels, tmp_path / "example.png")
    assert torch.equal(torch.from_numpy(np.array(Image.open(tmp_path / "example.png"))).permute(2, 0, 1), pixels)


def test_picture_grid_has_a_cell_for_each_way_to_show_each_picture(tmp_path):
    columns = {
        "image": torch.zeros(3, 3, 8, 8),
        "painted": torch.ones(3, 3, 8, 8) * torch.tensor([1.0, 0, 0]).view(3, 1, 1),
    }
    figures.picture_grid(columns, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    for colour in ((0, 0, 0), (255, 0, 0)):
        rows = (pixels == colour).all(-1).sum(1) > 40
        assert (np.diff(rows.astype(int)) == 1).sum() == 3, "three cells, one below the other"


def test_accuracy_curves_take_one_figure_or_several_for_a_point(tmp_path):
    curves = {"one": [(10, [50.0]), (100, [60.0])], "three": [(100, [70.0, 72.0, 71.0]), (10, [40.0, 42.0, 44.0])]}
    figures.accuracy_curves(curves, "training labels", tmp_path / "curves.png", log=True)
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (pixels == colour).all(-1).sum() > 50


def test_a_clip_is_animated_and_its_frames_are_kept(tmp_path):
    clip = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    figures.picture(clip, tmp_path / "clip.png")
    with Image.open(tmp_path / "clip.png") as file:
        assert file.n_frames == 5
        file.seek(3)
        assert np.array_equal(np.asarray(file.convert("RGB")), clip[3].permute(1, 2, 0).numpy())


def test_strips_and_animations_hold_every_version_of_every_clip(tmp_path):
    rows = {"true": torch.rand(2, 7, 3, 16, 16), "predicted": torch.rand(2, 7, 3, 16, 16)}
    figures.strips(rows, tmp_path / "strips.png")
    figures.animation(rows, tmp_path / "moving.gif")
    assert Image.open(tmp_path / "strips.png").width > 300
    with Image.open(tmp_path / "moving.gif") as file:
        assert file.n_frames == 7 and file.size == (2 * 2 * 18, 2 * 2 * 18)


def test_an_error_curve_of_one_step_is_drawn(tmp_path):
    figures.curves({"trained": [1.0], "last": [2.0]}, "frames ahead", "error", ["last"], tmp_path / "error.png")
    assert (tmp_path / "error.png").exists()


def test_a_figure_in_a_relative_directory_of_a_run_replaces_its_own_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = OutputDir("runs/one")
    run.register(["own.png"])
    for _ in range(2):
        figures._save(b"drawn", Path("runs/one/own.png"))
    assert run.files() == {"own.png"}
    Path("runs/one/mine.png").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"mine.png would be overwritten"):
        figures._save(b"drawn", Path("runs/one/mine.png"))
    assert Path("runs/one/mine.png").read_bytes() == b"mine"
