"""A linear map of an image's pixels as a transformers model. Imports only torch and transformers."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


class LinearImageConfig(PreTrainedConfig):
    model_type = "mmssl_linear_image"

    image_size: int = 32  # px, of a square
    num_channels: int = 3
    hidden_size: int = 64


@dataclass
class LinearImageOutput(ModelOutput):
    """pooler_output: (batch, hidden_size). last_hidden_state: the same, as a sequence of one."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


class LinearImageModel(PreTrainedModel):
    """One linear layer over all pixels of an image."""

    config_class = LinearImageConfig
    base_model_prefix = "linear_image"
    main_input_name = "pixel_values"

    def __init__(self, config: LinearImageConfig) -> None:
        super().__init__(config)
        self.project = nn.Linear(config.num_channels * config.image_size**2, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # codes about as large as pixels; the default, 0.02, learns slowly
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, **unused) -> LinearImageOutput:
        """pixel_values: (batch, channels, image_size, image_size), normalised."""
        found = self.project(pixel_values.flatten(1))
        return LinearImageOutput(last_hidden_state=found[:, None], pooler_output=found)
