"""A convolutional network that is applied to overlapping patches of an image, as a transformers model. Imports only
torch and transformers."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput


class PatchEncoderConfig(PreTrainedConfig):
    """backbone: the config of the network, one of transformers with a map as its last hidden state, such as a ResNet.
    hidden_size: its last channels. patch_size: side of a patch in pixels; patches overlap by half of it."""

    model_type = "mmssl_patch_encoder"

    backbone: dict | None = None
    hidden_size: int = 64
    patch_size: int = 8


@dataclass
class PatchEncoderOutput(ModelOutput):
    """last_hidden_state: (batch, hidden_size, rows, columns), one vector of each patch. pooler_output: (batch,
    hidden_size, 1, 1), their mean. hidden_states: (batch, channels, rows, columns) of each layer, the mean over a
    patch."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class PatchEncoderModel(PreTrainedModel):
    """The patches do not see each other, as in training. The features of an image are their mean (van den Oord et al.
    2018, arXiv:1807.03748, section 3.3)."""

    config_class = PatchEncoderConfig
    base_model_prefix = "patch_encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: PatchEncoderConfig, backbone: PreTrainedModel | None = None) -> None:
        """backbone: use it, instead of a new one; it is not copied."""
        super().__init__(config)
        if backbone is not None:
            self.backbone = exact_on_one_pixel(backbone)
        else:
            self.backbone = exact_on_one_pixel(AutoModel.from_config(AutoConfig.for_model(**config.backbone)))
            self.post_init()

    def patches(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, rows, columns, channels, patch_size, patch_size). An edge that is
        left over, narrower than half a patch, is in none. Raises ValueError if the image is smaller than a patch."""
        side = self.config.patch_size
        if min(pixel_values.shape[2:]) < side:
            height, width = pixel_values.shape[2:]
            raise ValueError(f"an image of {height} x {width} pixels is smaller than a patch of {side} pixels")
        return pixel_values.unfold(2, side, side // 2).unfold(3, side, side // 2).permute(0, 2, 3, 1, 4, 5)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **unused) -> PatchEncoderOutput:
        """pixel_values: (batch, channels, height, width), normalised, no side shorter than a patch."""
        patches = self.patches(pixel_values)
        output = self.backbone(patches.flatten(0, 2).contiguous(), output_hidden_states=output_hidden_states)

        def as_map(vectors: Tensor) -> Tensor:
            return vectors.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)

        encoded = as_map(output.pooler_output.flatten(1))
        layers = (as_map(layer.mean((2, 3))) for layer in output.hidden_states or ())
        return PatchEncoderOutput(
            last_hidden_state=encoded,
            pooler_output=encoded.mean((2, 3), keepdim=True),
            hidden_states=tuple(layers) if output_hidden_states else None,
        )


class PatchEncoderForImageClassification(PreTrainedModel):
    """A linear layer on the mean over patches; the encoder is trained too."""

    config_class = PatchEncoderConfig
    base_model_prefix = "patch_encoder"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, also where transformers' Trainer accumulates

    def __init__(self, config: PatchEncoderConfig) -> None:
        super().__init__(config)
        self.patch_encoder = PatchEncoderModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False, **unused
    ) -> ImageClassifierOutput:
        """labels: (batch,) int, or as the config's problem_type asks for."""
        output = self.patch_encoder(pixel_values, output_hidden_states)
        logits = self.classifier(output.pooler_output.flatten(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


def exact_on_one_pixel(model: nn.Module) -> nn.Module:
    """The model; its convolutions take maps of one pixel, to which small images and patches shrink, without a stride.

    They give the same. With a stride, torch 2.13 on CPUs leaves part of the gradient of a bf16 kernel uninitialised.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and _keeps_size(module):
            module.register_forward_pre_hook(partial(_stride_for, own=module.stride))
    return model


def _keeps_size(convolution: nn.Conv2d) -> bool:
    """Whether its output would be as large as its input without the stride."""
    sides = zip(convolution.padding, convolution.dilation, convolution.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in sides)


def _stride_for(convolution: nn.Conv2d, inputs: tuple[Tensor, ...], own: tuple[int, int]) -> None:
    convolution.stride = (1, 1) if inputs[0].shape[2:] == (1, 1) else own
