"""What holds for every method: a new file in mmssl/methods is held to it without being named here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from device import DEVICE, TOLERANCE, accelerator, placed
from processes import in_turn, sharded
from safetensors.torch import load_file
from small import arguments, bits
from tiny import Tiny

import mmssl.methods
from mmssl.data.loader import Loader
from mmssl.distributed import has_batch_norm
from mmssl.errors import BadInput
from mmssl.hub import export, reloading
from mmssl.training import compiling
from mmssl.training.loop import train
from mmssl.training.start import start

# (method, guarantee): why it cannot hold, and the test of what holds instead, a file and a name in it. The only place
# where a method may be let off.
EXCEPTIONS: dict[tuple[str, str], tuple[str, str, str]] = {
    ("word2vec", "processes"): (
        "there is no gradient to sum: processes sum what they have learned",
        "methods/test_word2vec.py",
        "test_two_processes_end_with_one_table_that_has_learned",
    ),
    ("word2vec", "micro_batches"): (
        "each micro-batch is trained on in turn, as each window within it is",
        "methods/test_word2vec.py",
        "test_micro_batches_are_trained_on_one_after_the_other",
    ),
}

GUARANTEES = ("parameters", "loss", "resume", "processes", "sharded", "micro_batches", "export", "compile")
METHODS = sorted(p.stem for p in Path(mmssl.methods.__file__).parent.glob("*.py") if p.stem != "__init__")


def variants(name: str) -> dict:
    return import_module(f"tiny.{name}").VARIANTS if (Path(__file__).parent / "tiny" / f"{name}.py").exists() else {}


def held_to(guarantee: str, each_variant: bool = True, marks: Sequence[pytest.MarkDecorator] = ()):
    """Every method that is not let off, in every variant or in its first. marks: of all variants but the first."""
    cases = []
    for name in METHODS:
        if (name, guarantee) not in EXCEPTIONS:
            chosen = list(variants(name)) if each_variant else list(variants(name))[:1]
            for number, variant in enumerate(chosen):
                cases.append(pytest.param(name, variant, id=f"{name}-{variant}", marks=marks if number else ()))
    return pytest.mark.parametrize("name, variant", cases)


@pytest.mark.parametrize("name", METHODS)
def test_there_is_a_tiny_form_of_every_method(name):
    assert variants(name), f"mmssl/methods/{name}.py needs tests/tiny/{name}.py with VARIANTS, see tests/tiny"


def test_exceptions_name_methods_guarantees_and_tests_that_exist():
    assert {name for name, _ in EXCEPTIONS} <= set(METHODS) and {g for _, g in EXCEPTIONS} <= set(GUARANTEES)
    for _, file, test in EXCEPTIONS.values():
        assert f"def {test}(" in (Path(__file__).parent / file).read_text()


def cases(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """(name, variant) of every test asked for that uses this fixture and has them."""
    using = [i for i in request.session.items if request.fixturename in getattr(i, "fixturenames", ())]
    params = [item.callspec.params for item in using if hasattr(item, "callspec")]
    return [(each["name"], each["variant"]) for each in params]


def loader(tiny: Tiny, divided_by: int = 1) -> Loader:
    return Loader(tiny.data, tiny.batch_size // divided_by, tiny.collate_fn, shuffle=tiny.shuffle)


def on_one_batch(tiny: Tiny, times: int) -> list[float]:
    """The losses of `times` steps on the first batch."""
    batch = placed(next(loader(tiny).epoch(0)))
    batch.pop("index", None)
    tiny.method.to(DEVICE)
    optimizers, one = tiny.optimizers(tiny.method), accelerator()
    tiny.method.train()
    return [tiny.step(tiny.method, [dict(batch)], optimizers, one, 1.0).loss.item() for _ in range(times)]


@held_to("parameters")
def test_every_trainable_parameter_changes_and_no_frozen_one_does(name, variant):
    tiny = variants(name)[variant]()
    before = {key: value.detach().to(DEVICE, copy=True) for key, value in tiny.method.named_parameters()}
    on_one_batch(tiny, times=5)
    for key, value in tiny.method.named_parameters():
        should_change = value.requires_grad or key.startswith(tiny.moved or "\0")
        assert torch.equal(value, before[key]) != should_change, key


@held_to("loss")
def test_loss_on_one_fixed_batch_falls(name, variant):
    losses = on_one_batch(variants(name)[variant](), times=40)
    assert losses[-1] < 0.9 * losses[0]


@held_to("resume")
def test_resume_from_the_middle_of_an_epoch_is_exact(name, variant, tmp_path):
    def run(**flags):
        tiny = variants(name)[variant]()
        args = arguments(tmp_path, max_steps=7, save_steps=5, per_device_train_batch_size=tiny.batch_size, **flags)
        train(tiny.method, loader(tiny), args, tiny.optimizers(tiny.method), tiny.step)
        return tiny.method

    whole = run()
    assert bits(run(resume_from_checkpoint=str(tmp_path / "checkpoints/step_00000005"))) == bits(whole)


def run_plainly(name: str, variant: str, output_dir: Path, processes: int = 1, micro_batches: int = 1, **flags) -> None:
    tiny = variants(name)[variant]()
    parts = processes * micro_batches
    args = arguments(
        output_dir,
        max_steps=5,
        save_steps=5,
        per_device_train_batch_size=tiny.batch_size // parts,
        gradient_accumulation_steps=micro_batches,
        lr_scheduler_type="constant",
        **flags,
    )
    start(args)
    assert PartialState().num_processes == processes
    train(tiny.method, loader(tiny, parts), args, tiny.plain(tiny.method), tiny.step)


def assert_equal_weights(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    weights, others = (load_file(d / "checkpoints/step_00000005/method.safetensors") for d in (one, other))
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(name, variant) -> where the run of one process on whole batches is, which is made once."""

    @cache
    def run(name: str, variant: str) -> Path:
        place = tmp_path_factory.mktemp("whole")
        run_plainly(name, variant, place)
        return place

    return run


@pytest.fixture(scope="module")
def faults_of_two(request, tmp_path_factory) -> tuple[Path, dict]:
    """The runs of all methods in two processes, which are the same two: starting them costs more than training does.
    Where they are, and {"name-variant": how it failed, "" where it did not}."""
    place = tmp_path_factory.mktemp("two")
    jobs = {f"{n}-{v}": partial(run_plainly, n, v, place / f"{n}-{v}", processes=2) for n, v in cases(request)}
    return place, in_turn(jobs, place)


@held_to("processes")
def test_two_processes_train_like_one_on_the_whole_batch(name, variant, whole, faults_of_two):
    place, faults = faults_of_two
    assert not faults[f"{name}-{variant}"], faults[f"{name}-{variant}"]
    assert_equal_weights(whole(name, variant), place / f"{name}-{variant}")


@pytest.fixture(scope="module")
def faults_of_sharded(request, tmp_path_factory) -> tuple[Path, dict]:
    """As faults_of_two, of methods that are split over the two processes."""
    place = tmp_path_factory.mktemp("sharded")
    jobs = {f"{n}-{v}": partial(sharded, run_plainly, n, v, place / f"{n}-{v}", processes=2) for n, v in cases(request)}
    return place, in_turn(jobs, place)


@pytest.mark.slow  # doubles the runs of two processes; test_sharding.py has some
@held_to("sharded")
def test_sharded_over_two_processes_it_trains_like_one_or_is_refused(name, variant, whole, faults_of_sharded):
    place, faults = faults_of_sharded
    fault = faults[f"{name}-{variant}"]
    if "cannot be sharded: " in fault:
        return
    assert not fault, fault
    assert_equal_weights(whole(name, variant), place / f"{name}-{variant}")


@held_to("micro_batches")
def test_micro_batches_train_like_the_whole_batch_or_are_refused_for_a_batch_norm(name, variant, whole, tmp_path):
    if has_batch_norm(variants(name)[variant]().method):
        with pytest.raises(BadInput, match="has batch norms, which would take their statistics from each micro-batch"):
            run_plainly(name, variant, tmp_path, micro_batches=4)
        return
    run_plainly(name, variant, tmp_path, micro_batches=4)
    assert_equal_weights(whole(name, variant), tmp_path)


@pytest.fixture(scope="module")
def exports(request, tmp_path_factory) -> dict[str, Exception | None]:
    """{name: why its directory does not load}; one fresh interpreter loads all: importing transformers costs seconds.
    A method that cannot be exported has its error here."""
    found, written = {}, {}
    for name, variant in cases(request):
        directory = tmp_path_factory.mktemp(name)
        try:
            tiny = variants(name)[variant]()
            on_one_batch(tiny, times=2)
            export.write(tiny.method, tiny.processor, directory)
            model = tiny.exported(tiny.method)
        except Exception as error:
            found[name] = error
        else:
            written[name] = reloading.Exported(directory, model, tiny.processor, tiny.example, tiny.auto_class)
    return found | dict(zip(written, reloading.reload_faults(list(written.values())), strict=True))


@held_to("export", each_variant=False)
def test_export_reloads_in_a_fresh_interpreter_with_equal_features(name, variant, exports):
    if exports[name]:
        raise exports[name]


@pytest.mark.slow  # the C++ compiler takes from ten seconds to a minute for a method
@held_to("compile", each_variant=False)
def test_compiled_it_trains_like_uncompiled(name, variant, whole, tmp_path):
    torch._dynamo.reset()
    has_layers = compiling.layers(variants(name)[variant]().method)
    run_plainly(name, variant, tmp_path, torch_compile="layers" if has_layers else "whole")
    assert_equal_weights(whole(name, variant), tmp_path, tolerance=1e-4)
