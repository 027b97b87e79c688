import re

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath

from mmssl.errors import BadInput
from mmssl.evaluation import word_similarity as ws


def vectors(words, table):
    kv = KeyedVectors(table.shape[1])
    kv.add_vectors(words, table.astype(np.float32))
    return kv


@pytest.fixture(scope="module")
def random_vectors():
    """Random vectors for half of the words of the tests."""
    files = [datapath(f) for f in (*ws.SIMILARITY.values(), ws.ANALOGIES)]
    words = {w.lower() for f in files for line in open(f) for w in line.split() if w.isalpha()}  # noqa: SIM115
    words = sorted(words)[::2]
    return vectors(words, np.random.default_rng(0).normal(size=(len(words), 20)))


def test_analogies_are_answered_as_gensim_answers_them(random_vectors):
    rng = np.random.default_rng(1)
    table = 0.1 * rng.normal(size=random_vectors.vectors.shape)
    table[:, :2] += rng.integers(0, 2, (len(table), 2))  # so that some answers are right
    kv = vectors(random_vectors.index_to_key, table)
    right, asked, questions = ws.analogies(kv)
    accuracy, sections = kv.evaluate_word_analogies(datapath(ws.ANALOGIES))
    assert asked == sum(len(s["correct"]) + len(s["incorrect"]) for s in sections[:-1])
    assert questions == 19_544
    assert right / asked == pytest.approx(accuracy, abs=2 / asked)


def test_random_vectors_know_nothing_and_coverage_is_stated(random_vectors):
    results = ws.evaluate(random_vectors)
    assert abs(results["WordSim-353"]) < 0.25 and abs(results["SimLex-999"]) < 0.2 and results["analogies"] < 0.01
    assert 0.1 < results["WordSim-353 coverage"] < 0.5 and 0 < results["analogies coverage"] < 0.2


def test_vectors_without_any_word_of_the_tests_score_nan_not_zero():
    results = ws.evaluate(vectors(["qqq", "zzz"], np.eye(2)))
    assert np.isnan(results["WordSim-353"]) and np.isnan(results["analogies"])
    assert results["WordSim-353 coverage"] == 0


def test_weat_is_large_for_vectors_built_to_be_biased_and_changes_sign_with_the_groups():
    rng = np.random.default_rng(0)
    words = [f"{group}{i}" for group in "xyab" for i in range(8)]
    table = np.repeat([[1, 0], [0, 1], [1, 0], [0, 1]], 8, axis=0) + 0.1 * rng.normal(size=(32, 2))
    x, y, a, b = (words[i : i + 8] for i in range(0, 32, 8))
    kv = vectors(words, table)
    assert ws.weat(kv, (x, y), (a, b)) > 1.8
    assert ws.weat(kv, (y, x), (a, b)) == pytest.approx(-ws.weat(kv, (x, y), (a, b)))
    assert np.isnan(ws.weat(kv, (["none"], y), (a, b)))


def test_occupations_lean_to_where_they_were_put():
    kv = vectors(["she", "he", "nurse", "boss"], np.array([[1, 0.0], [0, 1], [1, 0.2], [0.2, 1]]))
    leaning = ws.gender_leaning(kv)
    assert list(leaning) == ["boss", "nurse"] and leaning["boss"] < 0 < leaning["nurse"]


def test_neighbours_are_named_nearest_first():
    kv = vectors(["a", "b", "c"], np.array([[1, 0.0], [0.9, 0.1], [0, 1]]))
    assert ws.neighbours(kv, ["a", "unknown"], 2) == {"a": ["b", "c"]}


BROKEN = {
    "empty": b"",
    "noise": bytes(range(256)) * 4,
    "more words than memory holds": b"99999999999999 300\nword 1",
    "wider than memory holds": b"3 99999999999999\nword 1",
    "cut off": b"3 2\nword 0.5 0.5\nother 0.",
    "a negative size": b"-2 -1\n",
    "no numbers": b"two words\nword a b\n",
}


@pytest.mark.parametrize("suffix", [".txt", ".bin", ".txt.gz", ".bin.gz"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_of_vectors_that_is_none_is_refused(tmp_path, content, suffix):
    file = tmp_path / f"vectors{suffix}"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(str(file))):
        ws.main(ws.WordSimilarityArgs(vectors=str(file)))


@pytest.mark.parametrize("name", ["none.bin", "a/b/c", ".", "/dev/null"])
def test_a_path_without_vectors_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no word vectors here"):
        ws.main(ws.WordSimilarityArgs(vectors=name))


def test_damaged_outputs_beside_the_vectors_are_refused(tmp_path):
    vectors(["word"], np.ones((1, 2))).save_word2vec_format(tmp_path / "vectors.bin", binary=True)
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "outputs.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match=r"outputs\.safetensors is cut off or damaged"):
        ws.main(ws.WordSimilarityArgs(vectors=str(tmp_path)))
