"""One optimizer step, however it is cut into micro-batches, is the same step."""

from __future__ import annotations

import copy
from functools import partial
from itertools import accumulate

import pytest
import tiny_clip
import torch
from device import DEVICE, TOLERANCE, accelerator, placed
from small import Numbers, Small, sgd
from tiny import bert, clip, electra, ibot, mae
from tiny.clip import VARIANTS, Pairs
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mmssl.data.images import views
from mmssl.data.loader import Loader
from mmssl.errors import BadInput
from mmssl.method import Method, Output
from mmssl.methods.clip import CLIP
from mmssl.models import gradient_checkpointing
from mmssl.training import steps


def micro_batches(data, rows: int, parts: int) -> list[dict]:
    found = []
    for part in torch.arange(rows).chunk(parts):
        batch = default_collate([data[i] for i in part.tolist()])
        del batch["index"]
        found.append(placed(batch))
    return found


def gradient(method, step, batches: list[dict], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a step hands to the optimizer: the change of weights under SGD with a learning rate of 1, negated."""
    method = placed(copy.deepcopy(method).train())
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    torch.manual_seed(seed)
    step(method, batches, [sgd(method, lr=1.0)], accelerator(), max_grad_norm=0.0)
    return {name: before[name] - p.detach() for name, p in method.named_parameters()}


def assert_close(ours: dict, theirs: dict, tolerance: float = TOLERANCE) -> None:
    """To `tolerance` of the whole gradient's norm."""
    norm = torch.stack([g.norm() for g in theirs.values()]).norm()
    assert norm > 1e-3
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= tolerance * norm, name


@pytest.mark.parametrize("loss", VARIANTS)
@pytest.mark.parametrize("parts", [2, 4, 5])
def test_gradient_cache_gives_the_gradient_of_the_whole_batch(loss, parts):
    method, data = VARIANTS[loss]().method, Pairs()
    whole = gradient(method, steps.standard, micro_batches(data, 20, 1))
    assert_close(gradient(method, steps.standard, micro_batches(data, 20, parts)), whole)


def test_plainly_accumulated_micro_batches_of_a_contrastive_loss_have_another_gradient(monkeypatch):
    method, data = VARIANTS["info_nce"]().method, Pairs()
    monkeypatch.setattr(CLIP, "couples_samples", False)  # else it would use the gradient cache
    whole = gradient(method, steps.standard, micro_batches(data, 20, 1))
    with pytest.raises(AssertionError):
        assert_close(gradient(method, steps.standard, micro_batches(data, 20, 4)), whole, tolerance=0.1)


def test_gradient_cache_repeats_the_random_draws_of_its_first_pass():
    method = clip.tiny(patch_dropout=0.5).method
    batches = micro_batches(Pairs(), 20, 1)
    assert_close(gradient(method, steps.grad_cache, batches), gradient(method, steps.standard, batches))


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    class WithoutQueue(Small):
        def forward(self, x, y):
            self.queue.zero_()  # else it would see the micro-batches before
            return super().forward(x, y)

    method, data = WithoutQueue(), Numbers()
    batches = micro_batches(data, 20, 4)
    whole = gradient(method, steps.standard, micro_batches(data, 20, 1))
    assert_close(gradient(method, steps.standard, batches), whole)


def test_gradient_cache_is_refused_with_batch_norm_in_training():
    method = VARIANTS["info_nce"]().method
    method.model.vision_model.norm = torch.nn.BatchNorm2d(3)
    method.to(DEVICE)
    batches = micro_batches(Pairs(), 8, 2)
    with pytest.raises(BadInput, match="CLIP has batch norms.*--gradient_accumulation_steps 1"):
        steps.grad_cache(method.train(), batches, [sgd(method)], accelerator(), 1.0)
    method.model.vision_model.norm.eval()  # as that of a frozen tower
    steps.grad_cache(method, batches, [sgd(method)], accelerator(), 1.0)


@pytest.mark.parametrize("module", [clip, bert, mae, ibot, electra], ids=lambda module: module.__name__)
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradient(module):
    tiny = next(iter(module.VARIANTS.values()))()
    batch = placed(next(Loader(tiny.data, tiny.batch_size, tiny.collate_fn).epoch(0)))
    batch.pop("index", None)
    calls = []
    layer = next(m for m in tiny.method.modules() if isinstance(m, GradientCheckpointingLayer))
    next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradient(tiny.method, steps.standard, [batch])
    once = len(calls)
    gradient_checkpointing.enable(tiny.method)
    assert_close(gradient(tiny.method, steps.standard, [batch]), plain)
    assert len(calls) == 3 * once > 0
    assert all(m.gradient_checkpointing for m in tiny.method.modules() if isinstance(m, GradientCheckpointingLayer))


def test_gradient_is_clipped_to_the_norm_and_reported_before():
    method, batches = placed(Small()), micro_batches(Numbers(), 8, 1)
    before = [p.detach().clone() for p in method.student.parameters()]
    output = steps.standard(method, batches, [sgd(method, lr=1.0)], accelerator(), max_grad_norm=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, method.student.parameters(), strict=True)])
    assert output.metrics["grad_norm"] > 1e-2 and moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def peak(pairs: int, chunk: int) -> int:
    """Bytes of tensors that were alive at most during one step of `pairs` pairs in micro-batches of `chunk`, beyond
    those before it."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = tower | {"image_size": 64, "patch_size": 4}, tower | {"vocab_size": 50, "eos_token_id": 49}
    whole = views.Views([views.WHOLE], tiny_clip.MEAN, tiny_clip.STD)
    method = CLIP(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)), whole)
    pixels = torch.randint(0, 256, (pairs, 3, 64, 64), dtype=torch.uint8)
    ids = torch.full((pairs, 6), 49)
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": ids * 0 + 1}
    batches = [{k: v[i : i + chunk] for k, v in batch.items()} for i in range(0, pairs, chunk)]
    step = steps.grad_cache if chunk < pairs else steps.standard
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(method, batches, [sgd(method)], accelerator(), 1.0)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("chunk", [32, pytest.param(256, marks=pytest.mark.slow)])
def test_memory_of_gradient_cache_follows_the_chunk_not_the_batch(chunk):
    grown = {}
    for pairs, part in ((chunk, chunk), (4 * chunk, 4 * chunk), (16 * chunk, chunk)):
        grown[pairs, part] = peak(pairs, part)
        print(f"{pairs} pairs in micro-batches of {part}: {grown[pairs, part] / 1e6:.0f} MB")
    assert grown[4 * chunk, 4 * chunk] > 3 * grown[chunk, chunk]  # a whole batch costs in proportion
    # of the batch there remain the embeddings and the similarities of all pairs, of which the loss holds a few copies
    assert grown[16 * chunk, chunk] < 0.75 * grown[4 * chunk, 4 * chunk]


class Duel(Method):
    """Two players: one lowers a product, the other raises it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.steps_done = nn.Linear(6, 3), nn.Linear(4, 3), 0
        self.scale = 1.0  # of the second player's loss

    def forward(self, x, y, phase=0):
        product = (self.first(x) * self.second(y)).mean()
        loss = (product, -self.scale * product)[phase]
        return Output(loss, {f"loss_{phase}": loss.detach()}, features=x * (phase + 1))

    def after_step(self) -> None:
        self.steps_done += 1


def duel(method: Duel, parts: int = 1, step=steps.alternating, max_grad_norm: float = 0.0) -> Output:
    method.to(DEVICE)
    players = [torch.optim.SGD(player.parameters(), lr=0.5) for player in (method.first, method.second)]
    return step(method, micro_batches(Numbers(), 20, parts), players, accelerator(), max_grad_norm)


def test_players_take_turns_and_the_second_answers_the_first_after_its_move():
    method, (batch,) = placed(Duel()), micro_batches(Numbers(), 20, 1)
    expected = copy.deepcopy(method)
    for phase, player in enumerate((expected.first, expected.second)):
        gradients = torch.autograd.grad(expected(**batch, phase=phase).loss, list(player.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(player.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    output = duel(method)
    for mine, theirs in zip(method.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(p.requires_grad and p.grad is None for p in method.parameters()) and method.steps_done == 1
    assert output.loss == output.metrics["loss_0"] and output.metrics["loss_1"] > output.metrics["loss_0"]


def test_what_is_frozen_stays_frozen():
    method = Duel()
    for player in (method.first, method.second):
        player.bias.requires_grad_(False)
    before = copy.deepcopy(method.to(DEVICE))
    for _ in range(2):
        duel(method)
    for name in ("first", "second"):
        bias, weight = getattr(method, name).bias, getattr(method, name).weight
        assert not bias.requires_grad and torch.equal(bias, getattr(before, name).bias)
        assert not torch.equal(weight, getattr(before, name).weight)


def test_the_player_to_report_is_chosen():
    output = duel(Duel(), step=partial(steps.alternating, reported=1))
    assert output.loss == output.metrics["loss_1"] and torch.equal(output.features.cpu(), 2 * Numbers().x[:20])


def test_alternating_steps_in_micro_batches_are_those_of_the_whole_batch():
    whole, parts = Duel(), Duel()
    duel(whole)
    duel(parts, parts=4)
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_each_player_is_clipped_by_its_own_norm():
    method, plain = Duel(), Duel()
    method.scale = plain.scale = 1e3  # must not shrink the first player's step
    start = placed(copy.deepcopy(method))
    duel(plain)
    norm = duel(method, max_grad_norm=0.1).metrics["grad_norm"]
    pairs = zip(method.second.parameters(), start.second.parameters(), strict=True)
    moved = torch.cat([(a - b).flatten() for a, b in pairs])
    assert norm > 10 and moved.norm().item() == pytest.approx(0.5 * 0.1, rel=1e-3)
    again = Duel()
    duel(again, max_grad_norm=0.1)
    assert all(torch.equal(a, b) for a, b in zip(again.first.parameters(), method.first.parameters(), strict=True))


def test_a_player_with_a_non_finite_gradient_does_not_move():
    method = Duel()
    before, method.scale = placed(copy.deepcopy(method)), float("nan")
    output = duel(method, step=steps.skip_non_finite(steps.alternating))
    pairs = list(zip(method.second.parameters(), before.second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) and not output.metrics["grad_norm"].isfinite()
    assert not torch.equal(method.first.weight, before.first.weight) and method.steps_done == 0
