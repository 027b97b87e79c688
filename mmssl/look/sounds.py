"""Similar sounds, with a player for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmssl.errors import BadInput
from mmssl.look.answers import answer, at_first, on_pick
from mmssl.look.examples import LONGEST_SOUND, examples_of
from mmssl.plain_text import markdown

if TYPE_CHECKING:
    from mmssl.look.run import Run

TITLE = "Similar sounds"
FOUND, SAMPLE = 4, 20


def fits(run: Run) -> bool:
    return run.encodes == "audio" and run.dataset is not None


def prepare(run: Run) -> None:
    _ = examples_of(run).features


def read(run: Run, file: str) -> np.ndarray:
    """(samples,) at the encoder's sampling rate. Raises BadInput if the file holds no recording."""
    from datasets import Dataset

    from mmssl.data.audio import waves

    rows = Dataset.from_dict({"audio": [file]})
    (wave,) = waves.read(rows, "audio", run.encoder.processor.sampling_rate, LONGEST_SOUND)
    if isinstance(wave, str):
        raise BadInput(f"this recording cannot be read: {wave.removeprefix(file).strip()}")
    return wave


def played(run: Run, wave: np.ndarray) -> tuple[int, np.ndarray]:
    """(sampling rate in Hz, int16), what a player takes."""
    return run.encoder.processor.sampling_rate, (np.clip(wave, -1, 1) * 32767).astype(np.int16)


def listed(run: Run, rows: list[int]) -> list[list[str]]:
    """[[number of the row, what the data says of it, seconds]]"""
    rate, examples = run.encoder.processor.sampling_rate, examples_of(run)
    return [[str(row), examples.about_row(row), f"{len(examples.sounds[row]) / rate:.1f}"] for row in rows]


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown("Click a recording in the table, or give your own: the page plays those whose features are nearest.")
    about = gr.Markdown()
    with gr.Row():
        sample = gr.Dataframe(
            headers=["row", "recording", "seconds"], datatype="str", interactive=False, max_height=420,
            column_widths=["15%", "65%", "20%"], buttons=[],
        )  # fmt: skip
        with gr.Column():
            asked = gr.Audio(label="Recording", type="filepath", sources=["upload"], buttons=[])
            search = gr.Button("Similar sounds", variant="primary")
            players = [gr.Audio(label="Nearest", interactive=False, visible=False, buttons=[]) for _ in range(FOUND)]
    rows = gr.State([])

    def results(found: list[tuple[int, float]]) -> list:
        examples = examples_of(run)
        told = [
            gr.update(
                value=played(run, examples.sounds[row]), visible=True, label=f"{value:.2f} · {examples.about_row(row)}"
            )
            for row, value in found
        ]
        return told + [gr.update(visible=False)] * (FOUND - len(told))

    def to_file(file: str | None):
        if not file:
            raise BadInput("choose a recording first")
        return results(examples_of(run).nearest(read(run, file), FOUND))

    def to_row(picked: list[int], rows: list[int]):
        row = rows[picked[0]]
        label = f"row {row} · {examples_of(run).about_row(row)}"
        return gr.update(value=played(run, examples_of(run).sounds[row]), label=label), *results(
            examples_of(run).nearest(row, FOUND)
        )

    def begin():
        usable = examples_of(run).inputs[1]
        rows = [usable[i] for i in np.linspace(0, len(usable) - 1, min(SAMPLE, len(usable))).astype(int)]
        return markdown(examples_of(run).about), listed(run, rows), rows

    search.click(answer(run, to_file), asked, players, api_name="similar_sounds")
    sample.select(on_pick(run, to_row), rows, [asked, *players])
    page.load(at_first(begin), None, [about, sample, rows])
