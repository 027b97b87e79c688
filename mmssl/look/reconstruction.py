"""What a masked autoencoder reconstructs when a part of an image is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from mmssl import bounded_json
from mmssl.data.images.decoding import as_rgb, decode
from mmssl.errors import BadInput
from mmssl.look import images
from mmssl.look.answers import answer, at_first, enlarged, on_pick
from mmssl.look.examples import examples_of

if TYPE_CHECKING:
    from mmssl.look.run import Run
    from mmssl.methods.mae import MAE

TITLE = "Reconstruct"
CAPTIONS = {"image": "the image", "visible": "what the encoder sees", "reconstructed": "reconstructed"}


def fits(run: Run) -> bool:
    whole = run.folder / "pretraining" / "config.json"
    inside = bounded_json.read(whole) if whole.is_file() else {}
    return "vit_mae" in (run.config.get("model_type"), isinstance(inside, dict) and inside.get("model_type"))


def prepare(run: Run) -> None:
    _ = run.autoencoder


@torch.inference_mode()
def versions(method: MAE, processor, image: Image.Image | None, hidden: float, seed: int) -> dict[str, Image.Image]:
    """{"image", "visible", "reconstructed"}. hidden: fraction of the patches; at least one is hidden, and one visible.
    seed: of which ones."""
    from mmssl.evaluation import reconstruction

    if image is None:
        raise BadInput("choose an image first")
    config, patches = method.model.config, method.model.vit.embeddings.patch_embeddings.num_patches
    count = min(max(round(hidden * patches), 1), patches - 1)
    config.mask_ratio = (count - 0.5) / patches  # int(patches * (1 - ratio)) patches are visible: patches - count
    pixels = method.views.whole(torch.from_numpy(decode(as_rgb(image), processor))[None])
    noise = torch.rand(1, patches, generator=torch.Generator().manual_seed(int(seed)))
    found, _ = reconstruction.shown(method, pixels, noise)
    return {name: _picture(each[0]) for name, each in found.items()}


def _picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown("Hide a part of an image: the autoencoder reconstructs it from the patches that are left.")
    with gr.Row():
        image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], height=260, scale=1)
        result = images.gallery("Reconstruction", columns=3, scale=2)
    with gr.Row():
        hidden = gr.Slider(0.05, 0.95, 0.75, step=0.05, label="Part of the image that is hidden")
        seed = gr.Slider(0, 99, 0, step=1, label="Which patches: number of the draw")
    sample, rows = images.gallery("Some images of the data", columns=8), gr.State([])
    sample.visible = run.dataset is not None

    def reconstructed(image: Image.Image | None, hidden: float, seed: float):
        found = versions(*run.autoencoder, image, hidden, int(seed))
        return [(enlarged(found[name]), caption) for name, caption in CAPTIONS.items()]

    def pick(picked: int, rows: list[int], hidden: float, seed: float):
        chosen = examples_of(run).image(rows[picked])
        return enlarged(chosen), reconstructed(chosen, hidden, seed)

    def begin():
        if not run.dataset:
            return [], []
        return images.sampled(run, 2, 16)

    asked = [image, hidden, seed]
    image.upload(answer(run, reconstructed), asked, result, api_name="reconstruct")
    for slider in (hidden, seed):
        slider.release(answer(run, reconstructed), asked, result)
    sample.select(on_pick(run, pick), [rows, hidden, seed], [image, result])
    page.load(at_first(begin), None, [sample, rows])
