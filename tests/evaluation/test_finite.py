"""NaN and infinity give no figure: neither in weights nor in features."""

import json
import math

import pytest
import tiny_clip
import tiny_encoders
import torch
from safetensors.torch import load_file, save_file
from tiny import char_rnn as tiny_char_rnn

from mmssl import bounded_json
from mmssl.data import labelled
from mmssl.errors import BadInput
from mmssl.evaluation import zero_shot
from mmssl.evaluation.downstream import encoder
from mmssl.evaluation.language_model import nats
from mmssl.evaluation.retrieval import retrieval
from mmssl.models import pretrained

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BAD)
def test_a_checkpoint_with_such_a_weight_is_refused_by_its_name(value, tmp_path):
    file = tiny_clip.export(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["visual_projection.weight"][3, 1] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(BadInput, match="visual_projection.weight holds NaN or infinite"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize("layers", ["last", "all"])
def test_features_that_overflow_are_refused_and_not_kept(layers, tmp_path):
    data = tiny_encoders.images(tmp_path / "data")
    found = encoder.load(tiny_encoders.vit(tmp_path / "vit"))
    train, _ = labelled.load(data, found.modality, found.processor)
    found.model.layernorm.weight.data.fill_(math.inf)
    found.model.embeddings.cls_token.data.fill_(math.inf)
    for _ in range(2):  # the second time they would come from the cache
        with pytest.raises(BadInput, match="features of a ViTModel, layer . of .: NaN or infinite in"):
            encoder.features(found, train, layers=layers)


@pytest.mark.parametrize("value", BAD)
def test_retrieval_and_zero_shot_name_the_row(value):
    image, text = torch.eye(4), torch.eye(4)
    text[2, 1] = value
    with pytest.raises(BadInput, match="features of texts: NaN or infinite in 1 of 4 rows, row 2 first"):
        retrieval(image, text, torch.arange(4))
    with pytest.raises(BadInput, match="features of images"):
        zero_shot.zero_shot(text, image, torch.arange(4))


def test_a_language_model_of_nan_has_no_nats():
    model, _ = tiny_char_rnn.model()
    model.head.weight.data.fill_(math.nan)
    with pytest.raises(BadInput, match="logits of the language model"):
        nats(model, torch.zeros(40, dtype=torch.long))


def test_json_that_we_write_holds_null_for_what_is_no_number():
    values = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": True}}
    read = json.loads(bounded_json.dumps(values), parse_constant=pytest.fail)
    assert read == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": True}}
