"""The plainest evaluation: the method's own loss and metrics on data that it was not trained on."""

import json
from pathlib import Path

import pytest
import torch
from processes import Processes
from small import arguments
from tiny import simclr
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mmssl.data.loader import Loader
from mmssl.evaluation.held_out import Evaluation, HeldOut
from mmssl.method import Method, Output
from mmssl.training.loop import train
from mmssl.training.start import start


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


class Collated(Dataset):
    """The items of another, fetched by the batch."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return default_collate([self.data[row] for row in rows])


def evaluated_while_others_wait(place: Path, of: str) -> None:
    args = arguments(place / of, max_steps=2, per_device_train_batch_size=4 if of == "two" else 8)
    start(args)
    tiny = simclr.VARIANTS["resnet"]()
    evaluation = HeldOut(Collated(tiny.data), 8)
    loader = Loader(tiny.data, args.per_device_train_batch_size)
    summary = train(tiny.method, loader, args, tiny.plain(tiny.method), evaluate=evaluation)
    if summary.evaluations:
        (place / f"{of}.json").write_text(json.dumps(summary.evaluations))


def test_a_loss_that_compares_samples_of_all_processes_is_evaluated_on_one_while_the_others_wait(tmp_path):
    for of, world in (("one", 1), ("two", 2)):
        log = tmp_path / f"{of}.txt"
        Processes(evaluated_while_others_wait, tmp_path, of, log=log, world=world).succeed(timeout=60)
    one, two = (json.loads((tmp_path / f"{of}.json").read_text()) for of in ("one", "two"))
    assert [values["step"] for values in one] == [0, 2]
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
