"""Multi-task: the sum of the parts, their turns and resting heads, one grey input for all, and what is refused."""

from __future__ import annotations

import pytest
import torch
from device import accelerator
from small import bits
from tiny import dino
from tiny.multi_task import method, tiny
from tiny.simclr import batch, vit

from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA
from mmssl.methods.multi_task import MultiTask
from mmssl.models import image_encoders
from mmssl.training import steps


def given(*tasks: str) -> dict[str, torch.Tensor]:
    return {f"{task}.{name}": value for task in tasks for name, value in batch().items()}


def step(one: MultiTask, optimizers, **inputs: torch.Tensor):
    return steps.standard(one, [inputs], optimizers, accelerator(), 0.0)


def test_the_loss_is_the_sum_of_what_each_task_has_alone():
    one = method("rotation", "simclr", "colorization").eval()
    output, each = one(**given(*one.tasks)), {name: task(**batch()) for name, task in one.tasks.items()}
    torch.testing.assert_close(output.loss, sum(own.loss for own in each.values()))
    for name, own in each.items():
        torch.testing.assert_close(output.metrics[f"{name}_loss"], own.loss)
    torch.testing.assert_close(output.metrics["rotation_accuracy"], each["rotation"].metrics["accuracy"])
    torch.testing.assert_close(output.metrics["simclr_partner_found"], each["simclr"].metrics["partner_found"])
    assert float(output.trivial_loss) == pytest.approx(sum(float(own.trivial_loss) for own in each.values()))
    torch.testing.assert_close(output.features, each["rotation"].features)


def test_the_gradient_is_the_sum_of_what_each_task_has_alone():
    one = method("rotation", "simclr").train()
    one(**given(*one.tasks)).loss.backward()
    together = {name: p.grad.clone() for name, p in one.exported().named_parameters() if p.grad is not None}
    one.zero_grad()
    for task in one.tasks.values():
        task(**batch()).loss.backward()
    for name, parameter in one.exported().named_parameters():
        if name in together:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_tasks_take_turns_and_the_heads_of_the_others_rest():
    one = method("rotation", "simclr", order="turns").train()
    optimizers = [torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)]
    moved = []
    for _ in range(4):
        before = bits(one)
        output = step(one, optimizers, **given(*one.tasks))
        changed = {name for name, value in bits(one).items() if value != before[name]}
        moved.append({part for part in ("rotation.classifier", "simclr.projection") if any(part in n for n in changed)})
        assert any("encoder" in name for name in changed)
        idle = {"rotation_loss", "simclr_loss"} - {f"{next(iter(moved[-1])).split('.')[0]}_loss"}
        assert [name for name in idle if output.metrics[name].isnan()] == list(idle)
    assert moved == [{"rotation.classifier"}, {"simclr.projection"}] * 2


def test_the_turn_is_part_of_the_state():
    one, other = (method("rotation", "simclr", order="turns").train() for _ in range(2))
    step(one, [torch.optim.SGD(one.parameters(), lr=0.1)], **given(*one.tasks))
    other.load_state_dict(one.state_dict())
    assert [name for name, _ in other._at_work()] == ["simclr"] == [name for name, _ in one._at_work()]


def test_an_evaluation_judges_all_tasks_whoever_is_next():
    one = method("rotation", "simclr", order="turns").eval()
    assert {"rotation_loss", "simclr_loss", "rotation_accuracy"} <= one(**given(*one.tasks)).metrics.keys()


def test_beside_colorization_every_task_sees_grey_images():
    """Harmonised input: after a step of another task, too, two pictures of one grey form have the same features."""
    one = method("rotation", "colorization", order="turns").train()
    step(one, [torch.optim.AdamW(one.parameters(), lr=1e-2)], **given(*one.tasks))
    views = one.tasks["rotation"].views
    grey = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    direction = (torch.tensor([LUMA[1], -LUMA[0], 0.0]) / views.std).view(3, 1, 1)  # redder, no lighter
    with torch.no_grad():
        plain, coloured = (image_encoders.features(one.exported().eval(), x) for x in (grey, grey + direction))
    torch.testing.assert_close(plain, coloured, rtol=1e-4, atol=1e-4)


def test_the_parts_know_the_progress():
    one = method("rotation", "simclr")
    one.progress = 0.5
    assert {task.progress for task in one.tasks.values()} == {0.5} == {one.progress}


def test_the_heads_are_those_of_all_tasks_and_the_encoder_is_none(tmp_path):
    one, other = method("rotation", "simclr"), method("rotation", "simclr")
    torch.nn.init.constant_(one.tasks["rotation"].classifier.weight, 0.25)
    one.save_pretrained(tmp_path)
    names = {name.removeprefix("tasks.").split(".")[1] for name in one._heads() if name != "turn"}
    assert names == {"classifier", "projection"}
    other.continue_from(str(tmp_path))
    assert (other.tasks["rotation"].classifier.weight == 0.25).all()


def test_a_method_that_exports_a_teacher_is_refused():
    encoder = vit()
    teacher = dino.method(lambda: encoder)
    with pytest.raises(BadInput, match="--tasks dino: it exports another network than the encoder"):
        MultiTask({"rotation": method("rotation").tasks["rotation"], "dino": teacher})


def test_a_batch_of_joined_data_is_what_it_takes():
    one = tiny("rotation", "simclr")
    fetched = one.data.__getitems__([0, 1, 2])
    fetched.pop("index")
    assert one.method(**fetched).loss.isfinite()
