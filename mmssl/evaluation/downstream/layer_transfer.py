"""Layer transfer: where in the network is what was learned (Yosinski et al. 2014, arXiv:1411.1792, section 2).

The lowest n layers are copied from a donor, the layers above are drawn anew, and the network is trained on labels with
the copied layers frozen (AnB in the paper, where A is what the donor was trained on) or fine-tuned with the others
(AnB+). Donors: the checkpoint (A); the same network trained on these labels (B, so BnB and BnB+, the controls); one
before training. All layers train at one rate, from a new head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from mmssl.errors import BadInput
from mmssl.evaluation.downstream.finetune import depth, fit, layer_of, predict
from mmssl.plain_text import say

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.data.labelled import Labelled
    from mmssl.evaluation.downstream.encoder import Encoder

WAYS = FROZEN, TUNED = "frozen", "fine-tuned"


@torch.no_grad()
def spliced(lower: Encoder, upper: Encoder, layers: int) -> Encoder:
    """A copy of `upper` whose lowest `layers` layers are those of `lower`, weights and buffers; the embeddings count as
    one. Both have the same architecture."""
    result, weights = copy.deepcopy(upper), lower.model.state_dict()
    for name, value in result.model.state_dict().items():
        if layer_of(name, result.model) < layers:
            value.copy_(weights[name])
    return result


def number_of_layers(encoder: Encoder) -> int:
    """With the embeddings. Raises BadInput if the model is not a stack of layers."""
    if not depth(encoder.model):
        raise BadInput(f"--mode layer_transfer: a {type(encoder.model).__name__} is not a stack of layers")
    return depth(encoder.model) + 1


def layer_transfer(
    donors: dict[str, tuple[Encoder, Sequence[str]]], supervised: str, train: Labelled, test: Labelled, seed: int, **how
) -> Iterator[tuple[int, str, str, Tensor]]:
    """(layers copied, FROZEN or TUNED, donor, classes predicted (test examples,)): first the network trained from
    scratch, which is the donor named `supervised`, with no layer copied; then one layer, two layers, up to all.

    donors: name -> (encoder, which of FROZEN and TUNED). how: further arguments of finetune.fit.
    """
    one, _ = next(iter(donors.values()))
    device, layers = next(one.parameters()).device, number_of_layers(one)
    number, of = 1, 1 + layers * (len(WAYS) + sum(len(ways) for _, ways in donors.values()))
    say(f"layer transfer, seed {seed}, training 1 of {of}: from scratch")
    scratch = fit(one.untrained(2 * seed).to(device), train, seed=seed, **how)
    yield 0, TUNED, supervised, predict(scratch, test)
    upper = one.untrained(2 * seed + 1).to(device)
    for copied in range(1, layers + 1):
        lowest = copied + (copied == layers)  # with the last layer goes the norm that follows it
        for donor, (encoder, ways) in (donors | {supervised: (scratch.encoder, WAYS)}).items():
            network = spliced(encoder, upper, lowest)
            for way in ways:
                number += 1
                said = f"{copied} of {layers} layers of {donor}, {way}"
                say(f"layer transfer, seed {seed}, training {number} of {of}: {said}")
                trained = fit(network, train, seed=seed, frozen=lowest if way == FROZEN else 0, **how)
                yield copied, way, donor, predict(trained, test)
