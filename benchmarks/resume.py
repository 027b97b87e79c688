"""Seconds to the first batch of data that is read where it lies, at the start of an epoch and late in it.

    python benchmarks/resume.py            # 20,000 pairs in 240 MB of Parquet; 24,000 documents, 44 MB, in two formats

Made-up words; images of 256 x 256 pixels, decoded to 224 x 224, 64 in a batch; sequences of 128 tokens. Before, a
resume read again from the start of the epoch, which took at 90 % of it, on the same data, on two busy cores (seconds; 0
workers): pairs 122.5, Parquet 49.6, text 71.3. Now, on two idle cores of an EPYC (Zen 4): 0.25, 0.08 and 0.06.
"""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor

from mmssl.arguments import Flags, command, flag
from mmssl.data.image_text import pairs
from mmssl.data.loader import Loader
from mmssl.data.text import documents, packed
from mmssl.data.text.tokens import train_clip_tokenizer, train_wordpiece

FILES, GROUPS = 20, 10  # files, and row groups in each


@dataclass
class ResumeArgs(Flags):
    pairs: int = flag(20_000, "image-text pairs", at_least=2000)
    documents: int = flag(24_000, "documents of 300 words", at_least=2000)
    position: float = flag(0.9, "of the epoch, at which it is resumed", at_least=0, below=1)
    workers: int = flag(0, "data workers", at_least=0)
    folder: str | None = flag(None, "where a temporary folder with the data is made; default: that of the system")


def main(args: ResumeArgs) -> None:
    with tempfile.TemporaryDirectory(prefix="mmssl_resume_", dir=args.folder) as name:
        place = Path(name)
        kinds = {
            "pairs, Parquet": of_pairs(write_pairs(place / "pairs", args.pairs)),
            "text, Parquet": of_text(write_texts(place / "texts", args.documents, "parquet")),
            "text, .txt": of_text(write_texts(place / "texts", args.documents, "txt")),
        }
        for kind, data in kinds.items():
            loader = Loader(data, 64, num_workers=args.workers)
            late = int(args.position * len(loader))
            print(
                f"{kind:<16}{len(loader):7,} batches; first batch {first(loader, 0):.2f} s, "
                f"at batch {late:,} {first(loader, late):.2f} s",
                flush=True,
            )


def first(loader: Loader, position: int) -> float:
    began, batches = time.perf_counter(), loader.epoch(0, position)
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return seconds


def of_pairs(folder: Path) -> pairs.StreamedPairs:
    found = pairs.find(str(folder), None, None, held_out=200, streaming=True)
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = CLIPProcessor(image_processor=images, tokenizer=train_clip_tokenizer(found.captions(), 2000))
    return found.training(processor, 77, 0)


def of_text(place: Path) -> packed.Packed:
    train, held_out = documents.load(str(place), held_out=200, streaming=True)
    tokenizer = train_wordpiece(list(islice(train.each(), 3000)), 4000, 128)
    return packed.train_and_held_out(train, held_out, tokenizer, 128)[0]


def words(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """5,000 words, and how often each occurs."""
    often = 1 / np.arange(1, 5001)
    return ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in often], often / often.sum()


def write_pairs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    known, often = words(rng)
    stored = []
    for _ in range(64):
        jpeg = io.BytesIO()
        small = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(small).resize((256, 256)).save(jpeg, "jpeg", quality=90)
        stored.append(jpeg.getvalue())
    for file in range(FILES):
        n = count // FILES
        captions = [" ".join(rng.choice(known, 10, p=often)) for _ in range(n)]
        # what follows the end of a JPEG is not read, but makes it another one: none is also among those held out
        images = [stored[i] + row.to_bytes(4, "big") for row, i in enumerate(rng.integers(0, 64, n), file * n)]
        rows = pa.table({"image": [{"bytes": image, "path": None} for image in images], "caption": captions})
        pq.write_table(rows, folder / f"{file:03}.parquet", row_group_size=-(-n // GROUPS), use_dictionary=False)
    return folder


def write_texts(folder: Path, count: int, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    known, often = words(rng)
    texts = [" ".join(rng.choice(known, 300, p=often)) for _ in range(count)]
    if kind == "txt":
        (folder / "all.txt").write_text("\n\n".join(texts))
        return folder / "all.txt"
    for file, some in enumerate(np.array_split(np.array(texts), FILES)):
        pq.write_table(pa.table({"text": some}), folder / f"{file:03}.parquet", row_group_size=-(-len(some) // GROUPS))
    return folder


if __name__ == "__main__":
    command(main, ResumeArgs, __doc__)
