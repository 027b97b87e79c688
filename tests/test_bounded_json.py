"""JSON that would overflow a parser's stack is refused in a sentence."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_clip
from PIL import Image

from mmssl import bounded_json
from mmssl.errors import BadInput
from mmssl.models import pretrained
from mmssl.training import log

DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_clip.export(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_checkpoint_with_deep_json_is_refused(whole, name, tmp_path):
    directory = shutil.copytree(whole, tmp_path / "copy")
    text = (directory / name).read_text()
    (directory / name).write_text(text.replace("{", f'{{"deep": {DEEP},', 1))
    with pytest.raises(BadInput, match=f"{name}: brackets nested more than 100 deep"):
        pretrained.load(str(directory))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "metadata.jsonl"])
def test_data_with_deep_json_is_refused_and_kills_no_process(name, tmp_path):
    (tmp_path / name).write_text(
        f'{{"file_name": "a.png", "text": "fine"}}\n{{"file_name": "a.png", "text": {DEEP}}}\n'
    )
    if name == "metadata.jsonl":
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    program = f"from mmssl.data import sources; sources.load({str(tmp_path)!r})"  # of its own: it may be killed
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "BadInput" in done.stderr.splitlines()[-1] and name in done.stderr


def test_a_deep_line_of_a_log_is_passed_over(tmp_path):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{{"step": {DEEP}}}\n{{"step": 2}}\n')
    assert log.read(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_brackets_in_strings_do_not_count(tmp_path):
    file = tmp_path / "a.json"
    rows = [{"text": "[" * 500 + '\\"{' * 500}, {"text": '"' + "[" * 500}, {"text": "\\"}, {"n": [[1], {"a": 2}]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    bounded_json.check(file)
    file.write_text(json.dumps(rows))
    assert bounded_json.read(file) == rows


@pytest.mark.parametrize("before", ['"', '"\\\\\\"', "]" * 200, '{"a": "\\\\"}', '"a\n'])
def test_nothing_before_it_hides_a_deep_part(before, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(before + "\n" + DEEP)
    with pytest.raises(bounded_json.NotJson, match="100 deep"):
        bounded_json.check(file)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_where_the_file_is_cut_into_blocks_makes_no_difference(block, tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_json, "BLOCK", block)
    file = tmp_path / "a.json"
    file.write_text('{"a": "\\\\\\" [[", "b": "\\\\"}' + "\n" + "[" * 100 + "]" * 100)
    bounded_json.check(file)
    file.write_text('{"a": "\\\\\\" [[", "b": "\\\\"}' + "\n" + "[" * 101)
    with pytest.raises(bounded_json.NotJson):
        bounded_json.check(file)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_what_is_written_is_json_without_nan(kind):
    written = bounded_json.dumps({"a": [kind("nan"), kind("inf")], "b": kind(0.5)})
    assert json.loads(written, parse_constant=pytest.fail) == {"a": [None, None], "b": 0.5}
