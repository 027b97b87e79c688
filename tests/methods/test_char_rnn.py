import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import Processes, recipe
from small import arguments
from tiny.char_rnn import CHUNK, STREAMS, TEXT, VARIANTS, model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mmssl.data.loader import Loader
from mmssl.data.text import characters
from mmssl.errors import BadInput
from mmssl.evaluation.language_model import nats
from mmssl.methods import char_rnn
from mmssl.training.loop import train
from mmssl.training.optim import adamw

CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])


def batches(n: int, forget: float = 0.0) -> list[dict]:
    tokenizer = model()[1]
    streams = characters.Streams(characters.encode(TEXT, tokenizer, "characters"), STREAMS, CHUNK, forget)
    rows = [streams.__getitems__(list(range(i * STREAMS, (i + 1) * STREAMS))) for i in range(n)]
    return [{name: value for name, value in row.items() if name != "index"} for row in rows]


@CELLS
def test_the_state_goes_on_from_chunk_to_chunk_and_gradients_do_not(cell):
    method = char_rnn.CharRNN(model(cell=cell)[0], STREAMS, trivial_loss=3.0)
    first, second = batches(2)
    method(**first)
    assert method.state.any() and not method.state.requires_grad
    loss = method(**second).loss
    text = torch.cat([first["input_ids"][:, :-1], second["input_ids"]], dim=1)  # both chunks in one reading
    logits = method.model(text[:, :-1]).logits[:, CHUNK:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), second["input_ids"][:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()  # the first chunk's graph is not asked for


def test_a_stream_that_forgets_reads_its_chunk_as_the_first_one():
    method = char_rnn.CharRNN(model()[0], STREAMS, trivial_loss=3.0)
    first, second = batches(2)
    method(**first)
    fresh = torch.arange(STREAMS) % 2 == 0
    method(**second | {"fresh": fresh})
    after = method.model(second["input_ids"][:, :-1]).state
    same = torch.isclose(method.state, after, atol=1e-6).flatten(1).all(1)
    assert torch.equal(same, fresh)


def test_an_epoch_begins_with_nothing_remembered():
    method = char_rnn.CharRNN(model()[0], STREAMS, trivial_loss=3.0)
    method(**batches(1)[0])
    method.start_epoch(1, None, [])
    assert not method.state.any()


def test_the_loss_of_a_new_model_is_near_that_of_guessing():
    method = char_rnn.CharRNN(model()[0], STREAMS, trivial_loss=3.0)
    output = method(**batches(1)[0])
    assert abs(output.loss.item() - math.log(method.model.config.vocab_size)) < 0.5
    assert output.metrics["bits"].item() == pytest.approx(output.loss.item() / math.log(2))
    assert output.features.shape == (STREAMS, 24)


def test_training_learns_what_five_symbols_do_not_tell(tmp_path):
    """The text repeats every 60 lines; a name is known from more than five characters back."""
    tiny = VARIANTS["lstm"]()
    args = arguments(tmp_path, max_steps=250, per_device_train_batch_size=STREAMS, logging_steps=50)
    loader = Loader(tiny.data, STREAMS, shuffle=False)
    before = nats(tiny.method.model.eval(), torch.from_numpy(tiny.data.ids.astype("int64")))
    summary = train(tiny.method, loader, args, [adamw(tiny.method, 0.02)])
    after = nats(tiny.method.model.eval(), torch.from_numpy(tiny.data.ids.astype("int64")))
    assert after < 0.5 < 2.5 < before and summary.loss < 0.6 and not summary.warnings


# what leaves


def export(directory, **sizes):
    network, tokenizer = model(**sizes)
    char_rnn.CharRNN(network, STREAMS, 3.0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return network.eval(), tokenizer


def test_both_auto_classes_load_the_directory_without_remote_code_where_our_architectures_are_registered(tmp_path):
    import mmssl.models.own  # noqa: F401

    network, tokenizer = export(tmp_path)
    ids = tokenizer("Bo has", return_tensors="pt")["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, network(ids).logits)
    body, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(body.eval()(ids).last_hidden_state, network.rnn(ids).last_hidden_state)
    assert AutoTokenizer.from_pretrained(tmp_path)("Bo has")["input_ids"] == ids[0].tolist()


def test_a_model_is_trained_on_from_its_directory_and_refused_where_it_is_another_kind(tmp_path):
    network, _ = export(tmp_path / "mine")
    loaded, tokenizer = char_rnn.from_pretrained(str(tmp_path / "mine"), trust_remote_code=False)
    assert torch.equal(loaded.head.weight, network.head.weight) and len(tokenizer) == loaded.config.vocab_size
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match="is a GPT2LMHeadModel, not a character RNN"):
        char_rnn.from_pretrained(str(tmp_path / "other"), trust_remote_code=False)
    characters.tokenizer("ab", "characters").save_pretrained(tmp_path / "mine")
    with pytest.raises(BadInput, match=f"a tokenizer of 4 tokens for a model of {loaded.config.vocab_size}"):
        char_rnn.from_pretrained(str(tmp_path / "mine"), trust_remote_code=False)


def test_sizes_below_one_are_refused():
    with pytest.raises(BadInput, match="--hidden_size is 0; it must be 1 or more"):
        model(hidden_size=0)


# the recipe

SIZES = ["--hidden_size=16", "--embedding_size=8"]
TINY = ["--max_steps=6", "--chunk_length=16", "--logging_steps=2", "--per_device_train_batch_size=4", "--save_steps=0",
        "--use_cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("char_rnn")
    (place / "text.txt").write_text(TEXT * 4)
    return place


def run(place: Path, *flags: str) -> Processes:
    os.environ["MMSSL_HOME"] = str(place / "home")
    return Processes(recipe, "char_rnn", *TINY, *flags, log=place / f"log_{len(list(place.glob('log_*')))}.txt")


@pytest.fixture(scope="module")
def trained(place) -> Path:
    run(place, *SIZES, f"--dataset={place / 'text.txt'}", f"--output_dir={place / 'run'}").succeed()
    return place / "run"


def test_a_run_leaves_figures_beside_their_baselines_and_samples_in_the_card(trained):
    results = json.loads((trained / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "untrained", "unigram", "5-gram"]
    assert all(set(column) == {"nats_per_character", "bits_per_character"} for column in results.values())
    card = (trained / "README.md").read_text()
    for temperature in ("0.5", "0.8", "1.0"):
        assert f"Temperature {temperature}:" in card
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert files >= {"config.json", "model.safetensors", "char_rnn.py", "tokenizer.json", "README.md", "metrics.json",
                     "log.jsonl", "figures/loss.png"}  # fmt: skip


PIPELINE = """
import sys
sys.modules["mmssl"] = None  # as where it is not installed
from transformers import pipeline
write = pipeline("text-generation", model=sys.argv[1], trust_remote_code=True)
written = write(["Ann has", "Bo"], max_new_tokens=5, do_sample=False, batch_size=2)
print([one[0]["generated_text"] for one in written])
"""


@pytest.mark.slow
def test_the_text_generation_pipeline_works_without_mmssl(trained):
    done = subprocess.run([sys.executable, "-c", PIPELINE, trained], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = eval(done.stdout.splitlines()[-1])
    assert texts[0].startswith("Ann has") and len(texts[0]) == 12 and len(texts[1]) == 7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dataset={place}/empty.txt", "empty.txt: no text: empty, or only white space"),
        ("--dataset={place}/latin.txt", "latin.txt, line 2: byte 0xf6 is not UTF-8"),
        ("--dataset={place}/text.txt --chunk_length=9999", "too few for 4 streams of --chunk_length 9999"),
        ("--dataset={place}/text.txt --forget=1", "--forget is 1.0; it must be below 1"),
        ("--model_name_or_path={place}/run --cell=gru", "--cell has no effect with --model_name_or_path"),
        (
            "--dataset={place}/greek.txt --model_name_or_path={place}/run",
            "its vocabulary lacks 100% of the text's characters",
        ),
    ],
)
def test_bad_input_is_named_in_one_sentence(flags, said, place, trained):
    (place / "empty.txt").write_text(" \n\n")
    (place / "latin.txt").write_bytes("eins\nzwölf\n".encode("latin1"))
    (place / "greek.txt").write_text("αβγδ" * 200)
    job = run(place, *flags.format(place=place).split(), f"--output_dir={place / 'refused'}")
    assert job.wait() == [2]
    assert said in job.output and "Traceback" not in job.output, job.output
    assert not (place / "refused" / "metrics.json").exists()
