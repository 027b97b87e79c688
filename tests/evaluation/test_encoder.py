"""One vector for each example from any checkpoint: what transformers itself would give, with padding left out."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_encoders
import torch
from accelerate import PartialState
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPVisionModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from mmssl.data import labelled
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.methods import word2vec
from mmssl.models import word_vectors
from mmssl.models.word2vec import Word2VecModel

DATA = {"vit": "images", "clip": "images", "bert": "texts", "wav2vec": "sounds"}


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="module", params=DATA)
def made(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    model = getattr(tiny_encoders, request.param)(place / "model")
    data = getattr(tiny_encoders, DATA[request.param])(place / "data")
    return SimpleNamespace(name=request.param, model=model, data=data)


def load(made):
    encoder = encoders.load(made.model)
    return encoder, *labelled.load(made.data, encoder.modality, encoder.processor)


def test_the_modality_is_read_from_the_checkpoint_and_there_is_a_vector_for_each_example(made):
    encoder, train, test = load(made)
    assert encoder.modality == {"images": "image", "texts": "text", "sounds": "audio"}[DATA[made.name]]
    for data in (train, test):
        (found,) = encoders.features(encoder, data, cached=False)
        assert len(found) == len(data) and found.isfinite().all() and found.std(0).max() > 0


def test_features_do_not_depend_on_what_else_is_in_the_batch(made):
    encoder, train, _ = load(made)
    alone, together = (encoders.features(encoder, train, n, cached=False)[0] for n in (1, 16))
    if made.name == "wav2vec":  # its first normalisation is over time, padding included: shorter padding, smaller error
        assert (alone - together).abs().mean() < 0.05 * alone.std()
    else:
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_layers_end_with_the_last_and_are_as_many_as_the_model_has(made):
    encoder, train, _ = load(made)
    layers = encoders.features(encoder, train, layers="all", cached=False)
    assert len(layers) == (2 if made.name == "clip" else 3)
    if made.name in ("bert",):
        torch.testing.assert_close(layers[-1], encoders.features(encoder, train, cached=False)[0])


def test_an_untrained_encoder_has_the_same_shape_and_other_features(made):
    encoder, train, _ = load(made)
    mine, other = (encoders.features(e, train, cached=False)[0] for e in (encoder, encoder.untrained(seed=5)))
    assert mine.shape == other.shape and not torch.allclose(mine, other)


def test_the_second_time_nothing_is_computed(made, monkeypatch):
    encoder, train, _ = load(made)
    first = encoders.features(encoder, train)[0]
    monkeypatch.setattr(encoder, "forward", None)
    assert torch.equal(encoders.features(encoder, train)[0], first)


def test_the_mean_is_over_what_transformers_gives_for_an_image(tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    encoder = encoders.load(directory)
    train, _ = labelled.load(data, "image", encoder.processor)
    picture = Image.fromarray(train.inputs.pixels[0].permute(1, 2, 0).numpy())
    pixels = AutoImageProcessor.from_pretrained(directory)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(directory).eval()(pixels).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(encoders.features(encoder, train)[0][0], expected, atol=1e-5, rtol=1e-5)


def test_padding_counts_for_nothing_in_the_mean_of_a_text(tmp_path):
    directory = tiny_encoders.bert(tmp_path / "model")
    encoder, tokenizer = encoders.load(directory), AutoTokenizer.from_pretrained(directory)
    inputs = labelled.Texts(["cat dog", "bread soup apple rice bread soup"], tokenizer, 64)
    with torch.no_grad():
        found = encoder(**inputs.__getitems__([0, 1]))[0]
        expected = encoder.model(**tokenizer("cat dog", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_of_a_model_of_pairs_either_tower_may_be_judged(tmp_path):
    directory = tiny_encoders.clip(tmp_path)
    vision, text = encoders.load(directory), encoders.load(directory, tower="text")
    assert (vision.modality, text.modality) == ("image", "text")
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    with torch.no_grad():
        shown = vision._prepared({"pixel_values": pixels})["pixel_values"]
        expected = CLIPVisionModel.from_pretrained(directory).eval()(shown)
        torch.testing.assert_close(vision(pixel_values=pixels), expected.pooler_output)


def test_a_vitmae_is_judged_without_masking(tmp_path):
    """AutoModel would hide three quarters of every image, others each time."""
    config = ViTMAEConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    )  # fmt: skip
    directory = tiny_encoders.save(
        tmp_path, ViTMAEForPreTraining(config), AutoImageProcessor.from_pretrained(tiny_encoders.vit(tmp_path / "vit"))
    )
    encoder = encoders.load(directory)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(pixel_values=pixels), encoder(pixel_values=pixels))
        shown = encoder._prepared({"pixel_values": pixels})["pixel_values"]
        assert encoder.model(shown).last_hidden_state.shape[1] == 5


def test_a_recordings_padding_is_left_out_of_its_mean():
    states = torch.arange(10.0)[None, :, None].expand(2, -1, 1)
    encoder = encoders.Encoder(
        torch.nn.Identity(), SimpleNamespace(model_input_names=["input_values"]), "audio", "mean"
    )
    lengths = torch.tensor([1000, 500])
    pooled = encoder._pool(states, {"input_values": torch.zeros(2, 1000)}, lengths)[:, 0]
    assert pooled.tolist() == [np.arange(10).mean(), np.arange(5).mean()]


def test_a_text_longer_than_the_model_takes_is_cut(tmp_path):
    tiny_encoders.bert(tmp_path / "model")  # of 512 positions, of which its tokenizer knows nothing
    encoder = encoders.load(str(tmp_path / "model"))
    texts = labelled.Texts(["cat " * 600, "dog"], encoder.processor, 1000)
    assert texts.lengths.tolist() == [512, 3]
    with torch.no_grad():
        assert encoder(**texts.__getitems__([0, 1])).isfinite().all()


def test_a_tokenizer_in_python_is_taken():
    texts = labelled.Texts(["cat dog", "bread"], ByT5Tokenizer(), 6)
    assert texts.lengths.tolist() == [6, 6] and texts.tokens.words.unique().tolist() == [-1]


def test_a_recogniser_of_speech_is_judged_on_audio_though_it_has_a_tokenizer(tmp_path):
    tiny_encoders.wav2vec(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}')
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))).save_pretrained(tmp_path)
    assert encoders.load(str(tmp_path)).modality == "audio"


def test_an_architecture_of_our_own_needs_no_code_from_its_directory(tmp_path):
    words = ["a", "b"]
    method, tokenizer = word2vec.Word2Vec(words, np.array([2, 1]), 8), word_vectors.tokenizer(words, plain=True)
    method.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(encoders.load(str(tmp_path)).model) is Word2VecModel


def test_a_directory_without_a_processor_or_an_encoder_is_refused(tmp_path):
    tiny_encoders.vit(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match=f"--model_name_or_path {tmp_path}"):
        encoders.load(str(tmp_path))
    with pytest.raises(BadInput, match="--model_name_or_path ./no/such"):
        encoders.load("./no/such")


def test_a_model_that_cannot_take_the_inputs_is_said_so(tmp_path):
    directory, data = tiny_encoders.vit(tmp_path / "model"), tiny_encoders.images(tmp_path / "data")
    encoder = encoders.load(directory)
    encoder.processor.size = {"height": 24, "width": 24}
    train, _ = labelled.load(data, "image", encoder.processor)
    with pytest.raises(BadInput, match="a ViTModel gives no features of these images: .*24"):
        encoders.features(encoder, train)


def test_kept_features_that_are_damaged_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    encoder = encoders.load(tiny_encoders.vit(tmp_path / "model"))
    train, _ = labelled.load(tiny_encoders.images(tmp_path / "data"), "image", encoder.processor)
    (expected,) = encoders.features(encoder, train)
    [file] = (tmp_path / "home" / "features").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    (found,) = encoders.features(encoder, train)
    assert torch.equal(found, expected) and len(file.read_bytes()) > 20


def test_features_of_another_vocabulary_are_not_taken_for_its_own(tmp_path):
    """Two tokenizers of as many tokens, which their text does not tell apart."""
    encoder = encoders.load(tiny_encoders.bert(tmp_path / "model"))
    data, _ = labelled.load(tiny_encoders.texts(tmp_path / "data"), "text", encoder.processor)
    before, numbers = encoders._identity(encoder, data, "last"), encoder.processor.get_vocab()
    last, first = max(numbers, key=numbers.get), min(numbers, key=numbers.get)
    encoder.processor = BertTokenizer(vocab=numbers | {last: numbers[first], first: numbers[last]})
    assert len(encoder.processor) == len(numbers) and encoders._identity(encoder, data, "last") != before


def test_features_that_cannot_be_kept_are_still_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    encoder = encoders.load(tiny_encoders.vit(tmp_path / "model"))
    train, _ = labelled.load(tiny_encoders.images(tmp_path / "data"), "image", encoder.processor)
    (tmp_path / "home" / "features").write_text("a file, not a folder")
    (found,) = encoders.features(encoder, train)
    assert len(found) == len(train) and "the features are not kept" in capsys.readouterr().err
