"""Heads: where their norms and biases are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.errors import BadInput
from mmssl.models import heads
from mmssl.models.self_distillation import PrototypeHead


def kinds(head: nn.Sequential) -> list[type]:
    return [type(layer) for layer in head]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_a_norm_stands_between_two_layers_and_takes_the_place_of_the_bias(norm, kind):
    head = heads.mlp([3, 5, 7, 2], norm)
    assert kinds(head) == [nn.Linear, kind, nn.ReLU, nn.Linear, kind, nn.ReLU, nn.Linear]
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)] == [True, True, False]


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_last_norm_has_no_parameters_and_leaves_unit_variance(norm):
    head = heads.mlp([3, 16], norm, last_norm=True)
    assert [name for name, _ in head.named_parameters()] == ["0.weight"]
    out = head(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(out.var(0 if norm == "batch" else 1, correction=0).mean().item(), 1.0, atol=1e-3, rtol=0)


def test_without_a_norm_every_layer_has_a_bias_and_the_last_one_where_it_is_wanted():
    assert kinds(heads.mlp([3, 5, 2], "none", last_norm=True)) == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.bias is not None for layer in heads.mlp([3, 5, 2], "none") if isinstance(layer, nn.Linear))
    assert heads.mlp([3, 5, 2], last_bias=False)[-1].bias is None


def test_a_head_that_does_not_fit_into_memory_is_refused_before_it_is_made():
    with pytest.raises(BadInput, match="a head of widths 8, 10000000, 10000000: training .* weights takes"):
        heads.mlp([8, 10**7, 10**7])
    with pytest.raises(BadInput, match="--prototypes|prototypes of"):
        PrototypeHead(8, 8, 10**6, 10**6)
