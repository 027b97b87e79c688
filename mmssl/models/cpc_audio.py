"""CPC's audio encoder: strided convolutions over the raw waveform, and a recurrent context. Imports only torch and
transformers.

Strictly causal: convolutions are padded on the left only, and normalisation is over the channels of one frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput


class CpcAudioConfig(PreTrainedConfig):
    """hidden_size: channels of every convolution. context_size: width of the GRU. sampling_rate: in Hz."""

    model_type = "mmssl_cpc_audio"

    hidden_size: int = 512
    context_size: int = 256
    context_layers: int = 1
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    sampling_rate: int = 16000
    initializer_range: float = 0.02

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        hop = 1
        for stride in self.conv_stride:
            hop *= stride
        return hop

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sampling_rate / self.hop


@dataclass
class CpcAudioOutput(ModelOutput):
    """last_hidden_state: (batch, frames, context_size), a summary of the recording up to each frame. encoded: (batch,
    frames, hidden_size), from about 30 ms each. pooler_output: (batch, context_size), the mean context."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    encoded: Tensor | None = None


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each frame. (batch, channels, time)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class CpcAudioPreTrainedModel(PreTrainedModel):
    config_class = CpcAudioConfig
    base_model_prefix = "cpc"
    main_input_name = "input_values"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                if "weight_hh" in name:
                    init.orthogonal_(parameter)
                elif "weight_ih" in name:
                    init.xavier_uniform_(parameter)
                else:
                    init.zeros_(parameter)
        else:
            super()._init_weights(module)


class CpcAudioModel(CpcAudioPreTrainedModel):
    """Frame t depends only on the samples before (t + 1) * hop; a recording of n samples has n // hop frames."""

    def __init__(self, config: CpcAudioConfig) -> None:
        super().__init__(config)
        width, layers, channels = config.hidden_size, [], 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            layers.append(
                nn.Sequential(
                    nn.ConstantPad1d((kernel - stride, 0), 0.0),  # on the left only
                    nn.Conv1d(channels, width, kernel, stride, bias=False),
                    ChannelNorm(width),
                    nn.ReLU(),
                )
            )
            channels = width
        self.encoder = nn.Sequential(*layers)
        self.context = nn.GRU(width, config.context_size, config.context_layers, batch_first=True)
        self.post_init()

    def frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of recordings of `lengths` samples."""
        return lengths // self.config.hop

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **unused) -> CpcAudioOutput:
        """input_values: (batch, samples). attention_mask: (batch, samples), 0 = padding."""
        encoded = self.encoder(input_values[:, None]).mT
        context, _ = self.context(encoded)
        if attention_mask is None:
            pooled = context.mean(1)
        else:
            frames = self.frames(attention_mask.sum(1)).clamp(min=1)
            keep = torch.arange(context.shape[1], device=context.device) < frames[:, None]
            pooled = (context * keep[..., None]).sum(1) / frames[:, None]
        return CpcAudioOutput(last_hidden_state=context, pooler_output=pooled, encoded=encoded)


class CpcAudioForAudioClassification(CpcAudioPreTrainedModel):
    """A linear layer on the mean context; the encoder is trained too."""

    accepts_loss_kwargs = False  # the loss is a mean over the batch, also where transformers' Trainer accumulates

    def __init__(self, config: CpcAudioConfig) -> None:
        super().__init__(config)
        self.cpc = CpcAudioModel(config)
        self.classifier = nn.Linear(config.context_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **unused
    ) -> SequenceClassifierOutput:
        """labels: (batch,) int, or as the config's problem_type asks for."""
        logits = self.classifier(self.cpc(input_values, attention_mask).pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)
