"""Batches in an order that is a pure function of (seed, epoch, position), so that a resume is exact."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from mmssl.arguments import TrainArgs
from mmssl.distributed import rank, world_size
from mmssl.errors import BadInput

if TYPE_CHECKING:
    from mmssl.data.shards import Order

Batch = dict[str, torch.Tensor]


class Loader:
    """Cuts the training data into batches and distributes them over the processes.

    dataset:    map-style; if it has `__getitems__(indices)`, that fetches a whole batch in one call. If the dataset or
                collate_fn has `set_epoch(epoch)`, it is called before each epoch. If the dataset has `order(seed)`,
                that is the shuffled order, of data that should be read in blocks: see shards.Order.
    collate_fn: list of items (or what `__getitems__` returned) -> dict of tensors, each with the batch dimension first;
                not needed if `__getitems__` returns such a dict or torch's default_collate is enough. An `index` among
                them is not passed to the method: it names the samples in error messages.
    batch_size: samples per process. With N processes, batch i of the epoch holds the same N * batch_size samples as
                batch i of one process with that batch size. The last, incomplete batch of an epoch is dropped.
    shuffle:    a new order each epoch.

    What dataset and collate_fn draw from torch's, numpy's and Python's generators is also a function of (seed, epoch,
    position), in every worker.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        collate_fn: Callable | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.collate_fn = dataset, batch_size, collate_fn or _as_batch
        self.shuffle, self.seed, self.num_workers = shuffle, seed, num_workers
        if len(self) == 0:
            raise BadInput(
                f"the training data has {len(dataset)} samples, fewer than one global batch of "
                f"{batch_size * world_size()}; lower --per_device_train_batch_size ({batch_size})"
            )

    @classmethod
    def from_args(
        cls,
        dataset: Dataset,
        args: TrainArgs,
        collate_fn: Callable | None = None,
        shuffle: bool = True,
    ) -> Loader:
        """With the batch size, seed and workers of the flags."""
        batch, workers = args.per_device_train_batch_size, args.dataloader_num_workers
        return cls(dataset, batch, collate_fn, shuffle=shuffle, seed=args.seed, num_workers=workers)

    def __len__(self) -> int:
        """Batches in an epoch, per process."""
        return len(self.dataset) // (self.batch_size * world_size())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of one epoch from batch `start` on, exactly those of an epoch that began at batch 0.
        Closing the iterator ends its workers."""
        for part in (self.dataset, self.collate_fn):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        batches = _Batches(self.dataset, self.collate_fn, self._order(epoch), (self.seed, epoch, rank()))
        failed = None
        try:
            yield from self._data_loader(batches, range(start, len(batches)))
        except Exception as error:
            if not self.num_workers:
                raise
            # the traceback (the worker's own is in the message) would keep the workers alive, also at the exit
            failed = error.with_traceback(None)
        if isinstance(failed, BadInput):
            raise BadInput(str(failed).rpartition(f"{BadInput.__name__}: ")[2].strip())
        if failed:
            raise failed

    def _order(self, epoch: int) -> torch.Tensor | _Blockwise:
        """(batches, batch_size): the rows of this process's batches."""
        seed = self.seed * 1_000_003 + epoch
        if self.shuffle and hasattr(self.dataset, "order"):
            return _Blockwise(self.dataset.order(seed), len(self), self.batch_size)
        # a new generator: the order must not depend on what ran before
        generator = torch.Generator().manual_seed(seed)
        n, per_step = len(self.dataset), self.batch_size * world_size()
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        return order[: len(self) * per_step].view(len(self), world_size(), self.batch_size)[:, rank()]

    def _data_loader(self, batches: Dataset, places: range) -> DataLoader:
        return DataLoader(
            batches,
            batch_size=None,
            sampler=places,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise the iterator draws from the global one
        )


class _Blockwise:
    """The rows of this process's batches, computed one batch at a time."""

    def __init__(self, order: Order, batches: int, batch_size: int) -> None:
        self.order, self.batches, self.rank, self.world_size = order, batches, rank(), world_size()
        self.global_batch = batch_size * self.world_size

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> torch.Tensor:
        places = slice(batch * self.global_batch, (batch + 1) * self.global_batch)
        return self.order.share(places, self.rank, self.world_size)


class _Batches(Dataset):
    """Batch i of one epoch, with its own random state."""

    def __init__(self, dataset: Dataset, collate_fn: Callable, order: torch.Tensor | _Blockwise, key: tuple) -> None:
        self.dataset, self.collate_fn, self.order, self.key = dataset, collate_fn, order, key

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Batch:
        rows = self.order[i].tolist()
        with _random_numbers(*self.key, i):
            if hasattr(self.dataset, "__getitems__"):
                return self.collate_fn(self.dataset.__getitems__(rows))
            return self.collate_fn([self.dataset[row] for row in rows])


@contextmanager
def _random_numbers(*key) -> Iterator[None]:
    """Inside, the three global generators are seeded from `key`; afterwards, in the training process, their old states
    are restored."""
    before = None if get_worker_info() else (torch.get_rng_state(), np.random.get_state(), random.getstate())
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would seed the device too
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        if before:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])


def _as_it_is(batch):
    return batch


def _as_batch(fetched: list | Batch) -> Batch:
    """A batch that the dataset fetched in one call is returned unchanged."""
    return fetched if isinstance(fetched, dict) else default_collate(fetched)


def _ignore_signals(worker: int) -> None:
    """A scheduler signals every process of a job, but the training process still needs its workers until it has
    saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
