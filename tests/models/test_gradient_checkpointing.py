"""--gradient_checkpointing is refused where nothing can do it; tests/test_steps.py has what it does."""

import pytest
import torch

from mmssl.errors import BadInput
from mmssl.models import gradient_checkpointing, image_encoders


def test_a_network_without_layers_that_can_is_refused():
    encoder, _ = image_encoders.from_scratch("resnet-micro", 32)
    with pytest.raises(BadInput, match="no effect with a ResNetModel: leave it out, or use a transformer"):
        gradient_checkpointing.check(encoder)
    with pytest.raises(BadInput, match="no effect with a ResNetModel: leave it out"):
        gradient_checkpointing.enable(torch.nn.Sequential(encoder))
