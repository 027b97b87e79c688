"""The round trip of each family: train, push, download, load in a clean process, fine-tune, train on from the Hub."""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_clip
from accelerate import PartialState
from hub_server import DROP, TOKEN, Hub
from huggingface_hub import HfApi, constants
from test_export import finish

from mmssl.arguments import TrainArgs
from mmssl.data import sources
from mmssl.errors import BadInput
from mmssl.hub import export

ROOT = Path(__file__).parent.parent


@dataclass
class Family:
    """flags: what makes two steps of recipes/<name>.py small. inputs: Python for the model's, from its `processor` and
    the snapshot's `place`. go_on: flags that train user/<name> on; on user/emoji, a data set of the same Hub.
    auto_class: all of whose weights are trained (a BertModel has a pooler that masked language modelling leaves out).
    """

    flags: str
    inputs: str
    go_on: str
    auto_class: str = "AutoModel"
    slow: bool = False


FAMILIES = {  # a family joins by one line
    "clip": Family(
        "--image_size 24 --patch_size 12 --vision_width 64 --text_width 64 --vision_layers 1 --text_layers 1"
        " --vocab_size 600 --per_device_train_batch_size 8",
        "processor(text=['a dog', 'a cat'], images=[Image.open(place + '/figures/example.png')] * 2, padding=True)",
        go_on="--model_name_or_path user/clip --dataset user/emoji --per_device_train_batch_size 8",
    ),
    "mae": Family(
        "--per_device_train_batch_size 16",
        "processor([Image.open(place + '/figures/example.png')] * 2)",
        go_on="--model_name_or_path user/mae --dataset user/emoji --per_device_train_batch_size 16",
        slow=True,
    ),
    "simclr": Family(
        "--per_device_train_batch_size 16",
        "processor([Image.open(place + '/figures/example.png')] * 2)",
        go_on="--model_name_or_path user/simclr --dataset user/emoji --per_device_train_batch_size 16",
        slow=True,
    ),
    "char_rnn": Family(
        "--hidden_size 16 --embedding_size 8 --chunk_length 16 --per_device_train_batch_size 4",
        "processor(['A text', 'and another one'], padding=True)",
        go_on="--model_name_or_path user/char_rnn --chunk_length 16 --per_device_train_batch_size 4",
        slow=True,
    ),
    "word2vec": Family(
        "--per_device_train_batch_size 5 --dimension 16 --batched",
        "processor(['king', 'music and war'], padding=True)",
        go_on="--init_vectors user/word2vec --per_device_train_batch_size 5 --dimension 16 --batched",
    ),
    "bert": Family(
        "--dataset README.md --size tiny --vocab_size 500 --max_seq_length 32 --per_device_train_batch_size 4",
        "processor(['a [MASK] text', 'and one more'], padding=True)",
        go_on="--dataset README.md --model_name_or_path user/bert --max_seq_length 32 --per_device_train_batch_size 4",
        auto_class="AutoModelForMaskedLM",
        slow=True,
    ),
    "causal_lm": Family(
        "--dataset README.md --size tiny --vocab_size 500 --max_seq_length 64 --per_device_train_batch_size 4",
        "processor(['A text', 'and one more'], padding=True)",
        go_on="--dataset README.md --model_name_or_path user/causal_lm --max_seq_length 64"
        " --per_device_train_batch_size 4",
        auto_class="AutoModelForCausalLM",
        slow=True,
    ),
    "cpc_audio": Family(
        "--hidden_size 12 --context_size 8 --per_device_train_batch_size 8",
        "processor([[0.1, 0.2] * 800, [0.1] * 800], sampling_rate=8000, padding=True)",
        go_on="--model_name_or_path user/cpc_audio --per_device_train_batch_size 8",
        slow=True,
    ),
    "cpc_text": Family(
        "--embedding_size 8 --hidden_size 8 --context_size 8 --per_device_train_batch_size 4",
        "(lambda d: type(d)({k: [v] for k, v in d.items()}))(processor(['A text', 'and one more'], padding=True))",
        go_on="--model_name_or_path user/cpc_text --per_device_train_batch_size 4",
        slow=True,
    ),
}
WITHOUT_MMSSL = "import sys\nsys.modules['mmssl'] = None\n"
FINE_TUNE = """
import json, torch
from PIL import Image
from huggingface_hub import snapshot_download
from transformers import AUTO_CLASS, AutoProcessor
name = "user/FAMILY"
place = snapshot_download(name)
trust = {"trust_remote_code": "auto_map" in json.load(open(place + "/config.json"))}
model, report = AUTO_CLASS.from_pretrained(name, output_loading_info=True, **trust)
assert not report["missing_keys"], report
processor = AutoProcessor.from_pretrained(name, **trust)
outputs = model.train()(**INPUTS.convert_to_tensors("pt"))
before = [p.detach().clone() for p in model.parameters()]
sum(v.float().square().mean() for v in outputs.values() if torch.is_tensor(v)).backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters())]
assert sum(moved) > 0.8 * len(moved), f"{sum(moved)} of {len(moved)} weights were trained"
"""


def run(*command, env, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] * f.slow) for n, f in FAMILIES.items()]
)
def trained(request, tmp_path_factory):
    """A family's recipe run for two steps and pushed; the first of its uploads refused."""
    place, family = tmp_path_factory.mktemp(request.param), request.param
    with Hub() as hub:
        env = hub.environment(place / "home") | {"PYTHONPATH": str(ROOT)}
        flags = f"--max_steps 2 --save_steps 1 --use_cpu --push_to_hub --hub_model_id user/{family}".split()
        flags += ["--hub_strategy", "every_save", "--output_dir", place / "run", *FAMILIES[family].flags.split()]
        hub.refuse("/commit/", 403)
        done = run(f"recipes/{family}.py", *flags, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        yield SimpleNamespace(family=family, hub=hub, env=env, directory=place / "run", done=done, place=place)


def test_what_is_on_the_hub_is_private_and_complete_and_leaves_the_checkpoints_at_home(trained):
    repository = trained.hub.repositories[f"models/user/{trained.family}"]
    assert repository.private
    here = {str(f.relative_to(trained.directory)) for f in trained.directory.rglob("*") if f.is_file()}
    at_home = {f for f in here if f.startswith(("checkpoints/", ".mmssl/"))}
    assert at_home and set(repository.files) == here - at_home
    assert all(repository.files[f] == (trained.directory / f).read_bytes() for f in repository.files)


def test_an_upload_refused_while_training_is_said_and_training_goes_on(trained):
    assert "upload to user/" in trained.done.stderr and "training continues" in trained.done.stderr
    assert "uploaded to http" in trained.done.stdout


def test_the_token_is_in_no_file_and_no_output(trained):
    written = [f.read_bytes() for f in trained.directory.rglob("*") if f.is_file()]
    repositories = trained.hub.repositories.values()
    sent = [content for repository in repositories for content in repository.files.values()]
    said = [trained.done.stdout.encode(), trained.done.stderr.encode()]
    assert len(written) > 10 and not any(TOKEN.encode() in content for content in written + sent + said)


def test_a_run_writes_no_pickle(trained):
    for file in (f for f in trained.directory.rglob("*") if f.is_file()):
        assert file.suffix not in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".zip", ".ckpt"} or (
            file.name == "vectors.bin"  # word2vec's own format: words, each with its floats
        ), file
        start = file.read_bytes()[:2]
        if file.suffix != ".safetensors":  # that begins with a length, which may be any byte
            assert start[:1] != b"\x80" and start != b"PK", f"{file} begins like a pickle or a zip archive"


def test_snippets_of_the_card_run_as_printed_and_a_snapshot_fine_tunes_where_mmssl_is_not_installed(trained):
    text = trained.hub.repositories[f"models/user/{trained.family}"].files["README.md"].decode()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippets and all(f'name = "user/{trained.family}"' in snippet for snippet in snippets)
    family = FAMILIES[trained.family]
    fine_tune = FINE_TUNE.replace("FAMILY", trained.family).replace("INPUTS", family.inputs)
    fine_tune = fine_tune.replace("AUTO_CLASS", family.auto_class)
    program = WITHOUT_MMSSL + "\n".join(f"exec({snippet!r}, {{}})" for snippet in [*snippets, fine_tune])
    done = run("-c", program, env=trained.env)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]


def push_emoji(hub: Hub) -> None:
    sources.load("emoji")
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("user/emoji", repo_type="dataset", private=True)
    api.upload_folder(folder_path=sources.home() / "emoji", repo_id="user/emoji", repo_type="dataset")


def test_training_goes_on_from_the_hub_on_a_data_set_of_the_hub(trained):
    family = FAMILIES[trained.family]
    on_emoji = "--dataset user/emoji" in family.go_on
    if on_emoji:
        push_emoji(trained.hub)
    flags = f"--max_steps 1 --use_cpu --save_steps 0 {family.go_on}".split()
    done = run(f"recipes/{trained.family}.py", *flags, "--output_dir", trained.place / "next", env=trained.env)
    assert done.returncode == 0, done.stderr[-3000:]
    card = (trained.place / "next" / "README.md").read_text()
    assert f"base_model: user/{trained.family}" in card and "before training" in card
    assert ("- user/emoji" in card) == on_emoji


def test_a_data_set_of_ours_is_pushed_and_streamed(tmp_path):
    with Hub() as hub:
        push_emoji(hub)
        stream = "import datasets; print(next(iter(datasets.load_dataset('user/emoji', split='test', streaming=True))))"
        assert "captions" in run("-c", stream, env=hub.environment(tmp_path)).stdout


@pytest.fixture
def hub(monkeypatch):
    """The Hub of this process."""
    PartialState(cpu=True)
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub's, before it asks again
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    PartialState(cpu=True)
    directory = tmp_path_factory.mktemp("finished") / "run"
    finish(directory, *tiny_clip.build())
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("call", "status", "remedy"),
    [
        (
            "/commit/",
            409,
            "another process is writing",
        ),  # when a repository is made, that it is there already: no error
        *(
            (call, status, remedy)
            for call in ("/api/repos/create", "/commit/")
            for status, remedy in (
                (401, "hf auth login"),
                (403, "token has no write access"),
                (500, "500"),
                (DROP, "disconnected|reset"),
            )
        ),
    ],
)
def test_a_refused_upload_loses_nothing_and_the_command_it_names_succeeds(
    hub, finished, monkeypatch, call, status, remedy
):
    before = contents(finished)
    hub.refuse(call, status, times=20)
    with pytest.raises(BadInput, match=remedy) as caught:
        export.push(finished, "user/name")
    assert contents(finished) == before
    assert not hub.repositories or not hub.repositories["models/user/name"].files
    said = str(caught.value)
    assert TOKEN not in said and "\n" not in said
    command = said.split("retry with: ")[1].split()
    assert command[:3] == ["python", "-m", "mmssl.hub.export"]
    hub.refusals.clear()
    monkeypatch.setattr(sys, "argv", ["export", *command[3:]])
    export.main()
    assert hub.repositories["models/user/name"].private
    assert 'name = "user/name"' in hub.repositories["models/user/name"].files["README.md"].decode()


@pytest.mark.parametrize("status", [500, DROP])
def test_one_hiccup_in_mid_upload_is_survived(hub, finished, status):
    hub.refuse("/commit/", status)
    assert "/user/name" in export.push(finished, "user/name")


def test_without_a_network_the_upload_fails_in_one_sentence(finished, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="retry with: python -m mmssl.hub.export push"):
        export.push(finished, "user/name")


def test_a_wrong_repository_name_is_refused(hub, finished):
    with pytest.raises(BadInput, match="user/name/of/what"):
        export.push(finished, "user/name/of/what")


def test_other_files_of_the_repository_and_hidden_ones_here_stay_where_they_are(hub, finished):
    api = HfApi(endpoint=hub.url)
    api.create_repo("user/name", private=False)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="user/name")
    (finished / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (finished / "logs").mkdir(exist_ok=True)
    (finished / "logs" / "events").write_text("tracker")
    export.push(finished, "user/name")
    files = hub.repositories["models/user/name"].files
    assert files["notes.txt"] == b"mine" and "model.safetensors" in files
    assert not any(f.startswith((".", "logs")) for f in files)


def test_a_run_that_may_not_upload_is_refused_before_it_trains(hub):
    hub.refuse("/api/repos/create", 403)
    args = TrainArgs(push_to_hub=True, hub_model_id="user/name")
    with pytest.raises(BadInput, match="no write access.*training has not started"):
        export.Uploads(args, *tiny_clip.build())


def test_each_save_uploads_the_encoder_as_it_stands_and_leaves_the_last_to_the_end(hub, tmp_path):
    args = TrainArgs(output_dir=str(tmp_path), push_to_hub=True, hub_model_id="user/name", hub_strategy="every_save")
    uploads = export.Uploads(args, *tiny_clip.build())
    uploads(1, 3)
    uploads.running.result()
    repository = hub.repositories["models/user/name"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(repository.files)
    assert "after step 1 of 3" in repository.files["README.md"].decode()
    hub.refuse("/commit/", DROP, times=20)
    uploads(2, 3)
    uploads(3, 3)  # waits
    assert uploads.running.done() and repository.commits == 1


def test_an_evaluation_during_an_upload_stays_on_the_card(hub, finished, monkeypatch):
    upload = export._upload

    def meanwhile(*given) -> str:
        readme = finished / "README.md"
        readme.write_text(readme.read_text() + "\n## An evaluation\n")
        return upload(*given)

    monkeypatch.setattr(export, "_upload", meanwhile)
    export.push(finished, "user/name")
    said = (finished / "README.md").read_text()
    assert "## An evaluation" in said and 'name = "user/name"' in said


def test_each_save_uploads_to_the_full_name_that_the_hub_gave(hub, tmp_path, monkeypatch):
    args = TrainArgs(output_dir=str(tmp_path), push_to_hub=True, hub_model_id="name", hub_strategy="every_save")
    monkeypatch.setattr(export, "_create", lambda *given: "user/name")
    uploads, sent = export.Uploads(args, *tiny_clip.build()), []
    monkeypatch.setattr(export, "_upload", lambda place, repository, message: sent.append(repository))
    uploads(1, 3)
    uploads.running.result()
    assert sent == ["user/name"]


def test_a_disk_too_full_for_the_copy_to_upload_is_said_and_training_goes_on(hub, tmp_path, monkeypatch, capsys):
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(full))
    args = TrainArgs(output_dir=str(tmp_path), push_to_hub=True, hub_model_id="user/name", hub_strategy="every_save")
    uploads = export.Uploads(args, *tiny_clip.build())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        uploads(1, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    uploads(3, 3)
    assert "warning: step 1: no copy for the Hub could be written to" in capsys.readouterr().err
    assert not full.exists() and not hub.repositories["models/user/name"].files


def test_nothing_is_asked_of_the_hub_unless_a_run_is_told_to(hub):
    uploads = export.Uploads(TrainArgs(hub_model_id="user/name"), *tiny_clip.build())
    uploads(1, 3)
    assert uploads.running.done() and not hub.repositories
