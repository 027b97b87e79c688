"""Memory and speed of images that are read and decoded during training, as the data grows.

    python benchmarks/streaming.py                       # 6,000 and 60,000 photographs of 100 kB: 0.6 and 6 GB on disk

Each stored image is a JPEG of 224 x 224 pixels with random bytes behind its end, which decoders skip: every image takes
as much room as a large photograph. Memory: what the training process and its workers hold of their own, without mapped
files (Pss_Anon), the highest value while `--batches` batches are read, less the value before the data was opened. A
resume begins in the middle of the epoch.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import ViTImageProcessorPil

from mmssl.arguments import Flags, command, flag
from mmssl.data import parquet, shards
from mmssl.data.images.on_demand import OnDemand
from mmssl.data.images.pictures import Streamed
from mmssl.data.loader import Loader

GROUP, GROUPS = 100, 10  # images in a row group, row groups in a file


@dataclass
class BenchmarkArgs(Flags):
    images: list[int] = flag([6000, 60000], "sizes of the data", at_least=1000)
    image_bytes: int = flag(100_000, "of a stored image", at_least=20_000)
    batches: int = flag(90, "that are read", at_least=1)
    batch_size: int = flag(64, "images in a batch", at_least=1)
    workers: int = flag(1, "data workers", at_least=0)
    folder: str = flag("/tmp/mmssl-streaming", "where the data is written, and removed again")


def main(args: BenchmarkArgs) -> None:
    place, processor = Path(args.folder), ViTImageProcessorPil(size={"height": 224, "width": 224})
    print("   images   on disk    memory  first batch  first after a resume  images/s of a core")
    for count in args.images:
        files = write(place, count, args.image_bytes)
        try:
            before, began = own_memory(), time.perf_counter()
            reader = parquet.Parquet(files, ["image"])
            pixels = OnDemand(reader, len(reader), processor, "images")
            loader = Loader(Streamed(pixels, shards.Rows.of(reader)), args.batch_size, num_workers=args.workers)
            batches, most = loader.epoch(0), 0
            next(batches)
            first = time.perf_counter() - began
            used = processor_seconds()
            for _ in range(min(args.batches, len(loader) - 1)):
                next(batches)
                most = max(most, own_memory())
            speed = min(args.batches, len(loader) - 1) * args.batch_size / (processor_seconds() - used)
            batches.close()
            began = time.perf_counter()
            next(loader.epoch(0, start=len(loader) // 2))
            again = time.perf_counter() - began
            size = count * args.image_bytes / 1e9
            memory = (most - before) / 1e6
            print(
                f"{count:9,} {size:6.1f} GB {memory:6.0f} MB {first:10.1f} s {again:19.1f} s {speed:19.0f}", flush=True
            )
        finally:
            shutil.rmtree(place)


def write(folder: Path, count: int, size: int) -> list[str]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((224, 224))
    stored = io.BytesIO()
    photograph.save(stored, "jpeg")
    jpeg, files = stored.getvalue(), []
    for first in range(0, count, GROUP * GROUPS):
        images = [jpeg + os.urandom(size - len(jpeg)) for _ in range(first, min(count, first + GROUP * GROUPS))]
        files.append(str(folder / f"{first:09}.parquet"))
        table = pa.table({"image": [{"bytes": image, "path": None} for image in images]})
        pq.write_table(table, files[-1], row_group_size=GROUP, compression="none", use_dictionary=False)
    return files


def processes() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def own_memory() -> int:
    """Bytes of all processes. A page that a worker shares with the process that started it counts once."""
    total = 0
    for process in processes():
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon"))
    return total


def processor_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes())


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
