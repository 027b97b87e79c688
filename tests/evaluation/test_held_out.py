"""The plainest evaluation: the method's own loss and metrics on data that it was not trained on."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.evaluation.held_out import Evaluation, HeldOut
from mmssl.method import Method, Output


class Numbers(Dataset):
    def __len__(self) -> int:
        return 11

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"x": torch.tensor(rows, dtype=torch.float32), "index": torch.tensor(rows)}


class Mean(Method):
    """Its loss is the mean of what it is given; it is the worst at numbers below 2."""

    def __init__(self, trivial: bool = True) -> None:
        super().__init__()
        self.weight, self.trivial = torch.nn.Parameter(torch.ones(())), trivial

    def forward(self, x: Tensor) -> Output:
        below = (x < 2).float().mean()
        trivial = torch.as_tensor(float(len(x))) if self.trivial else None
        return Output(self.weight * x.mean(), {"below_two": below}, trivial_loss=trivial)


def test_loss_and_metrics_are_means_over_whole_batches_and_the_smaller_last_one_is_left_out():
    evaluation, method = HeldOut(Numbers(), 4), Mean().eval()
    assert evaluation(method) == pytest.approx({"loss": 3.5, "below_two": 0.25})  # of 0 to 7
    assert evaluation(method) == evaluation(method)


def test_a_batch_is_never_larger_than_the_data():
    assert HeldOut(Numbers(), 64)(Mean())["loss"] == pytest.approx(5.0)


def test_the_baseline_is_the_mean_trivial_loss():
    assert HeldOut(Numbers(), 4).baselines(Mean()) == {"input ignored": {"loss": 4.0}}
    assert HeldOut(Numbers(), 4).baselines(Mean(trivial=False)) == {}


def test_an_evaluation_without_anything_to_say_is_empty(tmp_path):
    evaluation, method = Evaluation(), Mean()
    assert evaluation(method) == evaluation.baselines(method) == evaluation.draw(method, tmp_path, {}) == {}
    assert evaluation.text(method) == evaluation.units == "" and not list(tmp_path.iterdir())
