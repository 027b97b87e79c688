import pytest
import tiny_clip
import torch

from mmssl import onnx
from mmssl.errors import BadInput
from mmssl.export import NotLoadable


@pytest.mark.slow
def test_both_encoders_give_the_same_features_in_onnx_runtime(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    tiny_clip.export(tmp_path)
    onnx.main(onnx.OnnxArgs(model_name_or_path=str(tmp_path)))
    method, processor = tiny_clip.build()
    inputs = processor(**tiny_clip.EXAMPLE, padding=True, return_tensors="pt")
    encoders = {"image": onnx.ImageEncoder(method.model.eval()), "text": onnx.TextEncoder(method.model.eval())}
    for which, names in (("image", ["pixel_values"]), ("text", ["input_ids", "attention_mask"])):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{which}.onnx")
        got = session.run(None, {name: inputs[name].numpy() for name in names})[0]
        with torch.no_grad():
            expected = encoders[which](**{name: inputs[name] for name in names})
        assert torch.allclose(torch.from_numpy(got), expected, atol=1e-5)
    other = onnx.ImageEncoder(tiny_clip.build(seed=1)[0].model.eval())
    with pytest.raises(NotLoadable, match="differs"):
        onnx.check(other, {"pixel_values": inputs["pixel_values"]}, tmp_path / "onnx" / "image.onnx")


def test_without_the_extra_or_a_directory_the_remedy_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"mmssl\[onnx\]|--output_dir"):
        onnx.main(onnx.OnnxArgs(model_name_or_path="user/name"))
