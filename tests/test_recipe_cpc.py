"""The CPC recipes as their users run them, end to end, and what they say to bad input."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from gensim.models import KeyedVectors
from processes import Processes, at_home
from safetensors.torch import load_file
from transformers import AutoTokenizer

TINY = "--max_steps 4 --save_steps 0 --use_cpu"
AUDIO = f"--hidden_size 8 --context_size 6 --prediction_steps 3 --per_device_train_batch_size 8 {TINY}"
TEXT = f"--embedding_size 8 --hidden_size 8 --context_size 6 --sentences 6 --per_device_train_batch_size 8 {TINY}"
WORDS = "time year people way day man thing woman life child world school state family student group country".split()
WITHOUT_MMSSL = """
import re, sys
sys.modules["mmssl"] = None
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer
place, kind = sys.argv[1:]
for snippet in re.findall(r"```python\\n(.*?)```", open(place + "/README.md").read(), re.DOTALL):
    exec(snippet, {})
model, report = AutoModel.from_pretrained(place, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
if kind == "audio":
    extractor = AutoFeatureExtractor.from_pretrained(place)
    assert type(extractor).__name__ == "Wav2Vec2FeatureExtractor" and not extractor.do_normalize
    inputs = extractor([[0.1] * 8000, [0.2] * 4000], sampling_rate=8000, padding=True, return_tensors="pt")
    output = model(**inputs)
    assert output.last_hidden_state.shape == (2, 100, 6) and model.config.frame_rate == 100.0
    assert torch.allclose(output.pooler_output[1], output.last_hidden_state[1, :50].mean(0), atol=1e-6)
else:
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    assert model(**tokenizer(["a year", "man"], padding=True, return_tensors="pt")).pooler_output.shape == (2, 8)
"""


def write_sounds(folder: Path) -> Path:
    """Sixty noises of two kinds and two speakers, in folders, a second each."""
    rng, rows = np.random.default_rng(0), {"audio": [], "speaker": []}
    for i in range(60):
        file = folder / ("low", "high")[i % 2] / f"{i:02}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(8000) / 8000
        soundfile.write(file, 0.3 * np.sin(time * (900, 4000)[i % 2]) + 0.02 * rng.standard_normal(8000), 8000)
        rows["audio"].append(str(file))
        rows["speaker"].append(("ann", "bob")[i // 2 % 2])
    datasets.Dataset.from_dict(rows).to_parquet(folder.parent / "speakers.parquet")
    return folder


def write_text(file: Path) -> Path:
    """Sixty documents of ten sentences."""
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(600)]
    file.write_text("\n\n".join(" ".join(sentences[i : i + 10]) for i in range(0, 600, 10)))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("recipes")
    write_sounds(place / "sounds")
    write_text(place / "text.txt")
    return place


def audio(place: Path, name: str, *flags, sizes: str = AUDIO) -> Processes:
    flags = ["--dataset", place / "sounds", *sizes.split(), "--output_dir", place / name, *flags]
    return Processes(at_home, place / "home", "cpc_audio", *flags, log=place / f"{name}.txt")


def text(place: Path, name: str, *flags, sizes: str = TEXT) -> Processes:
    flags = ["--dataset", place / "text.txt", *sizes.split(), "--output_dir", place / name, *flags]
    return Processes(at_home, place / "home", "cpc_text", *flags, log=place / f"{name}.txt")


@pytest.fixture(scope="module")
def speech(place) -> str:
    """What the audio recipe says, run end to end."""
    return audio(place, "speech", "--probe_dataset", place / "sounds").succeed()


@pytest.fixture(scope="module")
def documents(place) -> str:
    """What the text recipe says, run end to end."""
    return text(place, "documents").succeed()


def files_of(directory: Path) -> set[str]:
    """Without the hidden ones, which are the output directory's own."""
    files = {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    return {str(file) for file in files if not file.parts[0].startswith(".")}


def results(directory: Path) -> dict[str, dict[str, float]]:
    return json.loads((directory / "metrics.json").read_text())["results"]


LEFT = {"config.json", "model.safetensors", "README.md", "metrics.json", "log.jsonl", "figures/loss.png",
        "figures/prediction.png", "pretraining/heads.safetensors"}  # fmt: skip


def test_audio_leaves_everything_that_a_run_leaves_beside_its_baselines(speech, place):
    assert files_of(place / "speech") == LEFT | {"cpc_audio.py", "preprocessor_config.json", "figures/context.png",
                                              "figures/map.png"}  # fmt: skip
    found = results(place / "speech")
    assert list(found) == ["trained", "untrained", "chance", "log-mel"]
    steps = {"accuracy", "accuracy_1_ahead", "accuracy_2_ahead", "accuracy_3_ahead"}
    assert set(found["trained"]) == set(found["untrained"]) == steps | {"knn_accuracy"}
    for name in steps:  # 64 frames of a crop to choose from
        assert found["chance"][name] == pytest.approx(100 / 64) == pytest.approx(found["untrained"][name])
    card = (place / "speech" / "README.md").read_text()
    assert "100 frames per second" in card and "8,000 Hz" in card and "54 recordings, 0.9 minutes, no labels" in card
    assert all(f"figures/{name}.png" in card for name in ("loss", "prediction", "context", "map"))
    assert "step 0: accuracy 1.5" in speech and "knn_accuracy" in speech and "synthetic" not in card


def test_text_leaves_everything_that_a_run_leaves_beside_its_baselines(documents, place):
    assert files_of(place / "documents") >= LEFT | {"cpc_text.py", "tokenizer.json"}
    found = results(place / "documents")
    assert list(found) == ["trained", "untrained", "chance"]
    steps = {"accuracy", "accuracy_1_ahead", "accuracy_2_ahead", "accuracy_3_ahead"}
    assert all(set(values) == steps for values in found.values())
    assert found["chance"] == pytest.approx(found["untrained"])
    card = (place / "documents" / "README.md").read_text()
    assert "54 documents of 540 sentences, 0 others were too short, and 6 documents held out" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["audio", "text"])
def test_the_card_s_snippets_run_where_mmssl_is_not_installed(kind, speech, documents, place):
    run = place / {"audio": "speech", "text": "documents"}[kind]
    clean = subprocess.run([sys.executable, "-c", WITHOUT_MMSSL, run, kind], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr[-2000:]
    assert re.search(r"torch.Size\(\[\d+, ", clean.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["", "--trust_remote_code"])
def test_training_goes_on_from_what_a_run_left_with_its_predictions(code, speech, documents, place):
    sizes = f"--prediction_steps 3 --per_device_train_batch_size 8 {TINY}"
    flags = ["--model_name_or_path", place / "speech", "--max_steps", 1, *code.split()]
    audio(place, f"further{code}", *flags, sizes=sizes).succeed()
    before, after = results(place / "speech")["trained"], results(place / f"further{code}")
    assert list(after)[:3] == ["trained", "before training", "chance"]
    assert after["before training"]["accuracy"] == pytest.approx(before["accuracy"], abs=0.2)
    assert before["accuracy"] > 1.1 * 100 / 64  # else the test would tell nothing
    assert "before training" in (place / f"further{code}" / "README.md").read_text()
    assert "cpc_audio.py" in files_of(place / f"further{code}")


@pytest.mark.slow
def test_text_goes_on_too_and_may_predict_further(documents, place):
    sizes = f"--prediction_steps 4 --sentences 6 --per_device_train_batch_size 8 {TINY}"
    text(place, "more", "--model_name_or_path", place / "documents", sizes=sizes).succeed()
    before, after = results(place / "documents")["trained"], results(place / "more")["before training"]
    for step in (1, 2, 3):
        name = f"accuracy_{step}_ahead"
        assert after[name] == pytest.approx(before[name], abs=0.2)
    assert after["accuracy_4_ahead"] == pytest.approx(results(place / "more")["chance"]["accuracy_4_ahead"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--negatives across --sampling_rate 16000 --conv_kernel 10 8 4 4 4 --conv_stride 5 4 2 2 2",
        "--negatives speaker --speaker_column speaker",
    ],
)
def test_audio_trains_in_every_manner(place, flags):
    data = ["--dataset", place / "speakers.parquet"] if "speaker" in flags else []
    said = audio(place, f"manner{len(flags)}", *data, *flags.split()).succeed()
    assert "step 0: accuracy" in said


def refused(run: Processes) -> str:
    """The one sentence."""
    assert run.wait() == [2], run.output
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in run.output
    run.log.unlink()
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--conv_kernel 16 8", "--conv_kernel has 2 layers, --conv_stride 3"),
        ("--conv_kernel 16 4 4", "--conv_kernel 4 is shorter than its stride"),
        ("--crop_seconds 0.03", "--crop_seconds 0.03 is 3 frames, which must be more than --prediction_steps"),
        ("--prediction_steps 0", "--prediction_steps is 0; it must be 1 or more"),
        ("--negatives speaker", "--negatives speaker and --speaker_column must be given together"),
        ("--negatives others", "invalid choice: 'others'"),
        ("--gradient_checkpointing", "--gradient_checkpointing has no effect with a recurrent network"),
        ("--audio_column wave", "--audio_column wave: the data has no such column, only audio, label"),
        ("--per_device_train_batch_size 64", "fewer than one global batch of 64"),
        (
            "--model_name_or_path ./none",
            "--hidden_size, --context_size have no effect with --model_name",
        ),
        ("--dataset ./none", "./none: no such file or folder"),
    ],
)
def test_audio_refuses_in_one_sentence(place, flags, said):
    assert said in refused(audio(place, "refused", *flags.split()))
    assert not (place / "refused").exists()


def test_audio_refuses_a_checkpoint_of_something_else_and_lists_that_would_be_ignored(documents, place):
    sizes = f"--per_device_train_batch_size 8 {TINY}"
    said = refused(audio(place, "other", "--model_name_or_path", place / "documents", sizes=sizes))
    assert "is a CpcTextModel, not a mmssl_cpc_audio of mmssl" in said
    flags = ["--model_name_or_path", place / "documents", "--conv_stride", 4, 5, 2]
    said = refused(audio(place, "other", *flags, sizes=sizes))
    assert "--conv_stride has no effect with --model_name_or_path" in said


def test_audio_refuses_negatives_of_a_speaker_where_a_batch_has_hardly_any(place):
    flags = ["--dataset", place / "speakers.parquet", "--speaker_column", "speaker", "--negatives", "speaker"]
    said = refused(audio(place, "alone", *flags, "--per_device_train_batch_size", 2))
    assert "a batch of 2 has 0.5 others by the same speaker on average" in said


@pytest.mark.slow
def test_a_handful_of_recordings_of_one_kind_goes_through(place):
    files = sorted((place / "sounds" / "low").iterdir())[:12]
    datasets.Dataset.from_dict({"audio": list(map(str, files)), "label": ["low"] * 12}).to_parquet(
        place / "few.parquet"
    )
    audio(place, "few", "--dataset", place / "few.parquet").succeed()
    assert "figures/map.png" not in files_of(place / "few")


def test_text_begins_with_the_vectors_of_words_it_is_given(place):
    rng = np.random.default_rng(0)
    vectors = KeyedVectors(8)
    vectors.add_vectors([*WORDS[:5], "unheard"], rng.normal(0, 1, (6, 8)).astype(np.float32))
    vectors.save_word2vec_format(place / "vectors.txt")
    sizes = TEXT.replace("--embedding_size 8", "") + " --learning_rate 1e-12"
    said = text(place, "vectors", "--init_vectors", place / "vectors.txt", sizes=sizes).succeed()
    assert f"5 of {len(WORDS)} words start from the vectors of" in said
    rows = AutoTokenizer.from_pretrained(place / "vectors").convert_tokens_to_ids(WORDS[:5])
    table = load_file(place / "vectors" / "model.safetensors")["embedding.weight"]
    np.testing.assert_allclose(table[rows], vectors[WORDS[:5]], atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--kernel_size 2", "--kernel_size 2 is even"),
        ("--sentences 3", "--sentences 3 must be more than --prediction_steps 3"),
        ("--min_count 1000", "occurs 1000 times; lower --min_count"),
        ("--vocab_size 0", "--vocab_size is 0; it must be 1 or more"),
        ("--negatives speaker", "invalid choice: 'speaker'"),
        ("--init_vectors ./none", "--embedding_size has no effect with --init_vectors ./none"),
        ("--prediction_steps 10 --sentences 12", "no document of 11 sentences or more: lower --prediction_steps"),
        ("--model_name_or_path ./none", "--embedding_size, --hidden_size, --context_size have no effect"),
    ],
)
def test_text_refuses_in_one_sentence(place, flags, said):
    assert said in refused(text(place, "refused", *flags.split()))
    assert not (place / "refused").exists()
