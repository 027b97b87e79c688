"""A model that does not fit into memory is refused before it is built."""

from __future__ import annotations

import pytest

from mmssl import device
from mmssl.errors import BadInput
from mmssl.models.memory import refuse_too_large


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that sets the memory limit of the container that the process runs in."""
    monkeypatch.setattr(device, "CONTAINER_LIMITS", (tmp_path / "memory.max", tmp_path / "missing"))
    return (tmp_path / "memory.max").write_text


def test_a_model_larger_than_the_container_is_refused_with_both_sizes(container):
    container("1000000000\n")
    with pytest.raises(BadInput, match=r"--encoder huge: training 100,000,000 weights takes 1\.6 GB, and 1\.0 GB"):
        refuse_too_large(10**8, "--encoder huge")
    refuse_too_large(10**7, "--encoder small")


def test_a_container_without_a_limit_has_the_memory_of_the_machine(container):
    container("max\n")
    refuse_too_large(10**7, "--encoder small")
