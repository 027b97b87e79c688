import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmssl.data.atomic import once, whole
from mmssl.errors import BadInput


def test_nothing_stays_of_a_block_that_failed_or_was_killed(tmp_path):
    with pytest.raises(KeyError), whole(tmp_path / "data") as place:
        (place / "half").write_text("")
        raise KeyError
    assert not list(tmp_path.iterdir())
    place.mkdir()  # as a kill leaves it
    (place / "half").write_text("")
    with whole(tmp_path / "data") as place:
        (place / "all").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["data", "data/all"]


@pytest.mark.parametrize("mine", ["data", "data/file"])
def test_what_is_there_stays(tmp_path, mine):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    said = "data holds something already: remove it, or choose another folder"
    with pytest.raises(BadInput, match=said), whole(tmp_path / "data"):
        raise AssertionError
    assert (tmp_path / mine).read_text() == "mine"


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
