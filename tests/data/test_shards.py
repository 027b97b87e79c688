"""Images in Parquet and tar files, also with captions, read where they lie: what an epoch shows, in what order, what is
read for it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi
from PIL import Image
from processes import Processes
from small import arguments
from transformers import ViTImageProcessorPil

from mmssl.data import parquet, shards, tar, windows
from mmssl.data.image_text import pairs
from mmssl.data.images import on_demand, pictures
from mmssl.data.images.numbered import Numbered
from mmssl.data.joined import Joined
from mmssl.data.loader import Loader
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.training.start import start

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})
FORMATS = ("parquet", "tar")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(windows, "WINDOW", 3000)  # bytes: a few blocks
    monkeypatch.setattr(tar, "RUN", 5)
    return tmp_path / "home"


def png(value: int, size: int = 8) -> bytes:
    """An image of one colour that no other value has."""
    found = io.BytesIO()
    Image.new("RGB", (size, size), (value % 251, value // 251, 0)).save(found, "png")
    return found.getvalue()


def write(folder: Path, kind: str, images: list[bytes], files: int = 3) -> Path:
    """As Parquet files in row groups of 5, or as tar files with a text beside each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, chosen in enumerate(np.array_split(np.arange(len(images)), files)):
        if kind == "parquet":
            rows = {"image": [{"bytes": images[i], "path": None} for i in chosen], "label": chosen % 2}
            pq.write_table(pa.table(rows), folder / f"train-{number}.parquet", row_group_size=5)
            continue
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for i in chosen:
                for name, content in ((f"{i:06}.PNG", images[i]), (f"{i:06}.txt", b"a text")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def flags(dataset: Path | str, **given) -> pictures.PictureArgs:
    args = pictures.PictureArgs(dataset=str(dataset), **{"streaming": True, "held_out": 5} | given)
    args.seed, args.dataloader_num_workers = 0, 0
    return args


def streamed(dataset: Path | str, **given) -> tuple[pictures.Pictures, pictures.Pictures]:
    args = flags(dataset, **given)
    return pictures.find(args).decoded(PROCESSOR, args)


def values(pixels: torch.Tensor) -> list[int]:
    """Which image each is."""
    colour = pixels[:, :, 0, 0].long()
    return (colour[:, 0] + 251 * colour[:, 1]).tolist()


def batches(loader: Loader, epoch: int = 0, from_batch: int = 0) -> list[dict[str, list]]:
    return [{name: value.tolist() for name, value in batch.items()} for batch in loader.epoch(epoch, from_batch)]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_epoch_shows_each_training_image_once_and_no_held_out_one(kind, tmp_path):
    train, held_out = streamed(write(tmp_path / "data", kind, [png(i) for i in range(100)]))
    assert (len(train), len(held_out)) == (95, 5)
    held = values(held_out.pixels[held_out.rows])
    for epoch in (0, 1):
        shown = [i for batch in Loader(train, 5).epoch(epoch) for i in values(batch["pixel_values"])]
        assert sorted(shown + held) == list(range(100)) and shown != sorted(shown)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_is_named_by_its_row_and_its_key_is_that_of_the_row(kind, tmp_path):
    data = write(tmp_path / "data", kind, [png(i) for i in range(60)])
    train, _ = streamed(data)
    train.set_epoch(3)
    batch = train.__getitems__([7, 30, 2])
    assert values(batch["pixel_values"]) == batch["index"].tolist()
    assert torch.equal(batch["key"], pictures.draws.draw(batch["index"], 0, 3))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", FORMATS)
def test_batches_from_a_position_on_are_those_of_the_whole_epoch(kind, workers, tmp_path):
    train, _ = streamed(write(tmp_path / "data", kind, [png(i) for i in range(100)]))
    whole = batches(Loader(train, 4), epoch=2)
    loader = Loader(train, 4, num_workers=workers)
    assert len(whole) == 23
    for position in (0, 1, 9, 22):
        assert batches(loader, 2, position) == whole[position:]


def test_epochs_and_seeds_have_other_orders(tmp_path):
    train, _ = streamed(write(tmp_path / "data", "parquet", [png(i) for i in range(100)]))
    orders = {tuple(train.order(seed)[0:95].tolist()) for seed in range(20)}
    assert len(orders) == 20 and all(sorted(order) == list(range(95)) for order in orders)


class Counted(parquet.Parquet):
    groups = 0

    def _group(self, block: int):
        self.groups += 1
        return super()._group(block)


def test_a_resume_of_pairs_reads_only_what_is_left_of_the_epoch(tmp_path):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(600)], "text": [f"number {i}" for i in range(600)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=5)
    reader = Counted([str(tmp_path / "a.parquet")], ["image", "text"])
    pixels = pairs.Captioned(reader, len(reader), PROCESSOR, "pairs")
    data = pairs.StreamedInBlocks(pixels, shards.Rows.of(reader), tiny_clip.tokenizer(), 20)
    whole = list(Loader(data, 10).epoch(1))
    assert reader.groups == 120  # each block of the epoch is read once
    again, loader = Counted([str(tmp_path / "a.parquet")], ["image", "text"]), Loader(data, 10)
    pixels.reader = again
    resumed = list(loader.epoch(1, start=54))
    for a, b in zip(resumed, whole[54:], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert 12 <= again.groups < 40  # a tenth of the rows, and the rest of their window


def test_captions_of_tar_files_are_texts_or_in_json_members(tmp_path):
    for name, members in {
        "a": {"1.PNG": png(1), "1.txt": b"of 1", "2.png": png(2), "2.txt": b"of 2", "3.webp": png(3),
              "3.png": png(4), "4.txt": b"none"},
        "b": {"1.png": png(1), "1.json": b'{"caption": "of 1"}', "2.png": png(2), "2.json": b'{"caption": "of 2"}',
              "3.png": png(3), "3.json": b"no json"},
    }.items():  # fmt: skip
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key, content in members.items():
                member = tarfile.TarInfo(f"folder/{key}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        found = pairs.find(str(tmp_path / f"{name}.tar"), None, None, held_out=1, streaming=True)
        rows = found.train.read(range(3))
        image, caption = found.columns
        assert [row[caption] for row in rows] == ["of 1", "of 2", None]
        assert [row[image]["bytes"] for row in rows] == [png(1), png(2), png(3)]


def test_a_resume_reads_only_what_is_left_of_the_epoch(tmp_path):
    folder = write(tmp_path / "data", "parquet", [png(i) for i in range(600)])
    reader = Counted([str(file) for file in sorted(folder.iterdir())], ["image"])
    blocks = len(reader.size)
    pixels = on_demand.OnDemand(reader, len(reader), PROCESSOR, "images")
    loader = Loader(pictures.Streamed(pixels, shards.Rows.of(reader)), 10)
    list(loader.epoch(0))
    assert blocks == 120 and reader.groups == blocks  # each block of the epoch is read once
    reader.groups = 0
    assert len(list(loader.epoch(1, start=54))) == 6
    assert 12 <= reader.groups < 40  # a tenth of the rows, and the rest of their window


def order(blocks: int, of_block: int = 10, size: int = 100) -> shards.Order:
    count = np.full(blocks, of_block)
    return shards.Rows(np.arange(blocks) * of_block, count, np.full(blocks, size)).order(3)


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 8])
def test_each_process_reads_blocks_of_its_own(parts):
    found = order(blocks=200)  # 30 blocks in memory
    read, all_rows = [set() for _ in range(parts)], []
    for first in range(0, len(found), 40):
        places = slice(first, first + 40)
        shares = [found.share(places, part, parts) for part in range(parts)]
        assert torch.equal(torch.cat(shares).sort().values, found[places].sort().values)
        all_rows += torch.cat(shares).tolist()
        for blocks, share in zip(read, shares, strict=True):
            blocks.update((share // 10).tolist())
    assert found.lanes == 8 and sorted(all_rows) == list(range(2000))
    of_two = parts - 1 if 8 % parts else 0  # lanes that two processes read
    assert sum(map(len, read)) < 200 + 8 + of_two * (200 / 8 + 1)  # 8: a block in which a lane ends is read twice


def test_each_row_comes_once_whatever_the_blocks_hold():
    rng = np.random.default_rng(0)
    for trial in range(100):
        count = rng.integers(0, 9, rng.integers(1, 30)) * rng.integers(0, 2, 1)
        size = rng.integers(1, 900, len(count))
        found = shards.Rows(count.cumsum() - count, count, size).order(trial)
        parts, n = int(rng.integers(1, 5)), int(count.sum())
        step = 3 * parts
        shares = [
            found.share(slice(first, first + step), part, parts)
            for first in range(0, n - n % step, step)
            for part in range(parts)
        ]
        rest = found[n - n % step : n]
        assert sorted(torch.cat([*shares, rest]).tolist()) == list(range(n)), trial


def test_rows_of_many_blocks_are_mixed_and_no_more_are_read_at_a_time_than_memory_holds():
    found = order(blocks=600)
    reads, held = [], windows.Held(lambda block: reads.append(block), np.full(600, 100))
    for first in range(0, len(found), 30):
        blocks = (found[first : first + 30] // 10).unique().tolist()
        assert len(blocks) >= found.lanes
        for block in blocks:
            held[block]
    assert len(reads) <= 600 + found.lanes


def test_blocks_that_are_larger_than_memory_are_mixed_one_by_one():
    found = order(blocks=20, size=5000)
    assert found.lanes == 1 and [len(set((found[i : i + 10] // 10).tolist())) for i in range(0, 200, 10)] == [1] * 20


def read(place: Path, folders: dict[str, Path]) -> None:
    start(arguments(place))
    windows.WINDOW, tar.RUN, found = 3000, 5, {}
    for kind, folder in folders.items():
        args = flags(folder)
        train, _ = pictures.find(args).decoded(PROCESSOR, args)
        found[kind] = batches(Loader(train, 2, num_workers=1), from_batch=3)
    (place / f"{rank()}.json").write_text(json.dumps(found))


def test_two_processes_see_what_one_sees(tmp_path):
    folders = {kind: write(tmp_path / kind, kind, [png(i) for i in range(60)]) for kind in FORMATS}
    Processes(read, tmp_path, folders, log=tmp_path / "log.txt", world=2).succeed(timeout=60)
    parts = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    for kind, folder in folders.items():
        train, _ = streamed(folder)
        joined = [{name: a[name] + b[name] for name in a} for a, b in zip(*(p[kind] for p in parts), strict=True)]
        assert joined == batches(Loader(train, 4), from_batch=3)


def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 500_000)
    rng = np.random.default_rng(0)
    peaks = {}
    for count in (200, 2000):
        noise = [rng.bytes(10_000) for _ in range(count)]
        folder = write(tmp_path / str(count), "parquet", noise)
        reader = parquet.Parquet([str(file) for file in sorted(folder.iterdir())], ["image"])
        order, before = shards.Rows.of(reader), pa.total_allocated_bytes()
        peak = 0
        for first in range(0, count, 20):
            reader.read(order[order.order(0)[first : first + 20]].tolist())
            peak = max(peak, pa.total_allocated_bytes() - before)
        peaks[count] = peak
    assert peaks[2000] < 1.2 * peaks[200] < 1_000_000  # of 20 MB


def test_an_image_equal_to_a_held_out_one_is_not_trained_on(tmp_path):
    train, held_out = streamed(write(tmp_path / "data", "parquet", [png(i % 30) for i in range(60)]))
    held = set(values(held_out.pixels[held_out.rows]))
    shown = [i for batch in Loader(train, 5).epoch(0) for i in values(batch["pixel_values"])]
    assert len(shown) == 55 and held and not held & set(shown)


def test_the_test_data_of_the_source_is_held_out_up_to_the_flag(tmp_path):
    data = write(tmp_path / "data", "parquet", [png(i) for i in range(50)])
    write(tmp_path / "test", "parquet", [png(i) for i in range(1000, 1020)], files=1)
    (tmp_path / "test" / "train-0.parquet").rename(data / "test-0.parquet")
    train, held_out = streamed(data, held_out=8)
    assert (len(train), len(held_out)) == (50, 8)
    assert all(value >= 1000 for value in values(held_out.pixels[held_out.rows]))


def test_sorted_data_is_held_out_evenly():
    rows = shards.Rows(np.arange(100) * 10, np.full(100, 10), np.ones(100, dtype=int))
    rest, held_out = rows.split(40)
    assert (len(rest), len(held_out)) == (960, 40) and len(held_out.first) >= 13
    assert sorted(torch.cat([rest[:], held_out[:]]).tolist()) == list(range(1000))
    assert len(rows.split(1000)[0]) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_corrupt_image_is_named_and_its_neighbour_comes_in_its_place(kind, tmp_path, caplog):
    images = [png(i) for i in range(60)]
    images[20] = b"broken"
    train, _ = streamed(write(tmp_path / "data", kind, images, files=1), held_out=1)
    batch = Loader(train, 59, shuffle=False).epoch(0)
    assert sorted(values(next(batch)["pixel_values"])).count(21) == 2
    assert caplog.text.count("row 20: ") == 1
    train.set_epoch(1)
    assert "1 of 60 images could not be used, so far" in caplog.text


def test_many_corrupt_images_end_the_run_in_one_sentence_also_from_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(on_demand, "MANY", 20)
    images = [png(i) if i % 4 else b"broken" for i in range(100)]
    folder = write(tmp_path / "data", "parquet", images)
    reader = parquet.Parquet([str(file) for file in sorted(folder.iterdir())], ["image"])
    train = pictures.Streamed(on_demand.OnDemand(reader, 100, PROCESSOR, "images"), shards.Rows.of(reader))
    with pytest.raises(BadInput, match="images cannot be used, row .*: too many to leave out") as raised:
        list(Loader(train, 5, num_workers=1).epoch(0))
    assert "Traceback" not in str(raised.value)
    assert not multiprocessing.active_children()  # the process would wait for it at its exit


def test_methods_that_choose_their_own_order_refuse_a_stream(tmp_path):
    train, _ = streamed(write(tmp_path / "data", "parquet", [png(i) for i in range(30)]))
    for wrapped in (lambda: Numbered(train), lambda: Joined({"a": train})):
        with pytest.raises(BadInput, match="--streaming: this method needs its training images in any order"):
            wrapped()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"photo": ["a.png"] * 30}, "holds string, not images: leave --streaming out"),
        ({"words": ["a"] * 30}, "no image column among words"),
    ],
)
def test_files_without_images_are_refused(columns, said, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=said):
        streamed(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.parquet", "a.tar"])
def test_a_file_that_is_cut_off_is_named(name, tmp_path):
    folder = write(tmp_path / "data", name[2:], [png(i) for i in range(30)], files=2)
    last = sorted(folder.iterdir())[-1]
    last.write_bytes(last.read_bytes()[: 700 if name[2:] == "tar" else -40])
    with pytest.raises(BadInput, match=last.name):
        streamed(folder)


def test_a_folder_of_files_is_read_where_it_lies(tmp_path, home):
    for i in range(40):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i:02}.png").write_bytes(png(i))
    train, held_out = streamed(tmp_path / "data")
    assert isinstance(train, pictures.Undecoded) and (len(train), len(held_out)) == (36, 4)
    assert len(list((home / "decoded").glob("*/pixels.npy"))) == 1  # those held out
    batch = train.__getitems__(list(range(36)))
    assert sorted(values(batch["pixel_values"]) + values(held_out.pixels[held_out.rows])) == list(range(40))


SHOW = """
import test_shards as here
here.windows.WINDOW = 600
train, held_out = here.streamed("user/colours", image_cache=1e-5)  # 10 kB: some blocks
shown = [i for batch in here.Loader(train, 5, num_workers=1).epoch(0) for i in here.values(batch["pixel_values"])]
print(sorted(shown + here.values(held_out.pixels[held_out.rows])))
"""


def test_blocks_of_the_hub_are_fetched_once_and_the_oldest_make_room(tmp_path, home):
    write(tmp_path / "data", "parquet", [png(i) for i in range(100)])
    with Hub() as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        api.create_repo("user/colours", repo_type="dataset", private=True)
        api.upload_folder(folder_path=tmp_path / "data", repo_id="user/colours", repo_type="dataset")
        place = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), *sys.path])
        environment = os.environ | hub.environment(tmp_path / "hub") | {"PYTHONPATH": place}
        done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == list(range(100))
    kept = list((home / "fetched").glob("*/block.parquet"))
    assert kept and sum(file.stat().st_size for file in kept) < 15_000
