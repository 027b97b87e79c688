import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from mmssl.data.images.views import EMOJI, SIMCLR, View, Views
from mmssl.kernels.views_torch import tensor_form

kernel = pytest.importorskip("mmssl.kernels.views")

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]
MODULE = Path(__file__)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def both(view: View, pixels: torch.Tensor, key: torch.Tensor, smallest_radius: int = 1) -> list[torch.Tensor]:
    """The compiled pass and the tensor form, on the same draws; in shares of the full range of pixels."""
    module = Views([view], MEAN, STD)
    parameters = module.parameters_of(key, *pixels.shape[2:])[0]
    size = view.shape(*pixels.shape[2:])
    radius = max(smallest_radius, min(size) // 20) if view.blur else 0  # small images too are blurred here
    arguments = parameters, size, view.moves, radius, module.mean, module.std
    return [form(pixels, *arguments) * module.std.view(3, 1, 1) for form in (kernel.cpu_pass, tensor_form)]


def random_view(rng: np.random.Generator, most: int) -> View:
    size = tuple(int(side) for side in rng.integers(1, most, 2)) if rng.random() < 0.8 else None
    colours = {name: float(rng.choice([0.0, 0.4, 1.0])) for name in ("brightness", "contrast", "saturation", "grey")}
    rest = {name: float(rng.choice([0.0, 0.5])) for name in ("hue", "blur", "solarise", "lightness")}
    if rng.random() < 0.3:
        return replace(EMOJI, size=size, **colours, **rest)
    scale = (0.01, 1.0) if rng.random() < 0.8 else None
    return View(size=size, scale=scale, ratio=(0.2, 5.0), sigma=(0.1, 3.0), **colours, **rest)


def compare_random_views(seed: int, trials: int, most: int = 40) -> None:
    rng = np.random.default_rng(seed)
    for trial in range(trials):
        view, shape = random_view(rng, most), (int(rng.integers(1, 5)), 3, *map(int, rng.integers(1, most, 2)))
        out, expected = both(view, noise(*shape, seed=trial), torch.arange(shape[0]) + 100 * trial)
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0, msg=lambda m, of=(view, shape): f"{of}: {m}")


def test_the_pass_equals_the_tensor_form_on_random_views_and_sizes():
    compare_random_views(seed=0, trials=150)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 1, 50), (2, 3, 50, 1), (1, 3, 2, 2), (1, 3, 200, 160)])
@pytest.mark.parametrize("size", [None, (1, 1), (3, 40), (40, 3), (64, 64)])
def test_extreme_sizes_agree(shape, size):
    for view in (replace(SIMCLR, size=size, blur=1.0, solarise=1.0), replace(EMOJI, size=size)):
        torch.testing.assert_close(*both(view, noise(*shape), torch.arange(shape[0])), atol=1e-4, rtol=0)


def test_a_view_too_small_for_its_blur_is_not_blurred():
    blurred, expected = both(replace(SIMCLR, size=8, blur=1.0), noise(4, 3, 24, 30), torch.arange(4), smallest_radius=0)
    torch.testing.assert_close(blurred, expected, atol=1e-4, rtol=0)
    assert torch.equal(blurred, both(replace(SIMCLR, size=8), noise(4, 3, 24, 30), torch.arange(4))[0])


def test_any_memory_layout_is_read_and_none_is_written(tmp_path):
    pixels, key = noise(4, 3, 24, 30), torch.arange(4)
    expected, _ = both(SIMCLR, pixels, key)
    np.save(tmp_path / "pixels.npy", pixels)
    on_disk = np.load(tmp_path / "pixels.npy", mmap_mode="r")  # writing to it would end the process
    with pytest.warns(UserWarning, match="not writable"):
        mapped = torch.from_numpy(on_disk)
    wide = noise(8, 3, 48, 60, seed=1)
    wide[::2, :, ::2, ::2] = pixels
    layouts = [mapped, pixels.to(memory_format=torch.channels_last), wide[::2, :, ::2, ::2], pixels.flip(3).flip(3)]
    for layout in layouts:
        assert torch.equal(both(SIMCLR, layout, key)[0], expected)
    assert torch.equal(pixels, noise(4, 3, 24, 30))


def test_an_empty_batch_gives_empty_views():
    assert both(SIMCLR, noise(0, 3, 8, 8), torch.arange(0))[0].shape == (0, 3, 8, 8)


def threaded() -> torch.Tensor:
    torch.set_num_threads(2)
    return Views([SIMCLR], MEAN, STD)(noise(8, 3, 96, 96), torch.arange(8))[0]


def _send_threaded(pipe) -> None:
    pipe.send(threaded().numpy())


def test_a_forked_process_makes_views_in_threads_of_its_own():
    threads = torch.get_num_threads()
    try:
        expected = threaded()  # now this process has threads, and the fork does not
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_send_threaded, args=(there,))
        child.start()
        assert here.poll(60)
        assert np.array_equal(here.recv(), expected.numpy())
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


def python(code: str, cache: Path, **environment: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(MODULE.parent), str(MODULE.parents[1]), str(MODULE.parents[2])])
    environment = (
        os.environ | {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"} | environment
    )
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_that_compile_at_once_never_leave_the_bounds_of_an_array(tmp_path):
    code = "import test_views_kernel as t; t.compare_random_views({}, 200, 30)"
    # a cache of their own: numba does not tell code with bounds checks from code without
    both = [python(code.format(seed), tmp_path, NUMBA_BOUNDSCHECK="1") for seed in (1, 2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert list(tmp_path.rglob("*.nbi"))


def test_without_a_place_for_compiled_code_it_is_compiled_in_memory():
    names = {}
    exec(compile("def double(x): return 2 * x", "/nowhere/at_all.py", "exec"), names)
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(names["double"])
    assert kernel._on_disk(names["double"])(21) == 42
