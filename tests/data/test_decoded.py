import multiprocessing
import os
import resource
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mmssl.data.atomic import OURS
from mmssl.data.images import decoded, decoding
from mmssl.data.images.decoded import Decoded
from mmssl.errors import BadInput

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_images(folder: Path, n: int = 6) -> datasets.Dataset:
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{i}.png") for i in range(n)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


def arrays(home: Path) -> list[Path]:
    return sorted((home / "decoded").glob("*/pixels.npy"))


def test_pixels_are_those_of_the_processor_in_the_order_of_the_rows(tmp_path):
    data = write_images(tmp_path / "a")
    expected = np.stack([decoding.decode(image, PROCESSOR) for image in data["image"]])
    assert torch.equal(Decoded(data, "image", PROCESSOR).pixels, torch.from_numpy(expected))


def test_workers_decode_as_one_process_does(tmp_path, home, monkeypatch):
    data = write_images(tmp_path / "a", 150)
    alone = Decoded(data, "image", PROCESSOR).pixels.clone()
    shutil.rmtree(home)
    monkeypatch.setattr(decoded, "ALONE", 100)
    assert torch.equal(Decoded(data, "image", PROCESSOR).pixels, alone)


def test_decoding_draws_no_random_numbers(tmp_path):
    data, before = write_images(tmp_path / "a"), torch.get_rng_state()
    Decoded(data, "image", PROCESSOR)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_run_decodes_nothing(tmp_path, home):
    data = write_images(tmp_path / "a")
    Decoded(data, "image", PROCESSOR)
    (array,) = arrays(home)
    marked = np.load(array, mmap_mode="r+")
    marked[0] = 7  # would not survive a second decoding
    marked.flush()
    assert (Decoded(data, "image", PROCESSOR).pixels[0] == 7).all() and arrays(home) == [array]


def test_two_processes_at_once_decode_once(tmp_path, home, monkeypatch):
    data, count = write_images(tmp_path / "a", 100), tmp_path / "count"
    decode = decoding.decode

    def counted(image, processor):
        with open(count, "a") as f:
            f.write(".")
        return decode(image, processor)

    monkeypatch.setattr(decoding, "decode", counted)
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=Decoded, args=(data, "image", PROCESSOR)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and len(arrays(home)) == 1
    probes = 2 * 2  # each finds out the shape with two images of its own
    assert len(count.read_text()) == 100 + probes


def test_pixels_lie_on_disk_and_not_in_memory(tmp_path, home):
    pixels = Decoded(write_images(tmp_path / "a"), "image", PROCESSOR).pixels
    (array,) = arrays(home)
    assert str(array) in Path("/proc/self/maps").read_text()
    assert pixels.data_ptr() % 16 == 0 and pixels.dtype == torch.uint8


def test_a_file_that_changes_is_decoded_again(tmp_path):
    data = write_images(tmp_path / "a")
    before = Decoded(data, "image", PROCESSOR).pixels.clone()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a" / "2.png")
    after = Decoded(data, "image", PROCESSOR).pixels
    assert (after[2, 0] == 255).all() and torch.equal(before[[0, 1, 3, 4, 5]], after[[0, 1, 3, 4, 5]])


def test_a_file_that_was_missing_is_found_once_it_is_there(tmp_path):
    data = write_images(tmp_path / "a")
    (tmp_path / "a" / "2.png").rename(tmp_path / "away.png")
    assert list(Decoded(data, "image", PROCESSOR).broken) == [2]
    (tmp_path / "away.png").rename(tmp_path / "a" / "2.png")
    assert Decoded(data, "image", PROCESSOR).broken == {}


def test_other_rows_and_another_processor_are_other_arrays(tmp_path, home):
    data = write_images(tmp_path / "a")
    Decoded(data, "image", PROCESSOR)
    assert len(Decoded(data.select([3, 1]), "image", PROCESSOR).pixels) == 2
    assert Decoded(data, "image", ViTImageProcessorPil(size={"height": 8, "width": 8})).pixels.shape == (6, 3, 8, 8)
    assert len(arrays(home)) == 3


def test_what_a_killed_run_left_is_not_taken_for_the_whole(tmp_path, home):
    data = write_images(tmp_path / "a")
    whole = Decoded(data, "image", PROCESSOR).pixels.clone()
    (array,) = arrays(home)
    array.parent.rename(f"{array.parent}.mmssl-partial")
    Path(f"{array.parent}.mmssl-partial", OURS).touch()
    np.load(f"{array.parent}.mmssl-partial/pixels.npy", mmap_mode="r+")[:] = 0
    assert torch.equal(Decoded(data, "image", PROCESSOR).pixels, whole)
    assert [p.name for p in (home / "decoded").iterdir() if p.is_dir()] == [array.parent.name]


def test_broken_filesare_named_and_black(tmp_path):
    data = write_images(tmp_path / "a")
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:200])  # cut off
    rows = [*data.cast_column("image", datasets.Image(decode=False))["image"], None]
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    found = Decoded(data, "image", PROCESSOR)
    assert list(found.broken) == [1, 2, 6] and (found.pixels[[1, 2, 6]] == 0).all()
    assert "1.png" in found.broken[1] and "UnidentifiedImageError" in found.broken[1] and found.broken[6] == "no image"


def test_a_column_that_holds_no_filesis_refused():
    with pytest.raises(BadInput, match="--image_column label holds .*int64.*, not images or paths"):
        Decoded(datasets.Dataset.from_dict({"label": [1, 2]}), "label", PROCESSOR)


def test_an_array_that_does_not_fit_on_the_disk_is_refused_before_it_is_begun(tmp_path, home):
    huge = ViTImageProcessorPil(size={"height": 2_000, "width": 2_000})
    data = write_images(tmp_path / "a", 1)
    rows = shutil.disk_usage(tmp_path).free // (3 * 2_000 * 2_000) + 1_000
    with pytest.raises(BadInput, match="--streaming"):
        Decoded(data.select(np.zeros(rows, dtype=np.int64)), "image", huge)
    assert not arrays(home) and not list((home / "decoded").glob("*partial"))


@pytest.mark.parametrize("harm", ["cut short", "gone", "of another shape", "no list of the broken"])
def test_a_damaged_array_is_named_with_the_remedy(tmp_path, home, harm):
    data = write_images(tmp_path / "a")
    Decoded(data, "image", PROCESSOR)
    (array,) = arrays(home)
    if harm == "cut short":
        array.write_bytes(array.read_bytes()[:-100])
    elif harm == "gone":
        array.unlink()
    elif harm == "of another shape":
        np.save(array, np.zeros((2, 3, 16, 16), np.uint8))
    else:
        (array.parent / "rows.json").write_text("[")
    with pytest.raises(BadInput, match=f"{array.parent} is damaged .*: remove that folder, and it is made again"):
        Decoded(data, "image", PROCESSOR)


def test_a_disk_that_fills_while_decoding_is_said_and_leaves_nothing(tmp_path, home):
    data, limits = write_images(tmp_path / "a"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(BadInput, match="could not be written .*MB are free"):
            Decoded(data, "image", PROCESSOR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (home / "decoded").iterdir() if path.is_dir()]


def test_a_path_that_leads_to_no_regular_file_is_left_out_and_does_not_hang(tmp_path):
    write_images(tmp_path / "a", 2)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    paths = [tmp_path / "a" / "0.png", tmp_path / "a" / "pipe.png", "/dev/zero", tmp_path / "a"]
    rows = [{"path": str(path), "bytes": None} for path in paths]
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    found = Decoded(data, "image", PROCESSOR).broken
    assert found == {
        1: f"{paths[1]} is a named pipe, not a regular file",
        2: "/dev/zero is a device, not a regular file",
        3: f"{paths[3]} is a folder, not a regular file",
    }


def test_images_of_one_colour_and_of_more_than_8_bits_are_counted_in_every_run(tmp_path, caplog):
    data = write_images(tmp_path / "a", 6)
    Image.new("RGB", (20, 30), "blue").save(tmp_path / "a" / "1.png")
    Image.new("L", (20, 30), 9).save(tmp_path / "a" / "4.png")
    Image.fromarray(np.random.RandomState(0).randint(0, 65536, (30, 20), np.uint16)).save(tmp_path / "a" / "2.png")
    for _ in range(2):
        caplog.clear()
        Decoded(data, "image", PROCESSOR, "held-out images")
        assert "2 of 6 held-out images are one colour (row 1; row 4)" in caplog.text
        assert "1 of 6 held-out images were scaled to 8 bits: 16-bit values / 257 (row 2)" in caplog.text
