"""An LSTM that reads a clip, and LSTMs that write it down again from its state, and how it goes on.

Srivastava et al. 2015, arXiv:1502.04681: the autoencoder reconstructs the frames in reverse order, the predictor
continues them, the composite model does both from one state. A conditional decoder also gets the frame that it has
written last. Differs: the states may be maps, connected by convolutions (Shi et al. 2015, arXiv:1506.04214), which
learns many times faster on a CPU; convolutions come before and after the LSTMs; and a conditional decoder gets its own
frames in training, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import memory, pretrained
from mmssl.models.decoder import Decoder, MapDecoder

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

    from mmssl.models.video_lstm import VideoLSTMModel

KINDS = ("composite", "prediction", "autoencoder")
SNIPPETS = {
    "Features of a clip": """
import torch
from PIL import Image, ImageSequence
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import cached_file

name = "..."
model = AutoModel.from_pretrained(name).eval()  # defined in video_lstm.py
processor = AutoImageProcessor.from_pretrained(name)
clip = Image.open(cached_file(name, "figures/example.png"))  # animated; or frames of your own
frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
with torch.no_grad():
    output = model(**processor(frames, return_tensors="pt"))
print(output.last_hidden_state.shape, output.pooler_output.shape)
""",
}


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(frames,): nats a frame, summed over pixels, the mean over channels: the published measure, of which a grey
    frame has one channel. logits, target: (frames, channels, height, width), target in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1).sum((1, 2))


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(frames,): summed over pixels, the mean over channels. predicted, target: (frames, channels, height, width) in
    [0, 1]."""
    return (predicted - target).square().mean(1).sum((1, 2))


class Writer(nn.Module):
    """Writes frames from the state of a reader."""

    def __init__(self, reader: VideoLSTMModel, conditional: bool) -> None:
        super().__init__()
        from mmssl.models.video_lstm import Stack

        config, encoder = reader.config, reader.frames
        self.conditional = conditional
        self.layers = Stack(config, encoder.width if conditional else 0)
        size = (config.image_size, config.image_size)
        if config.cell == "conv":
            grid = (encoder.side, encoder.side)
            self.decoder = MapDecoder(config.hidden_size, grid, size, width=16, channels=config.num_channels)
        else:
            self.decoder = Decoder(config.hidden_size, size, width=16, channels=config.num_channels)

    def forward(self, state: Tensor, last: Tensor, time: int, reader: VideoLSTMModel) -> Tensor:
        """(batch, time, channels, height, width): logits. last: (batch, channels, height, width), the last frame read.
        reader: what turns a frame into an input."""
        hidden, written = [], []
        for _ in range(time):
            top, state = self.layers(reader.frames(last) if self.conditional else None, state)
            if self.conditional:
                written.append(self._decoded(top))
                last = written[-1].float().sigmoid()
            else:
                hidden.append(top)
        if self.conditional:
            return torch.stack(written, 1)
        maps = torch.stack(hidden, 1)
        return self._decoded(maps.flatten(0, 1)).unflatten(0, (-1, time))  # of all frames at once

    def _decoded(self, maps: Tensor) -> Tensor:
        return self.decoder(maps if isinstance(self.decoder, MapDecoder) else maps.flatten(1))


class VideoLSTM(Method):
    """
    model:       reads the first frames of a clip.
    kind:        what is written from its state: the frames after them, these frames in reverse order, or both.
    read:        number of frames that it reads. written: and that are predicted after them.
    conditional: a decoder also gets the frame that it wrote last.
    """

    unit = "clips"
    card = Card(
        about="A recurrent network that reads the frames of a clip, trained to write them down again from its state "
        "and to predict those that follow. The reader is exported; the decoders, to continue from, are in "
        "`pretraining/`.",
        task="feature-extraction",
        limits="The model was trained to keep what predicts pixels: evaluate it on your task before you rely on it. "
        "Far predictions are blurred.",
        trivial="the mean frame of the batch",
        snippets=SNIPPETS,
        tags=("video", "lstm"),
    )

    def __init__(
        self,
        model: VideoLSTMModel,
        kind: str = "composite",
        read: int = 10,
        written: int = 10,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.kind, self.frames_read, self.frames_written = model, kind, read, written
        self.future = Writer(model, conditional) if kind != "autoencoder" else None
        self.past = Writer(model, conditional) if kind != "prediction" else None

    def forward(self, pixel_values: Tensor, key: Tensor) -> Output:
        """pixel_values: (batch, read + written, channels, height, width) uint8. key: not used."""
        clip = pixel_values.float() / 255
        seen, future = clip[:, : self.frames_read], clip[:, self.frames_read :]
        predicted, past, features = self.write(seen)
        losses, metrics, trivial = [], {}, []
        with torch.autocast(clip.device.type, enabled=False):
            for name, logits, target in (("prediction", predicted, future), ("reconstruction", past, seen.flip(1))):
                if logits is None:
                    continue
                logits, target = logits.float().flatten(0, 1), target.flatten(0, 1)
                nats = cross_entropy(logits, target).mean()
                losses.append(nats)
                error = squared_error(logits.detach().sigmoid(), target).mean()
                metrics |= {f"{name}_nats": nats.detach(), f"{name}_error": error}
                mean = target.mean(0, keepdim=True).clamp(1e-4, 1 - 1e-4)
                trivial.append(cross_entropy(mean.logit().expand_as(target), target).mean())
        pixels = clip.shape[3] * clip.shape[4]
        return Output(sum(losses) / pixels, metrics, features, sum(trivial) / pixels)

    def write(self, seen: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """(logits of the frames that follow, of those seen in reverse order, each (batch, time, channels, height,
        width) or None; features (batch, dim)). seen: (batch, read, channels, height, width) in [0, 1]."""
        output, last = self.model(seen), seen[:, -1]
        future = self.future(output.state, last, self.frames_written, self.model) if self.future else None
        # of its own input, a conditional decoder would copy the first frame: it begins with nothing
        past = self.past(output.state, torch.zeros_like(last), seen.shape[1], self.model) if self.past else None
        return future, past, output.pooler_output.detach().float()

    @torch.no_grad()
    def predict(self, seen: Tensor) -> Tensor:
        """(batch, written, channels, height, width) in [0, 1]."""
        return self.write(seen)[0].float().sigmoid()

    @torch.no_grad()
    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        clip = pixel_values.float() / 255
        future, past, _ = self.write(clip[:, : self.frames_read])
        rows = {"true": clip}
        blank = torch.full_like(clip, 1.0)
        if past is not None:
            blank[:, : self.frames_read] = past.float().sigmoid().flip(1)
        if future is not None:
            blank[:, self.frames_read :] = future.float().sigmoid()
        return rows | {"written": blank}


def build(args, side: int) -> tuple[VideoLSTMModel, BaseImageProcessor]:
    """The model and processor that the flags of recipes/video_lstm.py describe. side: of the data, in pixels."""
    from transformers import VideoMAEImageProcessorPil

    from mmssl.models.video_lstm import VideoLSTMConfig, VideoLSTMModel

    if args.model_name_or_path:
        model, processor = pretrained.load(args.model_name_or_path, args.trust_remote_code)
        if not isinstance(model, VideoLSTMModel):
            raise BadInput(f"--model_name_or_path {args.model_name_or_path} is a {type(model).__name__}, no VideoLSTM")
        return model, processor
    size = args.image_size or side
    if args.kernel_size % 2 == 0:
        raise BadInput(f"--kernel_size {args.kernel_size} has no middle: give an odd number")
    config = VideoLSTMConfig(
        image_size=size, num_frames=args.frames_read, cell=args.cell, kernel_size=args.kernel_size,
        hidden_size=args.hidden_size, num_hidden_layers=args.layers,
    )  # fmt: skip
    sizes = f"--image_size {size}, --hidden_size {args.hidden_size}, --layers {args.layers}"
    model = memory.build(lambda: VideoLSTMModel(config), sizes)
    square = {"height": size, "width": size}
    processor = VideoMAEImageProcessorPil(size={"shortest_edge": size}, crop_size=square, do_normalize=False)
    return model, processor
