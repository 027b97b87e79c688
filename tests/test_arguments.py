"""The flags: their ranges, those of a model made from scratch, and what the device decides."""

import io
import math
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache

import pytest
import torch
from generated import fast
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import RECIPES

from mmssl.arguments import LARGEST, STARTS_FROM, Flags, TrainArgs, explained, flag, limits, parse
from mmssl.device import fast_bf16
from mmssl.errors import BadInput
from mmssl.evaluation.masked_lm import MaskedLMArgs
from mmssl.evaluation.retrieval import RetrievalArgs
from mmssl.evaluation.word_similarity import WordSimilarityArgs
from mmssl.evaluation.zero_shot import ZeroShotArgs
from mmssl.hub.onnx import OnnxArgs
from mmssl.methods import char_rnn
from mmssl.models import memory


@pytest.mark.parametrize(
    ("cpu", "fast"),
    [
        ({"cpu_name": "INTEL(R) XEON(R)", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "INTEL(R) XEON(R)", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_where_a_cpu_computes_it_fast(monkeypatch, cpu, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert fast_bf16(use_cpu=True) is fast


@dataclass
class Ranges(Flags):
    share: float = flag(0.5, "a share", above=0, below=1)
    count: int = flag(4, "a number of things", at_least=1)
    few: int | None = flag(None, "a number or nothing", at_least=2, at_most=9)
    several: list[int] = flag([1, 2], "numbers", at_least=1, at_most=100)
    switch: bool = flag(False, "not a number")


@dataclass
class Overridden(Ranges):
    share: float = flag(0.1, "another default")
    few: int = flag(3, "another range", at_least=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": math.nan}, "--share is nan; it must be finite"),
        ({"share": math.inf}, "--share is inf; it must be finite"),
        ({"share": -0.5}, "--share is -0.5; it must be above 0"),
        ({"share": 0.0}, "--share is 0.0; it must be above 0"),
        ({"share": 1.0}, "--share is 1.0; it must be below 1"),
        ({"count": 0}, "--count is 0; it must be 1 or more"),
        ({"count": -3}, "--count is -3; it must be 1 or more"),
        ({"count": LARGEST + 1}, "--count is 2147483648; it must be at most 2,147,483,647"),
        ({"few": 10}, "--few is 10; it must be at most 9"),
        ({"several": [1, 0]}, "--several is 0; it must be 1 or more"),
        ({"several": [101]}, "--several is 101; it must be at most 100"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_flag(values, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        Ranges(**values)


def test_numbers_at_the_border_of_their_range_and_none_are_taken():
    Ranges(share=1e-300, count=1, few=9, several=[100], switch=True)
    assert Ranges(count=LARGEST).few is None


def test_a_field_that_overrides_another_keeps_its_range_unless_it_has_its_own():
    assert limits(Overridden, "share") == {"above": 0, "below": 1} and limits(Overridden, "few") == {"at_least": 1}
    with pytest.raises(BadInput, match="--share is 1; it must be below 1"):
        Overridden(share=1)
    assert Overridden(few=10**6).few == 10**6


ROOT = RECIPES.parent
WITHOUT_FLAGS = {"emoji", "voices", "wikipedia", "turns", "kornia_worker", "open_clip_worker", "lightly_worker",
                 "gradients_worker", "torchvision_operators"}  # fmt: skip  # one folder, or none
FOLDERS = ("recipes", "data_scripts", "benchmarks")
SCRIPTS = [f for name in FOLDERS for f in sorted((ROOT / name).glob("*.py")) if f.stem not in WITHOUT_FLAGS]


@cache
def commands() -> dict[str, type[Flags]]:
    """The dataclass of each script and of each command of the package."""
    found = {}
    for file in SCRIPTS:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(file.parent)  # benchmarks import turns
            names = runpy.run_path(str(file))
        for value in names.values():
            if is_dataclass(value) and value.__module__ == "<run_path>" and value.__name__.endswith("Args"):
                found[f"{file.parent.name}/{file.stem}"] = value
    own = (RetrievalArgs, ZeroShotArgs, MaskedLMArgs, WordSimilarityArgs, OnnxArgs)
    return found | {value.__name__: value for value in own}


def test_every_script_has_a_dataclass_of_checked_flags():
    assert {f"{file.parent.name}/{file.stem}" for file in SCRIPTS} == {name for name in commands() if "/" in name}
    assert all(issubclass(command, Flags) for command in commands().values())


def required(command: type[Flags]) -> dict:
    return {f.name: "given" for f in fields(command) if f.default is MISSING and f.default_factory is MISSING}


def test_every_number_of_every_command_has_a_lower_limit_and_its_default_lies_in_its_range():
    for name, command in commands().items():
        for number in (f.name for f in fields(command) if re.search(r"\b(int|float)\b", str(f.type))):
            assert limits(command, number).keys() & {"at_least", "above"}, f"{name} --{number}"
        command(**required(command))


NUMBERS = ["0", "-1", "1", "2", "0.5", "1e-9", "1e99", "nan", "inf", "-inf", "9" * 20, "9" * 400, "9" * 5000,
           "1000000000", "100000000", "1_000", "٣", "0x10", "1.5.2", "--3"]  # fmt: skip
TEXTS = ["", " ", ",", ".", "/", "~", "~nobody-of-that-name/x", "a\0b", "a\udcffb", "x" * 300, "x/" * 3000, "a" * 10**5,
         "two\nlines", "\x1b[2J", "{}", "%s%d", "%(default)s", "@file", "-", "--", "none", "auto", "True", "user/name",
         "runs/none", "../..", "日本語", "$(id)", "'; rm -rf '", "cosine", "yes"]  # fmt: skip
values = st.sampled_from([*NUMBERS, *TEXTS]) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A command, and up to five of its flags with up to three values each."""
    name = draw(st.sampled_from(sorted(commands())))
    flags = [f.name for f in fields(commands()[name])] + ["no_such_flag"]
    argv = [part for key in required(commands()[name]) for part in (f"--{key}", "given")]
    for flag_name in draw(st.lists(st.sampled_from(flags), max_size=5)):
        argv += [f"--{flag_name}", *draw(st.lists(values, max_size=3))]
    return name, argv


@settings(fast, max_examples=1000)
@given(command_lines())
@example(("recipes/clip", ["--temperature", "0"]))
@example(("recipes/clip", ["--max_length", "0"]))
@example(("recipes/clip", ["--first_caption", "-1"]))
@example(("recipes/clip", ["--word_dropout", "2"]))
@example(("recipes/mae", ["--patch_size", "0"]))
@example(("recipes/mae", ["--weight_decay", "-1"]))
@example(("recipes/mae", ["--max_grad_norm", "nan"]))
@example(("recipes/mae", ["--max_steps", "9" * 400]))
@example(("recipes/mae", ["--output_dir", "~nobody-of-that-name/x"]))
@example(("recipes/word2vec", ["--window", "100000000"]))
@example(("recipes/cpc_audio", ["--sampling_rate", "1000000000"]))
@example(("data_scripts/librispeech", ["--hours", "nan"]))
@example(("WordSimilarityArgs", ["--vectors", ""]))
def test_any_flags_give_arguments_or_one_line_and_status_2(line):
    name, argv = line
    command, said = commands()[name], io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            with explained():
                assert isinstance(parse(command, argv), command)
        except SystemExit as left:
            assert left.code == 2 or "--help" in argv or "-h" in argv
            if left.code == 2:
                assert re.fullmatch(r"error: [^\n]+\n", said.getvalue())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": ""}, "--dataset is empty; give a value, or leave it out"),
        ({"output_dir": "  "}, "--output_dir is empty"),
        ({"dataset": "a\0b"}, "contains a NUL byte"),
        ({"dataset": "good,b\udcffd"}, "is not valid UTF-8"),
        ({"dataset": f"good,{'x' * 256}"}, "is longer than a path can be"),
        ({"output_dir": "x/" * 2048}, "is longer than a path can be"),
        ({"output_dir": "~nobody-of-that-name/x"}, "there is no user of that name"),
        ({"model_name_or_path": ""}, "--model_name_or_path is empty"),
        ({"lr_scheduler_type": "square"}, "--lr_scheduler_type is 'square'; choose from cosine, linear, constant"),
        ({"max_steps": 10**400}, "it must be at most 1,000,000,000"),
        ({"max_steps": 10, "warmup_steps": 11}, "--warmup_steps 11 is more than the 10 steps of the run"),
    ],
)
def test_a_text_that_can_be_no_name_and_a_warmup_that_never_ends_are_refused_by_their_flag(changed, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        commands()["recipes/mae"](**changed)


def test_several_files_may_be_longer_together_than_one_path_can_be():
    assert TrainArgs(dataset=",".join(["x" * 200] * 100)).dataset


def test_a_model_that_does_not_fit_into_memory_is_refused_before_it_is_built():
    with pytest.raises(BadInput, match="--hidden_size 16384, --num_hidden_layers 100: training .* weights takes"):
        char_rnn.from_scratch(Vocabulary(), cell="lstm", hidden_size=16384, num_hidden_layers=100, embedding_size=64)
    with pytest.raises(BadInput, match=r"--dimension 16384, 100,000,000 words: training 3,276,\d+,\d+,\d+ weights"):
        memory.refuse_too_large(2 * 16384 * 10**8, "--dimension 16384, 100,000,000 words", each=4)


def test_counting_the_weights_of_a_model_moves_no_random_numbers():
    torch.manual_seed(0)
    built = memory.build(lambda: torch.nn.Linear(3, 4), "--width 4")
    torch.manual_seed(0)
    assert torch.equal(built.weight, torch.nn.Linear(3, 4).weight)


class Vocabulary:
    """Of three symbols."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 3


@dataclass
class Built(TrainArgs):
    model_name_or_path: str | None = flag(None, "a checkpoint")
    width: int = flag(8, "of a new model", at_least=1, of_new_model=True)
    layers: list[int] = flag([1, 2], "of a new model", at_least=1, of_new_model=True)
    dropout: float = flag(0.0, "of any model", at_least=0)


def test_flags_of_a_new_model_are_refused_beside_a_checkpoint_and_others_are_not():
    Built(width=16, layers=[3])
    Built(model_name_or_path="runs/one", dropout=0.1)
    with pytest.raises(BadInput, match="--width has no effect with --model_name_or_path runs/one: the checkpoint"):
        Built(model_name_or_path="runs/one", width=16)
    with pytest.raises(BadInput, match="--width, --layers have no effect with --model_name_or_path runs/one"):
        Built(model_name_or_path="runs/one", width=16, layers=[3])


@dataclass
class Started(TrainArgs):
    model_name_or_path: str | None = None
    init_vectors: str | None = None
    vision_model_name_or_path: str | None = None


@pytest.mark.parametrize("name", STARTS_FROM)
def test_a_run_knows_what_it_starts_from(name):
    assert Started(**{name: "runs/before"}).base_model == "runs/before"
    assert Started().base_model is None and TrainArgs().base_model is None


def test_the_command_line_knows_nothing_of_ranges_but_the_class_does():
    assert parse(Built, ["--width", "16", "--layers", "3", "4"]).layers == [3, 4]
    with pytest.raises(BadInput, match="--width is 0"):
        parse(Built, ["--width", "0"])


def none_left() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("block", "status", "said"),
    [
        (none_left, 2, "error: out of memory .*: lower --per_device_train_batch_size or --batch_size"),
        (lambda: bytearray(2**62), 2, "error: out of memory .*: lower --per_device_train_batch_size or --batch_size"),
        (interrupted, 130, "SIGINT: stopped"),
    ],
)
def test_full_memory_and_ctrl_c_end_in_one_line(block, status, said, capsys):
    with pytest.raises(SystemExit) as left, explained():
        block()
    assert left.value.code == status and re.fullmatch(said + r"[^\n]*\n", capsys.readouterr().err)


def test_other_errors_of_torch_keep_their_traceback():
    with pytest.raises(RuntimeError, match="must match"), explained():
        torch.zeros(2) + torch.zeros(3)


TIMELESS = """
import atexit, gc
from dataclasses import dataclass
from mmssl.arguments import Flags, command

atexit.register(lambda: print(len(gc.get_objects())))  # runs last
command(lambda args: None, dataclass(type("Nothing", (Flags,), {})))
"""


def test_a_command_leaves_nothing_for_the_garbage_collector_to_look_at_when_it_exits():
    done = subprocess.run([sys.executable, "-c", TIMELESS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
