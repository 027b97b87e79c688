"""The seam: what a method saves beside its encoder, and takes over from an earlier run."""

import copy

import pytest
import tiny_clip
import torch
from torch import nn
from transformers import AutoModel, ViTConfig, ViTModel

from mmssl.errors import BadInput
from mmssl.method import HEADS, Method, read_heads
from mmssl.methods.clip import CLIP


class WithHeads(Method):
    """A ViT, a head on top, a queue, and a table that the head and the encoder share."""

    def __init__(self, dim: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        self.model = ViTModel(ViTConfig(**small, image_size=8, patch_size=4))
        self.head = nn.Linear(8, dim)
        self.shared = self.model.layernorm
        self.register_buffer("queue", torch.randn(3, dim))
        self.register_buffer("constant", torch.zeros(2), persistent=False)


def test_heads_are_the_parameters_and_buffers_that_are_no_part_of_the_encoder(tmp_path):
    method = WithHeads()
    method.save_pretrained(tmp_path)
    heads = read_heads(str(tmp_path), "WithHeads")
    assert heads.keys() == {"head.weight", "head.bias", "queue"}
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in heads.items())
    encoder = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), method.model.parameters(), strict=True))


def test_another_run_continues_with_the_heads_and_keeps_its_own_encoder(tmp_path):
    first, second = WithHeads(seed=1), WithHeads(seed=2)
    first.save_pretrained(tmp_path)
    before = copy.deepcopy(second.model.state_dict())
    second.continue_from(str(tmp_path))
    for name in ("head.weight", "head.bias", "queue"):
        assert torch.equal(second.state_dict()[name], first.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in second.model.state_dict().items())
    assert second.head.weight.requires_grad


def test_a_foreign_checkpoint_has_no_heads_and_new_ones_stay(tmp_path):
    method = WithHeads()
    method.model.save_pretrained(tmp_path)
    before = copy.deepcopy(method.state_dict())
    assert read_heads(str(tmp_path), "") == read_heads(str(tmp_path / "config.json"), "") == {}
    method.continue_from(str(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_heads_of_other_sizes_and_damaged_ones_are_refused(tmp_path):
    WithHeads().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"its queue has the shape \(3, 4\), this run's has \(3, 5\)"):
        WithHeads(dim=5).continue_from(str(tmp_path))
    file = tmp_path / HEADS
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(BadInput, match="its pretraining/heads.safetensors is cut off or damaged"):
        WithHeads().continue_from(str(tmp_path))


def test_a_method_without_heads_writes_none(tmp_path):
    method, _ = tiny_clip.build()
    method.save_pretrained(tmp_path)
    assert not (tmp_path / HEADS).exists()


def test_the_bias_of_sigmoid_clip_is_continued(tmp_path):
    plain, _ = tiny_clip.build()
    method, other = (CLIP(copy.deepcopy(plain.model), plain.views, loss="sigmoid") for _ in range(2))
    with torch.no_grad():
        method.logit_bias.fill_(-3.0)
    method.save_pretrained(tmp_path)
    other.continue_from(str(tmp_path))
    assert other.logit_bias.item() == -3.0


class Other(WithHeads):
    """Another method, whose heads have the same names."""


def test_heads_of_another_method_are_left_out_with_a_sentence(tmp_path, capsys):
    WithHeads(seed=1).save_pretrained(tmp_path)
    for dim in (4, 5):  # whether they would fit or not
        other = Other(dim=dim)
        before = copy.deepcopy(other.state_dict())
        other.continue_from(str(tmp_path))
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert (
        f"the heads in {tmp_path} are those of WithHeads: Other continues from its encoder" in capsys.readouterr().out
    )


def test_heads_that_are_not_finite_are_refused(tmp_path):
    method = WithHeads()
    with torch.no_grad():
        method.queue[1, 2] = torch.nan
    method.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="queue in its pretraining/heads.safetensors holds NaN or infinite values"):
        WithHeads().continue_from(str(tmp_path))
