import os

import pytest

# before torch is imported: two workers with a thread for each core take several times as long as with one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

# files that take a minute or more: a worker that begins one of them last works while the others wait
LONGEST = ("test_every_method.py", "test_loop.py", "test_hub.py", "test_crash.py", "test_export.py", "test_recipes.py")


def pytest_configure() -> None:
    if "MMSSL_TEST_DEVICE" in os.environ:  # else no need for torch yet
        import device

        device.prepare()


@pytest.fixture(autouse=True)
def own_device():
    """On a GPU, a test that asks for the CPU gets it also after one that did not: accelerate keeps the first device."""
    yield
    if "MMSSL_TEST_DEVICE" in os.environ:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def pytest_sessionfinish() -> None:
    if "MMSSL_TEST_DEVICE" in os.environ:
        from accelerate import PartialState

        PartialState(cpu=True)  # what runs at the exit asks it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def built_in_data(tmp_path_factory, worker_id) -> None:
    """Made once for all tests, and never where the user keeps theirs."""
    place = tmp_path_factory.getbasetemp()
    os.environ["MMSSL_HOME"] = str((place if worker_id == "master" else place.parent) / "home")
