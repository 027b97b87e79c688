"""Zero-shot classification of an image with labels of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from mmssl.data import columns
from mmssl.errors import BadInput
from mmssl.evaluation.zero_shot import class_embeddings
from mmssl.look import images
from mmssl.look.answers import answer, at_first, enlarged, on_pick
from mmssl.look.examples import examples_of

if TYPE_CHECKING:
    from mmssl.look.run import Run

TITLE = "Zero-shot labels"
TEMPLATE = "a photo of a {}."
USUAL = ("cat", "dog", "house", "flower", "car")
MANY = 1000  # labels
BATCH = 64


def fits(run: Run) -> bool:
    return run.pairs_images_and_texts


def prepare(run: Run) -> None:
    _ = run.pair


def probabilities(run: Run, image: Image.Image | None, labels: str, template: str) -> dict[str, float]:
    """label -> probability: the softmax of the model's scaled cosines (CLIP, section 3.1.2). labels: one per line, or
    separated by commas."""
    names = list(dict.fromkeys(name.strip() for name in labels.replace("\n", ",").split(",") if name.strip()))
    if image is None:
        raise BadInput("choose an image first")
    if not 2 <= len(names) <= MANY:
        raise BadInput(f"{len(names)} labels: write at least two, at most {MANY:,}, one on each line")
    if "{}" not in template:
        raise BadInput(f"the template {template!r} has no {{}} where the label goes")
    pair = run.pair
    classes = class_embeddings(lambda texts: pair.texts(texts, BATCH), {name: [name] for name in names}, [template])
    scale = pair.model.logit_scale.detach().exp().cpu()
    share = (scale * classes @ run.pair.images([image.convert("RGB")], 1)[0]).softmax(0)
    return dict(zip(names, share.tolist(), strict=True))


def own_labels(run: Run) -> list[str]:
    """The classes of the data, if it has a column of them; else some usual ones."""
    if run.dataset is None:
        return list(USUAL)
    found = examples_of(run).colours
    name = next((name for name in columns.LABEL if name in found), None)
    classes = sorted({str(value) for value in found.get(name, [])} - {""})
    return classes if 2 <= len(classes) <= 50 else list(USUAL)


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown("Choose an image, and write labels of your own: the label whose text is nearest to the image wins.")
    with gr.Row():
        image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], height=280)
        with gr.Column():
            labels = gr.Textbox(label="Labels, one on each line", lines=5)
            template = gr.Textbox(label="Text about an image; {} is the label", value=TEMPLATE)
            classify = gr.Button("Classify", variant="primary")
        result = gr.Label(label="Probability of each label", num_top_classes=8)
    asked = [image, labels, template]
    classify.click(answer(run, lambda *given: probabilities(run, *given)), asked, result, api_name="zero_shot")
    sample, rows = images.gallery("Some images of the data", columns=8), gr.State([])
    sample.visible = run.dataset is not None

    def pick(picked: int, rows: list[int], labels: str, template: str):
        chosen = examples_of(run).image(rows[picked])
        return enlarged(chosen), probabilities(run, chosen, labels, template)

    def begin():
        pictures, rows = images.sampled(run, 1, 16) if run.dataset else ([], [])
        return "\n".join(own_labels(run)), pictures, rows

    sample.select(on_pick(run, pick), [rows, labels, template], [image, result])
    page.load(at_first(begin), None, [labels, sample, rows])
