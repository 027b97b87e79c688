"""The flags: their ranges, those of a model made from scratch, and what the device decides."""

import math
import re
import runpy
from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from processes import RECIPES

from mmssl.arguments import LARGEST, Flags, TrainArgs, flag, limits, parse
from mmssl.device import fast_bf16
from mmssl.errors import BadInput
from mmssl.evaluation.masked_lm import MaskedLMArgs
from mmssl.evaluation.retrieval import RetrievalArgs
from mmssl.evaluation.zero_shot import ZeroShotArgs


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
    ("given", "said"),
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
def test_a_number_out_of_its_range_is_refused_by_its_flag(given, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        Ranges(**given)


def test_numbers_at_the_border_of_their_range_and_none_are_taken():
    Ranges(share=1e-300, count=1, few=9, several=[100], switch=True)
    assert Ranges(count=LARGEST).few is None


def test_a_field_that_overrides_another_keeps_its_range_unless_it_has_its_own():
    assert limits(Overridden, "share") == {"above": 0, "below": 1} and limits(Overridden, "few") == {"at_least": 1}
    with pytest.raises(BadInput, match="--share is 1; it must be below 1"):
        Overridden(share=1)
    assert Overridden(few=10**6).few == 10**6


def commands() -> list[type]:
    """The dataclass of each recipe and of each evaluation of a checkpoint."""
    recipes = [runpy.run_path(str(file)) for file in sorted(RECIPES.glob("*.py"))]
    found = [v for names in recipes for v in names.values() if is_dataclass(v) and v.__module__ == "<run_path>"]
    assert len(found) == len(recipes) > 7
    return [*found, RetrievalArgs, ZeroShotArgs, MaskedLMArgs]


def test_every_number_of_every_command_has_a_lower_limit_and_its_default_lies_in_its_range():
    for command in commands():
        numbers = [f.name for f in fields(command) if re.search(r"\b(int|float)\b", str(f.type))]
        assert len(numbers) > 2 and issubclass(command, Flags)
        for name in numbers:
            assert limits(command, name).keys() & {"at_least", "above"}, f"{command.__name__} --{name}"
        command()


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


def test_the_command_line_knows_nothing_of_ranges_but_the_class_does():
    assert parse(Built, ["--width", "16", "--layers", "3", "4"]).layers == [3, 4]
    with pytest.raises(BadInput, match="--width is 0"):
        parse(Built, ["--width", "0"])
