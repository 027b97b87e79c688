import os

import pytest

# before torch is imported: two workers with a thread for each core take several times as long as with one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARE = {
    "test_two_processes_train_like_one_on_the_whole_batch",
    "test_micro_batches_train_like_the_whole_batch_or_are_refused_for_a_batch_norm",
}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items) -> None:
    """With several workers a file's tests run in one of them, because they share what they have made. The file that
    holds for every method is divided by guarantee: it takes as long as all others together."""
    for item in items:
        group = item.path.stem
        if group == "test_every_method":
            name = item.originalname
            group += " whole" if name in SHARE else f" {name}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def built_in_data(tmp_path_factory, worker_id) -> None:
    """Made once for all tests, and never where the user keeps theirs."""
    place = tmp_path_factory.getbasetemp()
    os.environ["MMSSL_HOME"] = str((place if worker_id == "master" else place.parent) / "home")
