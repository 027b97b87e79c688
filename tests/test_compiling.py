"""--torch_compile: what is compiled, how auto chooses, and that a run stays what it is without it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import arguments, bits
from tiny import bert, char_rnn, mae, simclr
from torch._dynamo.testing import CompileCounterWithBackend

from mmssl.data.loader import Loader
from mmssl.errors import BadInput
from mmssl.method import Method
from mmssl.training import compiling, steps
from mmssl.training.loop import train
from mmssl.training.summary import Summary


def tiny(build=mae):
    return next(iter(build.VARIANTS.values()))()


def run(directory, build=mae, evaluate=None, **flags) -> tuple[Method, Summary]:
    one = tiny(build)
    args = arguments(directory, per_device_train_batch_size=one.batch_size, **flags)
    loader = Loader(one.data, one.batch_size, one.collate_fn, shuffle=one.shuffle)
    return one.method, train(one.method, loader, args, one.optimizers(one.method), one.step, evaluate)


def checkpoint(directory: Path) -> Path:
    return directory / "checkpoints/step_00000005"


@pytest.fixture
def counter(monkeypatch) -> CompileCounterWithBackend:
    """Counts what torch compiles, and runs it as it is: without the C++ compiler."""
    torch._dynamo.reset()
    counts, compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend=counts))
    yield counts
    torch._dynamo.reset()


def measured(monkeypatch, *seconds: float) -> None:
    """Let the steps that `auto` compares, uncompiled and compiled, take so many seconds each; they are still taken."""
    real, told = steps.rehearse, list(seconds)

    def rehearse(*given, times: int = 1) -> list[float]:
        real(*given, times=times)
        return [told.pop(0)] * times

    monkeypatch.setattr(steps, "rehearse", rehearse)


def test_the_layers_are_the_innermost_ones_of_lists():
    method = tiny(bert).method
    assert set(compiling.layers(method)) == set(method.model.bert.encoder.layer)
    residual = simclr.method(simclr.resnet)
    assert {type(layer).__name__ for layer in compiling.layers(residual)} == {"ResNetStage"}
    assert compiling.layers(tiny(char_rnn).method) == []


def test_layers_of_one_kind_are_compiled_once_and_no_evaluation_compiles_anything(counter, tmp_path):
    def evaluate(method: Method) -> dict[str, float]:
        before = counter.frame_count
        for n in (1, 2, 3):
            with torch.enable_grad():
                method.model.vit(torch.randn(n, 3, 16, 16), noise=None)
        assert counter.frame_count == before
        return {"looked": 1.0}

    method, _ = run(tmp_path, evaluate=evaluate, torch_compile="layers", eval_steps=2)
    assert len(compiling.layers(method)) == 3 and counter.frame_count == 2  # for the visible patches, and for all
    assert not any("forward" in vars(part) for part in method.modules())  # what follows the training is uncompiled


def test_weights_and_checkpoints_are_those_of_a_run_without_it(counter, tmp_path):
    plain, _ = run(tmp_path / "plain", save_steps=5)
    compiled, _ = run(tmp_path / "compiled", save_steps=5, torch_compile="layers")
    assert counter.frame_count and bits(plain) == bits(compiled)
    one, other = (load_file(checkpoint(tmp_path / name) / "method.safetensors") for name in ("plain", "compiled"))
    assert one.keys() == other.keys()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_equal_with_gradient_checkpointing(counter, tmp_path, checkpointing):
    def trained(how: str) -> dict[str, bytes]:
        one = tiny(bert)
        if checkpointing:
            one.method.model.gradient_checkpointing_enable()
        args = arguments(tmp_path / how, per_device_train_batch_size=one.batch_size, max_steps=3, torch_compile=how)
        train(one.method, Loader(one.data, one.batch_size, one.collate_fn), args, one.optimizers(one.method), one.step)
        return bits(one.method)

    assert trained("no") == trained("layers") and counter.frame_count


def test_auto_leaves_a_short_training_alone(counter, tmp_path, capfd):
    plain, _ = run(tmp_path / "plain")
    method, summary = run(tmp_path / "auto", torch_compile="auto")
    assert bits(method) == bits(plain) and (summary.compiled, counter.frame_count) == ("no", 0)
    assert "--torch_compile auto: not compiled: about 0 minutes of training are too few" in capfd.readouterr().err


@pytest.mark.parametrize("seconds, compiled, said", [
    ((2000.0, 1500.0), "layers", "layers compiled: 1500000 ms a step instead of 2000000"),
    ((2000.0, 1990.0), "no", "not compiled: 1990000 ms a step instead of 2000000"),
])  # fmt: skip
def test_auto_compiles_a_long_training_if_it_is_faster(seconds, compiled, said, counter, tmp_path, capfd, monkeypatch):
    plain, _ = run(tmp_path / "plain")
    measured(monkeypatch, *seconds)
    method, summary = run(tmp_path / "auto", torch_compile="auto")
    assert bits(method) == bits(plain) and summary.compiled == compiled
    torch._dynamo.reset()
    counter.clear()
    assert said in capfd.readouterr().err


def test_a_resume_keeps_what_auto_has_chosen(counter, tmp_path, monkeypatch):
    measured(monkeypatch, 2000.0, 1500.0)
    whole, _ = run(tmp_path / "whole", torch_compile="auto", save_steps=5)
    torch._dynamo.reset()
    counter.clear()
    flags = {"torch_compile": "auto", "resume_from_checkpoint": str(checkpoint(tmp_path / "whole"))}
    resumed, summary = run(tmp_path / "resumed", **flags)  # nothing is measured
    assert summary.compiled == "layers" and counter.frame_count == 2 and bits(resumed) == bits(whole)


def test_auto_trains_uncompiled_where_the_compiler_fails(tmp_path, capfd, monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("no C++ compiler\nwas found")

    plain, _ = run(tmp_path / "plain")
    measured(monkeypatch, 2000.0, 1500.0)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    method, summary = run(tmp_path / "auto", torch_compile="auto")
    assert bits(method) == bits(plain) and summary.compiled == "no"
    assert "not compiled: it failed with BackendCompilerFailed" in capfd.readouterr().err
    assert not [warning for warning in summary.warnings if "compile" in warning]


def test_a_network_without_layers_is_refused_by_layers_and_left_alone_by_auto(counter, tmp_path, capfd, monkeypatch):
    with pytest.raises(BadInput, match="--torch_compile layers: CharRNN has no list of layers"):
        run(tmp_path / "layers", char_rnn, torch_compile="layers")
    measured(monkeypatch, 2000.0)
    run(tmp_path / "auto", char_rnn, torch_compile="auto", max_steps=2)
    assert "not compiled: there is no list of layers" in capfd.readouterr().err


@pytest.mark.slow  # the C++ compiler takes half a minute
@pytest.mark.parametrize("how", ["layers", "whole"])
def test_compiled_by_inductor_a_resume_is_exact(how, tmp_path):
    torch._dynamo.reset()
    flags = {"save_steps": 5, "torch_compile": how}
    method, _ = run(tmp_path, **flags)
    resumed, _ = run(tmp_path / "resumed", **flags, resume_from_checkpoint=str(checkpoint(tmp_path)))
    assert bits(resumed) == bits(method)
