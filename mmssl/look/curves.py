"""The curves of several runs over each other, and their results."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmssl.hub.table import number, readable
from mmssl.training.log import Log, read

if TYPE_CHECKING:
    from mmssl.look.run import Run

TITLE = "Curves and results"
NOT_DRAWN = ("step", "epoch", "seconds")
TRIVIAL = "trivial_loss"


def fits(runs: list[Run]) -> bool:
    return any(run.metrics or (run.folder / Log.FILE).is_file() for run in runs)


def names_of(runs: list[Run]) -> list[str]:
    """The last part of each directory's name; of two equal ones, the whole."""
    labels = [run.label for run in runs]
    return [run.name if labels.count(run.label) > 1 else run.label for run in runs]


def logged(runs: list[Run]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """quantity -> run -> [(step, value)], the loss first."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, run in zip(names_of(runs), runs, strict=True):
        for line in read(run.folder / Log.FILE):
            for quantity, value in line.items():
                if quantity not in NOT_DRAWN and isinstance(value, (int, float)) and math.isfinite(value):
                    found.setdefault(quantity, {}).setdefault(name, []).append((line["step"], float(value)))
    return dict(sorted(found.items(), key=lambda item: item[0] != "loss"))


def smoothed(values: np.ndarray, over: int) -> np.ndarray:
    """The mean of each value and of those before it, at most `over` of them. values: (n,)."""
    total = np.concatenate([[0.0], values.cumsum()])
    start = np.maximum(np.arange(len(values)) - over + 1, 0)
    return (total[1:] - total[start]) / (np.arange(len(values)) - start + 1)


def drawn(found: dict[str, dict[str, list[tuple[int, float]]]], quantity: str, over: int, log: bool) -> Image.Image:
    """The quantity of each run by step; for the loss, dashed, that of a model that ignores its input."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in found.get(quantity, {}).items():
        steps, values = np.array(points).T
        (line,) = axes.plot(steps, smoothed(values, over), marker=None if len(steps) > 20 else "o", label=name)
        trivial = found.get(TRIVIAL, {}).get(name)
        if quantity == "loss" and trivial:
            axes.plot(*np.array(trivial).T, "--", linewidth=0.9, color=line.get_color())
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step", parse_math=False)
    axes.set_ylabel(quantity, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.3)
    if axes.lines:
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content).convert("RGB")


def results(runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    """(headers, rows): the results on held-out data, beside their baselines."""
    tables = [run.metrics.get("results") for run in runs]
    tables = [table if isinstance(table, dict) else {} for table in tables]
    columns = list(dict.fromkeys(column for table in tables for column in table))
    rows = []
    for name, table in zip(names_of(runs), tables, strict=True):
        for measure in dict.fromkeys(measure for values in table.values() for measure in values):
            values = [table.get(column, {}).get(measure) for column in columns]
            cells = [number(v) if isinstance(v, (int, float)) else "" for v in values]
            rows.append([name, readable(measure), *cells])
    return ["run", "measure", *columns], rows


def tab(runs: list[Run]) -> None:
    import gradio as gr

    found = logged(runs)
    if found:
        what = "; dashed, the loss of a model that ignores its input" if TRIVIAL in found else ""
        gr.Markdown(f"What the training logged, step by step{what}.")
        with gr.Row():
            quantity = gr.Dropdown(list(found), value=next(iter(found)), label="Quantity")
            over = gr.Slider(1, 50, 1, step=1, label="Mean of so many logged values")
            log = gr.Checkbox(label="Logarithmic axis")
        asked = [quantity, over, log]
        picture = gr.Image(
            value=drawn(found, next(iter(found)), 1, False),
            label="Curves",
            show_label=False,
            interactive=False,
            buttons=[],
        )
        for control in asked:
            control.input(lambda *given: drawn(found, given[0], int(given[1]), given[2]), asked, picture,
                          api_name="curves")  # fmt: skip
    headers, rows = results(runs)
    if rows:
        gr.Markdown("Results on held-out data, beside those of the baselines.")
        gr.Dataframe(rows, headers=headers, datatype="str", interactive=False, buttons=[], max_height=800)
