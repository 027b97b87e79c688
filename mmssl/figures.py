"""Figures of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten, wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl import durable
from mmssl.errors import not_written
from mmssl.training.log import read
from mmssl.training.output_dir import OutputDir

RIGHT = "tab:green"
FRAME_MS = 150  # milliseconds that a frame of an animation is shown
GAP = 2  # px between the frames of a strip


def _pyplot():
    """matplotlib.pyplot without a display, imported when the first figure is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a caption with two dollar signs is no formula
    import matplotlib.pyplot as plt

    return plt


def picture(pixels: Tensor, file: Path) -> None:
    """Write one image unchanged, or a clip, animated. pixels: (3, height, width) or (time, 3, height, width) uint8."""
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in (pixels if pixels.ndim == 4 else [pixels])]
    drawn, moving = io.BytesIO(), {"save_all": True, "append_images": frames[1:], "duration": FRAME_MS, "loop": 0}
    frames[0].save(drawn, format=file.suffix[1:], **(moving if len(frames) > 1 else {}))
    _save(drawn.getvalue(), file)


def _from_zero(axes) -> None:
    """The vertical axis begins at 0, as does its margin: that of matplotlib counts from the lowest value, and cuts
    points in half where all values are alike."""
    if (highest := axes.dataLim.y1) > 0:
        axes.set_ylim(0, 1.08 * highest)


def loss_curve(log: Path, file: Path, trivial: str) -> str:
    """Loss by step, from log.jsonl; dashed: the trivial solution's, if it is known. trivial: label of the dashed line.
    Returns the caption."""
    plt = _pyplot()

    lines = [line for line in read(log) if "loss" in line]
    chance = [(line["step"], line["trivial_loss"]) for line in lines if "trivial_loss" in line]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    marker = "o" if len(lines) == 1 else None  # a line of one point is invisible
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], marker=marker, label="training loss")
    if chance:
        axes.plot(*zip(*chance, strict=True), "--", color="grey", marker=marker, label=fill(trivial, 60))
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.margins(y=0.1)
    if all(line["loss"] >= 0 for line in lines):
        _from_zero(axes)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) == 1:
        axes.set_xticks([lines[0]["step"]])
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no step 9.6
    axes.legend(frameon=False, loc="best" if len(lines) > 1 else "lower left")  # "best" sees lines alone
    _write(figure, file)
    return f"Training loss; dashed, {trivial}." if chance else "Training loss."


def retrieval_grid(
    pixels: Tensor, queries: Sequence[str], own: Sequence[int], similarity: Tensor, file: Path, shown: int = 5
) -> None:
    """A row for each text: its own image, then its nearest images, best first, with a frame around its own.

    pixels: (images, 3, height, width) uint8. own: index of each query's image. similarity: (queries, images).
    """
    plt = _pyplot()

    nearest = similarity.topk(min(shown, len(pixels)))[1].tolist()
    own_similarity = similarity.gather(1, torch.as_tensor(own)[:, None])
    place = 1 + (similarity > own_similarity).sum(1)
    figure, grid = plt.subplots(
        len(queries),
        len(nearest[0]) + 3,  # text, own image, a gap, the nearest ones
        figsize=(1.1 * len(nearest[0]) + 4.2, 1.15 * len(queries) + 0.4),
        width_ratios=[2.4, 1, 0.35] + [1] * len(nearest[0]),
        squeeze=False,
    )
    for row, query, right, images, rank in zip(grid, queries, own, nearest, place.tolist(), strict=True):
        text, mine, gap, *found = row
        title = "\n".join(wrap(shorten(query, 90), 26))
        text.text(1, 0.5, f"{title}\nrank {rank}", ha="right", va="center", fontsize=9)
        for blank in (text, gap):
            blank.set_axis_off()
        for axes, image in zip((mine, *found), (right, *images), strict=True):
            axes.imshow(pixels[image].permute(1, 2, 0))
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RIGHT, linewidth=4, visible=axes is not mine and image == right)
    grid[0, 1].set_title("true image", fontsize=9)
    grid[0, 3].set_title("nearest first", fontsize=9, loc="left")
    _write(figure, file)


def accuracy_curves(
    curves: dict[str, list[tuple[float, list[float]]]], xlabel: str, file: Path, log: bool = False
) -> None:
    """Accuracy in per cent, mean and deviation over seeds, one line per name that has points. curves: name -> [(x, one
    value per seed)]."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name, points in ((name, points) for name, points in curves.items() if points):
        x, values = zip(*sorted(points), strict=True)
        y, spread = [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(x, y, spread, marker="o", markersize=4, capsize=3, label=name)
    if log:  # with the measured points as ticks: powers of ten are formulas, which _pyplot switches off
        axes.set_xscale("log")
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
        axes.minorticks_off()
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no layer 0.5
    axes.set(xlabel=xlabel, ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    _write(figure, file)


def ranking(rows: dict[str, dict[str, float]], file: Path) -> None:
    """A line for each name, with a dot for each of its results in per cent. rows: name -> result -> value."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(7, 0.28 * len(rows) + 1.4))
    for result in dict.fromkeys(result for values in rows.values() for result in values):
        places = [(values[result], i) for i, values in enumerate(rows.values()) if result in values]
        axes.scatter(*zip(*places, strict=True), label=result, s=22)
    axes.set_yticks(range(len(rows)), [name[-40:] for name in rows])  # of a long path its end
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set(xlabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _write(figure, file)


def affinities(matrix: np.ndarray, sources: list[str], targets: list[str], chosen: list[int], file: Path) -> None:
    """Left, the matrix; right, a line from each target's chosen source, as wide as their affinity. matrix: (sources,
    targets). chosen: for each target, the row of its source."""
    plt = _pyplot()

    tall = 0.36 * max(len(sources), len(targets)) + 2.2
    figure, (left, right) = plt.subplots(1, 2, figsize=(0.6 * len(targets) + 9, tall), width_ratios=[1.2, 1])
    shown = left.imshow(matrix, cmap="viridis", vmin=0, aspect="auto")
    names = [name[-28:] for name in sources], [name[-28:] for name in targets]  # of a long path its end
    left.set_yticks(range(len(sources)), names[0])
    left.set_xticks(range(len(targets)), names[1], rotation=40, ha="right")
    left.scatter(range(len(targets)), chosen, marker="o", s=40, facecolors="none", edgecolors="white")
    figure.colorbar(shown, ax=left, label="affinity (ring: the chosen source)")
    used = sorted(set(chosen))
    height = {row: place for row, place in zip(used, _evenly(len(used)), strict=True)}
    for place, target, row, column in zip(_evenly(len(targets)), names[1], chosen, range(len(targets)), strict=True):
        width = 1 + 9 * matrix[row, column] / matrix.max()
        right.plot([0, 1], [height[row], place], color="tab:blue", alpha=0.6, linewidth=width, solid_capstyle="round")
        right.text(1.05, place, target, va="center")
    for row in used:
        right.text(-0.05, height[row], names[0][row], va="center", ha="right")
    right.set(xlim=(-0.9, 1.9), ylim=(-0.05, 1.05))
    right.set_axis_off()
    _write(figure, file)


def _evenly(n: int) -> np.ndarray:
    """(n,) heights from the top, 1, to the bottom, 0; one alone is in the middle."""
    return np.linspace(1, 0, n) if n > 1 else np.array([0.5])


def picture_grid(columns: dict[str, Tensor], file: Path) -> None:
    """A row for each picture and a column for each version of it. columns: title -> (pictures, 3, height, width) in
    [0, 1]."""
    plt = _pyplot()

    rows = len(next(iter(columns.values())))
    figure, grid = plt.subplots(rows, len(columns), figsize=(1.3 * len(columns), 1.3 * rows + 0.3), squeeze=False)
    for column, (title, pictures) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=9)
        for axes, image in zip(column, pictures, strict=True):
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
            axes.set_axis_off()
    _write(figure, file)


def pictures_beside_lines(pixels: Tensor, lines: Sequence[Sequence[str]], file: Path) -> None:
    """A row for each picture, with its lines of text beside it, the first in bold. pixels: (pictures, 3, height, width)
    uint8."""
    plt = _pyplot()

    figure, grid = plt.subplots(len(pixels), 2, figsize=(8, 1.3 * len(pixels)), width_ratios=[1, 5], squeeze=False)
    for (left, right), image, (first, *others) in zip(grid, pixels, lines, strict=True):
        left.imshow(image.permute(1, 2, 0))
        right.text(0, 0.82, shorten(first, 90), fontsize=9, weight="bold")
        for i, line in enumerate(others):
            right.text(0, 0.55 - 0.26 * i, shorten(line, 100), fontsize=9)
        left.set_axis_off(), right.set_axis_off()
    _write(figure, file)


def strips(rows: dict[str, Tensor], file: Path, shown: int = 20) -> None:
    """For each clip a strip of frames, and below it the strips of its other versions. rows: title -> (clips, time, 3,
    height, width) in [0, 1]. shown: frames, at most, spread over the time."""
    plt = _pyplot()

    clips, time = next(iter(rows.values())).shape[:2]
    chosen = torch.linspace(0, time - 1, min(time, shown)).round().long()
    figure, grid = plt.subplots(
        clips * len(rows), 1, figsize=(0.5 * len(chosen) + 1.2, 0.56 * clips * len(rows) + 0.3), squeeze=False
    )
    for i, axes in enumerate(grid[:, 0]):
        title, versions = list(rows.items())[i % len(rows)]
        frames = torch.nn.functional.pad(versions[i // len(rows)][chosen], (0, GAP), value=1.0)
        axes.imshow(torch.cat(list(frames), 2).permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    _write(figure, file)


def animation(rows: dict[str, Tensor], file: Path) -> None:
    """Clips beside each other, animated, their other versions below. rows: as in `strips`."""
    versions = [torch.nn.functional.pad(clips.clamp(0, 1), (0, GAP, 0, GAP), value=1.0) for clips in rows.values()]
    whole = torch.cat([torch.cat(list(clips), 3) for clips in versions], 2)  # (time, 3, height, width)
    enlarged = whole.repeat_interleave(2, 2).repeat_interleave(2, 3) if whole.shape[2] < 300 else whole
    picture((255 * enlarged).round().to(torch.uint8), file)


def similarity_matrix(similarity: Tensor, file: Path) -> None:
    """Cosine similarity; true pairs are on the diagonal. similarity: (images, texts)."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(5, 4.2))
    shown = axes.imshow(similarity, cmap="viridis")
    axes.set(xlabel="held-out text", ylabel="held-out image", xticks=[], yticks=[])
    figure.colorbar(shown, label="cosine similarity")
    _write(figure, file)


def curves(columns: dict[str, list[float]], xlabel: str, ylabel: str, dashed: Sequence[str], file: Path) -> None:
    """Values by the number of steps ahead. columns: name -> one value per step. dashed: names of baselines."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name, values in columns.items():
        style = {"linestyle": "--"} if name in dashed else {"marker": "o", "markersize": 4}
        axes.plot(range(1, len(values) + 1), values, label=name, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _from_zero(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _write(figure, file)


def heard(wave: np.ndarray, context: np.ndarray, sampling_rate: int, file: Path) -> None:
    """A spectrogram with the context features of the same recording below. wave: (samples,). context: (frames, dim).
    sampling_rate: in Hz."""
    plt = _pyplot()

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True)
    seconds, window = len(wave) / sampling_rate, 2 ** int(np.log2(0.032 * sampling_rate))
    above.specgram(wave + 1e-6, window, sampling_rate, noverlap=window * 3 // 4, cmap="magma", vmin=-120)
    order = np.argsort(context.argmax(0), kind="stable")  # features that peak first are at the top
    standard = (context - context.mean(0)) / (context.std(0) + 1e-6)
    below.imshow(standard[:, order].T, aspect="auto", extent=(0, seconds, context.shape[1], 0), vmin=-2, vmax=2)
    above.set(ylabel="Hz")
    below.set(xlabel="seconds", ylabel="context feature", xlim=(0, seconds))
    _write(figure, file)


def plane(features: np.ndarray) -> np.ndarray:
    """(n, 2): the first two principal components of (n, dim) features; of one dimension, or one row, a line."""
    table = features - features.mean(0)
    places = table @ np.linalg.svd(table, full_matrices=False)[2][:2].T
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def label_map(features: np.ndarray, labels: Sequence[str], file: Path) -> None:
    """Examples in the plane of their features' first two principal components, coloured by label. features: (examples,
    dim)."""
    plt = _pyplot()

    places, labels, names = plane(features), np.array(labels), sorted(set(labels))
    figure, axes = plt.subplots(figsize=(6, 4.6))
    for i, name in enumerate(names):
        axes.scatter(*places[labels == name].T, s=12, color=plt.get_cmap("tab20")(i % 20), label=name)
    axes.set_axis_off()
    if len(names) <= 20:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _write(figure, file)


def word_map(vectors, words: Sequence[str], file: Path) -> None:
    """Words in the plane of the first two principal components of their vectors. vectors: gensim KeyedVectors."""
    plt = _pyplot()

    x, y = plane(np.stack([vectors.get_vector(word, norm=True) for word in words])).T
    figure, axes = plt.subplots(figsize=(10, 8))
    axes.scatter(x, y, s=2, color="tab:blue")
    for word, *place in zip(words, x, y, strict=True):
        axes.annotate(word, place, fontsize=6)
    axes.set_axis_off()
    _write(figure, file)


def _write(figure: Figure, file: Path) -> None:
    plt = _pyplot()

    drawn = io.BytesIO()
    figure.tight_layout()
    figure.savefig(drawn, dpi=110, format=file.suffix[1:])
    plt.close(figure)
    _save(drawn.getvalue(), file)


def _save(content: bytes, file: Path) -> None:
    if run := OutputDir.around(file):
        run.register([file.absolute()])  # it takes a relative path as one inside the run
    try:
        durable.replace(file, content)
    except OSError as error:
        raise not_written(file, error, len(content)) from error
