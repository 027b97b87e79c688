"""Code that comes with a checkpoint neither runs nor travels on, unless the user says so."""

import json
from pathlib import Path

import pytest
import tiny_clip
import torch
from accelerate import PartialState
from tiny import bert as tiny_bert
from tiny import char_rnn as tiny_char_rnn
from tiny import cpc as tiny_cpc
from tiny import mae as tiny_mae

from mmssl.errors import BadInput
from mmssl.hub import export, reloading
from mmssl.methods import char_rnn, cpc, mae
from mmssl.models import pretrained, remote_code, text_encoders, towers
from mmssl.models.char_rnn import CharRNNForCausalLM

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
PROCESSORS = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")


@pytest.fixture(autouse=True)
def one_process():
    PartialState(cpu=True)


def poison(directory: Path, form: str) -> None:
    """Name code that leaves the file `it_ran`, in every JSON file that can name some, and in what is inside them."""
    code = f"open({str(directory / 'it_ran')!r}, 'w')\nclass M: ...\n"
    (directory / "evil.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code)
    name = {"here": "evil.M", "elsewhere": f"{directory}--evil.M"}[form]
    of_tokenizer = [None, name]
    named = dict.fromkeys((*CLASSES, *PROCESSORS), name)
    if not (directory / "processor_config.json").exists():  # then no built-in class would be known for it
        del named["AutoProcessor"]
    others = {"custom_pipelines": {"evil": {"impl": name, "pt": ["AutoModel"]}}, "custom_generate": name}
    for file in directory.rglob("*.json"):
        if file.name.endswith("config.json"):
            content = json.loads(file.read_text())
            tokens = {"AutoTokenizer": of_tokenizer} if file.name == "tokenizer_config.json" else {}
            inner = (content[name] for name in ("text_config", "vision_config", "image_processor") if name in content)
            for part in (content, *inner):
                part |= {"auto_map": named | tokens} | others
            file.write_text(json.dumps(content))
    (directory / "generation_config.json").write_text(json.dumps({"auto_map": named} | others))


def clip_tiny():
    method, processor = tiny_clip.build()
    return method, processor, tiny_clip.EXAMPLE, "AutoModel"


def of(tiny):
    return tiny.method, tiny.processor, tiny.example, tiny.auto_class


def load_bert(name, trust=False):
    return text_encoders.from_pretrained(name, 16, trust)


def load_cpc(name):
    return cpc.from_pretrained(name, False, "mmssl_cpc_audio")


FAMILIES = {
    "clip": (clip_tiny, towers.from_pretrained),
    "bert": (lambda: of(next(iter(tiny_bert.VARIANTS.values()))()), load_bert),
    "mae": (lambda: of(next(iter(tiny_mae.VARIANTS.values()))()), lambda name: mae.from_pretrained(name)),
    "char_rnn": (lambda: of(tiny_char_rnn.VARIANTS["lstm"]()), lambda name: char_rnn.from_pretrained(name, False)),
    "cpc": (
        lambda: of(tiny_cpc.VARIANTS["within"]()),
        lambda name: cpc.from_pretrained(name, False, "mmssl_cpc_audio"),
    ),
}


@pytest.mark.parametrize("form", ["here", "elsewhere"])
@pytest.mark.parametrize("family", FAMILIES)
def test_code_that_a_checkpoint_names_is_not_run_and_not_in_the_next_export(family, form, tmp_path, capfd):
    build, load = FAMILIES[family]
    method, processor, example, auto_class = build()
    given, left = tmp_path / "given", tmp_path / "left"
    export.write(method, processor, given)
    poison(given, form)
    model, processor = load(str(given))
    assert "config.json: " in (said := capfd.readouterr().err) and "evil.M" in said and "not run" in said
    method.model = model
    export.write(method, processor, left)
    assert "evil" not in "".join(f.read_text() for f in left.rglob("*.json"))
    reloading.check_reload(left, method.exported(), processor, example, auto_class)
    assert not (given / "it_ran").exists()


@pytest.mark.parametrize("form", ["here", "elsewhere"])
def test_the_reload_runs_no_code_that_did_not_train_the_model(form, tmp_path):
    method, processor, example, auto_class = of(tiny_char_rnn.VARIANTS["lstm"]())
    export.write(method, processor, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    poison(tmp_path, form)
    (tmp_path / "config.json").write_text(json.dumps(settings))  # our own code, beside a tokenizer of theirs
    with pytest.raises(reloading.NotLoadable, match="is not the code that trained"):
        reloading.check_reload(tmp_path, method.model, processor, example, auto_class)
    assert not (tmp_path / "it_ran").exists()


def test_a_file_with_the_name_of_ours_is_not_ours(tmp_path):
    method, processor, example, auto_class = of(tiny_char_rnn.VARIANTS["lstm"]())
    export.write(method, processor, tmp_path)
    code = (tmp_path / "char_rnn.py").read_text()
    (tmp_path / "char_rnn.py").write_text(f"{code}\nopen({str(tmp_path / 'it_ran')!r}, 'w')\n")
    for trust in (False, True):  # the class of this package is there: no copy of it is wanted
        model, _ = char_rnn.from_pretrained(str(tmp_path), trust)
        assert type(model) is CharRNNForCausalLM
    with pytest.raises(reloading.NotLoadable):
        reloading.check_reload(tmp_path, method.model, processor, example, auto_class)
    assert not (tmp_path / "it_ran").exists()


FOREIGN = """
from pathlib import Path
from transformers import CLIPConfig, CLIPModel
Path(__file__).with_suffix(".ran").touch()
class TheirsConfig(CLIPConfig):
    model_type = "theirs"
class Theirs(CLIPModel):
    config_class = TheirsConfig
"""


def test_code_that_is_trusted_travels_with_the_export_and_reloads(tmp_path):
    given, left = tiny_clip.export(tmp_path / "given"), tmp_path / "left"
    (given / "theirs.py").write_text(FOREIGN)
    named = {"AutoConfig": "theirs.TheirsConfig", "AutoModel": "theirs.Theirs", "AutoModelForMaskedLM": "lost.Other"}
    settings = json.loads((given / "config.json").read_text()) | {"model_type": "theirs", "auto_map": named}
    (given / "config.json").write_text(json.dumps(settings))
    model, processor = pretrained.load(str(given), trust_remote_code=True)
    assert type(model).__name__ == "Theirs"
    model.save_pretrained(left)
    processor.save_pretrained(left)
    reloading.check_reload(left, model, processor, tiny_clip.EXAMPLE)
    assert (left / "theirs.py").read_text() == FOREIGN


def test_a_label_or_a_word_may_be_called_auto_map():
    method, processor = tiny_clip.build()
    method.model.config.label2id = {"auto_map": 3}
    processor.tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": [None, "evil.M"]}
    before = len(processor.tokenizer)
    remote_code.drop(method.model, processor)
    assert method.model.config.label2id == {"auto_map": 3} and len(processor.tokenizer) == before
    assert "auto_map" not in processor.tokenizer.init_kwargs


def test_word_vectors_in_a_pickle_of_gensim_are_not_loaded(tmp_path):
    from mmssl.models import word_vectors

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "it_ran"), "w"))

    import pickle

    for name in ("vectors.kv", "vectors.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(BadInput):
            word_vectors.load(tmp_path / name)
    assert not (tmp_path / "it_ran").exists()


def test_a_pickle_in_a_tar_of_samples_is_not_run(tmp_path):
    import io
    import tarfile

    from mmssl.data import sources

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "it_ran"), "w"))

    place = io.BytesIO()
    torch.save(Evil(), place)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("a.pth", "a.pyd", "a.pickle", "a.pkl"):
            entry = tarfile.TarInfo(name)
            entry.size = len(place.getvalue())
            tar.addfile(entry, io.BytesIO(place.getvalue()))
    with pytest.raises(BadInput):
        sources.load(str(tmp_path / "train.tar"))
    assert not (tmp_path / "it_ran").exists()


def test_snippets_of_our_own_architectures_let_their_code_run():
    code = """
name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
model = AutoModelForImageClassification.from_pretrained(name, num_labels=10)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
classify = pipeline("image-classification", model=name)
"""
    trusting = remote_code.trusting(code)
    assert trusting.count("trust_remote_code=True") == 4  # an image processor has no code
    assert "AutoModel.from_pretrained(name, trust_remote_code=True).eval()" in trusting
    assert "from_pretrained(name, trust_remote_code=True, num_labels=10)" in trusting
    assert 'pipeline("image-classification", model=name, trust_remote_code=True)' in trusting
    assert remote_code.trusting(trusting) == trusting
