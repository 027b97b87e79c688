"""Search in texts: those whose features are nearest to a text of one's own, or to one of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmssl.errors import BadInput
from mmssl.look.answers import answer, at_first, on_pick
from mmssl.look.examples import examples_of
from mmssl.plain_text import markdown

if TYPE_CHECKING:
    from mmssl.look.run import Run

TITLE = "Similar texts"
FOUND, SAMPLE = 8, 8
SHORT = 300  # characters of a text that are shown


def fits(run: Run) -> bool:
    generates = run.has_head("ForCausalLM", "LMHeadModel")  # its features are not trained to be compared
    return run.encodes == "text" and run.dataset is not None and not generates


def prepare(run: Run) -> None:
    _ = examples_of(run).features


def similar(run: Run, text: str) -> list[tuple[int, float]]:
    """[(row, cosine)]"""
    if not text.strip():
        raise BadInput("write a text first")
    return examples_of(run).nearest(text, FOUND)


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown("Write a text, or click one of the data: the page shows the texts whose features are nearest.")
    about = gr.Markdown()
    text = gr.Textbox(label="Text", lines=2)
    ask = gr.Button("Search", variant="primary")
    columns = {"datatype": "str", "wrap": True, "interactive": False, "buttons": []}
    found = gr.Dataframe(headers=["nearest texts", "cosine"], column_widths=["88%", "12%"], **columns)
    sample = gr.Dataframe(headers=["some texts of the data"], **columns)
    rows = gr.State([])

    def shown(found: list[tuple[int, float]]) -> list[list[str]]:
        return [[_short(examples_of(run).text(row)), f"{value:.2f}"] for row, value in found]

    def to_text(text: str):
        return shown(similar(run, text))

    def to_row(picked: list[int], rows: list[int]):
        row = rows[picked[0]]
        return _short(examples_of(run).text(row)), shown(examples_of(run).nearest(row, FOUND))

    def begin():
        rows = examples_of(run).sample(SAMPLE)
        return markdown(examples_of(run).about), [[_short(examples_of(run).text(row))] for row in rows], rows

    for event in (ask.click, text.submit):
        event(answer(run, to_text), text, found, api_name="similar_texts")
    sample.select(on_pick(run, to_row), rows, [text, found])
    page.load(at_first(begin), None, [about, sample, rows])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
