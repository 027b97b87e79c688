"""What a path in a data set may lead to."""

from __future__ import annotations

import os
import socket

import pytest

from mmssl.data import regular_files
from mmssl.errors import BadInput


def test_only_regular_files_are_read_and_a_named_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to(tmp_path / "pipe")
        kinds = {"pipe": "a named pipe", "link": "a named pipe", "socket": "a socket", ".": "a folder"}
        for name, kind in kinds.items():
            with pytest.raises(BadInput, match=f"is {kind}, not a regular file"):
                regular_files.read(tmp_path / name, 100)
    with pytest.raises(BadInput, match="is a device"):
        regular_files.read("/dev/zero", 100)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "to_file").symlink_to(tmp_path / "file")
    assert regular_files.read(tmp_path / "to_file", 3) == b"abc"
    with pytest.raises(FileNotFoundError):
        regular_files.read(tmp_path / "nowhere", 100)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match="holds 1,099,512 MB, more than the 5 MB that are read"):
        regular_files.read(tmp_path / "sparse", 5_000_000)
