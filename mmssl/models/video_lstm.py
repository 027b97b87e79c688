"""An LSTM over the frames of a clip, with states that are maps (ConvLSTM) or vectors. Imports only torch and
transformers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


class VideoLSTMConfig(PreTrainedConfig):
    """cell: "conv", a state for each of the positions of a map, which convolutions of `kernel_size` connect (Shi et al.
    2015, arXiv:1506.04214), or "full", one state for the frame. hidden_size: channels of a state. conv_sizes: channels
    of the convolutions that come first; each halves the sides. num_frames: of a clip in training; others work, too."""

    model_type = "mmssl_video_lstm"

    image_size: int = 64  # px, of a square
    num_channels: int = 3
    num_frames: int = 10
    conv_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    cell: str = "conv"
    kernel_size: int = 3
    hidden_size: int = 64
    num_hidden_layers: int = 2


@dataclass
class VideoLSTMOutput(ModelOutput):
    """last_hidden_state: (batch, time, hidden_size), the last layer, averaged over positions. pooler_output: (batch,
    layers * hidden_size), all layers after the last frame. state: (batch, layers, 2, hidden_size, rows, columns), after
    the last frame: hidden and cell."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    state: Tensor | None = None


class FrameEncoder(nn.Sequential):
    """(n, channels, height, width) -> (n, width, rows, columns); of a full cell, one row and one column."""

    def __init__(self, config: VideoLSTMConfig) -> None:
        layers, before, side = [], config.num_channels, config.image_size
        for width in config.conv_sizes:
            norm = nn.GroupNorm(min(8, width), width)
            layers += [nn.Conv2d(before, width, 3, 2, 1), norm, nn.LeakyReLU(0.2)]
            before, side = width, (side + 1) // 2
        self.side, self.width = side, before
        if config.cell == "full":
            self.side, self.width = 1, config.hidden_size
            layers += [nn.Flatten(), nn.Linear(before * side**2, config.hidden_size), nn.Unflatten(1, (-1, 1, 1))]
        super().__init__(*layers)


class Cell(nn.Module):
    """One layer. inputs: channels of its input; 0: it has none."""

    def __init__(self, config: VideoLSTMConfig, inputs: int) -> None:
        super().__init__()
        kernel = config.kernel_size if config.cell == "conv" else 1
        self.inputs = nn.Conv2d(inputs, 4 * config.hidden_size, kernel, padding="same", bias=False) if inputs else None
        self.hidden = nn.Conv2d(config.hidden_size, 4 * config.hidden_size, kernel, padding="same")

    def forward(self, x: Tensor | None, state: Tensor) -> Tensor:
        """The next state. x: (batch, 4 * hidden_size, rows, columns), an input after `self.inputs`. state: (batch, 2,
        hidden_size, rows, columns)."""
        hidden, cell = state.unbind(1)
        gates = self.hidden(hidden) if x is None else self.hidden(hidden) + x
        write, forget, show, new = gates.chunk(4, 1)
        cell = (forget + 1).sigmoid() * cell + write.sigmoid() * new.tanh()  # + 1: remember at first
        return torch.stack([show.sigmoid() * cell.tanh(), cell], 1)


class Stack(nn.Module):
    """Several layers, each of which reads the one below. inputs: channels of the input of the first; 0: none."""

    def __init__(self, config: VideoLSTMConfig, inputs: int) -> None:
        super().__init__()
        widths = [inputs] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.cells = nn.ModuleList(Cell(config, width) for width in widths)

    def forward(self, x: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden state of the last layer, next state). x: (batch, inputs, rows, columns). state: (batch, layers, 2,
        hidden_size, rows, columns)."""
        after = []
        for cell, before in zip(self.cells, state.unbind(1), strict=True):
            after.append(cell(None if x is None else cell.inputs(x), before))
            x = after[-1][:, 0]
        return x, torch.stack(after, 1)


class VideoLSTMModel(PreTrainedModel):
    config_class = VideoLSTMConfig
    base_model_prefix = "video_lstm"
    main_input_name = "pixel_values"
    input_modalities = "video"

    def __init__(self, config: VideoLSTMConfig) -> None:
        super().__init__(config)
        self.frames = FrameEncoder(config)
        self.layers = Stack(config, self.frames.width)
        self.side = self.frames.side
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def empty_state(self, batch: int) -> Tensor:
        """Zeros: nothing seen yet."""
        config = self.config
        shape = (batch, config.num_hidden_layers, 2, config.hidden_size, self.side, self.side)
        return torch.zeros(shape, device=self.device)

    def forward(self, pixel_values: Tensor, **unused) -> VideoLSTMOutput:
        """pixel_values: (batch, time, channels, image_size, image_size) in [0, 1]."""
        batch, time = pixel_values.shape[:2]
        maps = self.frames(pixel_values.flatten(0, 1)).unflatten(0, (batch, time))
        state, hidden = self.empty_state(batch).to(maps.dtype), []
        for x in maps.unbind(1):
            top, state = self.layers(x, state)
            hidden.append(top.mean((2, 3)))
        pooled = state[:, :, 0].mean((3, 4)).flatten(1)
        return VideoLSTMOutput(last_hidden_state=torch.stack(hidden, 1), pooler_output=pooled, state=state)
