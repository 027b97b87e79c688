"""Causal language models: texts that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmssl.errors import BadInput
from mmssl.look.answers import answer
from mmssl.models import pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mmssl.look.run import Run

TITLE = "Write on"
LONGEST = 500  # new tokens


def fits(run: Run) -> bool:
    return run.has_head("ForCausalLM", "LMHeadModel") and "text" in run.modalities


def prepare(run: Run) -> None:
    _ = run.causal_lm


@torch.inference_mode()
def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, temperature: float, seed: int
) -> str:
    """`prompt` and what the model writes after it. length: new tokens, at most LONGEST. temperature: 0 takes the most
    likely token each time. Of a long prompt, the model reads the end."""
    if not prompt:
        raise BadInput("write the beginning of a text first")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)["input_ids"]
    if ids.shape[1] > 1 and ids[0, -1] == tokenizer.eos_token_id:
        ids = ids[:, :-1]  # the text is not over
    length = min(int(length), LONGEST)
    longest = min(pretrained.longest(model, tokenizer), 1 << 20)
    length = min(length, longest - 1)
    ids = ids[:, -(longest - length) :].to(model.device)
    sampling = {"do_sample": True, "temperature": float(temperature)} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(int(seed))
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, pad_token_id=_padding(tokenizer), **sampling
    )
    return prompt + tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def tab(run: Run, page) -> None:
    import gradio as gr

    gr.Markdown("Write the beginning of a text: the model writes on.")
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Beginning", value="The ", lines=4)
            length = gr.Slider(10, LONGEST, 100, step=10, label="Tokens to write")
            temperature = gr.Slider(
                0, 2, 0.8, step=0.1, label="Temperature: 0 takes the most likely token, higher is more random"
            )
            seed = gr.Slider(0, 99, 0, step=1, label="Number of the draw")
            ask = gr.Button("Write", variant="primary")
        result = gr.Textbox(label="Text", lines=16, interactive=False)
    handler = answer(run, lambda *given: continued(*run.causal_lm, *given))
    ask.click(handler, [prompt, length, temperature, seed], result, api_name="generate")
