import pytest
import tiny_clip
import tiny_encoders
import torch
from tiny import cpc

from mmssl.errors import BadInput
from mmssl.hub import onnx
from mmssl.hub.reloading import NotLoadable
from mmssl.models import pretrained


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_both_encoders_of_a_clip_give_the_same_features_in_onnx_runtime(tmp_path, onnxruntime):
    tiny_clip.export(tmp_path)
    onnx.main(onnx.OnnxArgs(model_name_or_path=str(tmp_path)))
    method, processor = tiny_clip.build()
    inputs = processor(**tiny_clip.EXAMPLE, padding=True, return_tensors="pt")
    for kind, names in onnx.INPUTS.items():
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{kind}.onnx")
        got = session.run(None, {name: inputs[name].numpy() for name in names})[0]
        with torch.no_grad():
            features = getattr(method.model.eval(), f"get_{kind}_features")(**{name: inputs[name] for name in names})
        assert torch.allclose(torch.from_numpy(got), features.pooler_output, atol=1e-5)
    other = onnx.encoders(tiny_clip.build(seed=1)[0].model.eval())["image"]
    with pytest.raises(NotLoadable, match="differs"):
        onnx.check(other, (inputs["pixel_values"],), tmp_path / "onnx" / "image.onnx")


def cpc_text(directory):
    tiny = cpc.text()
    return tiny_encoders.save(directory, tiny.method, tiny.processor)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [tiny_encoders.vit, tiny_encoders.bert, cpc_text])
def test_encoders_of_one_kind_give_the_same_states_in_onnx_runtime(tmp_path, onnxruntime, encoder):
    directory = encoder(tmp_path / "encoder")
    onnx.main(onnx.OnnxArgs(directory, output_dir=str(tmp_path / "onnx"), trust_remote_code=True))
    model, processor = pretrained.load(directory, trust_remote_code=True, may_lack="pooler")
    kind = next(iter(onnx.encoders(model)))
    given = (
        {"images": tiny_clip.EXAMPLE["images"]} if kind == "image" else {"text": ["cat dog", "rice"], "padding": True}
    )
    inputs = {
        name: value for name, value in processor(**given, return_tensors="pt").items() if name in onnx.INPUTS[kind]
    }
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{kind}.onnx")
    got = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(got), model(**inputs).last_hidden_state, atol=1e-5)


def test_what_reads_neither_images_nor_texts_is_refused():
    with pytest.raises(BadInput, match="a CpcAudioModel reads input_values, neither images nor texts"):
        onnx.encoders(cpc.audio_model())


def test_without_the_extra_or_a_directory_the_remedy_is_said(tmp_path):
    with pytest.raises(BadInput, match="pip install onnx onnxscript onnxruntime|--output_dir"):
        onnx.main(onnx.OnnxArgs(model_name_or_path="user/name"))
