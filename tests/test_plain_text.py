"""Text from outside stays text: in the terminal, in Markdown, in front matter and in code."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
import soundfile
import torch
import yaml
from accelerate import PartialState
from generated import fast
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from processes import RECIPES
from test_export import record, run_record

from mmssl import figures, plain_text
from mmssl.arguments import TrainArgs, command, explained
from mmssl.errors import BadInput
from mmssl.evaluation.language_model import LanguageModelEvaluation
from mmssl.hub import card, results
from mmssl.methods import bert, char_rnn, clip, word2vec
from mmssl.pretrain import filled
from mmssl.training.log import Log
from mmssl.training.summary import Summary

SHELL = "\x1b]0;title\x07\x1b[2J"
NASTY = [
    f"{SHELL}wiped",
    "two\nlines",
    "a\r\nb\u2028c\x85d",
    "x\n---\nlicense: mit\n---\n# Mine",
    "```\n</code><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> &lt; <https://a.b> <!-- c -->",
    "![a](http://b.c/d.png) [a](javascript:b) [a]: b *c* _d_ __e__ ~~f~~ `g` $h$ | i \\* j\\",
    "# heading",
    "- item",
    "> quote",
    "\u202egnp.exe",
    "name\udcff.wav",
    "snake_case and [MASK] stay",
]
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
texts = st.text(max_size=40) | st.text(alphabet="`*_[]()<>!&#|~$\\-ab \n\r\x1b;:/\"'{}", max_size=40)


def examples(function):
    for nasty in NASTY:
        function = example(nasty)(function)
    return fast(given(texts)(function))


@examples
def test_one_line_has_nothing_that_a_terminal_obeys_and_keeps_what_can_be_seen(text):
    shown = plain_text.one_line(text)
    assert not OBEYED.search(shown) and "\n" not in shown
    assert shown == text or OBEYED.search(text) or re.search("[\t\n\u061c\u200e\u200f]", text)


@examples
def test_markdown_renders_as_the_text_itself(text):
    rendered = RENDERER.parse(f"x {plain_text.markdown(text)} x")
    (inline,) = (token for token in rendered if token.type == "inline")
    assert all(token.type == "text" or token.type == "text_special" for token in inline.children), inline.children
    assert "".join(token.content for token in inline.children) == f"x {plain_text.one_line(text)} x"


@examples
def test_the_terminal_shows_the_text_of_a_card_without_the_marks_for_markdown(text):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        plain_text.say_markdown(f"x {plain_text.markdown(text)} x")
    assert shown.getvalue() == f"x {plain_text.one_line(text)} x\n"


@examples
def test_markdown_at_the_start_of_a_paragraph_is_no_heading_list_quote_or_rule(text):
    rendered = RENDERER.parse(plain_text.markdown(text))
    kinds = {token.type for token in rendered}
    assert kinds <= {"paragraph_open", "inline", "paragraph_close"} or re.match(r"\s*\d|\s{4}", text)


@examples
def test_markdown_and_code_stay_in_their_cell_of_a_table(text):
    table = f"| a | b |\n|---|---|\n| {plain_text.markdown(text)} | {plain_text.code(text)} |"
    rendered = RENDERER.parse(table)
    assert [token.type for token in rendered].count("td_open") == 2


@examples
def test_a_fence_is_closed_by_its_own_end_alone(text):
    rendered = RENDERER.parse(plain_text.fenced(text, "python"))
    assert [token.type for token in rendered] == ["fence"]
    assert rendered[0].content == plain_text.lines(text) + "\n" and not OBEYED.search(
        rendered[0].content.replace("\t", "")
    )


@examples
def test_a_python_string_is_one_line_and_means_the_text(text):
    literal = plain_text.python_string(text)
    assert ast.literal_eval(literal) == text and "\n" not in literal and literal[0] == literal[-1] == '"'


@examples
def test_captions_in_snippets_are_literals(text):
    shown = [text, 'x"); import os; os.system("true")', "a{0}b{text[9]}"]
    for method in (clip, bert, char_rnn, word2vec):
        for code in method.SNIPPETS.values():
            program = ast.parse(filled(code, {"text": shown}))
            strings = {node.value for node in ast.walk(program) if isinstance(node, ast.Constant)}
            assert strings & set(shown) or "{text" not in code
            assert not any(isinstance(node, ast.Attribute) and node.attr == "system" for node in ast.walk(program))


# ---------------------------------------------------------------- the doors


@pytest.mark.parametrize("name", NASTY)
def test_an_error_is_one_line_without_escape_sequences(name, capsys):
    with pytest.raises(SystemExit) as left, explained():
        raise BadInput(f"--dataset {name}: no such file")
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and not OBEYED.search(said)


@pytest.mark.parametrize("name", NASTY)
def test_an_unknown_flag_is_refused_in_one_line_without_escape_sequences(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", f"--{name}", "1"])
    with pytest.raises(SystemExit) as left:
        command(print, TrainArgs)
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and not OBEYED.search(said)


def test_an_error_of_a_million_letters_is_shown_without_its_middle(capsys):
    with pytest.raises(SystemExit), explained():
        raise BadInput("a" * 10**6)
    assert len(capsys.readouterr().err) < 3000


@pytest.mark.parametrize("sentence", NASTY)
def test_a_warning_is_shown_in_one_line_and_kept_as_it_is(sentence, capsys):
    run = Summary()
    accelerator = SimpleNamespace(is_main_process=True)
    log = SimpleNamespace(run=run, accelerator=accelerator)
    log.say = lambda said: Log.say(log, said)
    Log.warn(log, sentence)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not OBEYED.search(said) and run.warnings == [sentence]


def test_a_closed_or_narrow_terminal_ends_no_run():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    plain_text.say("naïve 中", ascii_only)
    ascii_only.seek(0)
    assert ascii_only.read() == "na\\xefve \\u4e2d\n"
    ascii_only.close()
    plain_text.say("nobody reads this", ascii_only)


@pytest.mark.parametrize("name", NASTY)
def test_names_add_neither_metadata_nor_sections_nor_html_to_a_card(name, tmp_path, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--dataset", name])
    summary, args = run_record(tmp_path)
    summary.warnings = [name]
    args.output_dir = name
    drawn = {f"{name.replace('/', '')}.png": name}
    texts = {"title": name, "dataset": name, "data": f"{name}: three drawings", "figures": drawn}
    harmless = {key: "plain" for key in texts} | {"figures": {"plain.png": "plain"}}
    parsed = []
    for values in (texts, harmless):
        card.write_card(tmp_path, record(**values), summary, args)
        _, metadata, body = re.split(r"(?m)^---\n", (tmp_path / "README.md").read_text(), maxsplit=2)
        parsed.append((yaml.safe_load(metadata), RENDERER.parse(body)))
        assert not OBEYED.search(body) and not OBEYED.search(metadata)
        card_again = card.ModelCard.load(tmp_path / "README.md")
        assert card_again.data.to_dict().keys() == parsed[-1][0].keys()
    (metadata, body), (wanted, structure) = parsed
    assert metadata.keys() == wanted.keys()
    assert [token.type for token in body] == [token.type for token in structure]
    code = next(token.content for token in body if token.type == "fence")
    assert ast.literal_eval(re.search('^name = (".*")', code, re.MULTILINE)[1]) == name


def test_what_a_language_model_writes_stays_behind_its_fence():
    written = "text\n```\n<b>free</b>\n````\n# Mine\x1b[2J"
    model = SimpleNamespace(device=torch.device("cpu"), generate=lambda **kwargs: torch.zeros(1, 1, dtype=torch.int64))
    tokenizer = Tokenizer(written)
    ids = torch.zeros(4, dtype=torch.int64).numpy()
    text = LanguageModelEvaluation(ids, ids, 2, tokenizer=tokenizer, prompt="text").text(SimpleNamespace(model=model))
    kinds = [token.type for token in RENDERER.parse(text)]
    assert kinds.count("fence") == 3 and not {"html_block", "html_inline", "heading_open"} & set(kinds)
    assert not OBEYED.search(text)


class Tokenizer:
    """Of a model that writes always the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, prompt, return_tensors):
        return Inputs(input_ids=torch.zeros(1, 1, dtype=torch.int64))

    def decode(self, ids, skip_special_tokens):
        return self.text


class Inputs(dict):
    def to(self, device):
        return self


@pytest.mark.parametrize("name", [name for name in NASTY if "\udcff" not in name])  # no UTF-8: refused as a flag
def test_a_licence_adds_no_keys_to_the_card_of_a_data_set(name, tmp_path, monkeypatch):
    PartialState(cpu=True)
    folder = tmp_path / name.replace("/", "").replace("\n", "N")[:40] / "wren"
    folder.mkdir(parents=True)
    for take in range(3):
        soundfile.write(recording := io.BytesIO(), torch.zeros(2000).numpy(), 8000, format="WAV")
        (folder / f"{take}.wav").write_bytes(recording.getvalue())
    flags = ["--source", str(folder.parent), "--output_dir", str(tmp_path / "out"), "--licence", name]
    monkeypatch.setattr(sys, "argv", ["audio_folder.py", *flags])
    runpy.run_path(str(RECIPES.parent / "data_scripts" / "audio_folder.py"), run_name="__main__")
    _, metadata, body = re.split(r"(?m)^---\n", (tmp_path / "out" / "README.md").read_text(), maxsplit=2)
    read = yaml.safe_load(metadata)
    assert read.keys() == {"license", "task_categories", "pretty_name"}
    assert read["license"] == plain_text.one_line(name)
    kinds = [token.type for token in RENDERER.parse(body)]
    assert kinds.count("heading_open") == 1 and "html_block" not in kinds and not OBEYED.search(body)


def test_the_command_of_a_run_stays_in_its_cell(tmp_path):
    run = {"results": {"trained": {"loss": 1.0}, "a|b": {"loss": 2.0}}, "steps": 1, "training_seconds": 60}
    run |= {"hardware": "one | two", "command": "recipe.py --dataset 'a|`b`\n| c |'"}
    (tmp_path / "one|two.json").write_text(json.dumps(run))
    rendered = RENDERER.parse(results.table([tmp_path / "one|two.json"]))
    assert [token.type for token in rendered].count("td_open") == 6


def test_a_caption_with_dollar_signs_is_drawn_and_is_no_formula(tmp_path):
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    figures.retrieval_grid(pixels, [r"$\frac{$", "$5 for $x^"], [0, 1], torch.eye(2), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").exists()
