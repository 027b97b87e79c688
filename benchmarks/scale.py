"""What docs/scale.md is computed from, measured on one core: decoding, reading, footers, checkpoints, activations.

python benchmarks/scale.py             # a minute or two; 1 GB in --folder, which is removed again
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from mmssl import durable
from mmssl.arguments import Flags, command, flag
from mmssl.data import parquet, shards, windows
from mmssl.data.images.decoding import decode

# OpenAI's ViT-L/14 at 224 pixels, arXiv:2103.00020, table 19 and 20
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VISION |= {"image_size": 224, "patch_size": 14, "projection_dim": 768}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TEXT |= {"vocab_size": 49_408, "max_position_embeddings": 77, "projection_dim": 768, "eos_token_id": 49_407}


@dataclass
class ScaleArgs(Flags):
    images: int = flag(4000, "in the Parquet file", at_least=400)
    side: int = flag(384, "pixels of a stored image", at_least=64)
    folder: str = flag("/tmp/mmssl-scale", "where files are written, and removed again")


def main(args: ScaleArgs) -> None:
    torch.set_num_threads(1)
    place = Path(args.folder)
    place.mkdir(parents=True)
    try:
        jpegs = [jpeg(seed, args.side) for seed in range(16)]
        processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
        took = seconds(lambda: [decode(each, processor) for each in jpegs])
        size = sum(map(len, jpegs)) / len(jpegs)
        print(
            f"decode: {len(jpegs) / took:,.0f} JPEG images a second, {args.side} pixels, {size / 1e3:,.0f} kB, to 224"
        )

        file = place / "a.parquet"
        rows = [{"bytes": jpegs[i % 16], "path": None} for i in range(args.images)]
        pq.write_table(pa.table({"image": rows}), file, row_group_size=100, compression="none", use_dictionary=False)
        reader = parquet.Parquet([str(file)], ["image"])
        took = seconds(lambda: [reader.load(block) for block in range(len(reader.size))])
        print(f"read: {reader.size.sum() / took / 1e6:,.0f} MB a second of row groups that the page cache holds")
        took = seconds(lambda: parquet.Parquet([str(file)] * 200, ["image"])) / 200
        print(f"footers: {1 / took:,.0f} files a second, of {len(reader.size)} row groups each")

        tensors = {str(i): torch.randn(1 << 24) for i in range(8)}  # 0.5 GB
        took = seconds(lambda: durable.save_tensors(place / "a.safetensors", tensors), times=1)
        print(f"checkpoint: written at {0.537 / took:.2f} GB a second, ", end="")
        took = seconds(lambda: durable.sha256(place / "a.safetensors"), times=1)
        print(f"its checksum at {0.537 / took:.2f} GB a second")
        activations()
        for pairs, in_machine in ((512, 8), (512, 1), (64, 1)):
            reading(64, pairs, in_machine)
    finally:
        shutil.rmtree(place)


def reading(processes: int, pairs: int, in_machine: int, steps: int = 12) -> None:
    """Of row groups of 100 pairs of 50 kB: what the first machine reads in a step, relative to what it uses."""
    of_block, blocks = 100, 40_000
    count, size = np.full(blocks, of_block), np.full(blocks, of_block * 50_000)
    order = shards.Rows(np.arange(blocks) * of_block, count, size).order(0)
    held, read, own, cached = [windows.Held(lambda block: None, size) for _ in range(in_machine)], 0, 0, set()
    for step in range(steps):
        places, now = slice(step * processes * pairs, (step + 1) * processes * pairs), set()
        for rank, memory in enumerate(held):
            for block in (order.share(places, rank, processes) // of_block).unique().tolist():
                if block not in memory.blocks:
                    own, now = own + 1, now | {block}
                memory[block]
        read, cached = read + len(now - cached), now | cached
    used = steps * pairs * in_machine / of_block
    print(
        f"order: {processes} processes, {in_machine} in a machine, {pairs} pairs each: a process reads "
        f"{own / used:.1f} times the bytes that it uses, from storage {read / used:.1f} times with a page cache"
    )


def activations() -> None:
    """Bytes that the backward pass of a pair keeps, in bf16 autocast, with gradient checkpointing and without."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=768))
    print(f"parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million")
    layers = 2
    shallow = CLIPConfig(
        text_config=TEXT | {"num_hidden_layers": layers},
        vision_config=VISION | {"num_hidden_layers": layers},
        projection_dim=768,
    )
    model = CLIPModel(shallow).train()
    for name, tower, inputs, depth in (
        ("image", model.vision_model, {"pixel_values": torch.randn(1, 3, 224, 224)}, VISION["num_hidden_layers"]),
        ("text", model.text_model, {"input_ids": torch.full((1, 77), 49_407)}, TEXT["num_hidden_layers"]),
    ):
        layer, of_layer = tower.encoder.layers[0], {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor: torch.Tensor, seen: dict = of_layer, weights: set = weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            is_weight = storage.data_ptr() in weights or tensor.ndim < 3  # also their copies in bf16
            seen.setdefault(storage.data_ptr(), 0 if is_weight else storage.nbytes())
            seen[tensor] = 0  # held, else its place in memory is used again
            return tensor

        inside = []
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, inside=inside: inside.append((args, kwargs)), with_kwargs=True
        )
        with torch.autocast("cpu", torch.bfloat16):
            tower(**inputs)
            (given, named) = inside[0]
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                layer(given[0].detach().requires_grad_(), *given[1:], **named)
        entering = given[0].untyped_storage().nbytes()
        whole = sum(of_layer.values())
        print(
            f"activations, {name}: {whole / 1e6:.1f} MB a layer, {depth * whole / 1e6:,.0f} MB in {depth} layers; "
            f"with gradient checkpointing {(depth * entering + whole) / 1e6:,.0f} MB"
        )


def jpeg(seed: int, side: int) -> bytes:
    """Smooth noise, compressed about as well as a photograph."""
    rng = np.random.default_rng(seed)
    found, small = io.BytesIO(), rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(found, "jpeg", quality=90)
    return found.getvalue()


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """Processor time, so that other work on the machine does not count; the least of several runs."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    command(main, ScaleArgs, __doc__)
