"""Compiled functions on disk: read again, never by what they would not fit, and done without where that fails."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
from numba import config

from mmssl.kernels import compiled as kept
from mmssl.kernels.compiled import Compiled, compiled

THREE = np.arange(3, dtype=np.float32)


def doubled(values):
    total = 0.0
    for value in values:
        total += 2 * value
    return total


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hits(function: Compiled) -> int:
    assert function(THREE) == 6
    return sum(function._ready.stats.cache_hits.values())


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.nbc"))


def test_a_function_is_compiled_once_and_read_the_next_time(cache):
    assert hits(compiled()(doubled)) == 0 and len(files(cache)) == 1
    assert hits(compiled()(doubled)) == 1 and len(files(cache)) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("BOUNDSCHECK", not config.BOUNDSCHECK), ("CPU_NAME", "generic"), ("OPT", 0)],
)
def test_code_for_another_processor_or_without_checks_is_not_taken(cache, monkeypatch, option, value):
    before = kept._directory([__file__])
    monkeypatch.setattr(config, option, value)
    assert kept._directory([__file__]) != before


def test_code_is_not_taken_when_a_file_that_it_comes_from_has_changed(cache, tmp_path):
    part = tmp_path / "part.py"
    part.write_text("a = 1")
    before = kept._directory([__file__, str(part)])
    part.write_text("a = 2")
    assert kept._directory([__file__, str(part)]) != before


@pytest.mark.parametrize("ending", ["*.nbc", "*.nbi"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_file_that_was_cut_is_compiled_again(cache, ending, left):
    hits(compiled()(doubled))
    [file] = cache.rglob(ending)
    file.write_bytes(file.read_bytes()[:left])
    assert hits(compiled()(doubled)) == 0
    hits(compiled()(doubled))
    assert hits(compiled()(doubled)) == 1


def test_where_nothing_can_be_written_it_is_compiled_for_this_process(cache):
    cache.write_text("a file, not a folder")
    assert hits(compiled()(doubled)) == 0 and cache.read_text() == "a file, not a folder"


def test_where_the_packages_folder_cannot_be_written_the_users_is_taken(monkeypatch, tmp_path):
    (tmp_path / "__pycache__").write_text("a file, not a folder")
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "compiled.py"))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    assert hits(compiled()(doubled)) == 0
    assert len(files(tmp_path / "home" / "kernels")) == 1


def test_other_types_than_those_of_the_first_call_are_refused(cache):
    function = compiled()(doubled)
    function(THREE)
    with pytest.raises(TypeError):
        function(THREE.astype(np.float64))


def test_processes_that_begin_together_share_one_compilation(cache):
    program = "import test_compiled as t; t.config.CACHE_DIR = {!r}; print(t.hits(t.compiled()(t.doubled)))"
    run = [sys.executable, "-c", program.format(str(cache))]
    all_ = [subprocess.Popen(run, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(process.communicate()[0].strip() for process in all_)
    assert said == ["0", "1", "1"] and len(files(cache)) == 1


@pytest.mark.parametrize("ending", ["*.nbc", "*.nbi"])
def test_a_file_in_which_a_byte_has_changed_is_compiled_again(cache, ending):
    hits(compiled()(doubled))
    [file] = cache.rglob(ending)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert hits(compiled()(doubled)) == 0
    assert hits(compiled()(doubled)) == 1
