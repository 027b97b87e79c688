"""The order of the data is a function of (seed, epoch, position), and every item is seen once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from small import Numbers

from mmssl.data.loader import Loader
from mmssl.errors import BadInput


def batches(loader: Loader, epoch: int = 0, start: int = 0) -> list[dict[str, list]]:
    return [{name: value.tolist() for name, value in batch.items()} for batch in loader.epoch(epoch, start)]


def seen(found: list[dict[str, list]]) -> list[int]:
    return [i for batch in found for i in batch["index"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_position_on_are_those_of_the_whole_epoch_random_numbers_included(workers):
    loader = Loader(Numbers(50, noise=1.0), 4, num_workers=workers)
    whole = batches(loader, epoch=3)
    assert len(whole) == 12 and batches(loader, epoch=3, start=5) == whole[5:]


def test_workers_change_nothing():
    assert batches(Loader(Numbers(50, noise=1.0), 4)) == batches(Loader(Numbers(50, noise=1.0), 4, num_workers=3))


def test_epochs_differ_in_order_and_in_random_numbers():
    loader = Loader(Numbers(12, noise=1.0), 12, shuffle=False, num_workers=1)
    first, second = batches(loader, 0)[0], batches(loader, 1)[0]
    assert first["index"] == second["index"] and first["x"] != second["x"]
    loader = Loader(Numbers(50), 50)
    orders = [seen(batches(loader, epoch)) for epoch in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(50))


def test_loading_does_not_touch_the_random_numbers_of_the_training():
    def after(run: bool) -> list[float]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        if run:
            batches(Loader(Numbers(50, noise=1.0), 4))
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assert after(run=True) == after(run=False)


def test_more_samples_in_a_batch_than_there_are_is_refused():
    with pytest.raises(BadInput, match="3 samples, fewer than one global batch of 4"):
        Loader(Dataset.from_dict({"index": [0, 1, 2]}), 4)
