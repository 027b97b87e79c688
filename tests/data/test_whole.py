import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmssl.data.atomic import OURS, once, reading, whole
from mmssl.errors import BadInput


def test_nothing_stays_of_a_block_that_failed_or_was_killed(tmp_path):
    with pytest.raises(KeyError), whole(tmp_path / "data") as place:
        (place / "half").write_text("")
        raise KeyError
    assert not list(tmp_path.iterdir())
    place.mkdir()  # as a kill leaves it
    (place / OURS).touch()
    (place / "half").write_text("")
    with whole(tmp_path / "data") as place:
        (place / "all").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["data", "data/all"]


@pytest.mark.parametrize("mine", ["data", "data/file"])
def test_what_is_there_stays(tmp_path, mine):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    said = "data already exists and is not empty: remove it, or choose another folder"
    with pytest.raises(BadInput, match=said), whole(tmp_path / "data"):
        raise AssertionError
    assert (tmp_path / mine).read_text() == "mine"


@pytest.mark.parametrize("rename_fails", [False, True])
def test_a_link_to_an_empty_folder_is_filled_and_a_failed_rename_does_not_block_the_next_try(
    tmp_path, monkeypatch, rename_fails
):
    def failing(*given):
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "data")
    if rename_fails:
        with monkeypatch.context() as patched, pytest.raises(OSError, match="cross-device"), whole(tmp_path / "link"):
            patched.setattr(Path, "rename", failing)
        assert not list(tmp_path.rglob("*.mmssl-partial"))
    with whole(tmp_path / "link") as place:
        (place / "all").write_text("")
    assert [path.name for path in (tmp_path / "disk" / "data").iterdir()] == ["all"] and (
        tmp_path / "link"
    ).is_symlink()


def test_runs_that_begin_at_once_make_it_once(tmp_path):
    made, all_there = [], threading.Barrier(3)

    def make(directory) -> None:
        with whole(directory) as place:
            made.append(place)
            time.sleep(0.2)

    def run(_):
        all_there.wait()
        return once(tmp_path / "cache" / "data", make).is_dir()

    with ThreadPoolExecutor(3) as runs:
        assert all(runs.map(run, range(3)))
    assert len(made) == 1


def test_a_folder_of_the_users_under_the_name_of_a_partial_one_stays(tmp_path):
    (tmp_path / "data.mmssl-partial").mkdir()
    (tmp_path / "data.mmssl-partial" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="data.mmssl-partial is in the way"), whole(tmp_path / "data"):
        raise AssertionError
    assert (tmp_path / "data.mmssl-partial" / "mine").read_text() == "mine"


@contextmanager
def full_disk(n: int):
    """No file of this process may grow beyond n bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_said_with_path_and_space_and_leaves_nothing(tmp_path):
    with (
        full_disk(1000),
        pytest.raises(BadInput, match=r"data could not be written \(.*too large\): .* MB are free. Free space there"),
        whole(tmp_path / "data") as place,
    ):
        (place / "numbers").write_bytes(bytes(2000))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["data.lock", "data"])
def test_what_is_in_the_way_of_a_cache_is_named(tmp_path, name):
    if name == "data":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=rf"{name} (is in the way|is not a folder)"):
        once(tmp_path / "data", lambda directory: directory.mkdir())


def test_a_file_that_is_gone_from_a_cache_is_named_with_the_remedy(tmp_path):
    said = "is damaged .*numbers.*: remove that folder, and it is made again"
    with pytest.raises(BadInput, match=said), reading(tmp_path):
        (tmp_path / "numbers").read_bytes()


def test_what_another_user_has_made_is_read_without_a_lock(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied", self.lock_file)

    monkeypatch.setattr("mmssl.data.atomic.FileLock.acquire", denied)
    with pytest.raises(BadInput, match="Permission denied"):
        once(tmp_path / "made", lambda directory: pytest.fail("made without a lock"))
    (tmp_path / "made").mkdir()
    assert once(tmp_path / "made", lambda directory: pytest.fail("made again")) == tmp_path / "made"
