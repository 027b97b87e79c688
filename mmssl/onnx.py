"""The two encoders of a saved image–text model as ONNX files, each proved equal to the original in ONNX Runtime.

python -m mmssl.onnx --model_name_or_path runs/clip       writes runs/clip/onnx/image.onnx and text.onnx

image.onnx: pixel_values (batch, 3, height, width), as the image processor gives them -> features (batch, dim).
text.onnx: input_ids, attention_mask (batch, tokens) -> features (batch, dim). Neither is of unit length yet.
Needs `pip install mmssl[onnx]`. Through torch.onnx: optimum-onnx 0.1 holds transformers below 4.58.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mmssl import pretrained
from mmssl.arguments import command, flag
from mmssl.errors import BadInput
from mmssl.export import TOLERANCE, NotLoadable


@dataclass
class OnnxArgs:
    model_name_or_path: str = flag("runs/clip", "a directory or a Hub id")
    output_dir: str | None = flag(None, "default: onnx/ inside the directory")
    trust_remote_code: bool = flag(False, "run the code that comes with the checkpoint")


class ImageEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output


class TextEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output


def convert(encoder: nn.Module, inputs: dict[str, Tensor], axes: tuple[int, ...], file: Path) -> None:
    """Write `encoder` for inputs of any size along `axes`; `inputs` is an example of several rows."""
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    torch.onnx.export(
        encoder.eval(),
        tuple(inputs.values()),
        file,
        input_names=list(inputs),
        output_names=["features"],
        dynamic_shapes={name: sizes for name in inputs},
        external_data=False,
        verbose=False,
    )


@torch.no_grad()
def check(encoder: nn.Module, inputs: dict[str, Tensor], file: Path) -> None:
    """Raises NotLoadable where ONNX Runtime and torch differ."""
    import onnxruntime  # an optional extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    expected = encoder(**inputs)
    got = torch.from_numpy(session.run(["features"], {name: value.numpy() for name, value in inputs.items()})[0])
    error = (got - expected).abs().max().item()
    if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise NotLoadable(f"{file} differs from the original by {error:.2g}")


def main(args: OnnxArgs) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"ONNX needs the package {error.name}: pip install mmssl[onnx]") from error
    name = args.model_name_or_path
    if args.output_dir is None and not Path(name).is_dir():
        raise BadInput(f"--model_name_or_path {name} is no directory here: say where to write with --output_dir")
    model, processor = pretrained.load(name, args.trust_remote_code)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise BadInput(f"--model_name_or_path {name}: a {type(model).__name__} embeds no image–text pairs")
    directory = Path(args.output_dir or Path(name) / "onnx")
    directory.mkdir(parents=True, exist_ok=True)
    for which, encoder, axes in (("image", ImageEncoder(model), (0,)), ("text", TextEncoder(model), (0, 1))):
        file = directory / f"{which}.onnx"
        convert(encoder, _example(processor, which, 2), axes, file)
        check(encoder, _example(processor, which, 3), file)  # of another size than the one it was written with
        print(file)


def _example(processor, which: str, rows: int) -> dict[str, Tensor]:
    if which == "image":
        pictures = [Image.effect_noise((96, 96), 10 * (row + 1)).convert("RGB") for row in range(rows)]
        return {"pixel_values": processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}
    texts = ["a dog " * (row + 1) for row in range(rows)]
    encoded = processor.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


if __name__ == "__main__":
    command(main, OnnxArgs, __doc__)
