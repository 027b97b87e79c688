import importlib.util
import json
import os
import subprocess
import sys

import pytest
import tiny_clip
import torch
import yaml
from accelerate import PartialState
from device import USE_CPU
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from mmssl.arguments import TrainArgs
from mmssl.errors import BadInput
from mmssl.hub import card, export, reloading
from mmssl.training.loop import Summary
from mmssl.training.output_dir import OutputDir

RESULTS = {
    "trained": {"image_to_text_R@1": 41.25, "median_rank": 3.0},
    "untrained": {"image_to_text_R@1": 0.5, "median_rank": 98.0},
    "chance": {"image_to_text_R@1": 0.5, "majority_class": 17.5},
}


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=USE_CPU)


def record(**changes) -> export.Record:
    values = {
        "title": "tiny",
        "description": "A CLIPModel, both towers exported.",
        "data": "three drawings",
        "task": "zero-shot-image-classification",
        "dataset": "user/drawings:small",
        "results": RESULTS,
        "units": "In per cent.",
        "snippets": {"Load": 'name = "..."\nprint(name)'},
        "limits": "Few weights.",
    }
    return export.Record(**values | changes)


def run_record(directory, **flags) -> tuple[Summary, TrainArgs]:
    """What a run of two steps leaves for its end."""
    directory.mkdir(exist_ok=True)
    lines = [{"step": step, "loss": 3.0 - step, "trivial_loss": 1.1} for step in (1, 2)]
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = Summary(step=2, samples_seen=6, seconds=75, loss=1.0, trivial_loss=1.1, warnings=["collapse: a sentence"])
    return summary, TrainArgs(output_dir=str(directory), use_cpu=USE_CPU, **flags)


def finish(directory, method, processor, **flags):
    summary, args = run_record(directory, **flags)
    export.finish(method, processor, method.model, tiny_clip.EXAMPLE, record, summary, args, "chance")


def test_a_finished_run_loads_and_leaves_card_figures_and_metrics(tmp_path):
    method, processor = tiny_clip.build()
    method.train()
    finish(tmp_path / "run", method, processor)
    files = {str(f.relative_to(tmp_path / "run")) for f in (tmp_path / "run").rglob("*") if f.is_file()}
    assert files - {".mmssl/lock", ".mmssl/manifest.lock", ".mmssl/partial.lock"} == {
        ".mmssl/manifest.json",
        "README.md", "config.json", "figures/loss.png", "log.jsonl", "metrics.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert method.model.training, "the check must leave the model in memory as it is"


def test_weights_other_than_those_in_memory_are_refused_and_the_run_does_not_look_finished(tmp_path):
    method, processor = tiny_clip.build()

    class SavesAnother(type(method)):
        def save_pretrained(self, directory):
            tiny_clip.build(seed=1)[0].save_pretrained(directory)

    method.__class__ = SavesAnother
    OutputDir(tmp_path).register(["metrics.json"])
    (tmp_path / "metrics.json").write_text("{}")  # of an earlier end, before the run was continued
    with pytest.raises(reloading.NotLoadable, match="differs by"):
        finish(tmp_path, method, processor)
    assert not (tmp_path / "metrics.json").exists()
    with pytest.raises(BadInput, match="holds no finished run"):
        export.push(tmp_path, "user/name")


def own_code(directory, method, first_lines: str) -> None:
    """Make the method's model one of a class that a file in the directory defines, and that has run here."""
    code = "from transformers import CLIPConfig, CLIPModel\nclass OwnConfig(CLIPConfig):\n    model_type = 'own'\n"
    (directory / "own.py").write_text(first_lines + code + "class Own(CLIPModel):\n    config_class = OwnConfig\n")
    spec = importlib.util.spec_from_file_location("own", directory / "own.py")
    sys.modules["own"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["own"])
    method.model.__class__ = sys.modules["own"].Own
    settings = json.loads((directory / "config.json").read_text()) | {"model_type": "own"}
    settings["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}
    (directory / "config.json").write_text(json.dumps(settings))


def test_directories_are_checked_together_and_refused_one_by_one(tmp_path):
    method, processor = tiny_clip.build()
    names = ["first", "deadly", "without_tokenizer", "of_other_weights", "last"]
    for name in names:
        (tmp_path / name).mkdir()
        tiny_clip.export(tmp_path / name)
    deadly = tiny_clip.build()[0]
    kill = "import os, sys\nif not sys.modules.get('mmssl', True): os.kill(os.getpid(), 9)\n"
    own_code(tmp_path / "deadly", deadly, kill)
    (tmp_path / "without_tokenizer" / "tokenizer.json").unlink()
    tiny_clip.build(seed=1)[0].save_pretrained(tmp_path / "of_other_weights")
    models = {name: method.model for name in names} | {"deadly": deadly.model}
    exports = [reloading.Exported(tmp_path / name, models[name], processor, tiny_clip.EXAMPLE) for name in names]
    faults = dict(zip(names, map(str, reloading.reload_faults(exports)), strict=True))
    assert faults["first"] == faults["last"] == "None"
    assert faults["deadly"] == f"{tmp_path / 'deadly'} was written but does not load: exit code -9"
    for name in ("without_tokenizer", "of_other_weights"):
        assert faults[name].startswith(f"{tmp_path / name} loads, but") and "differs by" in faults[name]


def test_an_interpreter_started_early_tests_the_export_and_one_that_has_ended_is_replaced(tmp_path):
    method, processor = tiny_clip.build()
    tiny_clip.export(tmp_path)
    exported = reloading.Exported(tmp_path, method.model, processor, tiny_clip.EXAMPLE)
    reloading.start_early()
    early = reloading._early[os.getpid()]
    with reloading.Reload([exported]) as test:
        assert test.interpreter is early
        test.raise_fault()
    reloading.start_early()
    killed = reloading._early[os.getpid()]
    killed.process.kill()
    killed.process.wait()
    with reloading.Reload([exported]) as test:
        assert test.interpreter is not killed
        test.raise_fault()


@pytest.mark.slow
def test_an_early_interpreter_ends_when_its_patience_does(monkeypatch):
    monkeypatch.setattr(reloading, "PATIENCE", 1)
    interpreter = reloading.Interpreter()
    assert interpreter.process.wait(60) == 0 and not interpreter.listens()
    interpreter.end()


def wav2vec():
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(32, 32),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    example = {"raw_speech": torch.randn(2, 1600), "sampling_rate": 16_000}
    return Wav2Vec2Model(config), Wav2Vec2FeatureExtractor(), example


def vit():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=24)
    processor = ViTImageProcessorPil(size={"height": 24, "width": 24})
    return ViTModel(config), processor, {"images": tiny_clip.EXAMPLE["images"]}


def bert():
    tokenizer = BertTokenizer().train_new_from_iterator(tiny_clip.TEXTS, 200)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertModel(config), tokenizer, {"text": tiny_clip.TEXTS}


@pytest.mark.slow
@pytest.mark.parametrize("family", [wav2vec, vit, bert])
def test_feature_extractors_image_processors_and_tokenizers_are_reloaded_too(tmp_path, family):
    model, processor, example = family()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reloading.check_reload(tmp_path, model, processor, example)


def test_code_that_needs_mmssl_is_refused(tmp_path):
    method, processor = tiny_clip.build()
    tiny_clip.export(tmp_path)
    own_code(tmp_path, method, "from mmssl.methods.clip import CLIP\n")
    with pytest.raises(reloading.NotLoadable, match="does not load.*mmssl"):
        reloading.check_reload(tmp_path, method.model, processor, tiny_clip.EXAMPLE)


OWN_ARCHITECTURE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class BagConfig(PreTrainedConfig):
    model_type = "bag_of_words"
    vocab_size: int = 600
    hidden_size: int = 8


class Bag(PreTrainedModel):
    config_class = BagConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids) * attention_mask[..., None])
"""
UNDER_A_LAUNCHER = """
import sys
from pathlib import Path
import bag
import tiny_clip
from accelerate import Accelerator
from mmssl.data.text.tokens import train_clip_tokenizer
from mmssl.hub import card, reloading

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2, accelerator.num_processes
if accelerator.is_main_process:
    directory = Path(sys.argv[1])
    bag.BagConfig.register_for_auto_class()
    bag.Bag.register_for_auto_class("AutoModel")
    model, tokenizer = bag.Bag(bag.BagConfig()), train_clip_tokenizer(tiny_clip.TEXTS, 600)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    reloading.check_reload(directory, model, tokenizer, {"text": tiny_clip.TEXTS})
    print("it loads")
    print(card.command_line())
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_an_architecture_of_our_own_reloads_without_mmssl_in_a_launched_group_of_two(tmp_path):
    (tmp_path / "bag.py").write_text(OWN_ARCHITECTURE)
    (tmp_path / "program.py").write_text(UNDER_A_LAUNCHER)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    said = f"--multi_gpu --num_processes 2 --num_machines 1 {tmp_path / 'program.py'} {tmp_path / 'export'}"
    done = subprocess.run(
        [*launcher, "--main_process_port=0", *said.split()],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "it loads" in done.stdout, done.stderr[-3000:]
    # what the card of such a run says to type is what was typed
    assert f"ACCELERATE_USE_CPU=true accelerate launch {said}" in done.stdout.splitlines()


def test_the_card_shows_every_result_beside_its_baselines(tmp_path):
    card.write_card(tmp_path, record(), *run_record(tmp_path))
    text = (tmp_path / "README.md").read_text()
    assert "|  | trained | untrained | chance |" in text
    assert "| Image to text R@1 | 41.2 | 0.500 | 0.500 |" in text
    assert "| Majority class | – | – | 17.5 |" in text  # a baseline that the trained column lacks is not lost
    metadata = yaml.safe_load(text.split("---")[1])
    measured = metadata["model-index"][0]["results"][0]
    assert [m["name"] for m in measured["metrics"]] == [
        "Image to text R@1 (untrained 0.500, chance 0.500)",
        "Median rank (untrained 98.0)",
    ]
    assert measured["metrics"][0]["value"] == 41.25
    assert metadata["datasets"] == ["user/drawings"]  # a Hub id; its configuration is no part of it


def test_the_card_says_how_the_run_was_made(tmp_path):
    summary, args = run_record(tmp_path, seed=7)
    card.write_card(tmp_path, record(), summary, args)
    text = (tmp_path / "README.md").read_text()
    assert card.command_line() in text
    for said in ("2 steps, 6 samples, 1.2 minutes", "Seed: 7", "CPU cores", f"torch {torch.__version__}", "commit"):
        assert said in text
    assert "a model that ignores its input: 1.100" in text
    assert "The run warned: collapse: a sentence" in text


def test_only_ids_of_the_hub_become_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "clip").mkdir(parents=True)
    assert card.hub_id("runs/clip") is None
    assert card.hub_id("emoji") is None
    assert card.hub_id("/data/flickr") is None
    assert card.hub_id("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"


def test_snippets_load_what_the_card_is_told_to_name():
    text = 'import x\n\nname = "/home/me/run"\nload(name)  # not my_name = "this"\n'
    assert card.name_the_model(text, r"C:\runs") == text.replace("/home/me/run", r"C:\\runs")
