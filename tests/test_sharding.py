"""A model that is split over processes (FSDP2) trains, resumes and is exported like one that each holds whole (DDP)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from processes import in_turn, sharded
from safetensors.torch import load_file
from small import arguments
from test_every_method import variants
from tiny import Tiny
from tiny import bert as tiny_bert
from torch import Tensor
from torch.optim import Optimizer

from mmssl.data.loader import Loader
from mmssl.distributed import is_split, rank
from mmssl.method import Method
from mmssl.methods.bert import BERT
from mmssl.training import optim
from mmssl.training.checkpoint import NonFinite, complete_checkpoints
from mmssl.training.loop import train
from mmssl.training.sharding import local
from mmssl.training.start import start


def with_dropout() -> Tiny:
    return tiny_bert.tiny("bert", dropout=0.1)


def with_checkpointing() -> Tiny:
    tiny = tiny_bert.tiny("bert")
    tiny.method.model.gradient_checkpointing_enable()
    return tiny


# a masked model with tied weights, one of two views, one with two towers and a scalar, one with a teacher
COMPARED = {"bert": "bert", "simclr": "vit", "clip": "info_nce", "dino": "vit"}
REFUSED = {
    "dcgan": "its training step is not the standard one",
    "colorization": "it uses parameters in a way that only whole ones allow",
    "hubert": "it has work to do between epochs",
}
BUILT = {name: variants(name)[variant] for name, variant in COMPARED.items()}
BUILT |= {name: next(iter(variants(name).values())) for name in REFUSED}
BUILT |= {"with_dropout": with_dropout, "with_checkpointing": with_checkpointing}


def momentum(method: Method) -> list[Optimizer]:
    return [torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)]


def adamw(method: Method) -> list[Optimizer]:
    return [optim.adamw(method, 3e-3)]


def norm(method: Method) -> dict[str, float]:
    """An evaluation."""
    assert not any(is_split(p) for p in method.parameters()) and not method.training
    return {"norm": torch.stack([p.norm() for p in method.exported().parameters()]).norm().item()}


def run(
    place: Path,
    name: str,
    make: Callable = momentum,
    micro_batches: int = 1,
    evaluate: Callable | None = norm,
    **flags,
) -> list[Optimizer]:
    """Five steps on each process's half of the batches, with evaluations, a copy of the encoder at each checkpoint and
    an export; all in `place`."""
    tiny = BUILT[name]()
    size = tiny.batch_size // (2 * micro_batches)
    settings = {"max_steps": 5, "save_steps": 5, "eval_steps": 2, "logging_steps": 1, "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
    args = arguments(place, **settings | flags)
    start(args)
    optimizers = make(tiny.method)
    loader = Loader(tiny.data, size, tiny.collate_fn)

    def copy(step: int, steps: int) -> None:
        tiny.method.save_pretrained(place / "copy")

    summary = train(tiny.method, loader, args, optimizers, tiny.step, evaluate, copy)
    if rank() == 0:
        tiny.method.save_pretrained(place / "export")
        (place / "warnings.txt").write_text("\n".join(summary.warnings))
    return optimizers


def count_bytes(place: Path) -> None:
    """Writes how many bytes of parameters and of moments this process holds."""
    (adam,) = run(place, "bert", adamw)
    parameters = [p for group in adam.param_groups for p in group["params"]]
    moments = [value for state in adam.state.values() for value in state.values() if value.ndim]
    held = {"parameters": sum(local(p).nbytes for p in parameters), "moments": sum(local(m).nbytes for m in moments)}
    (place / f"{rank()}.json").write_text(json.dumps(held))


class Spoilt(BERT):
    def after_step(self) -> None:
        if rank() == 1:
            with torch.no_grad():
                local(self.model.bert.encoder.layer[0].output.dense.weight).fill_(torch.nan)


def not_finite_on_one_process(place: Path) -> None:
    args = arguments(place, max_steps=2, save_steps=1, per_device_train_batch_size=4)
    start(args)
    method = Spoilt(tiny_bert.model(), tiny_bert.tokenizer())
    with pytest.raises(NonFinite, match=r"layer.0.output.dense.weight is not finite after step 1; not saved"):
        train(method, Loader(tiny_bert.packed(), 4), args, momentum(method))
    assert complete_checkpoints(place / "checkpoints") == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def faults(place) -> dict[str, str]:
    """Everything that takes two processes, in the same two: how each job failed, "" where it did not."""
    jobs = {}
    for kind in ("ddp", "sharded"):
        begin = partial(sharded, run) if kind == "sharded" else run
        count = partial(sharded, count_bytes) if kind == "sharded" else count_bytes
        jobs |= {f"{name}-{kind}": partial(begin, place / f"{name}-{kind}", name) for name in COMPARED}
        jobs[f"bf16-{kind}"] = partial(begin, place / f"bf16-{kind}", "with_checkpointing", bf16="yes")
        jobs[f"bytes-{kind}"] = partial(count, place / f"bytes-{kind}")
    jobs["micro_batches"] = partial(sharded, run, place / "micro_batches", "clip", micro_batches=2, evaluate=None)

    begin = partial(sharded, run)
    jobs["exact"] = partial(begin, place / "exact", "with_dropout", adamw, max_steps=7)
    step_5 = {"max_steps": 7, "resume_from_checkpoint": str(place / "exact" / STEP_5)}
    jobs["resumed"] = partial(begin, place / "resumed", "with_dropout", adamw, **step_5)
    jobs["never_stopped"] = partial(run, place / "never_stopped", "bert", max_steps=7)
    for kind, go_on in (("ddp", begin), ("sharded", run)):
        step_5 = {"max_steps": 7, "resume_from_checkpoint": str(place / f"bert-{kind}" / STEP_5)}
        jobs[f"from_{kind}"] = partial(go_on, place / f"from_{kind}", "bert", **step_5)

    jobs["not_finite"] = partial(sharded, not_finite_on_one_process, place / "not_finite")
    jobs |= {f"{name}-refused": partial(begin, place / name, name, bf16="yes") for name in REFUSED}
    return in_turn(jobs, place)


STEP_5 = Path("checkpoints", "step_00000005")
STEP_7 = Path("checkpoints", "step_00000007")
FILES = ("method.safetensors", "optimizer_0.safetensors")


def raise_if_any(*faults: str) -> None:
    assert not any(faults), "\n".join(faults)


def assert_close(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ones.keys() == others.keys()
    for key, value in ones.items():
        torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def logged(run: Path, name: str) -> Tensor:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line[name] for line in lines if name in line])


@pytest.mark.parametrize("name", [*COMPARED, "bf16"])
def test_sharded_it_has_the_losses_evaluations_and_checkpoints_of_ddp(name, place, faults):
    raise_if_any(faults[f"{name}-ddp"], faults[f"{name}-sharded"])
    ddp, sharded = place / f"{name}-ddp", place / f"{name}-sharded"
    for file in FILES:
        assert_close(load_file(ddp / STEP_5 / file), load_file(sharded / STEP_5 / file))
    for value, number, tolerance in (("loss", 5, 1e-5), ("eval_norm", 4, 1e-5), ("grad_norm", 5, 1e-4)):
        found = logged(sharded, value)
        assert len(found) == number
        torch.testing.assert_close(found, logged(ddp, value), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", COMPARED)
def test_the_export_of_a_sharded_run_loads_plainly_and_is_that_of_ddp(name, place, faults):
    raise_if_any(faults[f"{name}-ddp"], faults[f"{name}-sharded"])
    ddp, sharded = place / f"{name}-ddp/export", place / f"{name}-sharded/export"
    auto_class = getattr(transformers, BUILT[name]().auto_class)
    assert_close(*(auto_class.from_pretrained(export).state_dict() for export in (ddp, sharded)))
    files, others = (sorted(path.relative_to(export) for path in export.rglob("*")) for export in (ddp, sharded))
    assert files == others
    # at a checkpoint, what is uploaded meanwhile
    weights = Path("model.safetensors")
    assert (sharded / weights).read_bytes() == (place / f"{name}-sharded/copy" / weights).read_bytes()


def test_sharded_micro_batches_have_the_gradient_of_the_whole_batch(place, faults):
    raise_if_any(faults["clip-ddp"], faults["micro_batches"])
    assert_close(*(load_file(place / name / STEP_5 / FILES[0]) for name in ("clip-ddp", "micro_batches")))
    # it has the last weights without an evaluation, too
    assert_close(*(load_file(place / name / "export/model.safetensors") for name in ("clip-ddp", "micro_batches")))


def test_a_sharded_run_resumes_to_the_bit_in_the_middle_of_an_epoch(place, faults):
    raise_if_any(faults["exact"], faults["resumed"])
    for file in FILES:
        assert (place / "exact" / STEP_7 / file).read_bytes() == (place / "resumed" / STEP_7 / file).read_bytes()


@pytest.mark.slow  # three processes of their own
def test_three_processes_resume_to_the_bit_too(tmp_path):
    """The last bit of a sum of three depends on its order."""
    begin = partial(sharded, run, name="with_dropout", make=adamw, max_steps=7)
    jobs = {"exact": partial(begin, tmp_path / "exact")}
    jobs["resumed"] = partial(begin, tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "exact" / STEP_5))
    raise_if_any(*in_turn(jobs, tmp_path, world=3).values())
    for file in FILES:
        assert (tmp_path / "exact" / STEP_7 / file).read_bytes() == (tmp_path / "resumed" / STEP_7 / file).read_bytes()


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_a_run_begun_whole_continues_sharded_and_the_other_way_round(kind, place, faults):
    raise_if_any(faults["never_stopped"], faults[f"from_{kind}"])
    for file in FILES:
        assert_close(*(load_file(place / name / STEP_7 / file) for name in ("never_stopped", f"from_{kind}")))
    assert ", sharded" in (place / f"from_{kind}" / "warnings.txt").read_text()  # the weights agree up to rounding


def test_each_of_two_processes_holds_half_of_the_parameters_and_of_the_moments(place, faults):
    raise_if_any(faults["bytes-ddp"], faults["bytes-sharded"])
    ddp, sharded = (
        [json.loads((place / f"bytes-{kind}" / f"{i}.json").read_text()) for i in (0, 1)] for kind in ("ddp", "sharded")
    )
    for what in ("parameters", "moments"):
        assert sharded[0][what] + sharded[1][what] == ddp[0][what] == ddp[1][what]
        assert 0.49 < sharded[0][what] / ddp[0][what] < 0.51


def test_a_weight_that_is_not_finite_on_one_process_stops_all(faults):
    raise_if_any(faults["not_finite"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_be_sharded_says_why_and_what_to_do(name, faults):
    fault = faults[f"{name}-refused"]
    assert "BadInput" in fault and REFUSED[name] in fault and "Launch it with --multi_gpu, without --use_fsdp" in fault
