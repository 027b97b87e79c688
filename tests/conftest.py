import os

import pytest

# before torch is imported: two workers with a thread for each core take several times as long as with one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def built_in_data(tmp_path_factory, worker_id) -> None:
    """Made once for all tests, and never where the user keeps theirs."""
    place = tmp_path_factory.getbasetemp()
    os.environ["MMSSL_HOME"] = str((place if worker_id == "master" else place.parent) / "home")
