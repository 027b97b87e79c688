"""A model split over processes (FSDP2) trains like one that every process holds whole (DDP)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from processes import in_turn
from small import arguments
from test_every_method import assert_equal_weights, loader, variants

from mmssl.training.loop import train
from mmssl.training.start import start

METHODS = [
    ("bert", "bert"),
    ("mae", "normalised"),
    ("simclr", "vit"),
    ("clip", "info_nce"),
    ("byol", "vit"),
    ("dino", "vit"),
    ("moco_v3", "vit"),
]


@contextmanager
def launched_with_fsdp(version: int = 2) -> Iterator[None]:
    """As `accelerate launch --use_fsdp` sets the environment."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": str(version)}
    try:
        yield
    finally:
        del os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_VERSION"]


def run(name, variant, place, micro_batches=1, sharded=True, **flags):
    tiny = variants(name)[variant]()
    parts = 2 * micro_batches
    settings = {"max_steps": 5, "save_steps": 5, "lr_scheduler_type": "constant", "logging_steps": 1}
    args = arguments(
        place,
        per_device_train_batch_size=tiny.batch_size // parts,
        gradient_accumulation_steps=micro_batches,
        **settings | flags,
    )
    start(args)
    train(tiny.method, loader(tiny, parts), args, tiny.plain(tiny.method), tiny.step)


def run_sharded(*given, **flags):
    with launched_with_fsdp():
        run(*given, **flags)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def faults(place):
    jobs = {}
    for n, v in METHODS:
        jobs[f"{n}-ddp"] = partial(run, n, v, place / f"{n}-ddp")
        jobs[f"{n}-fsdp"] = partial(run_sharded, n, v, place / f"{n}-fsdp")
    return in_turn(jobs, place)


@pytest.mark.parametrize("name", [n for n, _ in METHODS])
def test_equal(name, place, faults):
    for kind in ("ddp", "fsdp"):
        assert not faults[f"{name}-{kind}"], faults[f"{name}-{kind}"]
    assert_equal_weights(place / f"{name}-ddp", place / f"{name}-fsdp")
