"""Word vectors: neighbours and analogies."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mmssl.errors import BadInput
from mmssl.look.answers import answer

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

    from mmssl.look.run import Run

TITLE = "Words"
SHOWN = 10
COMPARED = 50_000  # most frequent words, among which a word of similar spelling is looked for


def fits(run: Run) -> bool:
    return run.has_words


def prepare(run: Run) -> None:
    _ = run.vectors


def known(vectors: KeyedVectors, word: str) -> str:
    """The word as the vocabulary has it. Raises BadInput, with words of similar spelling, if it is not in it."""
    word = word.strip()
    for form in (word, word.lower(), word.lower().replace(" ", "_")):
        if form in vectors:
            return form
    if not word:
        raise BadInput("write a word first")
    near = difflib.get_close_matches(word.lower(), vectors.index_to_key[:COMPARED], n=3)
    raise BadInput(f"{word!r} is not in the vocabulary" + f"; similar: {', '.join(near)}" * bool(near))


def neighbours(vectors: KeyedVectors, word: str) -> list[tuple[str, float]]:
    """[(word, cosine)], nearest first."""
    return vectors.most_similar(known(vectors, word), topn=SHOWN)


def analogy(vectors: KeyedVectors, a: str, b: str, c: str) -> list[tuple[str, float]]:
    """[(word, cosine)] of the answers to "a is to b as c is to ?": the words nearest to b - a + c (3CosAdd)."""
    a, b, c = (known(vectors, word) for word in (a, b, c))
    return vectors.most_similar(positive=[b, c], negative=[a], topn=SHOWN)


def tab(run: Run, page) -> None:
    import gradio as gr

    def table(found: list[tuple[str, float]]) -> list[list[str]]:
        return [[word, f"{value:.2f}"] for word, value in found]

    shape = {"datatype": "str", "interactive": False, "column_widths": ["70%", "30%"], "buttons": []}
    with gr.Row():
        with gr.Column():
            gr.Markdown("### Neighbours\nThe words whose vectors are nearest to that of a word.")
            word = gr.Textbox(label="Word", value="music")
            near = gr.Button("Neighbours", variant="primary")
            nearest = gr.Dataframe(headers=["word", "cosine"], **shape)
        with gr.Column():
            gr.Markdown("### Analogies\nThe first word is to the second as the third is to which word?")
            with gr.Row():
                three = [
                    gr.Textbox(label=label, value=value, min_width=80)
                    for label, value in (("Word", "man"), ("is to", "king"), ("as this word", "woman"))
                ]
            solve = gr.Button("is to …", variant="primary")
            answers = gr.Dataframe(headers=["word", "cosine"], **shape)
    of_word = answer(run, lambda word: table(neighbours(run.vectors, word)))
    for event in (near.click, word.submit):
        event(of_word, word, nearest, api_name="neighbours")
    solved = answer(run, lambda *words: table(analogy(run.vectors, *words)))
    solve.click(solved, three, answers, api_name="analogy")
