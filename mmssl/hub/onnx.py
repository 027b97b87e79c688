"""Export of image and text encoders to ONNX; each file is compared with the original in ONNX Runtime.

python -m mmssl.hub.onnx --model_name_or_path runs/clip       writes runs/clip/onnx/image.onnx and text.onnx

image.onnx: pixel_values (batch, 3, height, width), as the image processor gives them -> features.
text.onnx: input_ids, attention_mask (batch, tokens) -> features.
features: for an image–text model (batch, dim), not normalised; for any other encoder its last_hidden_state.
Needs `pip install onnx onnxscript onnxruntime`. Uses torch.onnx, because optimum-onnx 0.1 requires transformers below
4.58. Recurrent networks cannot be converted (torch 2.13).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mmssl.arguments import Flags, command, flag
from mmssl.errors import BadInput, first_line
from mmssl.hub.reloading import TOLERANCE, NotLoadable
from mmssl.models import pretrained
from mmssl.plain_text import say
from mmssl.training.output_dir import OutputDir

INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}
AXES = {"image": (0,), "text": (0, 1)}  # axes of the inputs that may have any size


@dataclass
class OnnxArgs(Flags):
    model_name_or_path: str = flag("runs/clip", "a directory or a Hub id")
    output_dir: str | None = flag(None, "where the files go; default: onnx/ inside the directory")
    trust_remote_code: bool = flag(False, "run the code that comes with the checkpoint")


class Encoder(nn.Module):
    """A module that calls one function of a model, with inputs in the order of `inputs`, and returns one output."""

    def __init__(self, model: nn.Module, function: str, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.function, self.inputs, self.output = model, function, inputs, output

    def forward(self, *values: Tensor) -> Tensor:
        return getattr(self.model, self.function)(**dict(zip(self.inputs, values, strict=True)))[self.output]


def encoders(model: nn.Module) -> dict[str, Encoder]:
    """The encoders of a model, by modality. Raises BadInput if it reads neither images nor texts."""
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return {kind: Encoder(model, f"get_{kind}_features", INPUTS[kind], "pooler_output") for kind in INPUTS}
    for kind, inputs in INPUTS.items():
        if model.main_input_name == inputs[0]:
            return {kind: Encoder(model, "forward", inputs, "last_hidden_state")}
    raise BadInput(f"a {type(model).__name__} reads {model.main_input_name}, neither images nor texts")


def convert(encoder: Encoder, inputs: tuple[Tensor, ...], axes: tuple[int, ...], file: Path) -> None:
    """Write `encoder` for inputs of any size along `axes`; `inputs` is an example of several rows."""
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    try:
        torch.onnx.export(
            encoder.eval(),
            inputs,
            file,
            input_names=encoder.inputs,
            output_names=["features"],
            dynamic_shapes=(tuple(sizes for _ in inputs),),
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # torch raises many kinds for architectures that it does not support
        raise BadInput(f"torch cannot convert a {type(encoder.model).__name__}: {first_line(error)}") from error


@torch.no_grad()
def check(encoder: Encoder, inputs: tuple[Tensor, ...], file: Path) -> None:
    """Raises NotLoadable if the outputs of ONNX Runtime and torch differ."""
    import onnxruntime  # an optional extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    expected, given = encoder(*inputs), [value.numpy() for value in inputs]
    got = torch.from_numpy(session.run(["features"], dict(zip(encoder.inputs, given, strict=True)))[0])
    error = (got - expected).abs().max().item()
    if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise NotLoadable(f"{file} differs from the original by {error:.2g}")


def main(args: OnnxArgs) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime") from error
    name = args.model_name_or_path
    if args.output_dir is None and not Path(name).is_dir():
        raise BadInput(f"--model_name_or_path {name} is not a local directory: say where to write with --output_dir")
    model, processor = pretrained.load(name, args.trust_remote_code, may_lack="pooler")
    directory = Path(args.output_dir or Path(name) / "onnx").expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    for kind, encoder in encoders(model).items():
        file = directory / f"{kind}.onnx"
        if run := OutputDir.around(file):
            run.register([file.absolute()])  # it takes a relative path as one inside the run
        convert(encoder, _example(processor, kind, 2), AXES[kind], file)
        check(encoder, _example(processor, kind, 3), file)  # another size than the one it was converted with
        say(file)


def _example(processor, kind: str, rows: int) -> tuple[Tensor, ...]:
    if kind == "image":
        pictures = [Image.effect_noise((96, 96), 10 * (row + 1)).convert("RGB") for row in range(rows)]
        encoded = getattr(processor, "image_processor", processor)(pictures, return_tensors="pt")
    else:
        texts = ["a dog " * (row + 1) for row in range(rows)]
        encoded = getattr(processor, "tokenizer", processor)(texts, padding=True, return_tensors="pt")
    return tuple(encoded[name] for name in INPUTS[kind])


if __name__ == "__main__":
    command(main, OnnxArgs, __doc__)
