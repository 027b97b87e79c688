"""Every method on a simulated accelerator: nothing is left on the host, and a training step does not wait."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import simulated_device
import torch
import torch.nn.functional as F
from device import USE_CPU
from processes import Processes
from small import Numbers, Small, adam, arguments, bits
from test_every_method import METHODS, cases, held_to, loader
from test_every_method import variants as variants_of
from tiny import Tiny
from torch import Tensor, nn

from mmssl.data.loader import Loader
from mmssl.method import Output
from mmssl.training import log, loop, steps

pytestmark = pytest.mark.skipif(
    not USE_CPU or torch.accelerator.is_available(), reason="the tests of every method can run on the accelerator"
)

MASK = "what a mask chooses is gathered, so that nothing is computed for the rest: its size is known to the device"
PADDING = "transformers looks whether anything is padded: without a mask, attention is several times as fast"
CORPUS = "text is drawn and its words are counted on the host"
# where a step may wait (see simulated_device.Event.place): why
WAITS = {
    "backward": "of what a mask has chosen: what chooses it waits, too, and is named here",
    "mmssl.kernels.word2vec_torch.update_batch": "a word that occurs many times has one update",
    "mmssl.data.text.masking.places": "how many tokens whole words have is known to the device",
    "mmssl.methods.domain_adaptation.transport_plan": "the plan is computed by POT, on the host",
    "mmssl.methods.hubert._clusters": "what is clustered is kept in a buffer, for a resume",
    "mmssl.methods.hubert.described": MASK,
    "mmssl.methods.hubert.forward": MASK,
    "mmssl.methods.ibot.forward": MASK,
    "mmssl.methods.ibot.masked_patch_loss": MASK,
    "mmssl.methods.lxmert.forward": MASK,
    "mmssl.methods.swav._assigned": "how full the queue is is kept in a buffer, for a resume",
    "mmssl.methods.word2vec._random": CORPUS,
    "mmssl.methods.word2vec._train_batched": CORPUS,
    "mmssl.models.cpc_text._packed": MASK,
    "mmssl.models.cpc_text.forward": MASK,
    "transformers.masking_utils._ignore_bidirectional_mask_sdpa": PADDING,
    "transformers.masking_utils.find_packed_sequence_indices": "transformers looks whether texts are packed",
    "transformers.modeling_utils.warn_if_padding_and_no_attention_mask": "transformers warns of padding",
    "transformers.models.hubert.modeling_hubert._mask_hidden_states": MASK,
    "transformers.models.wav2vec2.modeling_wav2vec2._mask_hidden_states": MASK,
}
# (method, variant) that trains on the host: why
ON_HOST = {("word2vec", "kernel"): "a kernel for CPUs; `batched` is for other devices"}


def trained(build: Callable[[], Tiny], device: torch.device) -> tuple[list[Output], list[simulated_device.Report]]:
    """The outputs and the reports of two steps on the first batch."""
    from accelerate import Accelerator

    tiny = build()
    torch.manual_seed(0)
    batch = {name: value.to(device) for name, value in next(loader(tiny).epoch(0)).items() if name != "index"}
    tiny.method.to(device).train()
    optimizers, outputs, reports = tiny.plain(tiny.method), [], []
    for _ in range(2):
        with simulated_device.watched() as report:
            outputs.append(tiny.step(tiny.method, [dict(batch)], optimizers, Accelerator(), 1.0))
        reports.append(report)
    return outputs, reports


def faults_of(build: Callable[[], Tiny]) -> tuple[list[str], set[str]]:
    """(what is wrong with it on the device, the exceptions of WAITS that it needs)."""
    device = simulated_device.begin()
    outputs, (_, report) = trained(build, device)  # the first step may copy constants that it keeps
    expected, _ = trained(build, torch.device("cpu"))
    faults = []
    for mine, theirs in zip(outputs, expected, strict=True):
        scalars = {"loss": mine.loss, "features": mine.features, "trivial_loss": mine.trivial_loss, **mine.metrics}
        faults += [f"{n} is on the host" for n, t in scalars.items() if isinstance(t, Tensor) and t.device != device]
        if not torch.allclose(mine.loss.cpu(), theirs.loss, rtol=1e-5):
            faults.append(f"loss {mine.loss.item()}, on the CPU {theirs.loss.item()}")
    events = [("waits", event) for event in report.waits] + [("copied to the device", event) for event in report.copies]
    faults += [f"{kind}: {event}" for kind, event in events if event.place not in WAITS]
    return faults, {event.place for _, event in events} & WAITS.keys()


def _all(asked: list[tuple[str, str]], file: Path) -> None:
    found = {}
    for name, variant in asked:
        try:
            faults, excused = faults_of(variants_of(name)[variant])
        except Exception:
            faults, excused = [traceback.format_exc()], set()
        found[f"{name}-{variant}"] = {"faults": faults, "excused": sorted(excused)}
    file.write_text(json.dumps(found))


def on_device(job: Callable, *given) -> None:
    """What a process of its own does."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = simulated_device.DEVICE
    os.environ.pop("ACCELERATE_USE_CPU", None)
    simulated_device.begin()
    job(*given)


@pytest.fixture(scope="module")
def results(request, tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    """{"name-variant": its faults, and the exceptions that it needs}; all are tried in turn, in one process."""
    place = tmp_path_factory.mktemp("device")
    asked = [case for case in cases(request) if case not in ON_HOST]
    Processes(on_device, _all, asked, place / "found.json", log=place / "log.txt").succeed(timeout=600)
    return json.loads((place / "found.json").read_text())


@held_to("device", marks=[pytest.mark.slow])
def test_a_step_is_on_the_device_and_does_not_wait_for_it(name, variant, results):
    if (name, variant) not in ON_HOST:
        assert not (faults := results[f"{name}-{variant}"]["faults"]), "\n".join(faults)


@pytest.mark.slow  # with all others: pytest -m "slow or not slow" tests/test_device.py
def test_no_exception_is_out_of_date(request, results):
    if len(results) + len(ON_HOST) < sum(len(variants_of(name)) for name in METHODS):
        pytest.skip("not all methods were asked for")
    assert {place for result in results.values() for place in result["excused"]} == WAITS.keys()


class Waits(Small):
    def forward(self, x: Tensor, y: Tensor) -> Output:
        return super().forward(x, y * (y.mean().item() < 100))


class OnHost(Small):
    def forward(self, x: Tensor, y: Tensor) -> Output:
        return super().forward(x, y + torch.zeros(4))


class Copies(Small):
    def forward(self, x: Tensor, y: Tensor) -> Output:
        return super().forward(x, y + torch.tensor([0.0], device=y.device))


class MeasuredOnHost(Small):
    def forward(self, x: Tensor, y: Tensor) -> Output:
        output = super().forward(x, y)
        return replace(output, metrics={"spread": torch.tensor(1.0)})


def of(method: type[Small]) -> Tiny:
    return Tiny(method(), Numbers(), batch_size=6)


def _planted() -> None:
    assert faults_of(partial(of, Small)) == ([], set())
    (waits,), _ = faults_of(partial(of, Waits))
    assert waits.startswith("waits: _local_scalar_dense in test_device.forward, line ")
    (copies,), _ = faults_of(partial(of, Copies))
    assert copies.startswith("copied to the device: copy_ in test_device.forward, line ")
    assert faults_of(partial(of, MeasuredOnHost))[0] == ["spread is on the host"] * 2
    with pytest.raises(RuntimeError, match="add got tensors of accel and of the host"):
        faults_of(partial(of, OnHost))


def test_planted_faults_are_found(tmp_path):
    Processes(on_device, _planted, log=tmp_path / "log.txt").succeed()


def _itself() -> None:
    device = simulated_device.begin()
    x = torch.arange(6.0).to(device).view(2, 3)
    x[:, 1].mul_(10)  # through a view
    torch.add(x[0], 1, out=x[1])
    assert x.tolist() == [[0.0, 10.0, 2.0], [1.0, 11.0, 3.0]]
    assert torch.tensor([1, 2], device=device).device == torch.eye(2, device=device).device == device
    with simulated_device.watched() as report:
        mask = x > 5
        x[mask] = 0.0
        _ = x * torch.tensor(2.0), x[:, torch.tensor([0])], x.sum().new_zeros(3), torch.arange(3, device=device)
    assert not report.waits and [event.operation for event in report.copies] == ["index"]
    square = torch.eye(3, device=device)
    waiting = [
        x.max().item, x.any().__bool__, mask.sum().__int__, x.tolist, x.cpu, x.nonzero, x.unique, lambda: x[mask],
        lambda: x.masked_select(mask), lambda: x.repeat_interleave(mask.sum(1), 0), lambda: torch.equal(x, x),
        lambda: torch.linalg.inv(square), lambda: F.one_hot(mask.long()), lambda: square.multinomial(1),
    ]  # fmt: skip
    for wait in waiting:
        with simulated_device.watched() as report:
            wait()
        assert report.waits, wait
    host = torch.ones(3)
    mixing = [
        x.numpy, lambda: x + host, lambda: x @ host, lambda: host.add_(x[0]), lambda: host[0].add_(x[0, 0]),
        lambda: torch.cat([x[0], host]), lambda: torch.stack([x[0, 0], host[0]]),
        lambda: F.embedding(torch.tensor([1]), x), lambda: square.bernoulli(generator=torch.Generator()),
    ]  # fmt: skip
    for mixed in mixing:
        with pytest.raises(RuntimeError):
            mixed()
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    assert tied.to(device)[1].weight is tied[0].weight


def test_the_device_itself(tmp_path):
    Processes(on_device, _itself, log=tmp_path / "log.txt").succeed()


def _loop(folder: Path) -> None:
    """Two runs of train, the second resumed; between the first step and the log, only batches go to the device."""
    reports, watching = [], ExitStack()
    flush = log.Log.flush

    def step(*given) -> Output:
        if not reports:
            reports.append(watching.enter_context(simulated_device.watched()))
        return steps.standard(*given)

    def flushed(*given) -> int:
        watching.close()
        return flush(*given)

    def run(**flags) -> nn.Module:
        method = Small().to(simulated_device.DEVICE)
        args = arguments(folder, max_steps=8, save_steps=4, eval_steps=4, logging_steps=4, use_cpu=False, **flags)
        evaluate = lambda bare: {"weight": bare.student[0].weight.norm().item()}  # noqa: E731
        loop.train(method, Loader(Numbers(), 6), args, [adam(method)], step, evaluate)
        return method

    log.Log.flush = flushed
    whole = run()
    assert next(whole.parameters()).device == torch.device(simulated_device.DEVICE)
    assert not reports[0].waits
    assert {event.place for event in reports[0].copies} <= {"mmssl.training.loop._to_device"}
    again = run(resume_from_checkpoint=str(folder / "checkpoints/step_00000004"))
    assert bits(again) == bits(whole)


def test_the_loop_does_not_wait_between_two_lines_of_the_log(tmp_path):
    Processes(on_device, _loop, tmp_path, log=tmp_path / "log.txt").succeed()
