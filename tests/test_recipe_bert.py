"""The BERT recipe as its users run it, end to end, and what it says to bad input."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors
from processes import Processes, at_home
from transformers import AutoModel, AutoTokenizer

WORDS = "time year people way day man thing woman life child world school state family student group country".split()
SIZE = "--size tiny --vocab_size 200"
TINY = "--max_seq_length 32 --max_steps 4 --per_device_train_batch_size 8 --save_steps 0"
WITHOUT_MMSSL = """
import re, sys
sys.modules["mmssl"] = None
card = open(sys.argv[1] + "/README.md").read()
for snippet in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
    exec(snippet, {})
"""


def write_text(file: Path) -> Path:
    """Forty documents of three sentences, one of them twice."""
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=12)).capitalize() + "." for _ in range(120)]
    texts = ["\n".join(sentences[i : i + 3]) for i in range(0, 120, 3)]
    file.write_text("\n\n".join([*texts, texts[0]]))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def recipe(place: Path, name: str, *flags) -> Processes:
    flags = [
        *TINY.split(),
        "--use_cpu",
        "--dataset",
        write_text(place / "text.txt"),
        "--output_dir",
        place / name,
        *flags,
    ]
    return Processes(at_home, place / "home", "bert", *flags, log=place / f"{name}.txt")


@pytest.fixture(scope="module")
def bert(place) -> str:
    """What the recipe says, run end to end."""
    return recipe(place, "bert", *SIZE.split()).succeed()


def test_bert_leaves_everything_that_a_run_leaves_beside_its_baselines(bert, place):
    files = {str(path.relative_to(place / "bert")) for path in (place / "bert").rglob("*") if path.is_file()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "README.md", "metrics.json",
                     "log.jsonl", "figures/loss.png"}  # fmt: skip
    results = json.loads((place / "bert" / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "untrained", "unigram"]
    assert results["trained"].keys() == results["untrained"].keys() == results["unigram"].keys() == {"loss", "accuracy"}
    assert results["trained"]["loss"] < results["untrained"]["loss"]
    assert "(2.7%) repeat an earlier one" in bert or "repeat an earlier one" in bert
    card = (place / "bert" / "README.md").read_text()
    assert len(re.findall(r"^- .*\[MASK\].*\(\*\w+\*\): ", card, re.MULTILINE)) >= 1
    assert "documents held out" in card and "fill-mask" in card


@pytest.mark.slow
def test_the_card_s_snippets_run_where_mmssl_is_not_installed(bert, place):
    clean = subprocess.run([sys.executable, "-c", WITHOUT_MMSSL, place / "bert"], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr[-2000:]
    assert "torch.Size" in clean.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--architecture bert --tokenizer bpe --vocab_size 300 --masking spans --cross_documents False",
        "--streaming --held_out 4",
        "--masking words --dropout 0.1 --gradient_checkpointing",
    ],
)
def test_bert_trains_in_every_manner(place, flags):
    recipe(place, f"manner{len(flags)}", *SIZE.split(), *flags.split()).succeed()


@pytest.mark.slow
def test_bert_goes_on_from_what_it_left(bert, place):
    recipe(place, "further", "--model_name_or_path", place / "bert").succeed()
    before, after = (json.loads((place / name / "metrics.json").read_text())["results"] for name in ("bert", "further"))
    assert list(after) == ["trained", "before training", "unigram"]
    assert after["before training"]["loss"] == pytest.approx(before["trained"]["loss"], rel=1e-4)


def write_vectors(file: Path, words: list[str], width: int) -> Path:
    vectors = KeyedVectors(width)
    vectors.add_vectors(words, np.random.default_rng(0).normal(size=(len(words), width)).astype(np.float32))
    vectors.save_word2vec_format(file)
    return file


def test_bert_begins_with_the_vectors_of_words_it_is_given(place):
    file = write_vectors(place / "vectors.txt", [*WORDS[:5], "unheard"], 128)
    said = recipe(place, "vectors", *SIZE.split(), "--init_vectors", file, "--learning_rate", 1e-12).succeed()
    assert re.search(r"^5 of [\d,]+ words start from the vectors of ", said, re.MULTILINE)
    rows = AutoTokenizer.from_pretrained(place / "vectors").convert_tokens_to_ids(WORDS[:5])
    table = AutoModel.from_pretrained(place / "vectors").get_input_embeddings().weight
    expected = KeyedVectors.load_word2vec_format(file)[WORDS[:5]]
    np.testing.assert_allclose(table[rows].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--init_vectors {place}/few.txt",
            "vectors of 16 dimensions for a model of width 128; choose another --size, or",
        ),
        ("--init_vectors {place}/other.txt", "it has none of the "),
        ("--init_vectors a --model_name_or_path b", "--size, --init_vectors, --vocab_size have no effect with --model"),
        (
            "--model_name_or_path a --tokenizer_name b",
            "--size, --tokenizer_name, --vocab_size have no effect with",
        ),
        ("--tokenizer_name b --dropout 0.1", "--vocab_size has no effect with --tokenizer_name b"),
        ("--dropout 1.5", "--dropout is 1.5; it must be below 1"),
        ("--mlm_probability 1.5", "--mlm_probability is 1.5; it must be below 1"),
        ("--max_seq_length 4", "--max_seq_length is 4; it must be 8 or more"),
        ("--max_seq_length 8000", "tokens of text do not fill one sequence of 8000; lower --max_seq_length"),
        ("--per_device_train_batch_size 64", "fewer than one global batch of 64"),
        ("--vocab_size 20", "--vocab_size 20 is too small"),
        (
            "--dataset {place}/greek.txt --model_name_or_path {place}/bert",
            "100% of the text's tokens are unknown to its tokenizer",
        ),
    ],
)
def test_bert_refuses_in_one_sentence(bert, place, flags, said):
    (place / "greek.txt").write_text("αβγ δε ζηθ\n" * 200)
    write_vectors(place / "few.txt", WORDS, 16)
    write_vectors(place / "other.txt", ["unheard"], 128)
    sizes = [] if "--dataset" in flags else SIZE.split()
    run = recipe(place, "refused", *sizes, *flags.format(place=place).split())
    assert run.wait() == [2]
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert said in errors[-1] and "Traceback" not in run.output
    run.log.unlink()
