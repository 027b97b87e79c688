"""The order of the data is a function of (seed, epoch, position), and every item is seen once."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from processes import Processes
from small import Numbers, arguments

from mmssl.data.loader import Loader
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.training.start import start


def shards(sizes: list[int]) -> IterableDataset:
    def rows(shard: list[tuple[int, int]]):
        for first, n in shard:
            yield from ({"index": first + i} for i in range(n))

    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    return IterableDataset.from_generator(rows, gen_kwargs={"shard": list(zip(firsts, sizes, strict=True))})


def noisy(rows: list[dict]) -> dict[str, torch.Tensor]:
    noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return {"index": torch.tensor([row["index"] for row in rows]), "noise": torch.tensor(noise)}


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
            batches(Loader(shards([20]), 4, noisy))
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assert after(run=True) == after(run=False)


def test_more_samples_in_a_batch_than_there_are_is_refused():
    with pytest.raises(BadInput, match="3 samples, fewer than one global batch of 4"):
        Loader(Dataset.from_dict({"index": [0, 1, 2]}), 4)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_stream_shows_every_item_once_whatever_the_shards(workers):
    found = batches(Loader(shards([7, 12, 5, 20]), 4, noisy, num_workers=workers))
    assert [len(batch["index"]) for batch in found] == [4] * 11
    assert sorted(seen(found)) == list(range(44))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_stream_resumes_at_its_position_shuffle_buffer_and_random_numbers_included(workers, shuffled):
    stream = shards([7, 12, 5, 20])
    stream = stream.shuffle(seed=1, buffer_size=10) if shuffled else stream
    loader = Loader(stream, 4, noisy, num_workers=workers)
    whole = batches(loader, epoch=2)
    for position in (1, 6, 10):
        assert batches(loader, epoch=2, start=position) == whole[position:]


def test_skipped_batches_of_a_stream_are_not_collated():
    collated = []
    loader = Loader(shards([40]), 4, lambda rows: collated.append(len(rows)) or noisy(rows))
    assert len(batches(loader, start=7)) == 3 and collated == [4] * 3


def read(place: Path, sizes: list[int], workers: int, from_batch: int) -> None:
    start(arguments(place))
    loader = Loader(shards(sizes), 4, noisy, num_workers=workers)
    (place / f"{rank()}.json").write_text(json.dumps(seen(batches(loader, start=from_batch))))
    time.sleep(0.1)  # neither may leave while the other still asks


def read_by_two(place: Path, sizes: list[int], workers: int = 1, from_batch: int = 0) -> tuple[list[list[int]], str]:
    said = Processes(read, place, sizes, workers, from_batch, log=place / "log.txt", world=2).succeed(timeout=60)
    return [json.loads((place / f"{i}.json").read_text()) for i in (0, 1)], said


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", [[40], [8, 16, 12, 4], [12, 4, 24]])
def test_each_item_of_a_stream_is_seen_by_one_process(tmp_path, sizes, workers):
    found, _ = read_by_two(tmp_path, sizes, workers)
    assert len(found[0]) == len(found[1]) == 20
    assert sorted(found[0] + found[1]) == list(range(40))


def test_stream_of_two_processes_resumes_at_its_position(tmp_path):
    whole, _ = read_by_two(tmp_path, [16, 24], workers=1)
    rest, _ = read_by_two(tmp_path, [16, 24], workers=1, from_batch=2)
    assert rest == [part[8:] for part in whole]


def test_uneven_shards_end_the_epoch_on_both_processes_and_say_that_some_is_left(tmp_path):
    found, said = read_by_two(tmp_path, [40, 12])
    assert len(found[0]) == len(found[1]) == 12
    assert "the stream of another process ended first" in said
