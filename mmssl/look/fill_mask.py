"""Masked language models: the words at a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmssl.errors import BadInput
from mmssl.look.answers import answer
from mmssl.models import pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mmssl.look.run import Run

TITLE = "Fill the mask"
MASK = "[MASK]"  # how a user may write it, whatever the tokenizer's mask is called
SHOWN = 10  # words


def fits(run: Run) -> bool:
    return run.has_head("ForMaskedLM") and "text" in run.modalities


def prepare(run: Run) -> None:
    _ = run.masked_lm


@torch.inference_mode()
def words_at_mask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, float]:
    """word -> probability, of the most likely words at the mask of `text`."""
    text = text.replace(MASK, tokenizer.mask_token)
    ids = tokenizer(text, return_tensors="pt").to(model.device)
    places = (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    longest = pretrained.longest(model, tokenizer)
    if len(places) != 1:
        raise BadInput(f"write {MASK} once, in the place of the word to guess; it is there {len(places)} times")
    if ids["input_ids"].shape[1] > longest:
        raise BadInput(f"the text has {ids['input_ids'].shape[1]:,} tokens; the model reads at most {longest:,}")
    share = model(**ids).logits[0, places[0]].float().softmax(0)
    values, found = share.topk(min(SHOWN, len(share)))
    words: dict[str, float] = {}
    for token, value in zip(found, values.tolist(), strict=True):
        words.setdefault(tokenizer.decode(token).strip() or repr(tokenizer.decode(token)), value)
    return words


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown(f"Write {MASK} in the place of a word: the model guesses it.")
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label="Text", value=f"The capital of the country is {MASK} .", lines=3)
            ask = gr.Button("Guess the word", variant="primary")
        result = gr.Label(label="Most likely words", show_heading=False)
    handler = answer(run, lambda text: words_at_mask(*run.masked_lm, text))
    for event in (ask.click, text.submit):
        event(handler, text, result, api_name="fill_mask")
