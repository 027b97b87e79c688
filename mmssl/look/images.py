"""Search in images: by a text, by an image, by a click; and the captions that are nearest to an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from mmssl.errors import BadInput
from mmssl.look.answers import answer, at_first, enlarged, on_pick
from mmssl.look.examples import examples_of
from mmssl.plain_text import markdown

if TYPE_CHECKING:
    from mmssl.look.examples import Examples
    from mmssl.look.run import Run

TITLE = "Search images"
FOUND, SAMPLE, CAPTIONS = 12, 24, 8

Shown = tuple[list[tuple[Image.Image, str]], list[int]]  # what a gallery shows, and the row of each


def fits(run: Run) -> bool:
    return run.encodes == "image" and run.dataset is not None


def prepare(run: Run) -> None:
    if run.pairs_images_and_texts and examples_of(run).caption_column:
        _ = examples_of(run).captions
    _ = examples_of(run).features


def by_text(run: Run, text: str) -> list[tuple[int, float]]:
    """[(row, cosine)] of the images nearest to a text."""
    if not text.strip():
        raise BadInput("write what the image should show, then search")
    return examples_of(run).nearest(text, FOUND)


def by_image(run: Run, image: Image.Image | None) -> list[tuple[int, float]]:
    if image is None:
        raise BadInput("choose an image first")
    return examples_of(run).nearest(image, FOUND)


def captions_of(run: Run, given: Image.Image) -> list[list]:
    """[[caption, cosine]], nearest first; [] where the data has no captions."""
    examples = examples_of(run)
    if examples.caption_column is None:
        return []
    nearest = examples.nearest_captions(examples.feature_of(given), CAPTIONS)
    return [[text, f"{value:.2f}"] for text, value in nearest]


def shown(examples: Examples, found: list[tuple[int, float]]) -> Shown:
    """What a gallery shows: each image with its cosine and what the data says of it."""
    pictures = []
    for row, value in found:
        about = examples.about_row(row)
        pictures.append((enlarged(examples.image(row)), f"{value:.2f}" + f" · {about}" * bool(about)))
    return pictures, [row for row, _ in found]


def sampled(run: Run, seed: float, n: int = SAMPLE) -> Shown:
    """Some images of the data."""
    examples = examples_of(run)
    rows = examples.sample(n, int(seed))
    return [(enlarged(examples.image(row)), examples.about_row(row)) for row in rows], rows


def tab(run: Run, page) -> None:
    import gradio as gr

    pair = run.pairs_images_and_texts
    how = "Describe an image, click one, or choose your own" if pair else "Click an image, or choose your own"
    gr.Markdown(f"{how}; the page shows the images whose features are nearest, with their cosine.")
    about = gr.Markdown()
    with gr.Row(visible=pair):
        text = gr.Textbox(label="Text", placeholder="a red heart", scale=4)
        search = gr.Button("Search", variant="primary", scale=0)
    with gr.Row():
        with gr.Column(scale=1, min_width=200):
            image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], height=220)
            captions = gr.Dataframe(
                headers=["nearest captions", "cosine"], datatype="str", wrap=True, interactive=False,
                visible=False, column_widths=["75%", "25%"], buttons=[],
            )  # fmt: skip
        found = gallery("Nearest", columns=4, scale=3)
    sample = gallery("Some images of the data", columns=8)
    other = gr.Button("Other images", size="sm")
    rows_found, rows_sampled, seed = gr.State([]), gr.State([]), gr.State(0)

    def nearest_to_text(text: str):
        return shown(examples_of(run), by_text(run, text))

    def nearest_to_image(image: Image.Image):
        return (*shown(examples_of(run), by_image(run, image)), _table(run, image))

    def nearest_to_row(picked: int, rows: list[int]):
        examples, row = examples_of(run), rows[picked]
        image = examples.image(row)
        return enlarged(image), *shown(examples, examples.nearest(row, FOUND)), _table(run, image)

    def begin():
        return markdown(examples_of(run).about), *sampled(run, 0)

    def next_sample(seed: float):
        return (seed + 1, *sampled(run, seed + 1))

    for event in (search.click, text.submit):
        event(answer(run, nearest_to_text), text, [found, rows_found], api_name="by_text")
    image.upload(answer(run, nearest_to_image), image, [found, rows_found, captions], api_name="by_image")
    for clicked, rows in ((sample, rows_sampled), (found, rows_found)):
        clicked.select(on_pick(run, nearest_to_row), rows, [image, found, rows_found, captions])
    other.click(answer(run, next_sample), seed, [seed, sample, rows_sampled])
    page.load(at_first(begin), None, [about, sample, rows_sampled])


def _table(run: Run, image: Image.Image):
    import gradio as gr

    captions = captions_of(run, image)
    return gr.update(value=captions, visible=bool(captions))


def gallery(label: str, columns: int, scale: int = 1):
    """Images to click."""
    import gradio as gr

    return gr.Gallery(
        label=label, columns=columns, scale=scale, allow_preview=False, interactive=False, object_fit="contain",
        height="auto", buttons=[], elem_classes="shown",
    )  # fmt: skip
