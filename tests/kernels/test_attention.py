import pytest
import torch
from generated import fast
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmssl.kernels import attention

BATCH, HEADS, QUERIES, WIDTH = 3, 2, 7, 4

TORCH_S = "transformers.integrations.sdpa_attention.sdpa_attention_forward"


def masks() -> dict[str, torch.Tensor | None]:
    hidden = torch.rand(BATCH, 1, QUERIES, QUERIES, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., 0] = False  # every row has a key: for others the two differ, and nobody reads them
    return {
        "none": None,
        "bool": ~hidden,
        "added": torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -1e9),
    }


def parts(keys: int = QUERIES, key_heads: int = HEADS) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(HEADS, QUERIES), (key_heads, keys), (key_heads, keys)]
    return [torch.randn(BATCH, *shape, WIDTH, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


def with_gradients(function, *args, **settings) -> list[torch.Tensor]:
    inputs = parts()
    output, _ = function(nn.Module(), *inputs, *args, **settings)
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
@pytest.mark.parametrize("causal", [False, True, None])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_torch(mask, causal, scaling, monkeypatch):
    settings = {"is_causal": causal, "scaling": scaling}
    expected = with_gradients(sdpa_attention_forward, masks()[mask], **settings)
    monkeypatch.setattr(TORCH_S, None)  # not by asking torch
    for ours, torchs in zip(with_gradients(attention.attend, masks()[mask], **settings), expected, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_a_row_without_keys_is_finite(kind, bf16):
    hidden = torch.ones(BATCH, 1, QUERIES, QUERIES, dtype=torch.bool)
    mask = ~hidden if kind == torch.bool else torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(kind).min)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert attention.attend(nn.Module(), *[part.float() for part in parts()], mask)[0].isfinite().all()


def test_drops_a_share_of_the_attention():
    torch.manual_seed(0)
    query, key, _ = parts()
    ones = torch.ones_like(query)
    kept = torch.stack([attention.attend(nn.Module(), query, key, ones, None, 0.5)[0] for _ in range(200)])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert kept.std().item() > 0.1


@pytest.mark.parametrize(
    "inputs",
    [parts(keys=attention.LONGEST_FP32 + 1), parts(key_heads=1), parts(keys=QUERIES + 1)],
    ids=["long", "shared heads", "more keys than queries"],
)
def test_leaves_the_rest_to_torch(inputs, monkeypatch):
    monkeypatch.setattr(TORCH_S, lambda *args, **others: "torch")
    assert attention.attend(nn.Module(), *inputs, None) == "torch"


def test_of_a_model_only_within(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "LONGEST_FP32", 8)
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *args: calls.append(1) or softmax(*args))
    config = CLIPTextConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    model = CLIPTextModel(config).eval()
    ids, known = torch.arange(16).reshape(2, 8), torch.ones(2, 8, dtype=torch.long)
    known[0, 5:] = 0
    for mask in (known, torch.ones_like(known)):
        before = model(ids, mask).last_hidden_state
        with attention.fast_attention():
            with attention.fast_attention():
                pass
            within = model(ids, mask).last_hidden_state
        torch.testing.assert_close(within, before, rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


@fast
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.booleans())
def test_any_shape_gives_what_torch_gives(batch, queries, keys, width, causal, masked):
    draw = torch.Generator().manual_seed(batch + 10 * queries + 100 * keys)
    shapes = [(batch, HEADS, length, width) for length in (queries, keys, keys)]
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    mask = None
    if masked:
        mask = torch.rand(batch, 1, queries, keys, generator=draw) < 0.6
        mask[..., 0] = True
    expected, _ = sdpa_attention_forward(nn.Module(), *inputs, mask, is_causal=causal)
    torch.testing.assert_close(attention.attend(nn.Module(), *inputs, mask, is_causal=causal)[0], expected)
