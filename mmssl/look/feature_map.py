"""A map of the features: each example is a point, coloured by a column of the data."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmssl import figures
from mmssl.look.answers import answer, at_first, enlarged, on_pick
from mmssl.look.examples import examples_of

if TYPE_CHECKING:
    from mmssl.look.run import Run

TITLE = "Map"
POINTS = 2000  # at most
PCA, TSNE = "PCA: fast, distances hold", "t-SNE: neighbours hold, takes seconds"
WIDTH, HEIGHT, DPI = 9.0, 6.0, 100  # inches, dots per inch
PLACE = (0.03, 0.04, 0.74, 0.92)  # of the axes in the figure: left, bottom, width, height
NO_COLOUR = "(none)"
LEGEND = 24  # names


def fits(run: Run) -> bool:
    return run.encodes is not None and run.dataset is not None and not run.has_head("ForCausalLM", "LMHeadModel")


def prepare(run: Run) -> None:
    _ = examples_of(run).features, examples_of(run).colours


def plane(features: np.ndarray, how: str) -> np.ndarray:
    """(n, 2) in [0, 1], centred. features: (n, dim)."""
    if how == TSNE and len(features) > 3:
        from sklearn.manifold import TSNE as Layout

        perplexity = min(30.0, (len(features) - 1) / 3)
        places = Layout(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    else:
        places = figures.plane(features)
    low, high = places.min(0), places.max(0)
    return 0.02 + 0.96 * (places - low) / np.maximum(high - low, 1e-12)


def drawn(places: np.ndarray, values: list | None) -> Image.Image:
    """The map. places: (n, 2) in [0, 1]. values: text or numbers of each point, or None."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)  # not pyplot, which is for one thread
    FigureCanvasAgg(figure)
    axes = figure.add_axes(PLACE, xlim=(0, 1), ylim=(0, 1))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")
    if values is not None and values and isinstance(values[0], float):
        points = axes.scatter(*places.T, s=10, c=values, cmap="viridis")
        figure.colorbar(points, cax=figure.add_axes((0.8, 0.2, 0.02, 0.6)))
    elif values is not None:
        labels, palette = np.array(values), colormaps["tab10" if len(set(values)) <= 10 else "tab20"]
        for number, name in enumerate(sorted(set(values))):
            colour = palette(number % palette.N)
            shown = (name or "(empty)")[:30] if number < LEGEND else None
            axes.scatter(*places[labels == name].T, s=10, color=colour, label=shown)
        legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)  # a label with two dollar signs is no formula
    else:
        axes.scatter(*places.T, s=10)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content).convert("RGB")


def point_at(places: np.ndarray, x: float, y: float) -> int:
    """The point nearest to a pixel of the map. x, y: from its upper left corner."""
    left, bottom, width, height = PLACE
    at = np.array([(x / (WIDTH * DPI) - left) / width, (1 - y / (HEIGHT * DPI) - bottom) / height])
    scale = np.array([WIDTH * width, HEIGHT * height])  # the axes are not square
    return int((((places - at) * scale) ** 2).sum(1).argmin())


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown(
        "Each point is an example; examples with similar features are near each other. Click a point to see it."
    )
    with gr.Row():
        column = gr.Dropdown([NO_COLOUR], value=NO_COLOUR, label="Coloured by")
        how = gr.Radio([PCA, TSNE], value=PCA, label="Layout")
    kind = run.encodes
    with gr.Row():
        picture = gr.Image(label="Map", show_label=False, interactive=False, scale=3, buttons=[])
        with gr.Column(scale=1, min_width=200):
            image = gr.Image(label="Point", interactive=False, visible=kind == "image", height=240, buttons=[])
            sound = gr.Audio(label="Point", interactive=False, visible=kind == "audio", buttons=[])
            text = gr.Textbox(label="What it is", interactive=False, lines=4)
    layouts: dict[str, tuple[np.ndarray, list[int]]] = {}

    def layout(how: str) -> tuple[np.ndarray, list[int]]:
        """(places, the row of each)"""
        if how not in layouts:
            features, rows = examples_of(run).features
            chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:POINTS])
            layouts[how] = plane(features.numpy()[chosen], how), [rows[i] for i in chosen]
        return layouts[how]

    def mapped(column: str, how: str) -> Image.Image:
        places, rows = layout(how)
        values = examples_of(run).colours.get(column)
        return drawn(places, None if values is None else [values[row] for row in rows])

    def pick(picked: list[int], how: str):
        places, rows = layout(how)
        row = rows[point_at(places, *picked)]
        return shown(row)

    def shown(row: int):
        examples = examples_of(run)
        about = examples.about_row(row)
        if kind == "image":
            return enlarged(examples.image(row)), None, about
        if kind == "audio":
            from mmssl.look import sounds

            return None, sounds.played(run, examples.sounds[row]), about
        return None, None, f"{about}\n\n{examples.text(row)[:1000]}".strip()

    def begin():
        names = list(examples_of(run).colours)
        chosen = names[0] if names else NO_COLOUR
        return gr.update(choices=[*names, NO_COLOUR], value=chosen), mapped(chosen, PCA)

    for control in (column, how):
        control.input(answer(run, mapped), [column, how], picture, api_name="map")
    picture.select(on_pick(run, pick), how, [image, sound, text])
    page.load(at_first(begin), None, [column, picture])
