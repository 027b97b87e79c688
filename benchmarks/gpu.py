"""Samples per second of our loop on a GPU, beside a bare loop around the stock model, and the share of the card's peak.

    python benchmarks/gpu.py                       # about six minutes on an H100
    python benchmarks/gpu.py --small --use_cpu     # tries the script itself, on a CPU

Base-sized models on made-up data that lies in memory. Ours: the method of the recipe under the shared loop, which
fetches batches, makes views or masks, clips, logs and watches for collapse; and the same with --torch_compile layers.
Bare: the model of transformers with its own loss, its batch on the device already, autocast to bf16 and fused AdamW.
Results are medians over the turns of a side. Of a side that fails, the error is printed instead.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
import turns
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, ViTMAEForPreTraining
from transformers.utils import logging

from mmssl.arguments import Flags, TrainArgs, command, flag
from mmssl.data import draws
from mmssl.data.images import decoding, views
from mmssl.data.loader import Loader
from mmssl.data.text import packed
from mmssl.device import best_device
from mmssl.errors import first_line
from mmssl.method import Method
from mmssl.methods import bert, causal_lm, clip, mae, simclr
from mmssl.models import image_encoders, text_encoders, towers
from mmssl.training.loop import train
from mmssl.training.optim import adamw

OURS, COMPILED, BARE = "ours", "compiled", "bare"
WORDS = 30_522  # BERT's vocabulary
LENGTH = 128  # tokens of a sequence
CAPTION = 77  # CLIP's


@dataclass
class GpuArgs(Flags):
    cases: list[str] = flag(["all"], "names of cases; all: every one")
    batch_size: int = flag(256, "samples in a step", at_least=2)
    turns: int = flag(3, "of every side", at_least=1)
    steps: int = flag(10, "in a turn", at_least=1)
    small: bool = flag(False, "small models, few words and small images, to try the script")
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")


@dataclass
class Case:
    """
    method: of the recipe. data: what the loader serves it.
    bare:   loss of the stock model on `inputs`; None: the same method, in a bare loop.
    """

    method: Method
    data: Dataset
    model: nn.Module | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)


class Pictures(Dataset):
    """Noise, as image recipes serve it; with token ids, also as CLIP's does."""

    def __init__(self, n: int, side: int, ids: Tensor | None = None) -> None:
        self.pixels, self.ids = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8), ids

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(rows)
        batch = {"pixel_values": self.pixels[rows], "key": draws.draw(rows, 0, 0), "index": rows}
        if self.ids is not None:
            ids = self.ids[rows]
            batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return batch


def tokenizer(words: int, length: int) -> PreTrainedTokenizerFast:
    """So many words, with BERT's special tokens and CLIP's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *map(str, range(words - 5))])}, "[UNK]"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "bos_token": "[CLS]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_max_length=length,
        **names,
    )


def images(args: GpuArgs) -> Tensor:
    """(batch, 3, side, side), as a view is."""
    return torch.randn(args.batch_size, 3, side(args), side(args))


def side(args: GpuArgs) -> int:
    return 32 if args.small else 224


def of_mae(args: GpuArgs) -> Case:
    size = mae.SIZES["micro" if args.small else "base"]
    model, processor = mae.from_scratch(size, side(args), 4 if args.small else 16)
    shown = views.Views([views.CROP_FLIP], *decoding.normalisation(processor))
    stock = ViTMAEForPreTraining(model.config)
    return Case(mae.MAE(model, shown), Pictures(2 * args.batch_size, side(args)), stock, {"pixel_values": images(args)})


def of_clip(args: GpuArgs) -> Case:
    words = tokenizer(500 if args.small else 49_408, CAPTION)
    sizes = (4, 64, 2, 64, 2, 32) if args.small else (16, 768, 12, 512, 12, 512)  # ViT-B/16
    model, processor = towers.from_scratch(words, side(args), *sizes)
    stock = type(model)(model.config)
    ids = torch.randint(5, len(words), (2 * args.batch_size, CAPTION))
    ids[:, -1] = words.eos_token_id
    shown = views.Views([views.CROP_FLIP], *decoding.normalisation(processor.image_processor))
    inputs = {"pixel_values": images(args), "input_ids": ids[: args.batch_size]}
    inputs["return_loss"] = True
    return Case(clip.CLIP(model, shown), Pictures(len(ids), side(args), ids), stock, inputs)


def of_text(args: GpuArgs, architecture: str) -> Case:
    words = tokenizer(500 if args.small else WORDS, LENGTH)
    model = text_encoders.from_scratch(words, architecture, "tiny" if args.small else "base")
    tokens = np.random.default_rng(0).integers(5, len(words), 2 * args.batch_size * LENGTH).astype(np.int32)
    data = packed.Packed(tokens, np.ones(len(tokens), bool), words, LENGTH)
    ids = torch.from_numpy(tokens[: args.batch_size * LENGTH]).long().view(-1, LENGTH)
    labels = ids.masked_fill(torch.rand(ids.shape) > 0.15, -100)
    stock = type(model)(model.config)
    return Case(bert.BERT(model, words), data, stock, {"input_ids": ids, "labels": labels})


def of_causal_lm(args: GpuArgs) -> Case:
    words = tokenizer(500 if args.small else 50_257, LENGTH)
    model = causal_lm.from_scratch(words, "gpt2", "tiny" if args.small else "small")
    tokens = np.random.default_rng(0).integers(5, len(words), 2 * args.batch_size * LENGTH + 1).astype(np.int32)
    ids = torch.from_numpy(tokens[: args.batch_size * LENGTH]).long().view(-1, LENGTH)
    stock = type(model)(model.config)
    data = packed.NextTokens(tokens, LENGTH)
    return Case(causal_lm.CausalLM(model, words, True), data, stock, {"input_ids": ids, "labels": ids})


def of_simclr(args: GpuArgs) -> Case:
    encoder, processor = image_encoders.from_scratch("resnet-micro" if args.small else "resnet50", side(args))
    shown = views.made_for(processor, [views.simclr(side(args))] * 2)
    return Case(simclr.SimCLR(encoder, shown), Pictures(2 * args.batch_size, side(args)))


CASES: dict[str, Callable[[GpuArgs], Case]] = {
    "mae": of_mae,
    "clip": of_clip,
    "bert": lambda args: of_text(args, "bert"),
    "modernbert": lambda args: of_text(args, "modernbert"),
    "causal_lm": of_causal_lm,
    "simclr": of_simclr,
}


def our_side(case: Case, args: GpuArgs, place: str, compiled: bool) -> Callable[[int], float]:
    loader = Loader(case.data, args.batch_size)

    def run(steps: int) -> float:
        settings = TrainArgs(
            output_dir=f"{place}/{compiled}", max_steps=steps, use_cpu=args.use_cpu, **turns.RUN,
            torch_compile="layers" if compiled else "no",
        )  # fmt: skip
        with redirect_stderr(io.StringIO()):  # the loop warns that nothing is learned from noise
            return train(case.method, loader, settings, [adamw(case.method, 1e-4)]).seconds

    return run


def bare_side(case: Case, args: GpuArgs, device: torch.device) -> Callable[[int], float]:
    model = (case.model or case.method).to(device).train()
    inputs = case.inputs or {k: v for k, v in next(Loader(case.data, args.batch_size).epoch(0)).items() if k != "index"}
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    bf16, optimizer = turns.precision(args.use_cpu) == "bf16", adamw(model, 1e-4)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - began

    return run


def measured(name: str, args: GpuArgs, place: str) -> None:
    """Print the case's row: samples per second of each side, ratios, and the share of the peak."""
    device, seconds, cells = best_device(args.use_cpu), {}, []
    for label in (OURS, COMPILED, BARE):
        torch.manual_seed(0)
        try:
            case = CASES[name](args)
            run = bare_side(case, args, device) if label == BARE else our_side(case, args, place, label == COMPILED)
            run(2)
            seconds[label] = median(run(args.steps) for _ in range(args.turns))
            cells.append(f"{label} {args.batch_size * args.steps / seconds[label]:,.0f}/s")
            if label == OURS:
                cells.append(turns.share_of_peak(run, device))
        except Exception as error:  # the other rows are worth having
            cells.append(f"{label} failed: {type(error).__name__}: {first_line(error)}")
        finally:
            case = run = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for label in (OURS, COMPILED):
        if label in seconds and BARE in seconds:
            cells.append(f"{label} is {seconds[BARE] / seconds[label]:.2f} times as fast as bare")
    print(f"{name:<12}" + "; ".join(cells), flush=True)


def main(args: GpuArgs) -> None:
    logging.set_verbosity_error()
    device = best_device(args.use_cpu)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{card}, {turns.precision(args.use_cpu)}, {args.turns} turns of {args.steps} steps of {args.batch_size}")
    with tempfile.TemporaryDirectory() as place:
        for name in CASES if args.cases == ["all"] else args.cases:
            measured(name, args, f"{place}/{name}")


if __name__ == "__main__":
    command(main, GpuArgs, __doc__)
