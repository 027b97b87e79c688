"""A Hub that takes the connection and never answers ends in a sentence, soon."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

IMPORTS = """
from pathlib import Path
from mmssl.hub import export
from mmssl.models import pretrained, word_vectors
pretrained.HUB_TIMEOUT = export.ANSWER_TIMEOUT = 1
"""
COMMANDS = {
    "model": "pretrained.load('user/name')",
    "vectors": "word_vectors.load('user/name')",
    "push": "export.push(Path('.'), 'user/name')",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_that_never_answers_ends_in_a_sentence(command, tmp_path):
    names = ["metrics.json", "README.md"]
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / ".mmssl").mkdir()
    (tmp_path / ".mmssl" / "manifest.json").write_text(json.dumps({"files": names}))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        held = []
        threading.Thread(target=lambda: [held.append(silent.accept()) for _ in range(99)], daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS + COMMANDS[command]],
            env=os.environ
            | {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HOME": str(tmp_path / "home")}
            | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none", "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
    said = done.stderr.strip().splitlines()[-1]
    assert "BadInput" in said and "no answer in 1 s" in said, done.stderr[-2000:]
