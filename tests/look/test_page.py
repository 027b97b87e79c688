"""The page over HTTP, without a browser: it answers, listens on loopback alone, and gives out no other file."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install gradio")

from mmssl.look import page


@pytest.fixture(scope="module")
def address(clip_run, words_run) -> str:
    runs = [clip_run, words_run]
    built = page.build(runs)
    address = page.serve(built).rstrip("/")
    page.prepare(runs)
    yield address
    built.close()


def get(url: str, host: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask(address: str, name: str, *given) -> tuple[str, list]:
    """("complete" or "error", what the page answers)"""
    body = json.dumps({"data": list(given)}).encode()
    request = urllib.request.Request(f"{address}/gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request, timeout=10))["event_id"]
    lines = urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=20).read().decode().splitlines()
    return lines[-3].removeprefix("event: "), json.loads(lines[-2].removeprefix("data: "))


def test_a_text_is_answered_with_images(address):
    state, (shown, *_) = ask(address, "by_text", "a red square")
    assert state == "complete" and len(shown) == 12
    status, content = get(shown[0]["image"]["url"])
    assert status == 200 and content[8:12] == b"WEBP"


@pytest.mark.slow  # six seconds
def test_the_page_starts_within_10_seconds_of_one_core(vit_run):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mmssl.look", vit_run.name, "--use_cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]  # "http://127.0.0.1:7860/  (after 5.0 s; ...)"
        assert get(address)[0] == 200
        process.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert sum(after[:2]) - sum(before[:2]) < 10


def test_an_answer_takes_less_than_300_ms_of_one_core(address):
    started = time.process_time()
    ask(address, "by_text", "a blue circle")
    assert time.process_time() - started < 0.3


def test_words_are_answered_in_the_same_page(address):
    state, (table, *_) = ask(address, "analogy", "man", "king", "woman")
    assert state == "complete" and table["data"][0][0] == "queen"


def test_a_message_shows_what_was_written_as_text(address):
    state, error = ask(address, "neighbours", "<img src=x onerror=alert(1)>")
    assert state == "error" and "<img" not in error["error"] and "&lt;img" in error["error"]


def test_it_listens_on_loopback_alone(address):
    port = int(address.rpartition(":")[2])
    assert address == f"http://127.0.0.1:{port}"
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    own = [line.split()[1] for line in listening.splitlines() if line.split()[1].endswith(f":{port:04X}")]
    assert [place for place in own if not place.startswith("0100007F")] == []


def test_another_host_name_is_refused(address):
    assert get(address, "127.0.0.1")[0] == 200
    assert get(address, "attacker.example")[0] == 400


@pytest.fixture
def secret(tmp_path) -> Path:
    (tmp_path / "secret.txt").write_text("not yours")
    return tmp_path / "secret.txt"


ROUTES = ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/static/", "static/", "assets/", "theme.css/")


def test_no_file_outside_is_given_out(address, secret, clip_run):
    own = os.environ["GRADIO_TEMP_DIR"]
    up = "/".join([".."] * (len(Path(own).parts) - 1))
    names = [
        str(secret), "/etc/passwd", f"{own}/{up}/etc/passwd", f"{own}/{up}{secret}", "../../../../etc/passwd", "file:///etc/passwd",
        str(clip_run.folder / "metrics.json"), str(Path(clip_run.dataset) / "train.parquet"), "pyproject.toml",
        str(Path.cwd() / "pyproject.toml"),
    ]  # fmt: skip
    for name in names:
        for path in (name, quote(name, safe=""), quote(quote(name, safe=""), safe="")):
            for route in (
                "gradio_api/file=",
                "file=",
                "gradio_api/file/",
                "gradio_api/static/",
                "static/",
                "assets/",
                "theme.css/",
            ):
                status, content = get(f"{address}/{route}{path}")
                assert status != 200 or b"<!doctype html>" in content[:200].lower(), (route, path, content[:80])
                assert b"not yours" not in content and b"root:" not in content


def test_no_file_outside_is_taken_for_an_upload(address, secret):
    for path in (str(secret), "/etc/passwd", f"{os.environ['GRADIO_TEMP_DIR']}/../../etc/passwd"):
        state, answer = ask(address, "by_image", {"path": path, "meta": {"_type": "gradio.FileData"}})
        assert state == "error" and "not yours" not in str(answer)


def test_no_address_is_fetched_for_a_visitor(address):
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(0.5)
        url = f"http://127.0.0.1:{inner.getsockname()[1]}/secret.png"
        state, _ = ask(address, "by_image", {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}})
        get(f"{address}/gradio_api/file={url}")
        get(f"{address}/gradio_api/proxy={url}")
        assert state == "error"
        with pytest.raises(TimeoutError):
            inner.accept()
