"""Joined data: each part under its own name, all of a shorter one as often as of itself, the same after a resume."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from mmssl.data.joined import Joined, apart


class Numbers(Dataset):
    def __init__(self, n: int) -> None:
        self.n, self.epoch = n, None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(rows), "index": torch.tensor(rows)}


def test_a_batch_holds_each_part_under_its_name():
    data = Joined({"long": Numbers(10), "short": Numbers(4)})
    batch = data.__getitems__([7, 2])
    assert len(data) == 10 and list(batch) == ["index", "long.x", "short.x"]
    assert batch["index"].tolist() == batch["long.x"].tolist() == [7, 2]
    assert {part: list(each) for part, each in apart(batch).items()} == {"long": ["x"], "short": ["x"]}


def test_a_shorter_part_is_gone_through_whole_each_time_in_a_new_order():
    data = Joined({"long": Numbers(10), "short": Numbers(5)})
    seen = []
    for epoch in range(2):
        data.set_epoch(epoch)
        seen += data.__getitems__(list(range(10)))["short.x"].split(5)
    assert all(sorted(each.tolist()) == list(range(5)) for each in seen)
    assert len({tuple(each.tolist()) for each in seen}) > 1


def test_rows_are_a_function_of_seed_and_epoch_alone_and_parts_hear_of_the_epoch():
    def rows(seed: int, epoch: int) -> list[int]:
        data = Joined({"long": Numbers(12), "short": Numbers(5)}, seed)
        data.set_epoch(epoch)
        assert {part.epoch for part in data.parts.values()} == {epoch}
        return data.__getitems__(list(range(12)))["short.x"].tolist()

    assert rows(0, 3) == rows(0, 3) and rows(0, 3) != rows(1, 3) != rows(1, 4)
