"""The tests of this folder again, in a process where compiled code checks every access to an array."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAM = """
import sys
import numpy as np
import pytest
from mmssl.kernels import word2vec as kernel, word_table

words, noise = np.array([0, 9], np.int32), np.zeros(15, np.int32)
tables = [np.zeros((9, kernel.LANES), np.float32) for _ in range(2)]
with pytest.raises(IndexError):  # past its checks: a word beyond the table is found by `load`, of simd.py
    kernel._train_windows(words, np.ones(2, np.int32), noise, 5, *tables, 0, 0, 0.1)
with pytest.raises(IndexError):  # and numbers beyond a buffer by numba
    table = word_table.Table()
    text = np.frombuffer(b"a", np.uint8)
    word_table._number_words(text, 0, np.empty(0, np.int32), 0, 0, 0, table.slots, table.hashes, table.counts,
                             table.ends, np.empty(2000, np.uint8), 0, 0)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_no_kernel_reads_or_writes_outside_of_its_arrays():
    # not those of several processes: they compile again, for minutes, and access no other arrays
    files = sorted(set(HERE.glob("test_*.py")) - {Path(__file__), HERE / "test_compiled.py"})
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1"}
    command = [sys.executable, "-c", PROGRAM, "-k", "not processes", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
